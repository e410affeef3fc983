"""Renews the computation locks that lapse, such as those in redis, for as long as their computations run."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

from opero.runtime.forking import renew_in_child

LEASE = 2.0
"""Seconds after which a lock lapses that is not renewed: what the death of its holder costs others at most."""
RENEW_EVERY = 0.5


class Lease(Protocol):
    """What lapses if it is not renewed."""

    def renew(self) -> None: ...


class _Renewals:
    """A thread that renews locks, and ends when there is none left. It keeps no lock alive."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        renew_in_child(self, "lock")
        self.after_fork()

    def after_fork(self) -> None:
        self.held: weakref.WeakSet[Lease] = weakref.WeakSet()
        self.is_running = False

    def begin(self, lock: Lease) -> None:
        with self.lock:
            self.held.add(lock)
            if not self.is_running:
                self.is_running = True
                threading.Thread(target=self.run, name="opero-leases", daemon=True).start()

    def end(self, lock: Lease) -> None:
        with self.lock:
            self.held.discard(lock)

    def run(self) -> None:
        while True:
            time.sleep(RENEW_EVERY)
            with self.lock:
                held = list(self.held)
                if not held:
                    self.is_running = False
                    return
            while held:
                held.pop().renew()


renewals = _Renewals()
