"""Every value knows where it came from, and what it shadows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Fields", "Kinds", "Leaf", "Problems", "Source", "lay_over", "leaves_of", "place_of"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: a place in a file, an environment variable, or a model's default.

    Attributes:
        name: the file's path, the variable's name, or "default".
        line, column: the place in the file, from 1; 0 where there is none.
    """

    name: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value, its source, and the value that would hold without it.

    Attributes:
        value: as it was written; the policy that is made of it holds it validated.
        source: where it was written.
        shadowed: the runner-up, or None.
    """

    value: Any
    source: Source
    shadowed: Leaf | None = None

    def over(self, lower: Leaf | None) -> Leaf:
        """This value with `lower` beneath everything that it shadows already."""
        if lower is None:
            return self
        return replace(self, shadowed=lower if self.shadowed is None else self.shadowed.over(lower))

    def chain(self) -> Iterator[Leaf]:
        """This value and all that it shadows, highest first."""
        leaf: Leaf | None = self
        while leaf is not None:
            yield leaf
            leaf = leaf.shadowed


Fields = dict[str, Leaf]
"""The fields of one policy."""
Kinds = dict[str, "Fields | Leaf"]
"""The policies of one profile by kind; a leaf whose value is None where one is removed."""


def lay_over(lower: Kinds, upper: Kinds) -> Kinds:
    """`upper` over `lower`, key by key. Every leaf keeps what it shadows; a removed policy begins anew."""
    merged = dict(lower)
    for kind, fields in upper.items():
        beneath = merged.get(kind)
        if isinstance(fields, Leaf) or not isinstance(beneath, dict):
            merged[kind] = fields
        else:
            merged[kind] = {**beneath, **{name: leaf.over(beneath.get(name)) for name, leaf in fields.items()}}
    return merged


def leaves_of(kinds: Kinds) -> Iterator[tuple[str, Leaf]]:
    """Every value with its path: "retry.retries"."""
    for kind, fields in kinds.items():
        if isinstance(fields, Leaf):
            yield kind, fields
        else:
            for name, leaf in fields.items():
                yield f"{kind}.{name}", leaf


def place_of(path: Path) -> str:
    """A file's path for a message: from here, where it lies below."""
    from pathlib import Path as ActualPath

    try:
        return str(path.resolve().relative_to(ActualPath.cwd().resolve()))
    except ValueError:
        return str(path)


class Problems:
    """All that is wrong, so that it can be told at once."""

    def __init__(self) -> None:
        self.found: dict[tuple[Source, str], str] = {}

    def add(self, source: Source, what: str, *, of: str = "") -> None:
        """Note what is wrong, where, and of which profile; a value that several profiles inherit is told once."""
        self.found.setdefault((source, what), of)

    def raise_if_any(self) -> None:
        """Raise one `ConfigError` that tells all of them, in the order of their places."""
        if not self.found:
            return
        from opero.errors import ConfigError

        lines = [
            f"{source}: {f'{self.found[source, what]}.' if self.found[source, what] else ''}{what}"
            for source, what in sorted(self.found, key=lambda each: _order(each[0]))
        ]
        raise ConfigError(
            lines[0] if len(lines) == 1 else f"{len(lines)} problems in opero's configuration\n  " + "\n  ".join(lines)
        )


def _order(source: Source) -> tuple[bool, str, int, int]:
    return not source.line, source.name, source.line, source.column
