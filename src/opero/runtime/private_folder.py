"""A directory for files that this process shares with its worker processes.

It is in `user_folders`, named by this process's number and start time, and locked for as long as the process lives. It
is deleted when the process ends; that of a process that was killed is deleted by the next one that makes its own.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from opero.runtime.file_locks import HAS_LOCKS, lock, try_lock
from opero.runtime.forking import RenewedLock, at_fork
from opero.runtime.machine import started
from opero.runtime.user_folder import user_folders

T = TypeVar("T")

MOST_TRIES = 10
"""How often a file is made in a directory that is deleted meanwhile."""
MOST_LOOKED_AT, MOST_SWEPT = 1000, 32
"""The directories of other processes that are looked at, and deleted, when one is made."""
NAME = re.compile(r"map-(?P<pid>\d+)-(?P<start>\d+)-\w+")


class _Folder:
    """The directory of this process.

    Attributes:
        path: the directory.
    """

    def __init__(self, parent: Path | None) -> None:
        prefix = f"map-{os.getpid()}-{max(0.0, started(os.getpid())):.0f}-"
        self.path = Path(tempfile.mkdtemp(prefix=prefix if parent is not None else "opero-", dir=parent))
        self._descriptor: int | None = None
        if HAS_LOCKS:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(OSError):  # a file system without locks
                lock(self._descriptor)

    def is_there(self) -> bool:
        """Return whether it exists, and is not another one of the same name."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return self._descriptor is None or os.path.samestat(found, os.fstat(self._descriptor))

    def release(self) -> None:
        """Unlock it, unless a forked process has it open as well."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()


_own: _Folder | None = None
_lock = RenewedLock()


def private_folder() -> Path:
    """Return a directory that only this user can access, and that is deleted when this process exits.

    It is made again if it has been deleted.
    """
    global _own  # one per process
    with _lock:
        if _own is not None:
            if _own.is_there():
                return _own.path
            _own.release()
        _own, parent = _made()
        path = _own.path
    if parent is not None:
        _sweep(parent)
    return path


def in_private_folder(make: Callable[[Path], T]) -> T:
    """Return what a function makes in the directory. It is called again if the directory is deleted meanwhile."""
    for _ in range(MOST_TRIES):
        with suppress(FileNotFoundError):
            return make(private_folder())
    return make(private_folder())


def _made() -> tuple[_Folder, Path | None]:
    """A new directory, and the one above it, if that has those of other processes as well."""
    for parent in user_folders():
        for _ in range(MOST_TRIES):
            try:
                folder = _Folder(parent)
            except FileNotFoundError:  # it has been deleted meanwhile
                parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            except OSError:  # such as a full disk
                break
            if folder.is_there():  # else it was deleted before it was locked
                return folder, parent
            folder.release()
    return _Folder(None), None


def _sweep(parent: Path) -> None:
    """Delete the directories of processes that were killed."""
    if not HAS_LOCKS:  # pragma: no cover  # Windows, where what is open cannot be deleted
        return
    swept = 0
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in islice(entries, MOST_LOOKED_AT):
            match = NAME.fullmatch(entry.name)
            if match is None or started(int(match["pid"])) == float(match["start"]):
                continue
            with suppress(OSError):
                swept += _swept(entry.path)
            if swept >= MOST_SWEPT:
                return


def _swept(path: str) -> bool:
    """Delete a directory, unless its process lives: in another container, whose processes have numbers of their own."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not try_lock(descriptor):
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)


def _forget() -> None:
    """Leave the directory to the parent, in a forked process."""
    global _own  # noqa: PLW0603
    if _own is not None:
        _own.release()
        _own = None


def _delete() -> None:
    """Delete the directory at exit."""
    if _own is not None:
        _own.delete()


atexit.register(_delete)
at_fork(in_child=_forget)
