"""Collects all problems of a configuration, to report them together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from opero.config.fields import hidden_keys, known_words
from opero.config.sources import Marked, Source, span
from opero.dataclass import dataclass
from opero.errors import ConfigError, Problem, one_line, readable
from opero.patterns import pattern
from opero.problems import LONGEST_TEXT, MASK, passwords_in

WIDEST = 110
"""The maximum number of characters of a line to show."""
MOST_PROBLEMS = 100
"""The most problems that are listed; more are counted."""
MOST_USES = 10
"""The most parts of a configuration that a problem names as affected."""
MOST_SHOWN = 10_000
"""Smaller numbers are settings; larger ones may be secrets."""
WORDS = "secret|passw|token|credential|api_?key"
SECRET_WORD = pattern(rf"(?i){WORDS}")
_WORD = pattern(r"[\w-]+")
_BETWEEN = pattern(r"[\"']?[\s:=#&*!|>;]++")
_VALUE = pattern(r"[^\s,}\]][^,}\]]*+")
QUOTED = pattern(r"(?<!\w)(?:'((?:\\.|[^\\'])*+)'|\"((?:\\.|[^\\\"])*+)\")", re.DOTALL)
HARMLESS = pattern(r"[+-]?\d{1,4}(\.\d{1,4})?(%|ms|s|m|h|d|/(s|m|h|d))?")
FIRST_KEY = pattern(r"[\s{,]*(\"[^\"]*\"|'[^']*'|[\w.-]+)\s*:(?=\s|$)\s*")
_Span = tuple[int, int, int, int]
"""Start line and column, end line and column, from 0."""


def _secrets_in(text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield where the name of a secret starts in a text, and where the value after it starts and ends. The text may be
    valid YAML or not."""
    for word in _WORD.finditer(text, start):
        if word.start() < start or not (SECRET_WORD.search(word[0]) or word[0].lower() in hidden_keys()):
            continue
        between = _BETWEEN.match(text, word.end())
        value = between and _VALUE.match(text, between.end())
        if value:
            yield word.start(), *value.span()
            start = value.end()


def _without_secrets(text: str) -> str:
    """Mask what follows the name of a secret within quotes in a message, 'secret:***', except in a path such as
    "app.tokens:get"."""
    return QUOTED.sub(lambda found: _masked(found[0][1:-1]).join(found[0][0] * 2), text)


def _masked(text: str) -> str:
    for name, value, _ in _secrets_in(text):
        if name == 0 or text[name - 1] != ".":
            return text[:value] + MASK
    return text


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
            others = [about if line is None else f"{about} at line {line}" for about, line in more[:MOST_USES]]
            others += [f"{len(more) - MOST_USES} more"] if len(more) > MOST_USES else []
            hint = f" (through aliases also {', '.join(others)})"
        return self.text + hint


class Report:
    """The problems found so far, each with its place, what is wrong, and how to fix it.

    Args:
        earlier: a report of the same files, whose lines this one can show.

    Attributes:
        texts: file → its text, to show lines from it.
        ignored: variables that start with OPERO_ and name no option, and why they are ignored.
    """

    def __init__(self, earlier: Report | None = None) -> None:
        self.texts: dict[str, str] = {} if earlier is None else earlier.texts
        self.ignored: list[tuple[Source, str]] = []
        self._found: dict[tuple[str, int, int, str], _Found] = {}
        self._left_out: Source | None = None
        self._more = 0
        self._lines: dict[str, list[str]] = {}
        self._hidden: list[Marked] = [] if earlier is None else earlier._hidden
        self._hidden_lines: set[tuple[str, int]] = set() if earlier is None else earlier._hidden_lines

    def add(self, source: Source, text: str, about: str = "", into: int | None = None) -> None:
        """Add a problem; duplicates are ignored, and after the first 100 they are only counted.

        Args:
            source: the place.
            text: what is wrong.
            about: the affected part of the configuration, as named in the text: through aliases, one value may affect
                several parts.
            into: the line of the alias that refers to the value.
        """
        if self.is_full:
            self._more += 1
            self._left_out = self._left_out or source
            return
        masked = readable(_without_secrets(one_line(text[: 10 * LONGEST_TEXT])))
        place = source.name, source.line or 0, source.column or 0
        key = *place, masked.replace(about, "", 1) if about else masked
        self._found.setdefault(key, _Found(source, masked, {})).uses[about] = into

    def ignore(self, source: Source, text: str) -> None:
        """Note a variable that has no effect. After the first 100, they are left out."""
        if len(self.ignored) < MOST_PROBLEMS:
            self.ignored.append((source, text))

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
    def is_full(self) -> bool:
        """Whether further problems are only counted, so that what takes time to explain need not be explained."""
        return len(self._found) >= MOST_PROBLEMS

    @property
    def problems(self) -> list[Problem]:
        """The first 100 problems, sorted by place, and one that says how many there are more."""
        hidden = self._spans() if self._found else {}
        listed = [self._problem(found.source, found.message(), hidden) for _, found in sorted(self._found.items())]
        if self._left_out is not None:
            place = Source(self._left_out.name)
            listed.append(Problem(str(place), f"there may be {self._more} more problems; mend these first"))
        return listed

    @property
    def lines(self) -> list[str]:
        """All problems, one line each."""
        return [f"{each.place}: {each.text}" for each in self.problems]

    def raise_if_any(self, *, entries: Iterable[str] = ()) -> None:
        """Raise an error if there are problems.

        Args:
            entries: the entries of `functions:` in the configuration.

        Raises:
            ConfigError: lists all problems.
        """
        if self._found:
            error = ConfigError.of(self.problems)
            error._entries = tuple(entries)
            raise error

    def _lines_of(self, file: str) -> list[str]:
        lines = self._lines.get(file)
        if lines is None:
            lines = self._lines[file] = self.texts.get(file, "").splitlines()
        return lines

    def _problem(self, source: Source, text: str, hidden: Mapping[tuple[str, int], Collection[_Span]]) -> Problem:
        if source.line is None:
            return Problem(str(source), text)
        column = source.column or 1
        lines = self._lines_of(source.name)
        written = lines[source.line - 1] if source.line <= len(lines) else ""
        spans = hidden.get((source.name, source.line), ())
        snippet, caret, width = _shown(written, source.line, column, source.width, spans)
        return Problem(str(source), text, source.name, source.line, column, snippet, caret, width)

    def _spans(self) -> dict[tuple[str, int], set[_Span]]:
        """Return, for each line with a problem, the spans that must not be shown."""
        shown = {(found.source.name, found.source.line) for found in self._found.values() if found.source.line}
        spans: dict[tuple[str, int], set[_Span]] = {each: set() for each in shown}

        def hide(file: str, at: _Span) -> None:
            for line in range(at[0] + 1, at[2] + 2):
                if (file, line) in spans:
                    spans[file, line].add(at)

        secrets: set[tuple[str, int]] = set()  # aliases hide the same place many times
        for value in self._hidden:
            for each in value.walk():
                if each.file and not isinstance(each.value, dict | list):
                    secrets.add((each.file, each.at))
                if each.is_bare_key():
                    secrets.add((each.file, each.key))
        for file, at in secrets:
            hide(file, span(at))
        for file, line in self._hidden_lines & shown:
            written = "".join(self._lines_of(file)[line - 1 : line])
            key = FIRST_KEY.match(written)
            for found in re.compile(r"[^\s{}\[\],:'\"]+").finditer(written, key.end() if key else 0):
                if found[0].lower() not in known_words() and not HARMLESS.fullmatch(found[0]):
                    hide(file, (line - 1, found.start(), line - 1, found.end()))
        return spans


def _shown(line: str, number: int, column: int, width: int, hidden: Iterable[_Span]) -> tuple[str, int, int]:
    """Return a line with its secrets masked, and the position and width of the caret in it."""
    masked = [
        (first if start == number - 1 else 0, last if end == number - 1 else len(line))
        for start, first, end, last in hidden
        if start <= number - 1 <= end
    ]
    masked += [*passwords_in(line), *((start, end) for _, start, end in _secrets_in(line))]
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
