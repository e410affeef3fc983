"""Options and arguments that several commands have, and their shell completion."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opero.cli.loading import environments


def environment_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of an environment that has a file."""
    try:
        names = environments(ctx.params.get("config"))
    except Exception:  # noqa: BLE001  # completion must not print errors
        return []
    return [name for name in names if name.startswith(incomplete)]


def profile_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a profile in the environment that the command line names so far."""
    from opero.config.settings import load
    from opero.policies.names import keeping_names

    try:
        with keeping_names():
            policies = load(ctx.params.get("config"), ctx.params.get("env")).policies
    except Exception:  # noqa: BLE001  # as above
        return []
    return [name for name in sorted(policies) if name.startswith(incomplete)]


def target_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a profile. Functions are not known without importing their modules."""
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
        help="Import this module first, to register the functions that it binds. Can be given several times.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in the documented, stable format.")]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", "-p", metavar="PROFILE", help="The profile to run under.", autocompletion=profile_names),
]


def one_of(name: str, choices: tuple[str, ...], help: str) -> Any:  # noqa: A002  # the name that typer uses
    """Return an option that takes one of several words, and completes them."""

    def complete(incomplete: str) -> list[str]:
        return [each for each in choices if each.startswith(incomplete)]

    return typer.Option(name, metavar="|".join(choices), help=help, autocompletion=complete)


ItemFile = Annotated[str, typer.Argument(metavar="ITEMS", help="The file of items; - for stdin.")]
ItemFormat = Annotated[
    str | None,
    one_of(
        "--format",
        ("jsonl", "csv", "lines"),
        "The format of ITEMS. Default: by the suffix of the file's name, else lines.",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        metavar="CHARACTER",
        help="What separates the fields of CSV files: a character, or tab. Default: a comma; for .tsv a tab.",
    ),
]
Unpack = Annotated[bool, typer.Option("--unpack", help="Pass the fields of an item as keyword arguments.")]
