"""Mutexes between the processes of a machine, made of locked bytes of a file, which the kernel unlocks at exit."""

from __future__ import annotations

import os
import threading
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, ClassVar

from opero.runtime.file_locks import try_lock_byte, unlock_byte
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from pathlib import Path


class Locks:
    """A file in which each byte is the lock of a key.

    POSIX locks belong to a process, and closing any descriptor of the file releases all of them. So a process opens
    each file once, identified by its real path, and never closes it.
    """

    open: ClassVar[dict[str, Locks]] = {}

    @classmethod
    def at(cls, path: Path) -> Locks:
        """Return this process's locks in a file."""
        return cls.open.setdefault(real := os.path.realpath(path), cls(real))

    def __init__(self, path: str) -> None:
        self.path = path
        self.holders: dict[int, Mutex] = {}
        self.lock = threading.RLock()
        self._file: int | None = None
        renew_in_child(self, "lock")

    def acquire(self, mutex: Mutex) -> bool:
        """Try to lock a mutex's byte without waiting, and return whether it is locked now."""
        with self.lock:
            if mutex.offset in self.holders:
                return False
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.holders[mutex.offset] = mutex  # first, so that an interruption leaves no lock without a holder
            if not try_lock_byte(self._file, mutex.offset):
                del self.holders[mutex.offset]
                return False
            return True

    def release(self, mutex: Mutex) -> None:
        """Unlock a mutex's byte, if this mutex has locked it."""
        with self.lock:
            if self.holders.get(mutex.offset) is mutex and self._file is not None:
                unlock_byte(self._file, mutex.offset)
                del self.holders[mutex.offset]

    def is_held(self, mutex: Mutex) -> bool:
        """Whether a mutex's byte is locked, by this process or another one."""
        with self.lock:
            if mutex.offset in self.holders:
                return True
            if not self.acquire(mutex):  # no system call of Python's tells who has locked a byte
                return True
            self.release(mutex)
            return False

    def after_fork(self) -> None:
        """Forget the parent's locks in a forked process. Closing the inherited descriptor does not release them."""
        inherited, self._file = self._file, None
        self.holders = {}
        if inherited is not None:
            os.close(inherited)


class Mutex:
    """A mutex for one key between processes, and between the threads of this one."""

    def __init__(self, locks: Locks, key: str) -> None:
        self.locks = locks
        self.offset = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 2

    def acquire(self, wait: bool = True) -> bool:  # the signature of dogpile.cache
        while not (acquired := self.locks.acquire(self)) and wait:
            time.sleep(0.01)
        return acquired

    def release(self) -> None:
        self.locks.release(self)

    def locked(self) -> bool:
        """Whether it is held: this object, another one, or another process."""
        return self.locks.is_held(self)
