"""Texts as log records show them: on one line, without what looks like a secret."""

from __future__ import annotations

from enum import Enum
from math import isfinite
from typing import Any

from opero import problems
from opero.problems import message_of

LONGEST, LONGEST_OF_ERROR = 10_000, 500
"""The most characters of a text, and of that of an exception."""


def readable(text: str, most: int = LONGEST) -> str:
    """Return a text as `opero.problems.readable` prepares it, which may be longer in a record than in a message."""
    return problems.readable(text, most)


class Shown:
    """An argument of a message, as it is shown."""

    __slots__ = ("_repr", "_text")

    def __init__(self, value: Any, hides: bool) -> None:
        if not isinstance(value, BaseException):
            self._text = readable(str(value))
            self._repr = repr(self._text)
        elif hides:
            self._text = self._repr = type(value).__name__
        else:
            self._text = message_of(value, LONGEST_OF_ERROR)
            self._repr = f"{type(value).__name__}({self._text!r})"

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._repr


def plain(value: Any) -> Any:
    """Return a value as JSON can represent it; texts on one line, without secrets."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return readable(str(value))
