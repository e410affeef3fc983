"""Policies, decorator options and overrides from code as sections of the configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.config.location import show_path
from opero.config.sources import Marked, Section, Source, Statement, mark
from opero.policies.merging import fields_of
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from opero.config.declaration import Declaration


def section_of(
    name: str, fields: Mapping[str, Any], source: Source, parent: Marked | None = None, *, bare: Collection[str] = ()
) -> Section:
    """Make a section of statements about policies.

    Args:
        name: the name of the section.
        fields: kind of policy → statement, in any form.
        source: the source of all of them.
        parent: the profile to start from.
        bare: the kinds that exist only through their fields.
    """
    statements: dict[str, Statement] = {}
    for kind, value in fields.items():
        content = fields_of(KINDS[kind], value)
        marked = (
            content
            if content is None
            else type(content)((field, mark(each, source)) for field, each in content.items())
        )
        statements[kind] = Statement(Marked(value, source), name, marked, is_bare=kind in bare)
    return Section(name, Marked(None, source), statements, parent)


def source_at(place: tuple[str, int], by: str) -> Source:
    """Return the source for a line of code."""
    file, line = place
    return Source(show_path(Path(file)), line, by=by) if file else Source("code", by=by)


def place_of(declaration: Declaration) -> Source:
    """Return where a function is bound."""
    return source_at(declaration.place, declaration.by)


def own_section(declaration: Declaration) -> Section:
    """Return the options of a decorator, and the profile that it names, as a section."""
    source = place_of(declaration)
    profile = Marked(declaration.profile, source) if declaration.profile is not None else None
    return section_of("", declaration.fields, source, profile, bare=declaration.fields.keys() - declaration.whole)


def section_below(declaration: Declaration) -> Section:
    """Return what the options of a decorator are merged over if there is no profile."""
    return section_of("", declaration.below, place_of(declaration))
