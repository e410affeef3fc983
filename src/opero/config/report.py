"""Collects what is wrong, everywhere, and says all of it at once."""

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
"""Characters of a line that are shown."""
PASSWORD = re.compile(r"(?<=://)(?P<value>[^\s@'\"]+)(?=@)")
MOST_SHOWN = 10_000
"""Numbers below it are settings, from it on they may be secrets."""
WORDS = "secret|passw|token|credential|api_?key"
SECRET_WORD = re.compile(rf"(?i){WORDS}")
_NAME = rf"(?:[\w-]*(?:{WORDS})[\w-]*|(?<![\w-])(?:{'|'.join(sorted(hidden_keys()))}))"
_BETWEEN = r"[\"']?[\s:=#&*!|>;]+"
SECRET_KEY = re.compile(rf"(?i){_NAME}{_BETWEEN}(?P<value>[^\s,}}\]][^,}}\]]*)")
"""What follows a secret's name in a line of a file, whether or not that is well written."""
QUOTED = re.compile(r"(?<!\w)(['\"])(?P<text>(?:\\.|(?!\1).)*)\1")
SECRET_IN_QUOTES = re.compile(rf"(?i)(?<![\w.])({_NAME}{_BETWEEN})[^\s].*")
"""The same in what a message quotes; not in a path such as "app.tokens:get"."""
HARMLESS = re.compile(r"[+-]?\d{1,4}(\.\d{1,4})?(%|ms|s|m|h|d|/(s|m|h|d))?")
FIRST_KEY = re.compile(r"[\s{,]*(\"[^\"]*\"|'[^']*'|[\w.-]+)\s*:(?=\s|$)\s*")
_Span = tuple[int, int, int, int]
"""Line and column where it begins and ends, from 0."""


def without_passwords(text: str) -> str:
    """Text in which users and passwords of URLs are masked: `redis://***@host`."""
    return PASSWORD.sub(MASK, text)


def _without_secrets(text: str) -> str:
    """A message in which what it quotes shows nothing that follows a secret's name: 'secret:***'."""
    return QUOTED.sub(lambda found: SECRET_IN_QUOTES.sub(rf"\g<1>{MASK}", found["text"]).join(found[1] * 2), text)


@dataclass(slots=True)
class _Found:
    """A problem, and what of the configuration is wrong by it → the line into which an alias brings it."""

    source: Source
    text: str
    uses: dict[str, int | None]

    def told(self) -> str:
        (_, into), *more = self.uses.items()
        hint = f" (used through an alias at line {into})" if into is not None else ""
        if more:
            others = [about if line is None else f"{about} at line {line}" for about, line in more]
            hint = f" (through aliases also {', '.join(others)})"
        return self.text + hint


class Report:
    """The problems found so far: of each its place, what is wrong, and the cure.

    Args:
        earlier: the report of the same files; this one shows their lines, too.

    Attributes:
        texts: file → its text, to show lines of it.
    """

    def __init__(self, earlier: Report | None = None) -> None:
        self.texts: dict[str, str] = {} if earlier is None else earlier.texts
        self._found: dict[tuple[str, int, int, str], _Found] = {}
        self._hidden: list[Marked] = [] if earlier is None else earlier._hidden
        self._hidden_lines: set[tuple[str, int]] = set() if earlier is None else earlier._hidden_lines

    def add(self, source: Source, text: str, about: str = "", into: int | None = None) -> None:
        """Note a problem; the same one twice counts once.

        Args:
            source: where it is.
            text: what is wrong.
            about: what of the configuration is wrong, as the text calls it: one value may be wrong in several parts
                of it, by aliases.
            into: the line into which an alias brings the value.
        """
        said = _without_secrets(without_passwords(" ".join(text.split())))
        place = source.name, source.line or 0, source.column or 0
        key = *place, said.replace(about, "", 1) if about else said
        self._found.setdefault(key, _Found(source, said, {})).uses[about] = into

    def hide(self, value: Marked) -> None:
        """Show nothing of a value that is secret, in whatever line it stands."""
        self._hidden.append(value)

    def hide_texts(self, value: Marked) -> None:
        """Show no text and no long number of a value that may be secret, such as that of an unknown key."""
        for each in value.walk():
            is_plain = each.value is None or isinstance(each.value, bool | float | dict | list)
            if not is_plain and not (isinstance(each.value, int) and abs(each.value) < MOST_SHOWN):
                self._hidden.append(each)

    def hide_key(self, value: Marked) -> None:
        """Show nothing of the key of a value: it may be a secret that slipped into its place."""
        self._hidden.append(Marked(None, value.key, None, value.file))

    def hide_line(self, file: str, line: int) -> None:
        """Show of a line, counted from 1, no more than its first key, the format's own words, and short numbers:
        whatever else it holds may belong to a secret."""
        self._hidden_lines.add((file, line))

    @property
    def problems(self) -> list[Problem]:
        """Every problem, by place."""
        hidden = self._spans() if self._found else {}
        return [self._problem(found.source, found.told(), hidden) for _, found in sorted(self._found.items())]

    @property
    def lines(self) -> list[str]:
        """Every problem in a line of its own."""
        return [f"{each.place}: {each.text}" for each in self.problems]

    def raise_if_any(self) -> None:
        """
        Raises:
            ConfigError: there are problems; it tells all of them.
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
        """Where in each file something stands that must not be shown."""
        spans: dict[str, list[_Span]] = {}
        for value in self._hidden:
            for each in value.walk():
                if each.file and not isinstance(each.value, dict | list):
                    spans.setdefault(each.file, []).append(span(each.at))
                if each.stands_alone():
                    spans.setdefault(each.file, []).append(span(each.key))
        for file, line in self._hidden_lines:
            written = "".join(self.texts.get(file, "").splitlines()[line - 1 : line])
            key = FIRST_KEY.match(written)
            for found in re.compile(r"[^\s{}\[\],:'\"]+").finditer(written, key.end() if key else 0):
                if found[0].lower() not in known_words() and not HARMLESS.fullmatch(found[0]):
                    spans.setdefault(file, []).append((line - 1, found.start(), line - 1, found.end()))
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
