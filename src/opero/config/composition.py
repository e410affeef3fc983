"""Composes profiles of sections, lowest precedence first, with the source of every value and what it shadows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from opero.config.fields import is_secret
from opero.config.sources import DEFAULT, ConfigLayer, Leaf, Marked, Section, Source, Statement
from opero.errors import nearest
from opero.policies.merging import merge_statements
from opero.policies.policy import KINDS
from opero.policies.types import Unset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opero.config.report import Report

__all__ = ["Profile", "compose", "inherit", "parent_leaf", "profile_names", "sections_of"]

SECRETS = {kind: [field for field in model.model_fields if is_secret(kind, field)] for kind, model in KINDS.items()}


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
            hint = nearest(parent.value, set(names) - {name})
            report.add(parent.source, f"policies.{name} extends {parent.value!r}, which does not exist{hint}")
    return {name: _lineage(name, extends, unclear, report) for name in names}


def _lineage(name: str, extends: Mapping[str, Marked], unclear: set[str], report: Report) -> list[str] | None:
    lineage = [name]
    while lineage[-1] in extends:
        parent = extends[lineage[-1]].value
        if parent in lineage:
            cycle = lineage[lineage.index(parent) :]
            start = cycle.index(min(cycle))
            circle = " → ".join([*cycle[start:], *cycle[:start], cycle[start]])
            text = f"circular `extends`: {circle}; remove one of them"
            report.add(extends[cycle[start]].source, text)
            return None
        lineage.append(parent)
    return None if unclear.intersection(lineage) else lineage[::-1]


def parent_leaf(sections: Iterable[Section]) -> Leaf | None:
    """Return the profile to start from, over those of lower sections; None if no section names one."""
    top: Leaf | None = None
    for section in sections:
        if section.parent is not None:
            top = Leaf(section.parent.value, section.parent.source, section.name, shadowed=top)
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
            content = merge_statements([statement.content for statement in statements])
            if content is None:
                continue
            fields = {field: entry.plain() for field, entry in content.items()}
            for field in SECRETS[kind]:
                if isinstance(fields.get(field), str):
                    fields[field] = SecretStr(fields[field])
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
        statements = self.statements.get(kind, ())
        for index, statement in enumerate(statements):
            if statement.removed or (index > 0 and statement.discards):
                gone = Leaf(None, statement.source, statement.section, removed=True)
                fields = {field: replace(gone, shadowed=leaf) for field, leaf in fields.items()}
                removal = replace(gone, shadowed=removal)
            for field, entry in statement.fields.items():
                # The field moves to the end, so that the last field is the one that was set last.
                below = fields.pop(field, None) or removal
                value = entry.plain()
                if field in SECRETS[kind] and isinstance(value, str):
                    value = SecretStr(value)
                if _is_there_without(field, statements, index):
                    below = _over_default(kind, field, below)
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
                leaf = _over_default(kind, field, below) if present else chains.get(field)
                if leaf is not None:
                    leaves[f"{kind}.{field}"] = leaf
        return leaves


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


def _over_default(kind: str, field: str, leaf: Leaf | None) -> Leaf | None:
    """Return the leaf, or the default over it if there is none or it was removed."""
    if leaf is not None and not leaf.removed:
        return leaf
    default = _default(kind, field)
    return leaf if default is None else replace(default, shadowed=leaf)


def _default(kind: str, field: str) -> Leaf | None:
    """Return the default of the model; None if the field has none."""
    info = KINDS[kind].model_fields[field]
    if info.is_required() or isinstance(info.default, Unset):
        return None
    return Leaf(info.default, DEFAULT)
