"""Where values come from: a mark on each, kept from the file or variable to the effective policy.

Reading keeps positions, a number each; a `Source` is made of one only when somebody asks where a value stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opero.policies.base import masked
from opero.policies.merging import Replacing
from opero.policies.quantities import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BROKEN",
    "CODE",
    "DEFAULT",
    "Block",
    "Layer",
    "Leaf",
    "Marked",
    "Section",
    "Source",
    "mark",
    "position",
    "source_of",
    "span",
]


@dataclass(frozen=True, slots=True)
class Source:
    """The place that gave a value.

    Attributes:
        name: the file (relative to the working directory where it lies below), the environment variable, "code" for a
            policy that was handed to a registry, or "default".
        line, column: where in the file, counted from 1; None for a variable and for a default.
        by: what says it there: "@opero" for a decorator, the variable's name for a line of a `.env` file, else "".
        width: how many characters it takes there.
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
"""The source of what no one wrote down: the policy model's own default."""
CODE = Source("code")
"""The source of a policy that was handed to a registry."""


BITS = 32
"""Of a position's numbers. No file that is read has more lines or columns than they hold."""
LOW = (1 << BITS) - 1


def position(event: Any) -> int:
    """Where one of the parser's events begins and ends, in one number: the events themselves are many small objects,
    which would have the garbage collector at work for a third of the time."""
    start, end = event.start_mark, event.end_mark
    return int((((start.line << BITS) | start.column) << BITS | end.line) << BITS | end.column)


def span(at: int) -> tuple[int, int, int, int]:
    """A position's lines and columns, from 0: where it begins, and where it ends."""
    return at >> 3 * BITS, at >> 2 * BITS & LOW, at >> BITS & LOW, at & LOW


def source_of(at: int, file: str) -> Source:
    """The place in a file."""
    line, column, end_line, end_column = span(at)
    width = end_column - column if end_line == line else 1
    return Source(file, line + 1, column + 1, width=max(1, width))


class _Broken:
    def __repr__(self) -> str:
        return "BROKEN"


BROKEN = _Broken()
"""Stands for a value that could not be read, and has been reported."""


class Marked:
    """Plain data as it was read, every part of it with its place.

    Attributes:
        value: a scalar, a list of `Marked`, a dict of `Marked` by name, or `BROKEN`.
        at: where it stands: a `Source`, or its `position` in a file.
        key: where the key before it stands; None in a list and at the top.
        file: which file the positions are in.
    """

    # Made for each value of each file: it has no more than it must.
    __slots__ = ("at", "file", "key", "value")

    def __init__(self, value: Any, at: Any, key: Any = None, file: str = "") -> None:
        self.value = value
        self.at = at
        self.key = key
        self.file = file

    @property
    def source(self) -> Source:
        """Where the value stands."""
        return self.at if type(self.at) is Source else source_of(self.at, self.file)

    @property
    def place(self) -> Source:
        """Where its key stands, or else the value itself."""
        if self.key is None:
            return self.source
        return self.key if type(self.key) is Source else source_of(self.key, self.file)

    def stands_alone(self) -> bool:
        """Whether it is nothing at all after a key without a colon: `{ttl: 5, alone}`."""
        is_in_file = type(self.at) is int and type(self.key) is int
        return is_in_file and self.value is None and span(self.at)[:2] == span(self.key)[2:]

    def under(self, key: Any) -> Marked:
        """The same value under another key."""
        return Marked(self.value, self.at, key, self.file)

    def plain(self) -> Any:
        """The data without its marks."""
        value = self.value
        kind = type(value)
        if kind is dict:
            return {name: each.plain() for name, each in value.items()}
        if kind is list:
            return [each.plain() for each in value]
        return value

    def is_whole(self) -> bool:
        """Whether all of it could be read."""
        return all(each.value is not BROKEN for each in self.walk())

    def walk(self) -> Iterator[Marked]:
        """This, and everything within."""
        yield self
        inner = self.value.values() if isinstance(self.value, dict) else self.value
        for each in inner if isinstance(self.value, dict | list) else ():
            yield from each.walk()

    def __repr__(self) -> str:
        return f"Marked({type(self.value).__name__}, {self.source!s})"  # the value may be secret


def mark(value: Any, source: Source) -> Marked:
    """Plain data, every part of it with that one place."""
    if type(value) is dict:
        return Marked({name: mark(each, source) for name, each in value.items()}, source)
    if type(value) is list:
        return Marked([mark(each, source) for each in value], source)
    return Marked(value, source)


def _shown(value: Any) -> Any:
    """A value as representations show it: of mappings the keys alone, and no passwords of URLs."""
    if isinstance(value, Mapping):
        return masked(value)
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return without_password(value) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, repr=False)
class Leaf:
    """One field's value, where it came from, and what it shadows.

    Attributes:
        value: as it was written ("30m", not 1800.0); None where a `null` removed it; a `SecretStr` for a secret.
        source: the place that gave it.
        section: the part of the configuration that it stands in: "defaults", "policies.api", "functions.app:get"; ""
            for a default and for code.
        removed: whether a `null` took it away.
        shadowed: the value that would hold without this one, with its own source and shadow; None at the bottom.
    """

    value: Any
    source: Source
    section: str = ""
    removed: bool = False
    shadowed: Leaf | None = None

    def __repr__(self) -> str:
        said = "removed" if self.removed else repr(_shown(self.value))
        return f"Leaf({said}, {self.source!s}{f', over {self.shadowed!r}' if self.shadowed is not None else ''})"

    def chain(self) -> Iterator[Leaf]:
        """This value, then each that it shadows, down to the model's default."""
        leaf: Leaf | None = self
        while leaf is not None:
            yield leaf
            leaf = leaf.shadowed


class Block:
    """What one section of one layer says about one policy.

    Attributes:
        whole: the policy's value as it was read; its place is that of the policy's key.
        section: what it stands in: "defaults", "policies.<name>", "functions.<name>".
        said: the statement (see `opero.policies.merging`), with marked values.
        fields: its fields; none for `cache: {}`, which asks for the defaults, and for a `null`.
        flawed: part of it could not be read, so what is missing may be no second mistake.
        is_bare: it is not there without its fields: a short form, variables, or flat options.
    """

    __slots__ = ("fields", "flawed", "is_bare", "said", "section", "whole")

    def __init__(
        self,
        whole: Marked,
        section: str,
        said: dict[str, Marked] | None,
        *,
        flawed: bool = False,
        is_bare: bool = False,
    ) -> None:
        self.whole = whole
        self.section = section
        self.said = said
        self.fields: Mapping[str, Marked] = said if said is not None else {}
        self.flawed = flawed
        self.is_bare = is_bare

    @property
    def removed(self) -> bool:
        """Whether it removes the policy."""
        return self.said is None

    @property
    def discards(self) -> bool:
        """Whether it discards what the blocks below it say."""
        return self.said is None or isinstance(self.said, Replacing)

    def into(self, part: Marked) -> int | None:
        """The line of the policy, where an alias or a merge key brings this part of it there from further above."""
        here, there = self.whole.place, part.place
        if here.line is None or there.line is None or here.name != there.name:
            return None
        return here.line if (there.line, there.column or 0) < (here.line, here.column or 0) else None

    @property
    def source(self) -> Source:
        """Where the policy's key stands; of a `null`, where that stands."""
        return self.whole.source if self.removed else self.whole.place


class Section:
    """What one layer says about one profile, about all of them (`defaults`), or about functions.

    Attributes:
        name: "defaults", "policies.<name>" or "functions.<name>"; "" for a decorator's own options.
        blocks: kind of policy → what is said of it.
        parent: the name of the profile that it starts from (`extends` of a profile, `policy` of a function); its value
            is None where it says: none.
        flawed: it could not be read, so what it lacks may be no second mistake.
    """

    __slots__ = ("blocks", "flawed", "name", "parent", "place")

    def __init__(
        self,
        name: str,
        place: Marked,
        blocks: Mapping[str, Block] | None = None,
        parent: Marked | None = None,
        *,
        flawed: bool = False,
    ) -> None:
        self.name = name
        self.place = place
        self.blocks: Mapping[str, Block] = blocks if blocks is not None else {}
        self.parent = parent
        self.flawed = flawed

    @property
    def source(self) -> Source:
        return self.place.place


@dataclass(frozen=True, slots=True, repr=False)
class Layer:
    """Everything that one file, the environment, or code says.

    Attributes:
        name: the file's, or "environment variables", ".env", and so on.
        defaults: what it lays under every profile.
        profiles: name → what it says of that profile.
        functions: name or glob → what it says of functions of that name.
        import_from: the modules that names may be imported from; None where it does not say.
    """

    name: str
    defaults: Section | None = None
    profiles: Mapping[str, Section] = field(default_factory=dict)
    functions: Mapping[str, Section] = field(default_factory=dict)
    import_from: Marked | None = None

    def __repr__(self) -> str:
        # pydantic-settings logs what each source delivers; values may be secret, so names alone are shown.
        return f"Layer({self.name!r}, profiles={sorted(self.profiles)}, functions={sorted(self.functions)})"
