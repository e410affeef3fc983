"""A folder for what this process shares with its workers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["private_folder"]

_folder: tempfile.TemporaryDirectory[str] | None = None


def private_folder() -> Path:
    """A folder that only this user can read, and that goes when this process ends."""
    global _folder  # noqa: PLW0603  # one a process
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="opero-", ignore_cleanup_errors=True)
    return Path(_folder.name)


def _forget() -> None:
    """In a forked child: the folder is its parent's."""
    global _folder  # noqa: PLW0603  # as above
    if _folder is not None:
        _folder._finalizer.detach()  # type: ignore[attr-defined]  # it must outlive the child
        _folder = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
