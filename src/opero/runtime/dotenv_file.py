"""Reads `.env` files: python-dotenv parses them; references between variables are replaced here, within bounds."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple

from opero.patterns import pattern
from opero.runtime.named_pipe import contents_of

if TYPE_CHECKING:
    from pathlib import Path

MOST_ADDED = 1 << 20
"""The most characters that the references of a file may add up to."""
WIDEST_GAP = 1000
"""The most spaces in a row, in whose number python-dotenv takes quadratic time."""
_SINGLE_QUOTED = pattern(r"\s*+(?:export\s++)?(?:'[^']++'|[^=#\s'\"]++)\s*+=\s*+'")
"""The beginning of a line whose value is in single quotes, in which `${NAME}` is only text, as in a shell."""
_GAP = pattern(rf"[^\S\r\n]{{{WIDEST_GAP}}}")


class Line(NamedTuple):
    """A variable of a `.env` file, or a line that cannot be parsed.

    Attributes:
        number: the number of the line where it begins, from 1.
        name: its name; "" if the line cannot be parsed.
        value: its value with references replaced; None if it has none.
        written: the line as it is written, for one that cannot be parsed.
        unknown: whether it refers to a variable that is not set.
        is_too_long: whether the references of the file add up to too much; then it has no value.
    """

    number: int
    name: str
    value: str | None = None
    written: str = ""
    unknown: bool = False
    is_too_long: bool = False


def lines_of(text: str, environ: Mapping[str, str]) -> Iterator[Line]:
    """Yield the variables of a `.env` file, in time linear in its length.

    Args:
        text: the text of the file.
        environ: the variables that it may refer to, besides its own earlier ones, which have precedence.

    Raises:
        ValueError: the text has too many spaces in a row.
    """
    from dotenv.parser import parse_stream

    if _GAP.search(text):
        raise ValueError(f"has {WIDEST_GAP:,} spaces in a row; remove them")
    values: dict[str, str] = {}
    known = ChainMap(values, environ)  # type: ignore[arg-type]  # only the first is written to
    left = MOST_ADDED
    for binding in parse_stream(StringIO(text)):
        written = binding.original.string.lstrip("\r\n")
        before = binding.original.string[: len(binding.original.string) - len(written)]
        number = binding.original.line + len(before.splitlines())
        # To the parser, the text before "=", or a whole line without it, is a name.
        if binding.error or not re.fullmatch(r"\w*", binding.key or ""):
            yield Line(number, "", written=written)
        elif binding.key is not None:
            value, unknown, added = binding.value, False, 0
            if not _SINGLE_QUOTED.match(written):
                value, unknown, added = substituted(value, known, left)
            left -= added
            is_too_long = left < 0
            value = None if is_too_long else value
            values[binding.key] = value or ""
            yield Line(number, binding.key, value, unknown=unknown, is_too_long=is_too_long)


def substituted(text: str | None, variables: Mapping[str, str], most: int) -> tuple[str | None, bool, int]:
    """Replace `${NAME}` and `${NAME:-default}` in a value.

    Returns:
        the value, whether a variable is not set, and how many characters the variables have added; as soon as these are
        more than `most`, the rest is left as it is.
    """
    if text is None or "${" not in text:
        return text, False, 0
    parts: list[str] = []
    unknown, added, done, start, end = False, 0, 0, text.find("${"), -1
    while start >= 0 and added <= most:
        if end < start:
            end = text.find("}", start)
            if end < 0:
                break
        name, colon, rest = text[start + 2 : end].partition(":")
        if colon and not rest.startswith("-"):  # no reference, but there may be one within
            start = text.find("${", start + 2)
            continue
        value = variables.get(name)
        unknown = unknown or (value is None and not colon)
        value = (rest[1:] if value is None else value) or ""
        parts += [text[done:start], value]
        added += len(value)
        done = end + 1
        start = text.find("${", done)
    return "".join([*parts, text[done:]]), unknown, added


def values_of(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return name → value of the variables of a `.env` file that have a value.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
        ValueError: it has too many spaces in a row.
    """
    lines = lines_of(contents_of(path).decode("utf-8-sig"), environ)
    return {each.name: each.value for each in lines if each.name and each.value is not None}
