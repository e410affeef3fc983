"""Locks in a process that forks: a child has none of its parent's threads, and so none that would release them."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

__all__ = ["RenewedLock", "undivided"]


class RenewedLock:
    """A reentrant lock that is free in a forked child, unless the thread that forked has it itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _renewed.add(self)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it, or tell that it cannot be taken now."""
        return self._lock.acquire(blocking)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock = threading.RLock()


_renewed: WeakSet[RenewedLock] = WeakSet()

undivided = threading.RLock()
"""Held for the moment in which one configuration takes another's place: no process is forked within. Nothing waits
under it, and no code of others runs."""


def _begin_child() -> None:
    undivided.release()
    for lock in list(_renewed):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=undivided.acquire, after_in_parent=undivided.release, after_in_child=_begin_child)
