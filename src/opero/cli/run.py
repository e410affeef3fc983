"""`opero run`: runs a program whose functions are bound as `imports:` says, without touching its code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from opero.cli.exits import UsageError
from opero.cli.loading import load_configuration
from opero.cli.options import Config, Environment  # noqa: TC001  # typer reads the annotations
from opero.integrations.imports import VARIABLE

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
SITE = Path(__file__).parent / "site"
"""The folder that makes each Python process of the program bind its functions."""


def run_command(
    context: typer.Context,
    program: Annotated[
        list[str], typer.Argument(metavar="PROGRAM [ARGS]...", help="app.py, -m MODULE, or a command such as gunicorn.")
    ],
    config: Config = None,
    env: Environment = None,
) -> int:
    """Run a program under profiles, without touching its code.

    Binds the functions that `imports:` in the policy files names when the program imports them, also in the processes
    that it starts. At the end of each process the counts of each function that was called are printed on stderr.

    \b
    opero run app.py --verbose
    opero run --env production -m app.worker
    opero run gunicorn app:wsgi --workers 4
    """
    found = load_configuration(config, env)
    if not found.imports:
        where = found.directory or "policies, which was not found"
        raise UsageError(
            'nothing to bind: name libraries or functions in the policy files, imports: {httpx: api, "app.users:*": '
            f"api}} ({where}), or let opero init --from write them"
        )
    from opero.registry.checks import check_client_imports  # expensive, and `--help` imports this module

    report = found.report()
    check_client_imports(found, report)
    report.raise_if_any()
    command = command_of(program)
    first = os.getpid() if os.name == "posix" else 0
    targets = {target: each.value for target, each in found.imports.items()}
    variables = environment_of(first, targets)
    if env is not None:
        variables["OPERO_ENV"] = env
    if config is not None:
        variables["OPERO_CONFIG"] = str(found.directory)
    sys.stdout.flush()
    if os.name == "posix":  # the program takes the place of this process: signals and exit code are its own
        os.execvpe(command[0], command, variables)
    return subprocess.run(command, env=variables, check=False).returncode


def environment_of(first: int, targets: Mapping[str, str], noted: str | None = None) -> dict[str, str]:
    """Return the environment variables of a program whose functions are bound.

    Args:
        first: its process id; 0 if it is not known.
        targets: what to bind → its profile.
        noted: the file to which to note its requests, instead of binding anything.
    """
    variables = {**os.environ, VARIABLE: json.dumps([first, targets, noted])}
    variables["PYTHONPATH"] = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables


def command_of(program: list[str]) -> list[str]:
    """The command line of a program.

    Raises:
        UsageError: there is no such program.
    """
    first = program[0]
    if first == "-m" and len(program) == 1:
        raise UsageError("-m requires the name of a module: opero run -m app.worker")
    if first == "-m":
        return [sys.executable, *program]
    if first.endswith(".py") or Path(first).is_dir():
        if not Path(first).exists():
            raise UsageError(f"no program {first!r} in {os.getcwd()}")
        return [sys.executable, *program]
    found = shutil.which(first, path=str(Path(sys.executable).parent)) or shutil.which(first)  # of this environment
    if found is None:
        raise UsageError(f"no program {first!r}: use a file that ends with .py, -m MODULE, or a command in PATH")
    return [found, *program[1:]]
