"""Where values come from: a mark on each, kept from the file or variable to the effective policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BROKEN", "DEFAULT", "Block", "Layer", "Leaf", "Marked", "Section", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """The place that gave a value.

    Attributes:
        name: the file (relative to the working directory where it lies below), the environment variable, or
            "default".
        line, column: where in the file, counted from 1; None for a variable and for a default.
    """

    name: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}:{self.column}"


DEFAULT = Source("default")
"""The source of what no one wrote down: the policy model's own default."""


class _Broken:
    def __repr__(self) -> str:
        return "BROKEN"


BROKEN = _Broken()
"""Stands for a value that could not be read, and has been reported."""


@dataclass(frozen=True, slots=True)
class Marked:
    """Plain data as it was read, every part of it with its place.

    Attributes:
        value: a scalar, a list of `Marked`, a dict of `Marked` by name, or `BROKEN`.
        source: where the value stands.
        key: where the key before it stands; None in a list and at the top.
    """

    value: Any
    source: Source
    key: Source | None = None

    @property
    def place(self) -> Source:
        """Where its key stands, or else the value itself."""
        return self.key or self.source

    def plain(self) -> Any:
        """The data without its marks."""
        if isinstance(self.value, dict):
            return {name: each.plain() for name, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        return self.value

    def is_whole(self) -> bool:
        """Whether all of it could be read."""
        if isinstance(self.value, dict):
            return all(each.is_whole() for each in self.value.values())
        if isinstance(self.value, list):
            return all(each.is_whole() for each in self.value)
        return self.value is not BROKEN


@dataclass(frozen=True, slots=True)
class Leaf:
    """One field's value, where it came from, and what it shadows.

    Attributes:
        value: as it was written ("30m", not 1800.0); None where a `null` removed it; a `SecretStr` for a
            secret.
        source: the place that gave it.
        section: the part of the configuration that it stands in: "defaults", "policies.api"; "" for a
            default.
        removed: whether a `null` took it away.
        shadowed: the value that would hold without this one, with its own source and shadow; None at the
            bottom.
    """

    value: Any
    source: Source
    section: str = ""
    removed: bool = False
    shadowed: Leaf | None = None

    def chain(self) -> Iterator[Leaf]:
        """This value, then each that it shadows, down to the model's default."""
        leaf: Leaf | None = self
        while leaf is not None:
            yield leaf
            leaf = leaf.shadowed


@dataclass(frozen=True, slots=True)
class Block:
    """What one section of one layer says about one policy.

    Attributes:
        source: where the policy's key stands.
        fields: field → value; empty for `cache: {}`, which asks for the defaults.
        removed: a `null` stands in its place: whatever was said below is gone.
        flawed: part of it could not be read, so what is missing may be no second mistake.
    """

    source: Source
    fields: Mapping[str, Leaf] = field(default_factory=dict)
    removed: bool = False
    flawed: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """What one layer says about one profile, or about all of them (`defaults`)."""

    source: Source
    blocks: Mapping[str, Block] = field(default_factory=dict)
    extends: Leaf | None = None
    flawed: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Layer:
    """Everything that one file, or the environment, says."""

    name: str
    defaults: Section | None = None
    profiles: Mapping[str, Section] = field(default_factory=dict)

    def __repr__(self) -> str:
        # pydantic-settings logs what each source delivers; values may be secret, so names alone are shown.
        return f"Layer({self.name!r}, profiles={sorted(self.profiles)})"
