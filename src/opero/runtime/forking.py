"""What a forked child renews: it has no thread of its parent that would release the locks they hold."""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

__all__ = ["Renewed", "RenewedLock", "renew_in_child", "undivided"]


class Renewed(Protocol):
    """What has to be renewed in a forked child."""

    def after_fork(self) -> None:
        """Called in the child, whose only thread is the one that forked."""


_renewed: WeakSet[Renewed] = WeakSet()

undivided = threading.RLock()
"""Held while one configuration replaces another: no process is forked meanwhile. Nothing waits while it is held, and no
user code runs."""


def renew_in_child(renewed: Renewed) -> None:
    """Have `renewed.after_fork()` called in forked children, for as long as the object exists."""
    _renewed.add(renewed)


class RenewedLock:
    """A reentrant lock that is free in a forked child, unless the thread that forked holds it itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        renew_in_child(self)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Acquire the lock; whether that was possible."""
        return self._lock.acquire(blocking)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock = threading.RLock()


def _begin_child() -> None:
    undivided.release()
    for each in list(_renewed):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=undivided.acquire, after_in_parent=undivided.release, after_in_child=_begin_child)
