"""Frees what has expired in caches that nobody uses any more: one thread, and only while there is something to free."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opero.cache.memory import MemoryBackend

__all__ = ["watch"]

GRACE = 0.05
"""Seconds after an expiry: many expire in one go."""


class _Janitor:
    """A thread that purges each cache when its next value expires. It ends when none is left, and holds no cache."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.due: list[tuple[float, int, weakref.ref[MemoryBackend]]] = []
        self.number = itertools.count()
        self.runs = False

    def note(self, backend: weakref.ref[MemoryBackend], moment: float) -> None:
        """Purge that cache soon after this moment."""
        with self.changed:
            heapq.heappush(self.due, (moment + GRACE, next(self.number), backend))
            if not self.runs:
                self.runs = True
                threading.Thread(target=self.work, name="opero-cache-janitor", daemon=True).start()
            elif self.due[0][0] == moment + GRACE:
                self.changed.notify()

    def work(self) -> None:
        while (reference := self.next()) is not None:
            backend = reference()
            if backend is not None:
                following = backend.purge()
                if following is not None and not self.expects(reference):
                    self.note(reference, following)
            del backend

    def expects(self, backend: weakref.ref[MemoryBackend]) -> bool:
        """Whether that cache is to be purged again already."""
        with self.changed:
            return any(each[2] is backend for each in self.due)

    def next(self) -> weakref.ref[MemoryBackend] | None:
        """The cache whose time has come, after waiting for it; None where no cache is left."""
        with self.changed:
            while True:
                self.due = [each for each in self.due if each[2]() is not None]
                heapq.heapify(self.due)
                if not self.due:
                    self.runs = False
                    return None
                wait = self.due[0][0] - time.monotonic()
                if wait <= 0:
                    return heapq.heappop(self.due)[2]
                self.changed.wait(min(wait, threading.TIMEOUT_MAX))


_janitor = _Janitor()

if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_janitor.__init__)  # type: ignore[misc]


def watch(backend: MemoryBackend) -> None:
    """Free what expires in this cache even where nobody uses it any more."""
    reference = weakref.ref(backend)
    backend.on_expiring = lambda moment: _janitor.note(reference, moment)
