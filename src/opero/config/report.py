"""Collects all problems of a configuration, to report them together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opero.config.fields import hidden_keys, known_words
from opero.config.sources import Marked, span
from opero.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opero.config.sources import Source

__all__ = ["Report", "without_passwords"]

MASK = "***"
WIDEST = 110
"""The maximum number of characters of a line to show."""
PASSWORD = re.compile(r"(?<=://)(?P<value>[^\s@'\"]+)(?=@)")
MOST_SHOWN = 10_000
"""Smaller numbers are settings; larger ones may be secrets."""
WORDS = "secret|passw|token|credential|api_?key"
SECRET_WORD = re.compile(rf"(?i){WORDS}")
_NAME = rf"(?:[\w-]*(?:{WORDS})[\w-]*|(?<![\w-])(?:{'|'.join(sorted(hidden_keys()))}))"
_BETWEEN = r"[\"']?[\s:=#&*!|>;]+"
SECRET_KEY = re.compile(rf"(?i){_NAME}{_BETWEEN}(?P<value>[^\s,}}\]][^,}}\]]*)")
"""The value after the name of a secret in a line of a file, valid YAML or not."""
QUOTED = re.compile(r"(?<!\w)(['\"])(?P<text>(?:\\.|(?!\1).)*)\1")
SECRET_IN_QUOTES = re.compile(rf"(?i)(?<![\w.])({_NAME}{_BETWEEN})[^\s].*")
"""The same within quotes in a message, except in a path such as "app.tokens:get"."""
HARMLESS = re.compile(r"[+-]?\d{1,4}(\.\d{1,4})?(%|ms|s|m|h|d|/(s|m|h|d))?")
FIRST_KEY = re.compile(r"[\s{,]*(\"[^\"]*\"|'[^']*'|[\w.-]+)\s*:(?=\s|$)\s*")
_Span = tuple[int, int, int, int]
"""Start line and column, end line and column, from 0."""


def without_passwords(text: str) -> str:
    """Mask the users and passwords of URLs: `redis://***@host`."""
    return PASSWORD.sub(MASK, text)


def _without_secrets(text: str) -> str:
    """Mask what follows the name of a secret within quotes in a message: 'secret:***'."""
    return QUOTED.sub(lambda found: SECRET_IN_QUOTES.sub(rf"\g<1>{MASK}", found["text"]).join(found[1] * 2), text)


@dataclass(slots=True)
class _Found:
    """A problem, with the parts of the configuration that it affects → the line of an alias that refers to it."""

    source: Source
    text: str
    uses: dict[str, int | None]

    def message(self) -> str:
        (_, into), *more = self.uses.items()
        hint = f" (used through an alias at line {into})" if into is not None else ""
        if more:
            others = [about if line is None else f"{about} at line {line}" for about, line in more]
            hint = f" (through aliases also {', '.join(others)})"
        return self.text + hint


class Report:
    """The problems found so far, each with its place, what is wrong, and how to fix it.

    Args:
        earlier: a report of the same files, whose lines this one can show.

    Attributes:
        texts: file → its text, to show lines from it.
    """

    def __init__(self, earlier: Report | None = None) -> None:
        self.texts: dict[str, str] = {} if earlier is None else earlier.texts
        self._found: dict[tuple[str, int, int, str], _Found] = {}
        self._hidden: list[Marked] = [] if earlier is None else earlier._hidden
        self._hidden_lines: set[tuple[str, int]] = set() if earlier is None else earlier._hidden_lines

    def add(self, source: Source, text: str, about: str = "", into: int | None = None) -> None:
        """Add a problem; duplicates are ignored.

        Args:
            source: the place.
            text: what is wrong.
            about: the affected part of the configuration, as named in the text: through aliases, one value may affect
                several parts.
            into: the line of the alias that refers to the value.
        """
        masked = _without_secrets(without_passwords(" ".join(text.split())))
        place = source.name, source.line or 0, source.column or 0
        key = *place, masked.replace(about, "", 1) if about else masked
        self._found.setdefault(key, _Found(source, masked, {})).uses[about] = into

    def hide(self, value: Marked) -> None:
        """Mask a secret value in every line that is shown."""
        self._hidden.append(value)

    def hide_texts(self, value: Marked) -> None:
        """Mask text and long numbers in a value that may be secret, such as that of an unknown key."""
        for each in value.walk():
            is_plain = each.value is None or isinstance(each.value, bool | float | dict | list)
            if not is_plain and not (isinstance(each.value, int) and abs(each.value) < MOST_SHOWN):
                self._hidden.append(each)

    def hide_key(self, value: Marked) -> None:
        """Mask the key of a value, which may be a misplaced secret."""
        self._hidden.append(Marked(None, value.key, None, value.file))

    def hide_line(self, file: str, line: int) -> None:
        """Mask a line, counted from 1, except its first key, the words of the format, and short numbers: the rest may
        belong to a secret."""
        self._hidden_lines.add((file, line))

    @property
    def problems(self) -> list[Problem]:
        """All problems, sorted by place."""
        hidden = self._spans() if self._found else {}
        return [self._problem(found.source, found.message(), hidden) for _, found in sorted(self._found.items())]

    @property
    def lines(self) -> list[str]:
        """All problems, one line each."""
        return [f"{each.place}: {each.text}" for each in self.problems]

    def raise_if_any(self) -> None:
        """Raise an error if there are problems.

        Raises:
            ConfigError: lists all problems.
        """
        if self._found:
            raise ConfigError.of(self.problems)

    def _problem(self, source: Source, text: str, hidden: Mapping[str, Sequence[_Span]]) -> Problem:
        if source.line is None:
            return Problem(str(source), text)
        column = source.column or 1
        lines = self.texts.get(source.name, "").splitlines()
        written = lines[source.line - 1] if source.line <= len(lines) else ""
        snippet, caret, width = _shown(written, source.line, column, source.width, hidden.get(source.name, ()))
        return Problem(str(source), text, source.name, source.line, column, snippet, caret, width)

    def _spans(self) -> dict[str, list[_Span]]:
        """Return, for each file, the spans that must not be shown."""
        spans: dict[str, list[_Span]] = {}
        for value in self._hidden:
            for each in value.walk():
                if each.file and not isinstance(each.value, dict | list):
                    spans.setdefault(each.file, []).append(span(each.at))
                if each.is_bare_key():
                    spans.setdefault(each.file, []).append(span(each.key))
        for file, line in self._hidden_lines:
            written = "".join(self.texts.get(file, "").splitlines()[line - 1 : line])
            key = FIRST_KEY.match(written)
            for found in re.compile(r"[^\s{}\[\],:'\"]+").finditer(written, key.end() if key else 0):
                if found[0].lower() not in known_words() and not HARMLESS.fullmatch(found[0]):
                    spans.setdefault(file, []).append((line - 1, found.start(), line - 1, found.end()))
        return spans


def _shown(line: str, number: int, column: int, width: int, hidden: Sequence[_Span]) -> tuple[str, int, int]:
    """Return a line with its secrets masked, and the position and width of the caret in it."""
    masked = [
        (first if start == number - 1 else 0, last if end == number - 1 else len(line))
        for start, first, end, last in hidden
        if start <= number - 1 <= end
    ]
    masked += [found.span("value") for pattern in (PASSWORD, SECRET_KEY) for found in pattern.finditer(line)]
    at, parts, done, caret = column - 1, [], 0, column - 1
    until = at + width
    for start, end in sorted(masked):
        if end <= done or start >= end:
            continue
        start = max(start, done)  # noqa: PLW2901
        parts += [line[done:start], MASK]
        if at >= end:
            caret += len(MASK) - (end - start)
        elif at >= start:
            caret, width = caret - (at - start), len(MASK) + max(0, until - end)
        elif end <= until:
            width += len(MASK) - (end - start)
        done = end
    text = "".join([*parts, line[done:]]).expandtabs(1).rstrip()
    if len(text) > WIDEST:
        left = max(0, min(caret - WIDEST // 2, len(text) - WIDEST))
        text, caret = text[left : left + WIDEST], caret - left
    return text, caret + 1, max(1, min(width, len(text) - caret))
