"""Mutexes between the processes of a machine: bytes of a file, which the kernel unlocks when their holder dies."""

from __future__ import annotations

import os
import threading
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

from opero.observe.logs import logger

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path

    from opero.cache.outage import Guard

__all__ = ["ARE_THERE", "Hold", "Locks", "Mutex"]

ARE_THERE = fcntl is not None
"""Whether this platform has such locks."""


class Locks:
    """A file whose bytes stand for keys: whoever has locked a byte computes that key.

    Such locks belong to a process, and closing any descriptor of the file drops them all: a process has one for each
    file, whatever the name it goes by, and never closes it.
    """

    open: ClassVar[dict[str, Locks]] = {}

    @classmethod
    def at(cls, path: Path) -> Locks:
        return cls.open.setdefault(real := os.path.realpath(path), cls(real))

    def __init__(self, path: str) -> None:
        self.path = path
        self.holders: dict[int, Mutex] = {}
        self.lock = threading.Lock()
        self._file: int | None = None

    def take(self, mutex: Mutex) -> bool:
        with self.lock:
            if mutex.offset in self.holders:
                return False
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, mutex.offset)
            except (BlockingIOError, PermissionError):
                return False
            self.holders[mutex.offset] = mutex
            return True

    def give_back(self, mutex: Mutex) -> None:
        with self.lock:
            if self.holders.get(mutex.offset) is mutex and self._file is not None:
                del self.holders[mutex.offset]
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, mutex.offset)

    def after_fork(self) -> None:
        """The parent's locks stay with the parent, and its descriptor may be closed here: no lock is this process's."""
        inherited = self._file
        self.__init__(self.path)  # type: ignore[misc]
        if inherited is not None:
            os.close(inherited)


class Mutex:
    """Keeps other processes, and other threads of this one, from computing a key."""

    def __init__(self, locks: Locks, key: str) -> None:
        self.locks = locks
        self.offset = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 2

    def acquire(self, wait: bool = True) -> bool:  # dogpile's own
        while not (taken := self.locks.take(self)) and wait:
            time.sleep(0.01)
        return taken

    def release(self) -> None:
        self.locks.give_back(self)

    def locked(self) -> bool:
        return self.locks.holders.get(self.offset) is self


class Hold:
    """A store's mutex, as a computation holds it. Giving up comes last, even where `take` is under way in a thread.

    Args:
        mutex: dogpile.cache's: `acquire(wait)` and `release()`.
        guard: runs what may fail; where the store is down, everybody computes.

    Attributes:
        is_asked_for: `take` has been called, and so there may be something to give up.
    """

    def __init__(self, mutex: Any, guard: Guard) -> None:
        self.mutex = mutex
        self.guard = guard
        self.is_asked_for = False
        self._lock = threading.Lock()
        self._is_taken = False
        self._is_over = False

    def take(self) -> bool:
        """Whether nobody else holds it, so that it is held now."""
        self.is_asked_for = True
        with self._lock:
            if not self._is_over:
                self._is_taken = bool(self.guard(True, self.mutex.acquire, False))
            return self._is_taken

    def give_up(self) -> None:
        """Hold it no more. It may have lapsed, or its store may be down."""
        with self._lock:
            self._is_over = True
            if self._is_taken:
                self._is_taken = False
                try:
                    self.mutex.release()
                except Exception as error:  # noqa: BLE001  # whatever a store raises
                    logger.debug("a computation's lock was gone before it ended: %s", error)
