"""`opero init`: writes commented policy files to start with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opero.cli.exits import UsageError
from opero.cli.options import Json  # noqa: TC001  # typer reads the annotation
from opero.cli.terminal import print_json, say

TEMPLATES = Path(__file__).parent / "templates"
SCHEMA = "schema.json"


def init_command(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="The directory to write to.")] = Path("policies"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Json = False,
) -> int:
    """Write commented policy files to start with.

    The files are base, development, staging and production.yaml, and schema.json for checks and completion in editors.

    \b
    opero init
    opero init config/policies
    """
    from opero.config.schema import schema_text

    texts = {path.name: path.read_text("utf-8") for path in sorted(TEMPLATES.glob("*.yaml"))} | {SCHEMA: schema_text()}
    present = [name for name in texts if (directory / name).exists()]
    if present and not force:
        raise UsageError(
            f"{directory} already contains {', '.join(present)}; nothing was written: use another directory, or "
            "--force to overwrite"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (directory / name).write_text(text, "utf-8")
    written = [str(directory / name) for name in texts]
    if as_json:
        print_json({"directory": str(directory), "written": written})
        return 0
    for path in written:
        say(f"wrote {path}")
    where = "" if directory == Path("policies") else f" --config {directory}"
    say(f"\nnext: opero check --all-envs{where}, then opero explain api --env production{where}")
    return 0
