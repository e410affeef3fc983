"""A file that only grows, and that no other run can use until it is closed."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from opero.errors import ConfigError, message_of
from opero.runtime.file_locks import try_lock, unlock
from opero.runtime.forking import renew_in_child
from opero.runtime.log import log

if TYPE_CHECKING:
    from pathlib import Path

READ_AHEAD = 1 << 16

_in_use: WeakValueDictionary[tuple[int, int], LockedFile] = WeakValueDictionary()
"""The open ones: on some file systems locks do not hold within a process."""


class LockedFile:
    """Opens a file, or creates an empty one, and locks it.

    A forked child has its parent's file closed: it writes nothing there, and does not keep it locked when the parent
    has died.

    Args:
        path: the file. Its directory is not created.
        what: what messages call the file, in front of its path.

    Raises:
        ConfigError: the file is in use or cannot be opened; the message says what to do.

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
        renew_in_child(self)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, by `close` or as this is a forked child."""
        return self._file.closed

    def refused(self, why: str) -> ConfigError:
        return ConfigError(f"the {self.what} {self.path} {why}")

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @contextmanager
    def reader(self) -> Iterator[Any]:
        """A reader from the beginning of the file, which does not see what is written meanwhile."""
        self._file.seek(0)
        reader = io.BufferedReader(self._file, READ_AHEAD)
        try:
            yield reader
        finally:
            reader.detach()

    def append(self, data: bytes) -> None:
        """Write all of it at the end."""
        with self._named():
            left = memoryview(data)
            while left:
                left = left[os.write(self._file.fileno(), left) :]

    def cut(self, size: int) -> None:
        """Cut off what comes after the first `size` bytes."""
        with self._named():
            os.ftruncate(self._file.fileno(), size)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with self._named():
            os.fsync(self._file.fileno())

    def sync_directory(self) -> None:
        """Wait until the name of a new file is on the disk."""
        try:
            directory = os.open(os.path.dirname(os.path.realpath(self.path)), os.O_RDONLY)
        except OSError:  # Windows, or a directory that may not be read
            return
        try:
            os.fsync(directory)
        except OSError as error:  # some file systems cannot
            text = "the directory of the %s %s cannot be synced: %s"
            log("directory_not_synced", text, self.what, self.path, error, path=self.path, error=error)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Let other runs use the file. Closing again does nothing."""
        if self._file.closed:
            return
        _in_use.pop(self._identity(), None)
        with suppress(OSError):  # closing alone would leave it locked while a forked child has it open
            unlock(self._file.fileno())
        self._file.close()

    def after_fork(self) -> None:
        if not self._file.closed:
            _in_use.pop(self._identity(), None)
            self._file.close()  # which leaves it locked by the parent

    def _opened(self) -> io.FileIO:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except FileNotFoundError as error:
            raise self.refused(f"cannot be created: there is no directory {str(self.path.parent)!r}") from error
        except (OSError, ValueError) as error:  # ValueError: no path has a NUL or a lone surrogate
            reason = getattr(error, "strerror", None) or message_of(error)
            raise self.refused(f"cannot be opened for reading and writing: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self.refused("is no regular file: give another path")
        return io.FileIO(descriptor, "r+b")

    def _lock(self) -> None:
        used = "is in use by another run: wait for it to end, or give another path"
        if self._identity() in _in_use:
            raise self.refused(used)
        try:
            is_free = try_lock(self._file.fileno())
        except OSError as error:
            text = "the %s %s cannot be locked here, so another run could use it as well: %s"
            log("file_not_locked", text, self.what, self.path, error, path=self.path, error=error)
            return
        if not is_free:
            raise self.refused(used)

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
