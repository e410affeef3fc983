"""A file that only grows, and that whoever has opened it has alone until it is closed."""

from __future__ import annotations

import io
import os
import stat
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from opero.errors import ConfigError
from opero.observe.logs import logger

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LockedFile"]

READ_AHEAD = 1 << 16

_in_use: WeakValueDictionary[tuple[int, int], LockedFile] = WeakValueDictionary()
"""The open ones, for file systems whose locks are between processes alone; and for forks."""


class LockedFile:
    """Opens a file, or creates it empty, and locks it.

    Args:
        path: the file. Its directory is not created.
        what: what messages call it, before its path.

    Attributes:
        is_closed: by `close`, or because this is a child process of the one that has opened it.

    Raises:
        ConfigError: it is in use, or cannot be opened; the message says what to do.

    Its methods raise an OSError that names the file.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        self._file = self._opened()
        try:
            self._lock()
        except BaseException:
            self._file.close()
            raise
        _in_use[self._identity()] = self

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def refused(self, why: str) -> ConfigError:
        return ConfigError(f"the {self.what} {self.path} {why}")

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @contextmanager
    def reader(self) -> Iterator[Any]:
        """What reads it, from its beginning; for now, as it knows nothing of what is written meanwhile."""
        self._file.seek(0)
        reader = io.BufferedReader(self._file, READ_AHEAD)
        try:
            yield reader
        finally:
            reader.detach()

    def append(self, data: bytes) -> None:
        """Write at the end: all of it, unless it raises."""
        with self._named():
            left = memoryview(data)
            while left:
                left = left[os.write(self._file.fileno(), left) :]

    def cut(self, size: int) -> None:
        """Cut off what comes after the first `size` bytes."""
        with self._named():
            os.ftruncate(self._file.fileno(), size)

    def sync(self) -> None:
        """Return when everything is on the disk."""
        with self._named():
            os.fsync(self._file.fileno())

    def sync_directory(self) -> None:
        """Make sure that a power cut does not take a new file's name."""
        try:
            directory = os.open(os.path.dirname(os.path.realpath(self.path)), os.O_RDONLY)
        except OSError:  # Windows, or a directory that may not be read
            return
        try:
            os.fsync(directory)
        except OSError as error:  # some file systems have no such thing
            logger.debug("the directory of the %s %s cannot be synced: %s", self.what, self.path, error)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Let others use it. Closing again does nothing."""
        if self._file.closed:
            return
        _in_use.pop(self._identity(), None)
        if fcntl is not None:  # else a child process that has inherited it would keep it locked
            with suppress(OSError):
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
        self._file.close()

    def abandon(self) -> None:
        """Close it, and leave it locked: what a child process does with its parent's."""
        self._file.close()

    def _opened(self) -> io.FileIO:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except FileNotFoundError as error:
            raise self.refused(f"cannot be created: there is no directory {str(self.path.parent)!r}") from error
        except OSError as error:
            raise self.refused(f"cannot be opened for reading and writing: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self.refused("is no regular file: give another path")
        return io.FileIO(descriptor, "r+b")

    def _lock(self) -> None:
        used = "is in use by another run: wait for it to end, or give another path"
        if self._identity() in _in_use:
            raise self.refused(used)
        try:
            if fcntl is not None:
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif sys.platform == "win32":  # pragma: no cover
                import msvcrt

                self._file.seek(1 << 40)  # a byte that nobody needs to read
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError) as error:
            raise self.refused(used) from error
        except OSError as error:
            logger.warning(
                "the %s %s cannot be locked here, so nothing keeps another run from it: %s", self.what, self.path, error
            )

    def _identity(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_dev, found.st_ino

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{error.strerror}, so nothing more is recorded in the {self.what}"
            raise OSError(error.errno, message, str(self.path)) from error


def _after_fork() -> None:
    """A child process writes nothing of its parent's, and does not keep the file locked when the parent has died."""
    for file in list(_in_use.values()):
        file.abandon()
    _in_use.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
