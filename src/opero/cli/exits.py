"""Exit codes, and the exceptions that lead to them."""

from __future__ import annotations

from opero.errors import OperoError

OK = 0
FAILED = 1
"""Problems were found, items failed, the function failed, or environments differ."""
INVALID = 2
"""Invalid usage or configuration, or a file that cannot be read or written."""
INTERRUPTED = 130
BROKEN_PIPE = 141
"""The reader of the output closed it."""
TERMINATED = 143


class UsageError(OperoError):
    """The command line is invalid, or refers to something that does not exist."""

    exit_code = INVALID


class InvalidItemError(OperoError):
    """A line of the file of items is not a valid item."""


class FailedError(OperoError):
    """The user's function failed; its exception is the cause."""

    exit_code = FAILED


def failed_by_exit(target: str, end: SystemExit) -> FailedError:
    """Return the error for a function that called `sys.exit`, whose exit code is not the command's."""
    return FailedError(f"{target} raised SystemExit({end.code!r})")


class InterruptedRunError(OperoError):
    """Ctrl-C or SIGTERM ended a run; the message says how to resume it."""

    exit_code = INTERRUPTED
