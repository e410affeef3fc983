"""Lays sections over each other, lowest first, and keeps for every field the chain of what it shadows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opero.config.sources import DEFAULT, Block, Layer, Leaf, Section, Source
from opero.errors import nearest
from opero.policies.policy import KINDS
from opero.policies.types import Unset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from opero.config.report import Report

__all__ = ["Profile", "compose", "inherit", "profile_names"]


def profile_names(layers: Iterable[Layer]) -> list[str]:
    """Every profile that some layer defines, in the order of their first mention."""
    return list(dict.fromkeys(name for layer in layers for name in layer.profiles))


def inherit(layers: Sequence[Layer], report: Report) -> dict[str, list[str] | None]:
    """Profile → whom it extends, from the furthest to itself; None where that cannot be told.

    Args:
        layers: lowest precedence first; the highest that says `extends` decides, and null there means none.
        report: takes an unknown name and a cycle (once, however many profiles are in it).
    """
    names = profile_names(layers)
    unclear = {name for layer in layers for name, section in layer.profiles.items() if section.flawed}
    extends: dict[str, Leaf] = {}
    for name in names:
        leaf = extends_leaf(name, layers)
        if leaf is None or leaf.value is None:
            continue
        if leaf.value in names:
            extends[name] = leaf
        else:
            unclear.add(name)
            hint = nearest(leaf.value, set(names) - {name})
            report.add(leaf.source, f"policies.{name} extends {leaf.value!r}, which does not exist{hint}")
    return {name: _lineage(name, extends, unclear, report) for name in names}


def _lineage(name: str, extends: Mapping[str, Leaf], unclear: set[str], report: Report) -> list[str] | None:
    lineage = [name]
    while lineage[-1] in extends:
        parent = extends[lineage[-1]].value
        if parent in lineage:
            cycle = lineage[lineage.index(parent) :]
            start = cycle.index(min(cycle))
            circle = " → ".join([*cycle[start:], *cycle[:start], cycle[start]])
            text = f"profiles extend each other in a circle: {circle}; remove one `extends`"
            report.add(extends[cycle[start]].source, text)
            return None
        lineage.append(parent)
    return None if unclear.intersection(lineage) else lineage[::-1]


def extends_leaf(name: str, layers: Iterable[Layer]) -> Leaf | None:
    """The `extends` of a profile that holds, over those of lower layers."""
    top: Leaf | None = None
    for layer in layers:
        section = layer.profiles.get(name)
        if section is not None and section.extends is not None:
            top = replace(section.extends, shadowed=top)
    return top


def compose(lineage: Sequence[str] | None, layers: Sequence[Layer]) -> Profile:
    """The profile that ends a lineage: first `defaults` of every layer, then each ancestor in every layer,
    then itself.

    So a profile starts from what its parent effectively is, the parent's environment variables included, and
    what it says itself, in whatever file, comes over that.

    Args:
        lineage: profile names, the furthest ancestor first; None for `defaults` alone.
        layers: lowest precedence first.
    """
    profile = Profile()
    for section in _sections(lineage, layers):
        for kind, block in section.blocks.items():
            profile.lay(kind, block)
    return profile


def _sections(lineage: Sequence[str] | None, layers: Sequence[Layer]) -> Iterator[Section]:
    yield from (layer.defaults for layer in layers if layer.defaults is not None)
    for name in lineage or ():
        yield from (layer.profiles[name] for layer in layers if name in layer.profiles)


@dataclass(slots=True)
class _Held:
    """One policy in the making."""

    source: Source
    fields: dict[str, Leaf]
    removal: Leaf | None = None
    present: bool = True
    flawed: bool = False


class Profile:
    """A profile in the making: policies laid over each other, key by key."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Held] = {}

    def lay(self, kind: str, block: Block) -> None:
        """Put what one section says about a policy over what is there."""
        held = self._kinds.setdefault(kind, _Held(block.source, {}, present=False))
        held.flawed = held.flawed or block.flawed
        if block.removed:
            self._remove(held, block)
            return
        held.source = block.source if not held.present else held.source
        held.present = True
        for field, leaf in block.fields.items():
            # The field moves to the end, so that the last one is the one that was said last.
            below = held.fields.pop(field, None) or held.removal
            held.fields[field] = replace(leaf, shadowed=_over_default(kind, field, below))

    def _remove(self, held: _Held, block: Block) -> None:
        gone = Leaf(None, block.source, removed=True)
        held.fields = {field: replace(gone, shadowed=leaf) for field, leaf in held.fields.items()}
        held.removal = replace(gone, shadowed=held.removal)
        held.present = False

    def given(self, kind: str) -> Mapping[str, Leaf]:
        """The fields of a policy that someone wrote and that hold, in the order in which they were said."""
        held = self._kinds.get(kind)
        return {} if held is None else {field: leaf for field, leaf in held.fields.items() if not leaf.removed}

    def kinds(self) -> list[str]:
        """The policies that the profile has."""
        return [kind for kind, held in self._kinds.items() if held.present]

    def place(self, kind: str) -> Source:
        """Where the profile got that policy from, first."""
        return self._kinds[kind].source

    def is_flawed(self, kind: str) -> bool:
        return self._kinds[kind].flawed

    def values(self) -> dict[str, dict[str, Any]]:
        """Plain data for `Policy`."""
        return {kind: {field: leaf.value for field, leaf in self.given(kind).items()} for kind in self.kinds()}

    def leaves(self) -> dict[str, Leaf]:
        """Path ("retry.retries") → leaf: every field of every policy that it has, defaults included, and what
        was removed."""
        leaves: dict[str, Leaf] = {}
        for kind, held in self._kinds.items():
            if not held.present and held.removal is not None:
                leaves[kind] = held.removal
            for field in KINDS[kind].model_fields:
                below = held.fields.get(field) or held.removal
                leaf = _over_default(kind, field, below) if held.present else held.fields.get(field)
                if leaf is not None:
                    leaves[f"{kind}.{field}"] = leaf
        return leaves


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
