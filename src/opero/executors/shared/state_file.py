"""A few bytes that several processes share."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from opero.errors import ConfigError
from opero.interrupts import uninterrupted

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

    # There are two slots for the state, and a byte that says which one counts. A process that is killed while it writes
    # has touched the other one only: what counts is always whole.

    HEADER = 16
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
        self._map = mmap.mmap(self._file, 0)
        self._slot = (len(self._map) - self.HEADER) // 2
        self._due = memoryview(self._map)[8:16].cast("d")
        self._all.add(self)

    @classmethod
    def create(cls, path: Path, size: int) -> StateFile:
        """A new file for states of up to so many bytes. It goes when nobody here uses it any more."""
        path.write_bytes(bytes(cls.HEADER + 2 * (size + 8)))
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

    @classmethod
    def reopen_all(cls) -> None:
        """In a forked child: have locks of its own. What they guard it still shares with its parent."""
        for file in list(cls._all):
            close = file._closing
            with suppress(OSError):  # its parent has ended already
                file._open()
                close()

    def __enter__(self) -> None:
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        me, self.holder = self.holder, 0
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._lock.release()
        uninterrupted.discard(me)

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self.holder == threading.get_ident()

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
        return bool(self._map[1])

    @flag.setter
    def flag(self, value: bool) -> None:
        self._map[1] = value

    # Under the lock

    def read(self) -> Any:
        start = self.HEADER + self._map[0] * self._slot
        (length,) = struct.unpack_from("q", self._map, start)
        return pickle.loads(self._map[start + 8 : start + 8 + length]) if length else None

    def write(self, state: Any) -> None:
        """Put a state in the place of the one that counts.

        Raises:
            ValueError: it is larger than the file was made for.
        """
        data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        if len(data) + 8 > self._slot:
            raise ValueError(f"a state of {len(data)} bytes does not fit into {self.path}")
        other = 1 - self._map[0]
        start = self.HEADER + other * self._slot
        struct.pack_into("q", self._map, start, len(data))
        self._map[start + 8 : start + 8 + len(data)] = data
        self._map[0] = other


def _unlink(path: str, creator: int) -> None:
    if os.getpid() == creator:  # and not in its forked child
        with suppress(OSError):
            os.unlink(path)
