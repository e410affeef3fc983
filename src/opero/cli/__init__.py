"""The `opero` command (extra `cli`). Each subcommand has its own module, which is imported when it runs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

EXTRA = ("typer", "rich", "shellingham", "click")
"""The packages of the extra; if any other package is missing, that is a different error."""


def main() -> NoReturn:
    """Run the command in `sys.argv`, and exit with its exit code."""
    _open_closed_streams()
    try:
        from opero.cli.app import run

        sys.exit(run(sys.argv[1:]))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print("opero: the command requires the extra cli: pip install 'opero[cli]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # during the import, or after the command
        sys.exit(130)


def _open_closed_streams() -> None:
    """Open standard streams that the caller has closed (`>&-`) as /dev/null, before another file gets their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # open until the process exits
