"""Collects what is wrong, everywhere, and says all of it at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opero.config.sources import span
from opero.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opero.config.sources import Marked, Source

__all__ = ["Report", "without_passwords"]

MASK = "***"
WIDEST = 110
"""Characters of a line that are shown."""
PASSWORD = re.compile(r"(?<=://)[^\s/@:'\"]*:(?P<value>[^\s@'\"]+)(?=@)")
SECRET_KEY = re.compile(
    r"(?i)(?:secret|password|passwd|token|credential|api_?key)[\w-]*[\"']?\s*[:=]\s*(?P<value>[^\s,}\]#][^,}\]#]*)"
)
_Span = tuple[int, int, int, int]
"""Line and column where it begins and ends, from 0."""


def without_passwords(text: str) -> str:
    """Text in which the passwords of URLs are masked: `redis://user:***@host`."""
    return PASSWORD.sub(lambda found: found[0].removesuffix(found["value"]) + MASK, text)


class Report:
    """The problems found so far: of each its place, what is wrong, and the cure.

    Attributes:
        texts: file → its text, to show lines of it.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._problems: dict[tuple[str, int, int, str], Source] = {}
        self._hidden: list[Marked] = []

    def add(self, source: Source, text: str) -> None:
        """Note a problem; the same one twice counts once."""
        self._problems[source.name, source.line or 0, source.column or 0, without_passwords(" ".join(text.split()))] = (
            source
        )

    def hide(self, value: Marked) -> None:
        """Show nothing of a value that is, or may be, secret, in whatever line it stands."""
        self._hidden.append(value)

    @property
    def problems(self) -> list[Problem]:
        """Every problem, by place."""
        hidden = self._spans() if self._problems else {}
        return [
            self._problem(source, text, hidden) for (*_, text), source in sorted(self._problems.items(), key=_place)
        ]

    @property
    def lines(self) -> list[str]:
        """Every problem in a line of its own."""
        return [f"{each.place}: {each.text}" for each in self.problems]

    def raise_if_any(self) -> None:
        """
        Raises:
            ConfigError: there are problems; it tells all of them.
        """
        if self._problems:
            raise ConfigError.of(self.problems)

    def _problem(self, source: Source, text: str, hidden: Mapping[str, Sequence[_Span]]) -> Problem:
        text_of_file = self.texts.get(source.name)
        if source.line is None or text_of_file is None:
            return Problem(str(source), text)
        column = source.column or 1
        lines = text_of_file.splitlines()
        written = lines[source.line - 1] if source.line <= len(lines) else ""
        snippet, caret, width = _shown(written, source.line, column, source.width, hidden.get(source.name, ()))
        return Problem(str(source), text, source.name, source.line, column, snippet, caret, width)

    def _spans(self) -> dict[str, list[_Span]]:
        """Where in each file something stands that must not be shown."""
        spans: dict[str, list[_Span]] = {}
        for value in self._hidden:
            for each in value.walk():
                if each.file and not isinstance(each.value, dict | list):
                    spans.setdefault(each.file, []).append(span(each.at))
        return spans


def _shown(line: str, number: int, column: int, width: int, hidden: Sequence[_Span]) -> tuple[str, int, int]:
    """A line as it may be shown, and where in that the caret stands, and how wide it is."""
    masked = [
        (first if start == number - 1 else 0, last if end == number - 1 else len(line))
        for start, first, end, last in hidden
        if start <= number - 1 <= end
    ]
    masked += [found.span("value") for pattern in (PASSWORD, SECRET_KEY) for found in pattern.finditer(line)]
    at, parts, done, caret = column - 1, [], 0, column - 1
    for start, end in sorted(masked):
        if end <= done or start >= end:
            continue
        start = max(start, done)  # noqa: PLW2901
        parts += [line[done:start], MASK]
        if at >= end:
            caret += len(MASK) - (end - start)
        elif at >= start:
            caret, width = caret - (at - start), len(MASK)
        done = end
    text = "".join([*parts, line[done:]]).expandtabs(1).rstrip()
    if len(text) > WIDEST:
        left = max(0, min(caret - WIDEST // 2, len(text) - WIDEST))
        text, caret = text[left : left + WIDEST], caret - left
    return text, caret + 1, max(1, min(width, len(text) - caret))


def _place(problem: tuple[tuple[str, int, int, str], Source]) -> tuple[str, int, int, str]:
    return problem[0]
