"""The items of a map: read one by one from JSON lines, CSV, or lines of text; from a file or from stdin."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from opero.cli.exits import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMATS", "Items"]

FORMATS = ("jsonl", "csv", "lines")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


class Items(Iterable[Any]):
    """The items of a file, read as they are asked for. Lines of nothing but spaces are no items.

    Args:
        path: the file; "-" for stdin.
        form: "jsonl", "csv" or "lines". Default: what the file's name says, else lines.

    Raises:
        UsageError: the format is unknown, or the file cannot be read.
    """

    def __init__(self, path: str, form: str | None) -> None:
        self.path = path
        self.is_stdin = path == "-"
        self.name = "stdin" if self.is_stdin else path
        self.form = form or self._form()
        if self.form not in FORMATS:
            raise UsageError(f"--format {self.form!r} is not known; it is one of {', '.join(FORMATS)}")
        if not self.is_stdin:
            self._open().close()

    def _form(self) -> str:
        suffix = "" if self.is_stdin else Path(self.path).suffix.lower()
        if suffix == ".json":
            raise UsageError(
                f"{self.path}: a JSON document is not read item by item; write one value a line (jq -c '.[]' "
                f"{self.path} > items.jsonl), or say --format jsonl if that is what it is"
            )
        return SUFFIXES.get(suffix, "lines")

    def _open(self) -> IO[bytes]:
        try:
            return sys.stdin.buffer if self.is_stdin else open(self.path, "rb")  # closed by its reader
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}; name a file of items, or - for stdin") from error

    def count(self) -> int | None:
        """How many there are, where a look through the lines of a file tells."""
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
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise self._wrong(number, "is not UTF-8; save it as UTF-8") from error
            yield number, text.removesuffix("\n").removesuffix("\r")

    def _json(self, file: IO[bytes]) -> Iterator[Any]:
        for number, text in self._lines(file):
            if not text.strip():
                continue
            try:
                yield json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._wrong(number, f"is not JSON: {error}; write one value a line") from error

    def _rows(self, file: IO[bytes]) -> Iterator[dict[str, str]]:
        rows = csv.reader(f"{text}\n" for _, text in self._lines(file))
        names: list[str] | None = None
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise self._wrong(rows.line_num, f"is not CSV: {error}") from error
            if row is None:
                return
            if not row:
                continue
            if names is None:
                names = row
                if len(set(names)) < len(names):
                    raise self._wrong(rows.line_num, "names a column twice; the first line names each column once")
                continue
            if len(row) != len(names):
                raise self._wrong(rows.line_num, f"has {len(row)} fields, and the first line names {len(names)}")
            yield dict(zip(names, row, strict=True))

    def _wrong(self, line: int, what: str) -> UsageError:
        return UsageError(f"{self.name}:{line}: {what}; nothing after it was read")


class Counted(Iterable[Any]):
    """Items of a known number, for a progress bar that tells when it is done."""

    def __init__(self, items: Iterable[Any], count: int) -> None:
        self._items = items
        self._count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return self._count


def keyed(items: Iterable[Any], field: str, keep: Callable[[int, Any], None]) -> Iterator[Any]:
    """The items, and on the way what each has in that field."""
    for index, item in enumerate(items):
        if not isinstance(item, dict) or field not in item:
            has = f"its fields are {', '.join(map(str, item))}" if isinstance(item, dict) else "it has no fields"
            raise UsageError(f"item {index} has no {field!r}, which --key asks for; {has}")
        keep(index, item[field])
        yield item
