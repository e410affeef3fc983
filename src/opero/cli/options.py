"""The options that several commands have, and what shells complete them with."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = [
    "Config",
    "Environment",
    "Json",
    "Modules",
    "PolicyName",
    "environment_names",
    "profile_names",
    "target_names",
]


def environment_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The environments that have a file."""
    from opero.cli.loading import environments

    try:
        names = environments(ctx.params.get("config"))
    except Exception:  # noqa: BLE001  # a shell that completes must not be told of errors
        return []
    return [name for name in names if name.startswith(incomplete)]


def profile_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The profiles of the environment that the line names so far."""
    from opero.config import load

    try:
        policies = load(ctx.params.get("config"), ctx.params.get("env")).policies
    except Exception:  # noqa: BLE001  # as above
        return []
    return [name for name in sorted(policies) if name.startswith(incomplete)]


def target_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The profiles; of functions nothing is known before they are imported."""
    return [] if ":" in incomplete else profile_names(ctx, incomplete)


Environment = Annotated[
    str | None,
    typer.Option(
        "--env",
        "-e",
        metavar="ENV",
        help="The environment. Default: OPERO_ENV, else ENVIRONMENT, else development.",
        autocompletion=environment_names,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="DIR",
        help="The directory of the policy files. Default: OPERO_CONFIG, else config of [tool.opero] in "
        "pyproject.toml, else ./policies.",
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        "-i",
        metavar="MODULE",
        help="Import this module first, for the functions that it binds. May be given several times.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, whose shape stays as it is documented.")]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", "-p", metavar="PROFILE", help="The profile to run under.", autocompletion=profile_names),
]


def one_of(name: str, choices: tuple[str, ...], help: str) -> Any:  # noqa: A002  # typer's word
    """An option that takes one of several words."""

    def complete(incomplete: str) -> list[str]:
        return [each for each in choices if each.startswith(incomplete)]

    return typer.Option(name, metavar="|".join(choices), help=help, autocompletion=complete)
