"""`opero init`: writes commented policy files to start with, also of what the clients of a program do."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from opero.cli.exits import UsageError
from opero.cli.options import Json  # noqa: TC001  # typer reads the annotation
from opero.cli.run import command_of, environment_of
from opero.cli.terminal import print_json, print_warning, say
from opero.errors import message_of

TEMPLATES = Path(__file__).parent / "templates"
SCHEMA = "schema.json"
BASE = "base.yaml"
DEFAULT = Path("policies")


def init_command(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="The directory to write to.")] = DEFAULT,
    program: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PROGRAM",
            help='A program that is run, and whose requests the policies follow from: "app.py --once", "-m app".',
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Json = False,
) -> int:
    """Write commented policy files to start with.

    The files are base, development, staging and production.yaml, and schema.json for checks and completion in editors.

    With --from, the program is run as it is, until it ends or Ctrl-C ends it. base.yaml then has a profile for each
    library of HTTP clients that it has sent requests with, made of what these came to, and `imports:` for opero run.

    \b
    opero init
    opero init config/policies
    opero init --from "app.py --once"
    """
    from opero.config.schema import schema_text

    texts = {path.name: path.read_text("utf-8") for path in sorted(TEMPLATES.glob("*.yaml"))}
    names = [*([BASE] if program is not None else texts), SCHEMA]
    present = [name for name in names if (directory / name).exists()]
    if present and not force:
        raise UsageError(
            f"{directory} already contains {', '.join(present)}; nothing was written: use another directory, or "
            "--force to overwrite"
        )
    clients: list[dict[str, object]] = []
    if program is not None:
        texts[BASE], clients = _text_from(program, quiet=as_json)
    texts[SCHEMA] = schema_text()
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text(texts[name], "utf-8")
    written = [str(directory / name) for name in names]
    if as_json:
        print_json({"directory": str(directory), "written": written, **({"clients": clients} if program else {})})
        return 0
    for path in written:
        say(f"wrote {path}")
    where = "" if directory == DEFAULT else f" --config {directory}"
    if program is not None:
        say(f"\nnext: read {directory / BASE}, then opero run{where} {program}")
    else:
        say(f"\nnext: opero check --all-envs{where}, then opero explain api --env production{where}")
    return 0


def _text_from(program: str, *, quiet: bool) -> tuple[str, list[dict[str, object]]]:
    """Run a program: the text of base.yaml that follows from the requests of its clients, and their numbers.

    Args:
        program: what follows `opero run`.
        quiet: whether stdout is for something else than the output of the program.

    Raises:
        UsageError: there is no such program, or it has sent no request.
    """
    from opero.cli.suggestions import policies_text, read_requests, summary
    from opero.config.document import CLIENT_LIBRARIES

    try:
        words = shlex.split(program)
    except ValueError as error:
        raise UsageError(f"--from {program!r} is no command line: {message_of(error)}") from error
    if not words:
        raise UsageError('--from requires a program: --from app.py, or --from "-m app.worker --once"')
    command = command_of(words)
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "requests.jsonl"
        variables = environment_of(0, {}, str(noted))
        sys.stdout.flush()
        with subprocess.Popen(command, env=variables, stdout=sys.stderr if quiet else None) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # which the program has received as well
                code = process.wait()
        found = read_requests(noted) if noted.exists() else {}
    if code:
        print_warning(f"{program} ended with exit code {code}")
    if not found:
        raise UsageError(
            f"{program} has sent no request with {', '.join(CLIENT_LIBRARIES)} or urllib.request, so nothing was "
            'written: for functions of its own, use opero init, and imports: {"module:function": profile}'
        )
    return policies_text(program, found), summary(found)
