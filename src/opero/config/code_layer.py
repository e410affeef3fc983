"""What code says, as sections of the configuration: policies in a registry, decorators, overrides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.config.location import show_path
from opero.config.sources import Block, Marked, Section, Source, mark
from opero.policies.merging import read
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from opero.config.declaration import Declaration

__all__ = ["own_section", "place_of", "section_below", "section_of", "source_at"]


def section_of(
    name: str, fields: Mapping[str, Any], source: Source, parent: Marked | None = None, *, bare: Collection[str] = ()
) -> Section:
    """Statements about policies as a section.

    Args:
        name: the section's.
        fields: kind of policy → what is said of it, in any form.
        source: where all of it is said.
        parent: the profile that it starts from.
        bare: the policies that are not there without their fields.
    """
    blocks: dict[str, Block] = {}
    for kind, value in fields.items():
        said = read(KINDS[kind], value)
        marked = said if said is None else type(said)((field, mark(each, source)) for field, each in said.items())
        blocks[kind] = Block(Marked(value, source), name, marked, is_bare=kind in bare)
    return Section(name, Marked(None, source), blocks, parent)


def source_at(place: tuple[str, int], by: str) -> Source:
    """A line of code."""
    file, line = place
    return Source(show_path(Path(file)), line, by=by) if file else Source("code", by=by)


def place_of(declaration: Declaration) -> Source:
    """Where a function is bound."""
    return source_at(declaration.place, declaration.by)


def own_section(declaration: Declaration) -> Section:
    """A decorator's own options, and the profile that it names."""
    source = place_of(declaration)
    profile = Marked(declaration.profile, source) if declaration.profile is not None else None
    return section_of("", declaration.fields, source, profile, bare=declaration.fields.keys() - declaration.whole)


def section_below(declaration: Declaration) -> Section:
    """What lies under a decorator's options where there is no profile."""
    return section_of("", declaration.below, place_of(declaration))
