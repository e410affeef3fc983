"""`opero env`: lists the environment variables that opero reads, with their current effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.loading import check_profile, load_configuration
from opero.cli.options import Config, Environment, Json, profile_names  # typer reads the annotations
from opero.cli.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from opero.cli.variables import EnvironmentVariable
    from opero.config.configuration import Configuration

SECRET = ("OPERO_CACHE_SECRET", "OPERO_CACHE_REDIS_URL", "OPERO_REDIS_URL", "OPERO_TOKEN")


def env_command(
    profile: Annotated[
        str | None,
        typer.Argument(metavar="[PROFILE]", help="Only variables of this profile.", autocompletion=profile_names),
    ] = None,
    only_set: Annotated[bool, typer.Option("--set", help="Only variables that are set.")] = False,
    env: Environment = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """List the environment variables that opero reads.

    Each is shown with what it sets, the current value, its source, and the value that it overrides. If an option has
    several names, the shortest is shown (--json: all).

    \b
    opero env --set
    opero env api --env production
    """
    from opero.cli.variables import variables
    from opero.config.report import Report
    from opero.config.variables import collect_variables

    found = load_configuration(config, env)
    if profile is not None:
        check_profile(found, profile)
    settings = {
        name: each
        for layer in collect_variables(None, None, None, Report())[0].values()
        for name, each in layer.items()
    }
    chosen = [
        each
        for each in variables(found, settings)
        if (profile is None or each.profile == profile) and (each.is_set or not only_set)
    ]
    if as_json:
        print_json({"environment": found.environment, "variables": [_data(found, each) for each in chosen]})
    elif chosen:
        rows = (((_name(each), each.target, *_effect(found, each)), "bold" if each.is_set else "") for each in chosen)
        print_table(["variable", "sets", "current value", "source", "overrides"], rows)
    else:
        say("no variable is set")
    return 0


def _name(variable: EnvironmentVariable) -> str:
    """Return the name by which a variable is set; the shortest if it is not set."""
    if variable.setting is None:
        return variable.names[0]
    source = variable.setting.source
    return source.by or source.name if source.line is None or source.by else variable.names[0]


def _effect(found: Configuration, variable: EnvironmentVariable) -> tuple[str, str, str]:
    """Return the current value, its source, and the value that it overrides."""
    from opero.config.plain_values import leaf_text

    if not variable.path:
        source = "" if variable.setting is None else str(variable.setting.source)
        return _general(found, variable) or "", source, ""
    leaf = variable.leaf
    if leaf is None:
        return "", "", ""
    below = leaf.shadowed
    overridden = "" if below is None else f"{leaf_text(variable.path, below)} ({below.source})"
    return leaf_text(variable.path, leaf), str(leaf.source), overridden


def _general(found: Configuration, variable: EnvironmentVariable) -> str | None:
    from opero.problems import MASK, without_passwords

    if variable.setting is not None:
        return MASK if variable.names[0] in SECRET else without_passwords(variable.setting.text)
    directory = None if found.directory is None else str(found.directory)
    known = {"OPERO_ENV": found.environment, "OPERO_CONFIG": directory, "OPERO_ENABLED": "true"}
    return known.get(variable.names[0])


def _data(found: Configuration, variable: EnvironmentVariable) -> dict[str, Any]:
    from opero.config.plain_values import leaf_data, source_data

    leaf = None if variable.leaf is None else leaf_data(variable.path, variable.leaf)
    setting = variable.setting
    return {
        "name": variable.names[0],
        "names": list(variable.names),
        "sets": variable.target,
        "set": None if setting is None else source_data(setting.source),
        "value": _general(found, variable) if not variable.path else leaf and leaf["value"],
        "source": leaf and leaf["source"],
        "shadows": leaf["shadows"] if leaf else [],
    }
