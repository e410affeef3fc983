"""What a command's exit code says."""

from __future__ import annotations

from opero.errors import OperoError

__all__ = [
    "CONFIGURATION",
    "INTERRUPTED",
    "NO",
    "NO_READER",
    "OK",
    "TERMINATED",
    "FailedError",
    "InterruptedRunError",
    "UsageError",
    "ended",
]

OK = 0
NO = 1
"""The answer is no: problems were found, items failed, the function failed, environments differ."""
CONFIGURATION = 2
"""Wrong usage, a wrong configuration, or a file that cannot be read or written."""
INTERRUPTED = 130
NO_READER = 141
"""Whoever read the output has gone."""
TERMINATED = 143


class UsageError(OperoError):
    """The command cannot do what it was asked; the message says what, and the cure."""

    exit_code = CONFIGURATION


class FailedError(OperoError):
    """The user's own function failed; its exception is the cause."""

    exit_code = NO


def ended(target: str, end: SystemExit) -> FailedError:
    """What a function has done that ended the program: its exit code is none of the command's."""
    return FailedError(f"{target} ended the program: SystemExit({end.code!r})")


class InterruptedRunError(OperoError):
    """Ctrl-C or SIGTERM has ended a run; the message says how to go on."""

    exit_code = INTERRUPTED
