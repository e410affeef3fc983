"""Provenance: values marked with their source, from the file or variable to the effective policy.

Parsing stores each position as one number; a `Source` is made of it on demand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from opero.dataclass import dataclass
from opero.policies.base import masked
from opero.policies.merging import Replacing
from opero.policies.quantities import without_password


@dataclass(frozen=True, slots=True)
class Source:
    """The place where a value is set.

    Attributes:
        name: the file (relative to the working directory if it is below), the environment variable, "code" for a policy
            passed to a registry, or "default".
        line, column: where in the file, counted from 1; None for a variable and for a default.
        by: what sets it there: "@opero" for a decorator, the variable for a line of a `.env` file, else "".
        width: its number of characters there.
    """

    name: str
    line: int | None = None
    column: int | None = None
    by: str = ""
    width: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.name, self.line, self.column) if part is not None)
        return f"{place} ({self.by})" if self.by else place


DEFAULT = Source("default")
"""The source of the defaults of the policy models."""
CODE = Source("code")
"""The source of policies passed to a registry."""


BITS = 32
"""The bits of each number in a position, enough for the lines and columns of any file."""
LOW = (1 << BITS) - 1


def position(event: Any) -> int:
    """Pack the start and end of a parser event into one number. Keeping the events, many small objects, would spend a
    third of the loading time in the garbage collector."""
    start, end = event.start_mark, event.end_mark
    return int((((start.line << BITS) | start.column) << BITS | end.line) << BITS | end.column)


def span(at: int) -> tuple[int, int, int, int]:
    """Return the start line and column and end line and column of a position, from 0."""
    return at >> 3 * BITS, at >> 2 * BITS & LOW, at >> BITS & LOW, at & LOW


def source_of(at: int, file: str) -> Source:
    """Return the source for a position in a file."""
    line, column, end_line, end_column = span(at)
    width = end_column - column if end_line == line else 1
    return Source(file, line + 1, column + 1, width=max(1, width))


class _Broken:
    def __repr__(self) -> str:
        return "BROKEN"


BROKEN = _Broken()
"""Replaces a value that could not be parsed and has been reported."""


class Marked:
    """Plain data, each part with its place.

    Attributes:
        value: a scalar, a list of `Marked`, a dict of `Marked` by name, or `BROKEN`.
        at: its place: a `Source`, or a `position` in a file.
        key: the place of its key; None in a list and at the top level.
        file: the file of the positions.
    """

    # One for each value of each file, so it is kept small.
    __slots__ = ("at", "file", "key", "value")

    def __init__(self, value: Any, at: Any, key: Any = None, file: str = "") -> None:
        self.value = value
        self.at = at
        self.key = key
        self.file = file

    @property
    def source(self) -> Source:
        """The place of the value."""
        return self.at if type(self.at) is Source else source_of(self.at, self.file)

    @property
    def place(self) -> Source:
        """The place of its key, if it has one, else of the value."""
        if self.key is None:
            return self.source
        return self.key if type(self.key) is Source else source_of(self.key, self.file)

    def is_bare_key(self) -> bool:
        """Return whether it belongs to a key without a colon and value: `{ttl: 5, alone}`."""
        is_in_file = type(self.at) is int and type(self.key) is int
        return is_in_file and self.value is None and span(self.at)[:2] == span(self.key)[2:]

    def under(self, key: Any) -> Marked:
        """Return the same value with another key."""
        return Marked(self.value, self.at, key, self.file)

    def plain(self) -> Any:
        """Return the data without marks."""
        value = self.value
        kind = type(value)
        if kind is dict:
            return {name: each.plain() for name, each in value.items()}
        if kind is list:
            return [each.plain() for each in value]
        return value

    def is_whole(self) -> bool:
        """Return whether all of it could be parsed."""
        return all(each.value is not BROKEN for each in self.walk())

    def walk(self) -> Iterator[Marked]:
        """Yield this and everything within."""
        yield self
        inner = self.value.values() if isinstance(self.value, dict) else self.value
        for each in inner if isinstance(self.value, dict | list) else ():
            yield from each.walk()

    def __repr__(self) -> str:
        return f"Marked({type(self.value).__name__}, {self.source!s})"  # the value may be secret


def mark(value: Any, source: Source) -> Marked:
    """Mark all parts of plain data with one source."""
    if type(value) is dict:
        return Marked({name: mark(each, source) for name, each in value.items()}, source)
    if type(value) is list:
        return Marked([mark(each, source) for each in value], source)
    return Marked(value, source)


def _shown(value: Any) -> Any:
    """Return a value as a repr shows it: only the keys of mappings, and URLs without passwords."""
    if isinstance(value, Mapping):
        return masked(value)
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return without_password(value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, repr=False)
class Leaf:
    """The value of one field, its source, and what it shadows.

    Attributes:
        value: as it was written ("30m", not 1800.0); None if it was removed; a `SecretStr` for a secret.
        source: the place where it is set.
        section: the section that contains it: "defaults", "policies.api", "functions.app:get"; "" for a default and
            for code.
        removed: whether it was removed, by `null` or by a policy object that replaces the policy.
        shadowed: the value that would be effective without this one; None for the lowest.
    """

    value: Any
    source: Source
    section: str = ""
    removed: bool = False
    shadowed: Leaf | None = None

    def __repr__(self) -> str:
        text = "removed" if self.removed else repr(_shown(self.value))
        return f"Leaf({text}, {self.source!s}{f', over {self.shadowed!r}' if self.shadowed is not None else ''})"

    def chain(self) -> Iterator[Leaf]:
        """Yield this value, then each that it shadows, down to the default of the model."""
        leaf: Leaf | None = self
        while leaf is not None:
            yield leaf
            leaf = leaf.shadowed


@dataclass(slots=True, eq=False, repr=False)
class Statement:
    """What one section of one layer says about one policy.

    Attributes:
        whole: the value as it was parsed; its place is that of the key.
        section: the section that contains it: "defaults", "policies.<name>", "functions.<name>".
        content: the fields with marked values, or None to remove the policy (see `opero.policies.merging`).
        flawed: part of it could not be parsed, so missing fields are not reported.
        is_bare: without these fields the policy would not exist: a short form, variables, or flat options.
    """

    whole: Marked
    section: str
    content: dict[str, Marked] | None
    flawed: bool = False
    is_bare: bool = False

    @property
    def fields(self) -> Mapping[str, Marked]:
        """The content; empty if it removes the policy."""
        return {} if self.content is None else self.content

    @property
    def removed(self) -> bool:
        """Whether it removes the policy."""
        return self.content is None

    @property
    def discards(self) -> bool:
        """Whether it discards what the statements below it say."""
        return self.content is None or isinstance(self.content, Replacing)

    def into(self, part: Marked) -> int | None:
        """Return the line of the policy if an alias or merge key brings this part from above; else None."""
        here, there = self.whole.place, part.place
        if here.line is None or there.line is None or here.name != there.name:
            return None
        return here.line if (there.line, there.column or 0) < (here.line, here.column or 0) else None

    @property
    def source(self) -> Source:
        """The place of the key of the policy; of the value, for `null`."""
        return self.whole.source if self.removed else self.whole.place


@dataclass(slots=True, eq=False, repr=False)
class Section:
    """The part of one layer about one profile, about all profiles (`defaults`), or about functions.

    Attributes:
        name: "defaults", "policies.<name>" or "functions.<name>"; "" for a decorator's own options.
        place: the place of the section.
        statements: kind of policy → the statement about it.
        parent: the name of the profile to start from (`extends` of a profile, `policy` of a function); its value is
            None for none.
        flawed: part of it could not be parsed, so missing parts are not reported.
        enabled: whether all policies take effect; None if it does not say.
    """

    name: str
    place: Marked
    statements: Mapping[str, Statement] = field(default_factory=dict)
    parent: Marked | None = None
    flawed: bool = False
    enabled: Marked | None = None

    @property
    def source(self) -> Source:
        return self.place.place


@dataclass(frozen=True, slots=True, repr=False)
class ConfigLayer:
    """The contents of one file, of a set of variables, or of an override.

    Attributes:
        name: of the file, or "environment variables", ".env", and so on.
        defaults: the section for all profiles.
        profiles: name → its section.
        functions: name or glob → its section.
        import_from: the modules that names may be imported from; None if not set.
        alerts: name of an alert → a mapping of its fields; null removes the alert.
        extends: the environment whose file this one lies over; None if not set.
        imports: function that `opero run` binds → the name of its profile; null binds it no more.
    """

    name: str
    defaults: Section | None = None
    profiles: Mapping[str, Section] = field(default_factory=dict)
    functions: Mapping[str, Section] = field(default_factory=dict)
    import_from: Marked | None = None
    alerts: Mapping[str, Marked] = field(default_factory=dict)
    extends: Marked | None = None
    imports: Mapping[str, Marked] = field(default_factory=dict)

    def __repr__(self) -> str:
        # pydantic-settings logs the results of sources; values may be secret, so only names are shown.
        return f"ConfigLayer({self.name!r}, profiles={sorted(self.profiles)}, functions={sorted(self.functions)})"
