"""Reads the items of a map one by one from a file or stdin, as JSON lines, CSV or lines of text."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from opero.cli.exits import InvalidItemError, UsageError
from opero.dataclass import dataclass
from opero.errors import message_of, shortened
from opero.parallel.engine.stage import PassingStage

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Block

FORMATS = ("jsonl", "csv", "lines")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}


def delimiter_of(path: str, given: str | None) -> str:
    """Return what separates the fields of a CSV file.

    Args:
        path: the path of the file.
        given: what the user has given. Default: a tab for `.tsv`, else a comma.

    Raises:
        UsageError: it is not one character.
    """
    if given is None:
        return "\t" if path.lower().endswith(".tsv") else ","
    found = DELIMITERS.get(given, given)
    if len(found) != 1 or found in '\r\n"':
        raise UsageError(f"--delimiter {given!r} is invalid: use one character, such as ';', or tab")
    return found


@dataclass(frozen=True, slots=True)
class InvalidItem:
    """Stands for a line that is not a valid item: it fails, and the others run.

    Attributes:
        error: what is wrong with it.
    """

    error: InvalidItemError


class Items(Iterable[Any]):
    """The items of a file, read lazily. Blank lines are skipped; what is not valid is an `InvalidItem`.

    Args:
        path: the path of the file; "-" for stdin.
        form: "jsonl", "csv" or "lines". Default: by the suffix of the file's name, else lines.
        delimiter: what separates the fields of CSV. Default: a tab for `.tsv`, else a comma.

    Attributes:
        line: the number of the line that was read last.

    Raises:
        UsageError: the format is unknown, or the file cannot be read.
    """

    def __init__(self, path: str, form: str | None, delimiter: str | None = None) -> None:
        self.path = path
        self.line = 0
        self.is_stdin = path == "-"
        self.name = "stdin" if self.is_stdin else path
        self.form = form or self._form()
        if self.form not in FORMATS:
            raise UsageError(f"--format {self.form!r} is invalid: use one of {', '.join(FORMATS)}")
        self.delimiter = delimiter_of(path, delimiter)
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

    def _texts(self, file: IO[bytes]) -> Iterator[Any]:
        for text in self._lines(file):
            if text.strip():
                yield self.invalid("invalid UTF-8") if _is_broken(text) else text

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        """Yield each line; bytes that are not UTF-8 are lone surrogates in it."""
        for number, line in enumerate(file, 1):
            self.line = number
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
            yield text.removesuffix("\n").removesuffix("\r")

    def _json(self, file: IO[bytes]) -> Iterator[Any]:
        for text in self._lines(file):
            if not text.strip():
                continue
            if _is_broken(text):
                yield self.invalid("invalid UTF-8")
                continue
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                found = self.invalid(f"invalid JSON, expected one value per line: {message_of(error)}")
            yield found

    def _rows(self, file: IO[bytes]) -> Iterator[Any]:
        rows = csv.reader((f"{text}\n" for text in self._lines(file)), delimiter=self.delimiter)
        names: Sequence[str] | None = None
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                if names is None:
                    raise self._unusable(f"invalid CSV: {message_of(error)}") from error
                yield self.invalid(f"invalid CSV: {message_of(error)}")
                continue
            if row is None:
                return
            if not row:
                continue
            if names is None:
                names = self._header(row)
            elif any(map(_is_broken, row)):
                yield self.invalid("invalid UTF-8")
            elif len(row) != len(names):
                yield self.invalid(f"{len(row)} fields, but the header has {len(names)}")
            else:
                yield dict(zip(names, row, strict=True))

    def _header(self, names: list[str]) -> list[str]:
        if any(map(_is_broken, names)):
            raise self._unusable("invalid UTF-8")
        if len(set(names)) < len(names):
            raise self._unusable("duplicate column name")
        return names

    def _unusable(self, reason: str) -> UsageError:
        return UsageError(f"{self.name}:{self.line}: {reason}; nothing was run")

    def invalid(self, reason: str) -> InvalidItem:
        """Return what stands for the last line."""
        return InvalidItem(InvalidItemError(f"{self.name}:{self.line}: {reason}"))


def _is_broken(text: str) -> bool:
    return not text.isascii() and any("\udc80" <= each <= "\udcff" for each in text)


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
    """Yield the items as the function's annotation says; one that is no such value is an `InvalidItem`."""
    for item in items:
        if isinstance(item, InvalidItem):
            yield item
            continue
        try:
            found = fit(item)
        except ValueError as error:
            found = items.invalid(message_of(error))
        yield found


def keyed(items: Iterable[Any], source: Items, field: str, keep: Callable[[int, Any], None]) -> Iterator[Any]:
    """Yield the items, and call `keep` with the index of each and the value of its field.

    Raises:
        UsageError: the first item has no such field, so that its name seems to be wrong.
    """
    has_kept = False
    for index, item in enumerate(items):
        if isinstance(item, InvalidItem):
            yield item
        elif isinstance(item, dict) and field in item:
            keep(index, item[field])
            has_kept = True
            yield item
        else:
            has = f"its fields are {', '.join(map(str, item))}" if isinstance(item, dict) else "it has no fields"
            if not has_kept:
                raise UsageError(f"item {index} has no field {field!r}, which --key requires; {has}")
            yield source.invalid(f"there is no field {field!r}, which --key requires; {shortened(has, 200)}")


class InvalidItems(PassingStage):
    """A stage of a map that answers each `InvalidItem` with its error, so that no worker receives it."""

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        missing = []
        for position in positions:
            item = block.items[position]
            if isinstance(item, InvalidItem):
                block.put(position, item.error, failed=True)
            else:
                missing.append(position)
        return missing
