"""Single-flight: at most one computation of a key runs at a time, and concurrent callers wait for its result."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from opero.runtime.hosts import Host, Outcome, Waiter

__all__ = ["Computation", "SingleFlight", "current_computations"]


class Computation:
    """A running computation of one key.

    Attributes:
        waiters: the waiters to wake when it ends.
        result: its outcome, if the waiting callers may use it.
        failed: whether it ended without an outcome that waiting callers may use.
        invalidated: whether its key, or one of its tags, has been deleted since it began.
        tags: the tags of its result.
        cancel: cancels its task, if it runs in one; called when no caller wants the result any more.
        callers: the number of callers that want its result.
        waits_for: the computations that its function is waiting for.
    """

    __slots__ = ("callers", "cancel", "failed", "invalidated", "result", "tags", "waiters", "waits_for")

    def __init__(self, tags: tuple[str, ...] = ()) -> None:
        self.waiters: list[Waiter] = []
        self.result: Outcome | None = None
        self.failed = False
        self.invalidated = False
        self.tags = tags
        self.cancel: Callable[[], object] | None = None
        self.callers = 1
        self.waits_for: list[Computation] = []

    def depends_on(self, others: tuple[Computation, ...]) -> bool:
        """Return whether it cannot end before one of the others does."""
        seen: set[int] = set()
        ahead = [self]
        while ahead:
            each = ahead.pop()
            if each in others:
                return True
            if id(each) not in seen:
                seen.add(id(each))
                ahead += each.waits_for
        return False


current_computations: ContextVar[tuple[Computation, ...]] = ContextVar("opero_current_computations", default=())
"""The computations that the current code is part of, outermost first. Tasks and the helper threads of timeouts copy the
context, so a function that calls itself with the same key there does not wait for itself."""

_dependencies_lock = RenewedLock()
"""Protects `waits_for` of all computations of all functions."""


class SingleFlight:
    """The running computations of one function.

    Attributes:
        running: the computations that callers may join, by key.
        invalidations: the number of deletions so far.
    """

    def __init__(self) -> None:
        self.running: dict[Hashable, Computation] = {}
        self.invalidations = 0
        self._lock = threading.Lock()

    def join(self, key: Hashable, host: Host, tags: tuple[str, ...]) -> tuple[Computation, Waiter | None]:
        """Return the key's computation, and a waiter if it is already running; without one, the caller computes.

        A caller for which the running computation waits would deadlock: it gets a computation of its own, which others
        cannot join.
        """
        own = current_computations.get()
        with self._lock:
            computation = self.running.get(key)
            if computation is None:
                computation = self.running[key] = Computation(tags)
                return computation, None
            with _dependencies_lock:
                if own and computation.depends_on(own):
                    return Computation(tags), None
                for each in own:
                    each.waits_for.append(computation)
            waiter = host.waiter()
            computation.waiters.append(waiter)
            computation.callers += 1
            return computation, waiter

    def start(self, key: Hashable, tags: tuple[str, ...]) -> Computation | None:
        """Return a new computation of the key, or None if one is running."""
        with self._lock:
            if key in self.running:
                return None
            computation = self.running[key] = Computation(tags)
            return computation

    def leave(self, computation: Computation, *, waited: bool) -> bool:
        """Count one caller less, and return whether others still want the result.

        Args:
            computation: the computation that the caller leaves.
            waited: whether the caller joined it, rather than started it.
        """
        if waited:
            with _dependencies_lock:
                for each in current_computations.get():
                    if computation in each.waits_for:
                        each.waits_for.remove(computation)
        with self._lock:
            computation.callers -= 1
            wanted = computation.callers > 0
            cancel = computation.cancel
        if not wanted and waited and cancel is not None:
            cancel()
        return wanted

    def finish(self, key: Hashable, computation: Computation) -> None:
        """Remove a computation that has ended, and wake its waiters."""
        with self._lock:
            if self.running.get(key) is computation:
                del self.running[key]
            computation.cancel = None  # it refers to the task, whose exception's traceback refers back to here
        for waiter in computation.waiters:
            waiter.wake()

    def invalidate(self, key: Hashable) -> None:
        """Do not store the result of the key's running computation."""
        with self._lock:
            self.invalidations += 1
            computation = self.running.pop(key, None)
            if computation is not None:
                computation.invalidated = True

    def invalidate_all(self, tags: Iterable[str] | None = None) -> None:
        """Do not store the results of running computations: all of them, or those with one of these tags."""
        wanted = None if tags is None else set(tags)
        with self._lock:
            self.invalidations += 1
            for key, computation in list(self.running.items()):
                if wanted is None or wanted.intersection(computation.tags):
                    computation.invalidated = True
                    del self.running[key]

    def is_invalidated(self, key: Hashable, computation: Computation, invalidations: int) -> bool:
        """Return whether the key has been deleted since the computation began.

        A computation that others cannot join counts as invalidated after any deletion.

        Args:
            key: the computation's key.
            computation: the computation.
            invalidations: the number of deletions when it began.
        """
        return computation.invalidated or (
            self.invalidations != invalidations and self.running.get(key) is not computation
        )
