"""The options that differ between two configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opero.config.alerts import leaves_of
from opero.config.composition import compose, parent_leaf, switch_leaf
from opero.config.plain_values import leaf_text
from opero.config.sources import DEFAULT, Leaf
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from typing import TypeAlias

    from opero.config.configuration import Configuration

    Row: TypeAlias = tuple[str, str, Leaf | None, Leaf | None]


def changes(before: Configuration, after: Configuration) -> tuple[str, ...]:
    """Return each option that differs as one line, with secrets masked: "api.retry.retries: 4 → 6"."""
    return tuple(
        f"{section.removeprefix('policies.')}{'.' if path else ''}{path}: {_text(path, old)} → {_text(path, new)}"
        for section, path, old, new in differences(before, after)
    )


def _text(path: str, leaf: Leaf | None) -> str:
    if leaf is None:
        return "missing"
    return leaf_text(path, leaf) if path else "present"


def differences(one: Configuration, other: Configuration) -> list[Row]:
    """Return the options that differ: section, option, and a leaf of each, None where it is missing.

    A profile or entry that only one of them has is one row, with "" as its option.
    """
    rows: list[Row] = []
    for section in _sections(one, other):
        left, right = (_places(each, section) for each in (one, other))
        if left is None or right is None:
            rows.append((section, "", left, right))
        elif section.startswith("policies."):
            rows += _of_profile(section, one, other)
        elif section.startswith("alerts."):
            rows += _of_alert(section, one, other)
        else:
            rows += _of_entry(section, one, other)
    return rows


def _sections(one: Configuration, other: Configuration) -> list[str]:
    profiles = sorted({*one.policies, *other.policies})
    entries = dict.fromkeys([*one.functions.sections, *other.functions.sections])
    alerts = sorted({*one.alerts, *other.alerts})
    return [
        *(f"policies.{name}" for name in profiles),
        *(f"functions.{name}" for name in entries),
        *(f"alerts.{name}" for name in alerts),
    ]


def _places(found: Configuration, section: str) -> Leaf | None:
    """Return a leaf for a whole profile or entry, at the place that first defines it; None if there is none."""
    group, _, name = section.partition(".")
    if group == "alerts":
        places = [layer.alerts[name].place for layer in found.layers if name in layer.alerts]
        return Leaf(None, places[0], section) if name in found.alerts else None
    layers = [layer.profiles if group == "policies" else layer.functions for layer in found.layers]
    sections = [layer[name] for layer in layers if name in layer]
    return Leaf(None, sections[0].source, section) if sections else None


def _of_profile(section: str, one: Configuration, other: Configuration) -> Iterator[Row]:
    profile = section.partition(".")[2]
    mine, theirs = one.leaves(profile), other.leaves(profile)
    if one.is_enabled(profile) != other.is_enabled(profile):
        left, right = (each.get("enabled", Leaf(True, DEFAULT)) for each in (mine, theirs))
        yield section, "enabled", left, right
    for kind in KINDS:
        if _kind(one, profile, kind) != _kind(other, profile, kind):
            for path in _compared(kind, mine, theirs):
                former, latter = mine.get(path), theirs.get(path)
                if _value(one, profile, path, former) != _value(other, profile, path, latter):
                    yield section, path, former, latter


def _of_entry(section: str, one: Configuration, other: Configuration) -> Iterator[Row]:
    name = section.partition(".")[2]
    mine, theirs = (
        {"policy": parent_leaf(each), "enabled": switch_leaf(each), **compose(each).leaves()}
        for each in (found.functions.sections[name] for found in (one, other))
    )
    for path in dict.fromkeys([*mine, *theirs]):
        leaves = (mine.get(path), theirs.get(path))
        left, right = (None if leaf is None or leaf.source == DEFAULT else leaf for leaf in leaves)
        if (left and (left.value, left.removed)) != (right and (right.value, right.removed)):
            yield section, path, left, right


def _of_alert(section: str, one: Configuration, other: Configuration) -> Iterator[Row]:
    name = section.partition(".")[2]
    mine, theirs = (leaves_of(found.layers, name) for found in (one, other))
    for field in dict.fromkeys([*mine, *theirs]):
        if getattr(one.alerts[name], field) != getattr(other.alerts[name], field):
            yield section, field, mine.get(field), theirs.get(field)


def _compared(kind: str, mine: Mapping[str, Leaf], theirs: Mapping[str, Leaf]) -> list[str]:
    """Return the options of a policy to compare; if one side has no such policy, only those that are set."""
    paths = [path for path in dict.fromkeys([*mine, *theirs]) if path == kind or path.startswith(f"{kind}.")]
    set_paths = [
        path for path in paths if any(path in each and each[path].source != DEFAULT for each in (mine, theirs))
    ]
    if all(f"{kind}.enabled" in each for each in (mine, theirs)):
        return paths
    return set_paths or paths[:1]


def _kind(found: Configuration, profile: str, kind: str) -> Any:
    return getattr(found.policies[profile], kind, None)


def _value(found: Configuration, profile: str, path: str, leaf: Leaf | None) -> Any:
    """Return the parsed value, so that 60s and 1m are equal."""
    if leaf is None or leaf.removed:
        return None if leaf is None else "removed"
    kind, _, field = path.partition(".")
    policy = _kind(found, profile, kind)
    return (leaf.value,) if policy is None else (getattr(policy, field, None),)
