"""Locks on files between processes, which the kernel releases when their holder dies.

The only module that knows how platforms lock files. A file is locked as a whole (`lock`, `try_lock`, `unlock`), or byte
by byte (`try_lock_byte`, `unlock_byte`).

A lock of a whole file belongs to what was opened: a forked child shares it with its parent. Locks of bytes belong to
the process, and closing any descriptor of the file releases all of them.
"""

from __future__ import annotations

import os
import sys
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None

HAS_LOCKS = fcntl is not None
"""Whether this platform has locks that can be waited for, and locks of bytes."""

FAR = 1 << 40
"""The byte that stands for the whole file on Windows, where a locked byte cannot be read."""


def lock(file: int) -> None:
    """Wait until this process has the whole file locked."""
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: int) -> bool:
    """Lock the whole file; False if another process has locked it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif sys.platform == "win32":  # pragma: no cover
            import msvcrt

            os.lseek(file, FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock(file: int) -> None:
    """Release the lock of the whole file. On Windows that takes closing it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)


def try_lock_byte(file: int, offset: int) -> bool:
    """Lock a byte; False if another process has locked it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock_byte(file: int, offset: int) -> None:
    """Release the lock of a byte."""
    fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)
