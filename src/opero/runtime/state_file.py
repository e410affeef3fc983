"""A few bytes that several processes share."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from opero.errors import ConfigError
from opero.runtime.interruption import uninterrupted

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["HAS_LOCKS", "StateFile"]

HAS_LOCKS = fcntl is not None


class StateFile:
    """A few bytes that several processes share, and a lock for them, which the kernel frees when its holder dies.

    Args:
        path: the file. It exists already.

    Raises:
        ConfigError: there is no such file here.
    """

    # There are two slots for the state, and a number that says how large they are, and which one counts. A process that
    # is killed while it writes has touched the other one only: what counts is always whole.

    HEADER = 24
    _all: ClassVar[weakref.WeakSet[StateFile]] = weakref.WeakSet()

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"the limits of this map are kept in {path}, which cannot be opened here ({error.strerror}): rate "
                "limit, circuit breaker and bulkhead are shared between the processes of one machine only; leave them "
                "out, or use mode='thread'"
            ) from error
        self._look()
        self._all.add(self)

    @classmethod
    def create(cls, path: Path, size: int) -> StateFile:
        """A new file for states of up to so many bytes. It goes when nobody here uses it any more."""
        slot = _padded(size)
        path.write_bytes(struct.pack("q", 2 * slot) + bytes(cls.HEADER - 8 + 2 * slot))
        path.chmod(0o600)
        file = cls(str(path))
        weakref.finalize(file, _unlink, file.path, os.getpid()).atexit = False
        return file

    def _open(self) -> None:
        # A lock belongs to what was opened: threads share it, and so would a forked child, so each has a lock besides.
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._file)
        self._closing.atexit = False
        self._lock = threading.Lock()
        self.holder = 0

    def _look(self) -> None:
        self._map = mmap.mmap(self._file, 0)
        view = memoryview(self._map)
        self._current = view[0:8].cast("q")  # twice the size of a slot, and 1 if the second one counts
        self._due = view[8:16].cast("d")
        self._versions = view[20:24].cast("I")

    @classmethod
    def reopen_all(cls) -> None:
        """In a forked child: have locks of its own. What they guard it still shares with its parent."""
        for file in list(cls._all):
            close = file._closing
            with suppress(OSError):  # its parent has ended already
                file._open()
                close()

    def __enter__(self) -> Self:
        # Opero's timeouts throw nothing into this thread until it has left again: the lock would stay taken.
        me = threading.get_ident()
        uninterrupted.add(me)
        try:
            self._lock.acquire()
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
            except BaseException:
                self._lock.release()
                raise
        except BaseException:
            uninterrupted.discard(me)
            raise
        self.holder = me
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        me, self.holder = self.holder, 0
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._lock.release()
        uninterrupted.discard(me)

    # May be read without the lock: each is written at one stroke

    @property
    def number(self) -> float:
        """A number of its own beside the state."""
        return self._due[0]

    @number.setter
    def number(self, value: float) -> None:
        self._due[0] = value

    @property
    def flag(self) -> bool:
        """A flag of its own beside the state."""
        return bool(self._map[16])

    @flag.setter
    def flag(self, value: bool) -> None:
        self._map[16] = value

    @property
    def version(self) -> int:
        """How often it has been said that what the state holds is another."""
        return self._versions[0]

    @version.setter
    def version(self, value: int) -> None:
        self._versions[0] = value & 0xFFFFFFFF

    # Under the lock

    def read(self) -> Any:
        slot, second = divmod(self._current[0], 2)
        start = self.HEADER + second * slot
        if start + slot > len(self._map):  # another process has made it larger
            self._look()
        (length,) = struct.unpack_from("q", self._map, start)
        return pickle.loads(self._map[start + 8 : start + 8 + length]) if length else None

    def write(self, state: Any) -> None:
        """Put a state in the place of the one that counts.

        Raises:
            ValueError: it is larger than the file was made for.
        """
        data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        slot, second = divmod(self._current[0], 2)
        if len(data) + 8 > slot:
            raise ValueError(f"a state of {len(data)} bytes does not fit into {self.path}")
        self._put(data, slot, 1 - second)

    def grow(self, size: int) -> int:
        """Make room for states of up to so many bytes, where the disk has it; for how many there is room."""
        slot = self._current[0] // 2
        if _padded(size) <= slot:
            return slot - 8
        data = pickle.dumps(self.read(), pickle.HIGHEST_PROTOCOL)
        larger = max(_padded(size), 2 * slot)  # so that its second slot begins behind both of the old ones
        end = os.fstat(self._file).st_size
        try:
            while end < self.HEADER + 2 * larger:
                end += os.pwrite(self._file, bytes(min(1 << 20, self.HEADER + 2 * larger - end)), end)
        except OSError:
            return slot - 8
        self._look()
        self._put(data, larger, 1)
        return larger - 8

    def _put(self, data: bytes, slot: int, second: int) -> None:
        start = self.HEADER + second * slot
        if start + slot > len(self._map):  # as above
            self._look()
        struct.pack_into("q", self._map, start, len(data))
        self._map[start + 8 : start + 8 + len(data)] = data
        self._current[0] = 2 * slot + second


def _padded(size: int) -> int:
    """Bytes for a state of that size and its length, so that a slot behind it begins at a whole number."""
    return (size + 8 + 7) // 8 * 8


def _unlink(path: str, creator: int) -> None:
    if os.getpid() == creator:  # and not in its forked child
        with suppress(OSError):
            os.unlink(path)
