"""Reads the items of a map one by one from a file or stdin, as JSON lines, CSV or lines of text."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from opero.cli.exits import UsageError
from opero.errors import message_of

FORMATS = ("jsonl", "csv", "lines")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


class Items(Iterable[Any]):
    """The items of a file, read lazily. Blank lines are skipped.

    Args:
        path: the path of the file; "-" for stdin.
        form: "jsonl", "csv" or "lines". Default: by the suffix of the file's name, else lines.

    Raises:
        UsageError: the format is unknown, or the file cannot be read.
    """

    def __init__(self, path: str, form: str | None) -> None:
        self.path = path
        self.line = 0
        self.is_stdin = path == "-"
        self.name = "stdin" if self.is_stdin else path
        self.form = form or self._form()
        if self.form not in FORMATS:
            raise UsageError(f"--format {self.form!r} is invalid: use one of {', '.join(FORMATS)}")
        if not self.is_stdin:
            self._open().close()

    def _form(self) -> str:
        suffix = "" if self.is_stdin else Path(self.path).suffix.lower()
        if suffix == ".json":
            raise UsageError(
                f"{self.path}: JSON documents are not supported: write one value per line (jq -c '.[]' {self.path} > "
                "items.jsonl), or use --format jsonl if the file has that format"
            )
        return SUFFIXES.get(suffix, "lines")

    def _open(self) -> IO[bytes]:
        try:
            return sys.stdin.buffer if self.is_stdin else open(self.path, "rb")  # closed by the caller
        except OSError as error:
            raise UsageError(
                f"{self.path}: {error.strerror or message_of(error)}; use a file of items, or - for stdin"
            ) from error

    def count(self) -> int | None:
        """Return the number of items, or None if it cannot be determined by counting lines."""
        if self.is_stdin or self.form == "csv" or not Path(self.path).is_file():
            return None
        with self._open() as file:
            return sum(not line.isspace() for line in file)

    def __iter__(self) -> Iterator[Any]:
        file = self._open()
        try:
            yield from {"jsonl": self._json, "csv": self._rows, "lines": self._texts}[self.form](file)
        finally:
            if not self.is_stdin:
                file.close()

    def _texts(self, file: IO[bytes]) -> Iterator[str]:
        for _, text in self._lines(file):
            if text.strip():
                yield text

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, str]]:
        for number, line in enumerate(file, 1):
            self.line = number
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise self._invalid(number, "invalid UTF-8") from error
            yield number, text.removesuffix("\n").removesuffix("\r")

    def _json(self, file: IO[bytes]) -> Iterator[Any]:
        for number, text in self._lines(file):
            if not text.strip():
                continue
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._invalid(
                    number, f"invalid JSON, expected one value per line: {message_of(error)}"
                ) from error

    def _rows(self, file: IO[bytes]) -> Iterator[dict[str, str]]:
        rows = csv.reader(f"{text}\n" for _, text in self._lines(file))
        names: list[str] | None = None
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise self._invalid(rows.line_num, f"invalid CSV: {message_of(error)}") from error
            if row is None:
                return
            if not row:
                continue
            if names is None:
                names = row
                if len(set(names)) < len(names):
                    raise self._invalid(rows.line_num, "duplicate column name")
                continue
            if len(row) != len(names):
                raise self._invalid(rows.line_num, f"{len(row)} fields, but the header has {len(names)}")
            yield dict(zip(names, row, strict=True))

    def _invalid(self, line: int, reason: str) -> UsageError:
        return UsageError(f"{self.name}:{line}: {reason}; later lines were not read")


class Counted(Iterable[Any]):
    """Items with a known number, so that a progress bar can show the remaining time."""

    def __init__(self, items: Iterable[Any], count: int) -> None:
        self._items = items
        self._count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return self._count


def fitted(items: Items, fit: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the items as the function's annotation says.

    Raises:
        UsageError: an item is no such value.
    """
    for item in items:
        try:
            found = fit(item)
        except ValueError as error:
            raise UsageError(f"{items.name}:{items.line}: {message_of(error)}; later lines were not read") from None
        yield found


def keyed(items: Iterable[Any], field: str, keep: Callable[[int, Any], None]) -> Iterator[Any]:
    """Yield the items, and call `keep` with the index of each and the value of its field."""
    for index, item in enumerate(items):
        if not isinstance(item, dict) or field not in item:
            fields = f"its fields are {', '.join(map(str, item))}" if isinstance(item, dict) else "it has no fields"
            raise UsageError(f"item {index} has no field {field!r}, which --key requires; {fields}")
        keep(index, item[field])
        yield item
