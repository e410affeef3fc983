"""The `opero` command: one file a command, loaded when it runs. It needs the extra `cli`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["main"]

EXTRA = ("typer", "rich", "shellingham", "click")
"""What the extra brings; another package that is missing is another mistake."""


def main() -> NoReturn:
    """Run the command that the process's arguments name, and exit."""
    _open_streams()
    try:
        from opero.cli.app import run

        sys.exit(run(sys.argv[1:]))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print("opero: the command needs the extra cli: pip install 'opero[cli]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before anything runs, or after
        sys.exit(130)


def _open_streams() -> None:
    """Have what the caller has closed (`>&-`) lead nowhere; a file that is opened later must not take its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process lives
