"""`opero schema`: prints the JSON Schema of the policy files, for editors."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from opero.cli.options import Json  # noqa: TC001  # typer reads the annotation
from opero.cli.terminal import print_json, say


def schema_command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write. Default: print to stdout.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Print the JSON Schema of the policy files.

    Editors use it for files that begin with `# yaml-language-server: $schema=schema.json`. With --output, --json prints
    the path of the written file.

    \b
    opero schema -o policies/schema.json
    """
    from opero.config.schema import schema_text

    if output is None:
        print(schema_text(), end="")
        return 0
    output.write_text(schema_text(), "utf-8")
    if as_json:
        print_json({"written": str(output)})
    else:
        say(f"wrote {output}")
    return 0
