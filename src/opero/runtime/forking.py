"""What happens when this process forks. The only module that registers hooks with the operating system's fork.

A forked child has only the thread that forked: locks that other threads held would stay locked, and what these threads
did would not go on.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Renewed", "RenewedLock", "at_fork", "renew_in_child", "undivided"]


class Renewed(Protocol):
    """What has to be renewed in a forked child."""

    def after_fork(self) -> None:
        """Called in the child, whose only thread is the one that forked."""


undivided = threading.RLock()
"""Held while one configuration replaces another: no process is forked meanwhile. Nothing waits while it is held, and no
user code runs."""

_renewed: WeakSet[Renewed] = WeakSet()
_before: list[Callable[[], object]] = []
_in_parent: list[Callable[[], object]] = []
_in_child: list[Callable[[], object]] = []


def renew_in_child(renewed: Renewed) -> None:
    """Have `renewed.after_fork()` called in forked children, for as long as the object exists."""
    _renewed.add(renewed)


def at_fork(
    *,
    before: Callable[[], object] | None = None,
    in_parent: Callable[[], object] | None = None,
    in_child: Callable[[], object] | None = None,
) -> None:
    """Have functions called around every fork, those of `before` in the reverse order of their registration."""
    for hooks, hook in ((_before, before), (_in_parent, in_parent), (_in_child, in_child)):
        if hook is not None:
            hooks.append(hook)


class RenewedLock:
    """A reentrant lock that is free in a forked child, unless the thread that forked holds it itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        renew_in_child(self)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Acquire the lock; whether that was possible."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock = threading.RLock()


def _begin() -> None:
    try:
        for hook in reversed(_before):
            hook()
    finally:
        undivided.acquire()


def _end_in_parent() -> None:
    undivided.release()
    for hook in _in_parent:
        hook()


def _end_in_child() -> None:
    undivided.release()
    for renewed in list(_renewed):
        renewed.after_fork()
    for hook in _in_child:
        hook()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_begin, after_in_parent=_end_in_parent, after_in_child=_end_in_child)
