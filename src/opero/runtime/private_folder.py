"""A temporary directory for files that this process shares with its worker processes."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

from opero.runtime.forking import RenewedLock, at_fork

_folder: tempfile.TemporaryDirectory[str] | None = None
_lock = RenewedLock()


def private_folder() -> Path:
    """Return a directory that only this user can access, and that is deleted when this process exits."""
    global _folder  # noqa: PLW0603  # one per process
    with _lock:
        if _folder is None:
            _folder = tempfile.TemporaryDirectory(prefix="opero-", ignore_cleanup_errors=True)
            atexit.register(_delete)  # here, so that it runs before the directory's own exit hook
        return Path(_folder.name)


def _forget() -> None:
    """Forget the parent's directory in a forked process."""
    global _folder  # noqa: PLW0603
    if _folder is not None:
        _folder._finalizer.detach()  # type: ignore[attr-defined]  # the child must not delete it
        _folder = None


def _delete() -> None:
    """Delete the directory at exit: left to itself, it would warn of its implicit cleanup."""
    if _folder is not None:
        _folder.cleanup()


at_fork(in_child=_forget)
