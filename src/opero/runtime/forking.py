"""What happens when this process forks. The only module that registers hooks with the operating system's fork.

A forked child has only the thread that forked. What other threads have in hand is never given back there: their locks
would stay locked, their places taken, their computations unfinished. One rule covers everything of that kind:

- It is registered: an object by `renew_in_child`, the lock of a module as a `RenewedLock`, other state of a module by
  `at_fork`.
- The thread that forks first takes every registered lock, so the child finds no change half done, and waits for other
  threads that import a module: Python never releases the lock of a module whose import was under way.
- In the child, every registered lock is free, and `after_fork()` drops what belongs to threads of the parent.
- A call under way stays a call of the parent. If it returns in the child, it gives nothing back and counts for
  nothing there, which it knows by the `generation`.
"""

from __future__ import annotations

import _imp
import importlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

PATIENCE = 0.1
"""Seconds that a fork waits for a lock. Only those under which user code runs are held for longer."""
IMPORT_PATIENCE = 5.0
"""Seconds that a fork waits for imports of other threads."""

generation = 0
"""The number of forks between the first process and this one."""

uninterrupted: set[int] = set()
"""Identifiers of threads that hold a lock: opero's timeouts do not interrupt them."""

_renewed: dict[weakref.ref[Any], str] = {}
"""The registered objects, with the name of the attribute that holds their lock, or an empty one."""
ITSELF = "itself"
"""In the place of that name: the object is the lock."""
_before: list[Callable[[], object]] = []
_in_parent: list[Callable[[], object]] = []
_in_child: list[Callable[[], object]] = []
_taken: list[tuple[Any, Any]] = []
"""The locks that the thread that forks has taken, and their owners."""


def renew_in_child(owner: Any, lock: str = "") -> None:
    """Renew an object in forked children, for as long as it exists.

    Args:
        owner: the object. Its method `after_fork`, if it has one, is called in the child.
        lock: the name of its attribute that holds an `RLock`. A lock that cannot be acquired again by its
            holder would block fork hooks of other packages that use opero.
    """
    _renewed[weakref.ref(owner, _renewed.pop)] = lock


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


class RenewedLock(type(threading.RLock())):  # type: ignore[misc]  # a class without a public name
    """A reentrant lock that is free in a forked child, unless the thread that forked holds it itself.

    A `with` block takes and releases it in C. A method `__enter__` in Python could be interrupted, by Ctrl-C, when it
    has acquired the lock and before the block has begun, and the lock would never be released.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        _renewed[weakref.ref(self, _renewed.pop)] = ITSELF


undivided = RenewedLock()
"""Held while one configuration replaces another: no process is forked meanwhile. Nothing waits while it is held, and no
user code runs."""


class _Imports:
    """A lock that is held while no other thread imports anything."""

    def acquire(self, *, blocking: bool = True, timeout: float = 0.0) -> bool:
        until = time.monotonic() + timeout
        while True:
            _imp.acquire_lock()  # from then on, no other thread begins an import
            if not self._are_under_way():
                return True
            _imp.release_lock()
            if not blocking or time.monotonic() >= until:
                return False
            time.sleep(0.001)

    def release(self) -> None:
        _imp.release_lock()

    def _are_under_way(self) -> bool:
        locks = (reference() for reference in list(_module_locks.values()))
        return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in locks)


_module_locks: dict[str, Callable[[], Any]] = getattr(importlib._bootstrap, "_module_locks", {})
_imports = _Imports()


def _take_locks() -> list[tuple[Any, Any]]:
    """Take every registered lock, and that of imports, but for those that are held for longer than is waited."""
    given_up: set[int] = set()
    while True:
        taken: list[tuple[Any, Any]] = []
        owners = [(reference(), name) for reference, name in _renewed.copy().items()]
        for owner, name in (*owners, (_imports, ITSELF)):
            lock = None if owner is None else _lock_of(owner, name)
            if lock is None or id(lock) in given_up:
                continue
            if not lock.acquire(blocking=False):
                break
            taken.append((owner, lock))
        else:
            return taken
        # Wait for that one without holding any other: its holder may need one of them.
        for _, each in taken:
            each.release()
        if lock.acquire(timeout=IMPORT_PATIENCE if lock is _imports else PATIENCE):
            lock.release()
        else:
            given_up.add(id(lock))


def _lock_of(owner: Any, name: str) -> Any:
    """Return the lock of a registered object; None if it has none."""
    return owner if name is ITSELF else getattr(owner, name) if name else None


def _begin() -> None:
    me = threading.get_ident()
    is_interrupted = me not in uninterrupted
    uninterrupted.add(me)  # an exception in a hook would be printed and lost, and leave the locks taken
    try:
        for hook in reversed(_before):
            hook()
    finally:
        undivided.acquire()
        _taken.extend(_take_locks())
        if is_interrupted:
            _taken.append((None, _Interruptible(me)))


class _Interruptible:
    """Allows interruptions again, with the release of the locks."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def release(self) -> None:
        uninterrupted.discard(self._thread)


def _release_locks() -> None:
    if not _taken:  # a program in C has forked without calling the hooks that come before
        return
    taken = list(_taken)  # with the owners: one that is freed may run user code
    _taken.clear()
    with ExitStack() as stack:  # releases each lock, also after an exception such as KeyboardInterrupt
        stack.callback(undivided.release)
        for _, lock in taken:
            stack.callback(lock.release)


def _end_in_parent() -> None:
    _release_locks()
    for hook in _in_parent:
        hook()


def _end_in_child() -> None:
    global generation  # noqa: PLW0603  # one per process
    generation += 1
    _release_locks()
    uninterrupted.intersection_update({threading.get_ident()})
    with ExitStack() as stack:  # each of them, also if another fails
        for hook in reversed(_in_child):
            stack.callback(hook)
        for reference, name in _renewed.copy().items():
            owner = reference()
            if owner is None:
                continue
            lock = _lock_of(owner, name)
            if lock is not None and not lock._is_owned():
                lock._at_fork_reinit()
            if hasattr(owner, "after_fork"):
                stack.callback(owner.after_fork)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_begin, after_in_parent=_end_in_parent, after_in_child=_end_in_child)
