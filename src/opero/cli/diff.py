"""`opero diff`: shows the options that differ between two environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.options import Config, Json, environment_names  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    from opero.config.configuration import Configuration
    from opero.config.sources import Leaf

    _Row: TypeAlias = tuple[str, str, Leaf | None, Leaf | None]

__all__ = ["diff_command"]

WHOLE = "(all)"
First = Annotated[str, typer.Argument(metavar="ENV1", help="An environment.", autocompletion=environment_names)]
Second = Annotated[str, typer.Argument(metavar="ENV2", help="Another environment.", autocompletion=environment_names)]


def diff_command(
    first: First,
    second: Second,
    config: Config = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with code 1 if they differ.")] = False,
    as_json: Json = False,
) -> int:
    """Show the options that differ between two environments.

    Both values are shown with their sources. Environment variables apply to both environments.

    \b
    opero diff staging production
    opero diff staging production --exit-code
    """
    from opero.cli.exits import FAILED, OK
    from opero.cli.loading import load_configuration
    from opero.cli.terminal import print_json, print_table

    one, other = (load_configuration(config, each) for each in (first, second))
    rows = _differences(one, other)
    if as_json:
        differences = [
            {"section": section, "option": path, "first": _data(path, left), "second": _data(path, right)}
            for section, path, left, right in rows
        ]
        print_json({"first": first, "second": second, "differences": differences})
    elif rows:
        cells = (
            ((section, path or WHOLE, *_cells(path, left), *_cells(path, right)), "")
            for section, path, left, right in rows
        )
        print_table(["section", "option", first, "source", second, "source"], cells)
    else:
        print(f"no differences between {first} and {second}")
    return FAILED if rows and exit_code else OK


def _differences(one: Configuration, other: Configuration) -> list[_Row]:
    rows: list[_Row] = []
    for section in _sections(one, other):
        left, right = (_places(each, section) for each in (one, other))
        if left is None or right is None:
            rows.append((section, "", left, right))
        elif section.startswith("policies."):
            rows += _of_profile(section, one, other)
        else:
            rows += _of_entry(section, one, other)
    return rows


def _sections(one: Configuration, other: Configuration) -> list[str]:
    profiles = sorted({*one.policies, *other.policies})
    entries = dict.fromkeys([*one.functions.sections, *other.functions.sections])
    return [*(f"policies.{name}" for name in profiles), *(f"functions.{name}" for name in entries)]


def _places(found: Configuration, section: str) -> Leaf | None:
    """Return a leaf for a whole profile or entry, at the place that first defines it; None if there is none."""
    from opero.config.sources import Leaf

    group, _, name = section.partition(".")
    layers = [layer.profiles if group == "policies" else layer.functions for layer in found.layers]
    sections = [layer[name] for layer in layers if name in layer]
    return Leaf(None, sections[0].source, section) if sections else None


def _of_profile(section: str, one: Configuration, other: Configuration) -> Iterator[_Row]:
    from opero.policies.policy import KINDS

    profile = section.partition(".")[2]
    mine, theirs = one.sources[profile], other.sources[profile]
    for kind in KINDS:
        if _kind(one, profile, kind) != _kind(other, profile, kind):
            for path in _compared(kind, mine, theirs):
                left, right = mine.get(path), theirs.get(path)
                if _value(one, profile, path, left) != _value(other, profile, path, right):
                    yield section, path, left, right


def _of_entry(section: str, one: Configuration, other: Configuration) -> Iterator[_Row]:
    from opero.config.composition import compose, parent_leaf
    from opero.config.sources import DEFAULT

    name = section.partition(".")[2]
    mine, theirs = (
        {"policy": parent_leaf(found.functions.sections[name]), **compose(found.functions.sections[name]).leaves()}
        for found in (one, other)
    )
    for path in dict.fromkeys([*mine, *theirs]):
        leaves = (mine.get(path), theirs.get(path))
        left, right = (None if leaf is None or leaf.source == DEFAULT else leaf for leaf in leaves)
        if (left and (left.value, left.removed)) != (right and (right.value, right.removed)):
            yield section, path, left, right


def _compared(kind: str, mine: Mapping[str, Leaf], theirs: Mapping[str, Leaf]) -> list[str]:
    """Return the options of a policy to compare; if one side has no such policy, only those that are set."""
    from opero.config.sources import DEFAULT

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


def _data(path: str, leaf: Leaf | None) -> dict[str, Any] | None:
    from opero.cli.values import leaf_data

    if leaf is None:
        return None
    data = leaf_data(path, leaf)
    return {name: data[name] for name in ("value", "removed", "source", "section")}


def _cells(path: str, leaf: Leaf | None) -> tuple[str, str]:
    from opero.cli.values import leaf_text

    if leaf is None:
        return "", "missing"
    if not path:
        return "present", str(leaf.source)
    return leaf_text(path, leaf), str(leaf.source)
