"""A file of some bytes that several processes share, and a lock for it."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import struct
import sys
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from opero.errors import ConfigError
from opero.runtime.file_locks import lock, unlock
from opero.runtime.forking import renew_in_child, uninterrupted

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


PROC = "/proc"
"""Where Linux has the open files of each process, even those that have been deleted."""


class Held(NamedTuple):
    """Where a process has a file open.

    Attributes:
        path: a name by which its open file can be opened again, even if the file has been deleted. Only Linux has one.
        device, number: of the file, to recognize it.
    """

    path: str
    device: int
    number: int

    def open(self) -> int:
        """Open the file.

        Raises:
            OSError: the process has ended or closed the file, or this system has no such names.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(file)
        if (found.st_dev, found.st_ino) != self[1:]:
            os.close(file)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        return file


class StateFile:
    """A state that several processes share, and a lock for it, which the kernel frees when its holder dies.

    Args:
        path: an existing file.
        held: where another process has it open, as `held` of its own object says: it is opened there if its path has
            been deleted.

    Raises:
        ConfigError: the file does not exist on this machine.
    """

    # The file has two areas for the state, and a number that says how large they are and which one is valid. A process
    # that is killed while it writes has touched the other one only, so the valid one is always complete.

    HEADER = 24

    def __init__(self, path: str, held: Held | None = None) -> None:
        self.path = path
        try:
            self._open(held)
        except OSError as error:
            raise ConfigError(
                f"the limits of this map are kept in {path}, which cannot be opened here ({error.strerror}): rate "
                "limit, circuit breaker and bulkhead are shared between the processes of one machine only; leave them "
                "out, or use mode='thread'"
            ) from error
        self._map_file()
        self._lock = threading.RLock()
        self.holder = 0
        renew_in_child(self, "_lock")

    @classmethod
    def create(cls, path: Path, size: int, *, stays: bool = False) -> StateFile:
        """Create a file for states of up to `size` bytes. It is deleted once this process does not use it any more,
        unless it stays."""
        area = _padded(size)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(struct.pack("q", 2 * area) + bytes(cls.HEADER - 8 + 2 * area))
        file = cls(str(path))
        if not stays:
            weakref.finalize(file, _unlink, file.path, os.getpid()).atexit = False
        return file

    @property
    def held(self) -> Held:
        """Where this process has the file open, for processes that find no path to it."""
        found = os.fstat(self._file)
        return Held(f"{PROC}/{os.getpid()}/fd/{self._file}", found.st_dev, found.st_ino)

    def can_be_found(self) -> bool:
        """Whether other processes can open it."""
        return os.path.exists(self.path) or os.path.exists(self.held.path)

    def _open(self, held: Held | None) -> None:
        # A file lock belongs to an open file, so threads would share it: they have a lock of their own besides.
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # the temporary directory has been cleaned
            if held is None:
                raise
            self._file = held.open()
        self._closing = weakref.finalize(self, os.close, self._file)
        self._closing.atexit = False
        status = os.fstat(self._file)  # it is read by pickle
        if sys.platform != "win32" and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise PermissionError(errno.EPERM, "another user could write it", self.path)

    def _map_file(self) -> None:
        self._map = mmap.mmap(self._file, 0)
        view = memoryview(self._map)
        self._current = view[0:8].cast("q")  # twice the size of an area, plus 1 if the second one is valid
        self._number = view[8:16].cast("d")
        self._versions = view[20:24].cast("I")

    def after_fork(self) -> None:
        """Open the file again, as a forked child shares its parent's lock. The state stays shared."""
        if self.holder != threading.get_ident():
            self.holder = 0
        close = self._closing
        with suppress(OSError):  # the file is deleted, and this system has no /proc
            self._open(self.held)
            close()

    def __enter__(self) -> Self:
        # opero's timeouts do not interrupt this thread until it has released the lock, which would stay locked. Ctrl-C
        # does, at any call, so what is released is what this thread has by then.
        me = threading.get_ident()
        try:
            uninterrupted.add(me)
            self._lock.acquire()
            lock(self._file)
        except BaseException:
            self.release()
            uninterrupted.discard(me)
            raise
        self.holder = me
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        me, self.holder = self.holder, 0
        try:
            unlock(self._file)
        except BaseException:
            self.release()
            raise
        try:
            self._lock.release()
        finally:
            uninterrupted.discard(me)

    @property
    def is_locked_here(self) -> bool:
        """Whether this thread has the lock."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def release(self) -> None:
        """Release what this thread still has of the lock, if anything.

        To be called after an exception from a block that the lock surrounds: an interruption may come before the first
        line of `__exit__`, which then releases nothing.
        """
        if not self.is_locked_here:
            return
        self.holder = 0
        try:
            while self.is_locked_here:
                unlock(self._file)
                self._lock.release()
        finally:
            uninterrupted.discard(threading.get_ident())

    def is_same_as(self, other: StateFile) -> bool:
        """Return whether another object has the same file open."""
        return os.path.sameopenfile(self._file, other._file)

    # May be read without the lock, as each is written at once

    @property
    def number(self) -> float:
        """A number beside the state."""
        return self._number[0]

    @number.setter
    def number(self, value: float) -> None:
        self._number[0] = value

    @property
    def flag(self) -> bool:
        """A flag beside the state."""
        return bool(self._map[16])

    @flag.setter
    def flag(self, value: bool) -> None:
        self._map[16] = value

    @property
    def version(self) -> int:
        """A count beside the state, by which a writer announces changes."""
        return self._versions[0]

    @version.setter
    def version(self, value: int) -> None:
        self._versions[0] = value & 0xFFFFFFFF

    # Under the lock

    def read(self) -> Any:
        """The state; None where none has been written yet."""
        area, second = divmod(self._current[0], 2)
        start = self.HEADER + second * area
        if start + area > len(self._map):  # another process has enlarged it
            self._map_file()
        (length,) = struct.unpack_from("q", self._map, start)
        return pickle.loads(self._map[start + 8 : start + 8 + length]) if length else None

    def write(self, state: Any) -> None:
        """Replace the state.

        Raises:
            ValueError: the new one is larger than the file's areas.
        """
        data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        area, second = divmod(self._current[0], 2)
        if len(data) + 8 > area:
            raise ValueError(f"a state of {len(data)} bytes does not fit into {self.path}")
        self._put(data, area, 1 - second)

    def grow(self, size: int) -> int:
        """Make room for states of up to `size` bytes, if the disk has it; how many bytes a state may have now."""
        area = self._current[0] // 2
        if _padded(size) <= area:
            return area - 8
        data = pickle.dumps(self.read(), pickle.HIGHEST_PROTOCOL)
        larger = max(_padded(size), 2 * area)  # so that its second area begins after both of the old ones
        end = os.fstat(self._file).st_size
        try:
            while end < self.HEADER + 2 * larger:
                end += os.pwrite(self._file, bytes(min(1 << 20, self.HEADER + 2 * larger - end)), end)
        except OSError:
            return area - 8
        self._map_file()
        self._put(data, larger, 1)
        return larger - 8

    def _put(self, data: bytes, area: int, second: int) -> None:
        start = self.HEADER + second * area
        if start + area > len(self._map):  # as above
            self._map_file()
        struct.pack_into("q", self._map, start, len(data))
        self._map[start + 8 : start + 8 + len(data)] = data
        self._current[0] = 2 * area + second


def _padded(size: int) -> int:
    """Bytes for a state of that size and its length, aligned to 8."""
    return (size + 8 + 7) // 8 * 8


def _unlink(path: str, creator: int) -> None:
    if os.getpid() == creator:  # not in a forked child
        with suppress(OSError):
            os.unlink(path)
