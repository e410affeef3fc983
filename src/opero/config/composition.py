"""Composes profiles of sections, lowest precedence first, with the source of every value and what it shadows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from opero.config.fields import secrets_of
from opero.config.sources import DEFAULT, ConfigLayer, Leaf, Marked, Section, Source, Statement
from opero.errors import nearest
from opero.policies.merging import merge_statements
from opero.policies.policy import KINDS
from opero.policies.quantities import quoted
from opero.policies.types import Unset
from opero.runtime.named_secrets import PREFIX as REFERENCE

if TYPE_CHECKING:
    from opero.config.report import Report

MOST_ANCESTORS = 100
"""The most profiles that a profile may extend, one after the other."""


def profile_names(layers: Iterable[ConfigLayer]) -> list[str]:
    """Return the names of all profiles, in the order of their first definition."""
    return list(dict.fromkeys(name for layer in layers for name in layer.profiles))


def inherit(layers: Sequence[ConfigLayer], report: Report) -> dict[str, list[str] | None]:
    """Resolve `extends`: profile → its ancestors from the farthest, then itself; None if it cannot be resolved.

    Args:
        layers: lowest precedence first; the highest with an `extends` decides, and null means no parent.
        report: receives unknown names, and each cycle once.
    """
    names = dict.fromkeys(profile_names(layers))
    unclear: set[str] = set()
    extends: dict[str, Marked] = {}
    for layer in layers:
        for name, section in layer.profiles.items():
            if section.flawed:
                unclear.add(name)
            if section.parent is not None:
                extends[name] = section.parent
    for name, parent in list(extends.items()):
        if parent.value is None:
            del extends[name]
        elif parent.value not in names:
            del extends[name]
            unclear.add(name)
            hint = "" if report.is_full else nearest(parent.value, (each for each in names if each != name))
            report.add(parent.source, f"policies.{name} extends {quoted(parent.value)}, which does not exist{hint}")
    lineages: dict[str, list[str] | None] = {}
    for name in names:
        _trace(name, extends, unclear, lineages, report)
    return {name: lineages[name] for name in names}


def _trace(
    name: str,
    extends: Mapping[str, Marked],
    unclear: set[str],
    lineages: dict[str, list[str] | None],
    report: Report,
) -> None:
    """Add the lineages of a profile and of those that it extends. Each profile is visited once."""
    path: dict[str, int] = {}
    at: str | None = name
    while at is not None and at not in lineages and at not in path:
        path[at] = len(path)
        at = extends[at].value if at in extends else None
    above: list[str] | None = []
    if at is not None and at in path:
        above = None
        cycle = list(path)[path[at] :]
        start = cycle.index(min(cycle))
        circle = " → ".join([*cycle[start:], *cycle[:start], cycle[start]])
        report.add(extends[cycle[start]].source, f"circular `extends`: {circle}; remove one of them")
    elif at is not None:
        above = lineages[at]
    for each in reversed(path):
        if above is not None and len(above) >= MOST_ANCESTORS:
            text = f"policies.{each} extends more than {MOST_ANCESTORS} profiles, one after the other; use fewer"
            report.add(extends[each].source, text)
            above = None
        above = None if above is None or each in unclear else [*above, each]
        lineages[each] = above


def parent_leaf(sections: Iterable[Section]) -> Leaf | None:
    """Return the profile to start from, over those of lower sections; None if no section names one."""
    top: Leaf | None = None
    for section in sections:
        if section.parent is not None:
            top = Leaf(section.parent.value, section.parent.source, section.name, shadowed=top)
    return top


def switch_leaf(sections: Iterable[Section]) -> Leaf | None:
    """Return whether all policies take effect, over what lower sections say; None if no section says anything."""
    top: Leaf | None = None
    for section in sections:
        if section.enabled is not None:
            below = Leaf(True, DEFAULT) if top is None else top
            top = Leaf(section.enabled.value, section.enabled.source, section.name, shadowed=below)
    return top


def sections_of(lineage: Sequence[str] | None, layers: Sequence[ConfigLayer]) -> list[Section]:
    """Return the sections of a profile, lowest precedence first: `defaults`, then each ancestor, then itself.

    Each of them comes from all layers. So a profile starts from its effective parent, including the environment
    variables of the parent, and its own statements, in any layer, have precedence.

    Args:
        lineage: profile names, the farthest ancestor first; None for `defaults` alone.
        layers: lowest precedence first.
    """
    sections = [layer.defaults for layer in layers if layer.defaults is not None]
    for name in lineage or ():
        sections += [layer.profiles[name] for layer in layers if name in layer.profiles]
    return sections


def compose(sections: Iterable[Section]) -> Profile:
    """Compose a profile of sections, lowest precedence first."""
    profile = Profile()
    for section in sections:
        for kind, statement in section.statements.items():
            profile.statements.setdefault(kind, []).append(statement)
    return profile


class Profile:
    """A profile composed of statements, each with its source.

    Attributes:
        statements: kind of policy → the statements about it, lowest precedence first.
    """

    __slots__ = ("statements",)

    def __init__(self) -> None:
        self.statements: dict[str, list[Statement]] = {}

    def kinds(self) -> list[str]:
        """Return the kinds of policy that are present."""
        return [kind for kind, statements in self.statements.items() if not statements[-1].removed]

    def place(self, kind: str) -> Source:
        """Return the source of the lowest statement that a policy is made of."""
        statements = self.statements[kind]
        return statements[_since(statements, len(statements) - 1)].source

    def is_flawed(self, kind: str) -> bool:
        return any(statement.flawed for statement in self.statements[kind])

    def values(self) -> dict[str, dict[str, Any]]:
        """Return plain data for `Policy`."""
        values: dict[str, dict[str, Any]] = {}
        for kind, statements in self.statements.items():
            content = merge_statements([statement.content for statement in statements], KINDS[kind].exclusive)
            if content is None:
                continue
            fields = {field: entry.plain() for field, entry in content.items()}
            for field in secrets_of(kind):
                if field in fields:
                    fields[field] = _hidden(fields[field])
            values[kind] = fields if type(content) is dict else type(content)(fields)
        return values

    # Sources of values

    def statement_of(self, kind: str, field: str) -> Statement:
        """Return the statement that sets the effective value of a field."""
        return next(statement for statement in reversed(self.statements[kind]) if field in statement.fields)

    def given(self, kind: str) -> Mapping[str, Leaf]:
        """Return the effective fields that were set explicitly, in the order in which they were set."""
        return {field: leaf for field, leaf in self._chains(kind)[0].items() if not leaf.removed}

    def _chains(self, kind: str) -> tuple[dict[str, Leaf], Leaf | None]:
        """Return field → its leaf, over what that shadows; and the leaf that removed the policy, if any."""
        fields: dict[str, Leaf] = {}
        removal: Leaf | None = None
        statements, exclusive = self.statements.get(kind, ()), KINDS[kind].exclusive
        for index, statement in enumerate(statements):
            if statement.removed or (index > 0 and statement.discards):
                gone = Leaf(None, statement.source, statement.section, removed=True)
                fields = {field: replace(gone, shadowed=leaf) for field, leaf in fields.items()}
                removal = replace(gone, shadowed=removal)
            for field in exclusive.keys() & statement.fields.keys():
                gone = Leaf(None, statement.fields[field].source, statement.section, removed=True)
                fields |= {
                    other: replace(gone, shadowed=fields[other])
                    for other in exclusive[field]
                    if other in fields and other not in statement.fields
                }
            for field, entry in statement.fields.items():
                # The field moves to the end, so that the last field is the one that was set last.
                below = fields.pop(field, None) or removal
                value = entry.plain()
                if field in secrets_of(kind):
                    value = _hidden(value)
                if _is_there_without(field, statements, index):
                    below = self._over_default(kind, field, below)
                fields[field] = Leaf(value, entry.source, statement.section, shadowed=below)
        return fields, removal

    def leaves(self) -> dict[str, Leaf]:
        """Return path ("retry.retries") → leaf for every field of the present policies, including defaults, and for
        what was removed."""
        leaves: dict[str, Leaf] = {}
        for kind, statements in self.statements.items():
            chains, removal = self._chains(kind)
            present = not statements[-1].removed
            if not present and removal is not None:
                leaves[kind] = removal
            for field in KINDS[kind].model_fields:
                below = chains.get(field) or removal
                leaf = self._over_default(kind, field, below) if present else chains.get(field)
                if leaf is not None:
                    leaves[f"{kind}.{field}"] = leaf
        return leaves

    def _over_default(self, kind: str, field: str, leaf: Leaf | None) -> Leaf | None:
        """Return the leaf, or the default over it if there is none or it was removed."""
        if leaf is not None and not leaf.removed:
            return leaf
        default = self._default(kind, field)
        return leaf if default is None else replace(default, shadowed=leaf)

    def _default(self, kind: str, field: str) -> Leaf | None:
        """Return the default of the model beside what is set; None if the field has none."""
        info = KINDS[kind].model_fields[field]
        if info.is_required() or isinstance(info.default, Unset):
            return None
        return Leaf(None if self._has_alternative(kind, field) else info.default, DEFAULT)

    def _has_alternative(self, kind: str, field: str) -> bool:
        """Return whether a field is set that takes the place of this one."""
        alternative, statements = KINDS[kind].alternatives.get(field), self.statements[kind]
        if alternative is None:
            return False
        own = reversed(statements[_since(statements, len(statements) - 1) :])
        set_by = next((statement for statement in own if alternative in statement.fields), None)
        return set_by is not None and set_by.fields[alternative].plain() is not None


def _hidden(value: Any) -> Any:
    """Return a secret, or a list of secrets, as `SecretStr`. References that code makes are resolved by the policy."""
    if isinstance(value, list):
        return [_hidden(each) for each in value]
    return SecretStr(value) if isinstance(value, str) and not value.startswith(REFERENCE) else value


def _since(statements: Sequence[Statement], index: int) -> int:
    """Return the index of the lowest statement that a policy is made of at `index`."""
    for each in range(index, 0, -1):
        if statements[each].discards:
            return each
        if statements[each - 1].removed:
            return each
    return 0


def _is_there_without(field: str, statements: Sequence[Statement], index: int) -> bool:
    """Return whether the policy would exist, with its defaults, without that field."""
    end = next((each for each in range(index + 1, len(statements)) if statements[each].discards), len(statements))
    of_it = statements[_since(statements, index) : end]
    return any(not statement.is_bare or statement.fields.keys() != {field} for statement in of_it)
