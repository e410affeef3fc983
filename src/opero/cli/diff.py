"""`opero diff`: shows the options that differ between two environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.exits import FAILED, OK
from opero.cli.loading import load_configuration
from opero.cli.options import Config, Json, environment_names  # typer reads the annotations
from opero.cli.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from opero.config.sources import Leaf

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
    from opero.config.differences import differences

    one, other = (load_configuration(config, each) for each in (first, second))
    rows = differences(one, other)
    if as_json:
        found = [
            {"section": section, "option": path, "first": _data(path, left), "second": _data(path, right)}
            for section, path, left, right in rows
        ]
        print_json({"first": first, "second": second, "differences": found})
    elif rows:
        cells = (
            ((section, path or WHOLE, *_cells(path, left), *_cells(path, right)), "")
            for section, path, left, right in rows
        )
        print_table(["section", "option", first, "source", second, "source"], cells, titles=2)
    else:
        say(f"no differences between {first} and {second}")
    return FAILED if rows and exit_code else OK


def _data(path: str, leaf: Leaf | None) -> dict[str, Any] | None:
    from opero.config.plain_values import leaf_data

    if leaf is None:
        return None
    data = leaf_data(path, leaf)
    return {name: data[name] for name in ("value", "removed", "source", "section")}


def _cells(path: str, leaf: Leaf | None) -> tuple[str, str]:
    from opero.config.plain_values import leaf_text

    if leaf is None:
        return "", "missing"
    if not path:
        return "present", str(leaf.source)
    return leaf_text(path, leaf), str(leaf.source)
