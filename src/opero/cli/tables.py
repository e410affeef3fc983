"""Results of a map as CSV: a row for each item, with a column for each field of the first result."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

MOST_HELD = 1000
"""The most failures that are held until the first result says what the columns are."""


class Table:
    """Makes the rows of results. The first result decides the columns: its fields, if it is an object, else `result`.

    Args:
        delimiter: what separates cells.
        has_keys: whether there is a column for the key of each item.

    Attributes:
        held: the lines that wait for the first result.
    """

    def __init__(self, delimiter: str, *, has_keys: bool) -> None:
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        self._has_keys = has_keys
        self._fields: list[str] | None = None
        self._spreads = False
        self.held: list[dict[str, Any]] = []

    def rows(self, lines: list[dict[str, Any]]) -> str:
        """Return the text of some lines, with the header before the first."""
        for line in lines:
            if self._fields is None:
                self.held.append(line)
                if "result" not in line and len(self.held) < MOST_HELD:
                    continue
                self._begin(line.get("result"))
            else:
                self._writer.writerow(self._cells(line))
        return self._taken()

    def rest(self) -> str:
        """Return the text of what is held."""
        if self._fields is None:
            self._begin(None)
        return self._taken()

    def _begin(self, result: Any) -> None:
        """Write the header, and the rows before the first result."""
        self._spreads = isinstance(result, dict) and bool(result)
        self._fields = list(result) if self._spreads else ["result"]
        first = ["index", *(["key"] if self._has_keys else [])]
        more = ["more"] if self._spreads else []
        self._writer.writerow([*first, *self._fields, *more, "error", "message"])
        for line in self.held:
            self._writer.writerow(self._cells(line))
        self.held = []

    def _taken(self) -> str:
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text

    def _cells(self, line: dict[str, Any]) -> Iterator[str]:
        assert self._fields is not None
        yield str(line["index"])
        if self._has_keys:
            yield _cell(line.get("key"))
        result, error = line.get("result"), line.get("error")
        if self._spreads:
            found = result if isinstance(result, dict) else {}
            yield from (_cell(found.get(field)) for field in self._fields)
            others = {name: value for name, value in found.items() if name not in self._fields}
            yield _cell(result if result is not None and not isinstance(result, dict) else others or None)
        else:
            yield _cell(result)
        while error is not None and "cause" in error:  # what the function raised
            error = error["cause"]
        yield "" if error is None else error["type"]
        yield "" if error is None else error["message"]


def _cell(value: Any) -> str:
    """Return a value as the text of a cell: text as it is, nothing for null, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
