"""Lays sections over each other, lowest first, and tells of every field what holds and what that shadows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from opero.config.fields import is_secret
from opero.config.sources import DEFAULT, Block, Layer, Leaf, Marked, Section, Source
from opero.errors import nearest
from opero.policies.merging import merged
from opero.policies.policy import KINDS
from opero.policies.types import Unset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opero.config.report import Report

__all__ = ["Profile", "compose", "inherit", "parent_leaf", "profile_names", "sections_of"]

SECRETS = {kind: [field for field in model.model_fields if is_secret(kind, field)] for kind, model in KINDS.items()}


def profile_names(layers: Iterable[Layer]) -> list[str]:
    """Every profile that some layer defines, in the order of their first mention."""
    return list(dict.fromkeys(name for layer in layers for name in layer.profiles))


def inherit(layers: Sequence[Layer], report: Report) -> dict[str, list[str] | None]:
    """Profile → whom it extends, from the furthest to itself; None where that cannot be told.

    Args:
        layers: lowest precedence first; the highest that says `extends` decides, and null there means none.
        report: takes an unknown name and a cycle (once, however many profiles are in it).
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
    """Which profile is started from, over what lower sections say of that; None where none says anything."""
    top: Leaf | None = None
    for section in sections:
        if section.parent is not None:
            top = Leaf(section.parent.value, section.parent.source, section.name, shadowed=top)
    return top


def sections_of(lineage: Sequence[str] | None, layers: Sequence[Layer]) -> list[Section]:
    """What makes a profile, lowest first: `defaults` of every layer, then each ancestor in every layer, then itself.

    So a profile starts from what its parent effectively is, the parent's environment variables included, and what it
    says itself, in whatever file, comes over that.

    Args:
        lineage: profile names, the furthest ancestor first; None for `defaults` alone.
        layers: lowest precedence first.
    """
    sections = [layer.defaults for layer in layers if layer.defaults is not None]
    for name in lineage or ():
        sections += [layer.profiles[name] for layer in layers if name in layer.profiles]
    return sections


def compose(sections: Iterable[Section]) -> Profile:
    """These sections laid over each other, the lowest first."""
    profile = Profile()
    for section in sections:
        for kind, block in section.blocks.items():
            profile.blocks.setdefault(kind, []).append(block)
    return profile


class Profile:
    """A profile in the making: for each kind of policy what was said of it, lowest first.

    Attributes:
        blocks: kind → what each section says of it.
    """

    __slots__ = ("blocks",)

    def __init__(self) -> None:
        self.blocks: dict[str, list[Block]] = {}

    def kinds(self) -> list[str]:
        """The policies that the profile has."""
        return [kind for kind, blocks in self.blocks.items() if not blocks[-1].removed]

    def place(self, kind: str) -> Source:
        """Where the profile got that policy from, first."""
        blocks = self.blocks[kind]
        return blocks[_since(blocks, len(blocks) - 1)].source

    def is_flawed(self, kind: str) -> bool:
        return any(block.flawed for block in self.blocks[kind])

    def values(self) -> dict[str, dict[str, Any]]:
        """Plain data for `Policy`."""
        values: dict[str, dict[str, Any]] = {}
        for kind, blocks in self.blocks.items():
            said = merged([block.said for block in blocks])
            if said is None:
                continue
            fields = {field: entry.plain() for field, entry in said.items()}
            for field in SECRETS[kind]:
                if isinstance(fields.get(field), str):
                    fields[field] = SecretStr(fields[field])
            values[kind] = fields if type(said) is dict else type(said)(fields)
        return values

    # Where values come from

    def block_of(self, kind: str, field: str) -> Block:
        """Which block gives what holds for a field."""
        return next(block for block in reversed(self.blocks[kind]) if field in block.fields)

    def given(self, kind: str) -> Mapping[str, Leaf]:
        """The fields of a policy that someone wrote and that hold, in the order in which they were said."""
        return {field: leaf for field, leaf in self._chains(kind)[0].items() if not leaf.removed}

    def _chains(self, kind: str) -> tuple[dict[str, Leaf], Leaf | None]:
        """Field → its leaf, over what that shadows; and what removed the policy, if anything."""
        fields: dict[str, Leaf] = {}
        removal: Leaf | None = None
        blocks = self.blocks.get(kind, ())
        for index, block in enumerate(blocks):
            if block.removed or (index > 0 and block.discards):
                gone = Leaf(None, block.source, block.section, removed=True)
                fields = {field: replace(gone, shadowed=leaf) for field, leaf in fields.items()}
                removal = replace(gone, shadowed=removal)
            for field, entry in block.fields.items():
                # The field moves to the end, so that the last one is the one that was said last.
                below = fields.pop(field, None) or removal
                value = entry.plain()
                if field in SECRETS[kind] and isinstance(value, str):
                    value = SecretStr(value)
                if _is_there_without(field, blocks, index):
                    below = _over_default(kind, field, below)
                fields[field] = Leaf(value, entry.source, block.section, shadowed=below)
        return fields, removal

    def leaves(self) -> dict[str, Leaf]:
        """Path ("retry.retries") → leaf: every field of every policy that it has, defaults included, and what was
        removed."""
        leaves: dict[str, Leaf] = {}
        for kind, blocks in self.blocks.items():
            chains, removal = self._chains(kind)
            present = not blocks[-1].removed
            if not present and removal is not None:
                leaves[kind] = removal
            for field in KINDS[kind].model_fields:
                below = chains.get(field) or removal
                leaf = _over_default(kind, field, below) if present else chains.get(field)
                if leaf is not None:
                    leaves[f"{kind}.{field}"] = leaf
        return leaves


def _since(blocks: Sequence[Block], index: int) -> int:
    """The first block of those that have a part in what holds after one of them."""
    for each in range(index, 0, -1):
        if blocks[each].discards:
            return each
        if blocks[each - 1].removed:
            return each
    return 0


def _is_there_without(field: str, blocks: Sequence[Block], index: int) -> bool:
    """Whether the policy that a block speaks of would be there, with its defaults, if nobody had said that field."""
    end = next((each for each in range(index + 1, len(blocks)) if blocks[each].discards), len(blocks))
    of_it = blocks[_since(blocks, index) : end]
    return any(not block.is_bare or block.fields.keys() != {field} for block in of_it)


def _over_default(kind: str, field: str, leaf: Leaf | None) -> Leaf | None:
    """What holds where the policy is there: the leaf; where that is none or was removed, the default."""
    if leaf is not None and not leaf.removed:
        return leaf
    default = _default(kind, field)
    return leaf if default is None else replace(default, shadowed=leaf)


def _default(kind: str, field: str) -> Leaf | None:
    """The model's own value; None where the field has none."""
    info = KINDS[kind].model_fields[field]
    if info.is_required() or isinstance(info.default, Unset):
        return None
    return Leaf(info.default, DEFAULT)
