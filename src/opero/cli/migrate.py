"""`opero migrate`: replaces retry decorators of other libraries by profiles."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opero.cli.exits import FAILED, OK, UsageError
from opero.cli.options import Config, Json  # noqa: TC001  # typer reads the annotations
from opero.cli.terminal import print_json, say
from opero.errors import MissingExtraError

if TYPE_CHECKING:
    from opero.migrate.migration import Migration, Use

FOR_ALL = (
    "all of them: after a response 429 without Retry-After the delay is at least 1 s; an exception by which a "
    "framework steers, such as Celery's Retry, is not retried; a sync function must not return a coroutine"
)


def migrate_command(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, and directories with all below.")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="PROFILE", help="The profile's name. Default: the module's.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Change the files.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Replace decorators of tenacity, stamina and backoff.

    A profile takes their place. Shows the profiles, the changes of the code, what will be different, and what is left
    alone and why. No code is run or imported.

    \b
    opero migrate app/
    opero migrate app/client.py --name api --write
    """
    try:
        from opero.migrate.migration import plan
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "libcst":
            raise
        raise MissingExtraError("the command requires the extra migrate: pip install 'opero[migrate]'") from error
    from opero.config.location import named_directory

    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"{name!r} is not a name for a profile: use letters, digits, '-', '_' and '.'")

    migration = plan(paths, Path(named_directory(config, os.environ).value), name)
    if write and migration.texts:
        migration.write()
    if as_json:
        _print_json(migration, write)
    else:
        _print(migration, write)
    return FAILED if migration.left or migration.unreadable else OK


def _print(migration: Migration, written: bool) -> None:
    from opero.config.location import show_path

    if written:
        for path in migration.texts:
            say(f"wrote {show_path(path.absolute())}")
    elif migration.texts:
        if migration.profiles:
            say(f"# {show_path(migration.base.absolute())}")
            say(migration.yaml())
        say(migration.diff())
    functions = len(migration.replaced)
    what = "function" if functions == 1 else "functions"
    has = "can have" if not written or not functions else "now has" if functions == 1 else "now have"
    say(f"{functions} {what} {has} a profile")
    if functions:
        say("what will be different:" if not written else "what is different:")
        say(f"  {FOR_ALL}")
    places: dict[str, list[str]] = {}
    for use in migration.replaced:
        for difference in use.found.translation.differences if use.found.translation else ():
            places.setdefault(difference, []).append(_place(use))
    for difference, where in places.items():
        say("\n    ".join([f"  {difference}", *where]))
    if migration.left or migration.unreadable:
        say("left alone:")
        for use in migration.left:
            say(f"  {_place(use)}: {use.found.reason}")
        for path, reason in migration.unreadable.items():
            say(f"  {path}: {reason}")
    if migration.texts:
        say("next: opero check, with --import for each changed module" if written else "--write changes the files")


def _place(use: Use) -> str:
    return f"{use.file}:{use.found.line}: {use.found.function or use.found.library}"


def _print_json(migration: Migration, written: bool) -> None:
    def data(use: Use) -> dict[str, object]:
        found = use.found
        return {"file": str(use.file), "line": found.line, "function": found.function, "library": found.library}

    print_json(
        {
            "written": [str(path) for path in migration.texts] if written else [],
            "profiles": migration.profiles,
            "replaced": [
                {**data(use), "profile": use.profile, "differences": use.found.translation.differences}
                for use in migration.replaced
                if use.found.translation is not None
            ],
            "left": [{**data(use), "reason": use.found.reason} for use in migration.left]
            + [
                {"file": str(path), "line": None, "function": "", "library": "", "reason": reason}
                for path, reason in migration.unreadable.items()
            ],
            "diff": migration.diff(),
        }
    )
