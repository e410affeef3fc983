"""The lock that keeps other processes from computing a key at the same time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from opero.cache.leases import renewals
from opero.runtime import forking
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.cache.outage import StoreBreaker


class ComputationLock:
    """A store's mutex for one computation, which is not acquired again once it has been released.

    `release` is final even if `acquire` is still running in another thread, so an abandoned computation leaves no lock.

    Args:
        mutex: a dogpile.cache mutex, with `acquire(wait)` and `release()`; and with `renew()` if it lapses.
        breaker: runs `acquire`; while the store is down or accepts no writes, every caller computes.

    Attributes:
        was_requested: set by its user before `acquire` is called, so that `release` is needed.
    """

    def __init__(self, mutex: Any, breaker: StoreBreaker) -> None:
        self.mutex = mutex
        self.breaker = breaker
        self.was_requested = False
        self._lock = threading.Lock()
        self._is_held = False
        self._is_released = False
        self._generation = forking.generation

    def acquire(self) -> bool:
        """Try to acquire the lock without waiting, and return whether it is held."""
        with self._lock:
            if not self._is_released:
                self._is_held = True  # before it is: an interruption may come just when the mutex has been acquired
                self._is_held = bool(self.breaker.write(True, self.mutex.acquire, False))
                if self._is_held and hasattr(self.mutex, "renew"):
                    renewals.begin(self)
            return self._is_held

    def renew(self) -> None:
        """Let a lock that lapses start its time anew, if it is held."""
        with self._lock:
            if self._is_held and self._generation == forking.generation:
                self.breaker(None, self.mutex.renew)

    def release(self) -> None:
        """Release the lock if it is held; errors are ignored, as it may have lapsed or its store may be down."""
        if self._generation != forking.generation:  # the parent's, which may compute still
            return
        with self._lock:
            self._is_released = True
            if self._is_held:
                renewals.end(self)
                try:
                    self.mutex.release()
                except Exception as error:  # noqa: BLE001  # a store may raise anything
                    text = "cannot release the computation lock, it may have lapsed: %s"
                    log("cache_lock_lapsed", text, error, error=error)
                self._is_held = False  # at last: if it is interrupted before, this is done again
