"""Single-flight: at most one computation of a key runs at a time, and concurrent callers wait for its result."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from opero.cache.retention import shared
from opero.runtime.ended_loops import close, unwatch, watch
from opero.runtime.forking import RenewedLock, renew_in_child
from opero.runtime.hosts import cancel

if TYPE_CHECKING:
    from asyncio import Task

    from opero.cache.computation_lock import ComputationLock
    from opero.runtime.hosts import Host, Outcome, Waiter


class Computation:
    """A running computation of one key.

    Attributes:
        waiters: the waiters to wake when it ends.
        result: its outcome, if the waiting callers may use it.
        failure: the exception, or the fallback result in its place, with which its attempt failed.
        failed: whether it ended without an outcome that waiting callers may use.
        invalidated: whether its key, or one of its tags, has been deleted since it began.
        tags: the tags of its result.
        task: the task that it runs in; None if it runs in none, or has ended. It is cancelled when no caller wants the
            result any more.
        loop: identifies the event loop that it runs in; None if it runs in none, or has ended.
        flight, key: what finishes it, if it has a loop.
        is_watched: whether others wait that would not notice the end of its loop, so it is watched.
        callers: the number of callers that want its result.
        waits_for: the computations that its function is waiting for.
        lock: the lock that keeps other processes from computing the key; None if there is none.
    """

    __slots__ = (
        "callers",
        "failed",
        "failure",
        "flight",
        "invalidated",
        "is_watched",
        "key",
        "lock",
        "loop",
        "result",
        "tags",
        "task",
        "waiters",
        "waits_for",
    )

    def __init__(
        self,
        tags: tuple[str, ...] = (),
        loop: Any = None,
        flight: SingleFlight | None = None,
        key: Hashable = None,
    ) -> None:
        self.waiters: list[Waiter] = []
        self.result: Outcome | None = None
        self.failure: Outcome | None = None
        self.failed = False
        self.invalidated = False
        self.tags = tags
        self.task: Task[Any] | None = None
        self.loop = loop
        self.is_watched = False
        self.flight = flight
        self.key = key
        self.callers = 1
        self.waits_for: list[Computation] = []
        self.lock: ComputationLock | None = None

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

    @property
    def is_orphan(self) -> bool:
        """Whether it never ends, as its event loop has ended."""
        if self.loop is None:
            return False
        from opero.runtime.async_library import is_closed

        return is_closed(self.loop)

    def watch(self) -> None:
        """End it soon after its event loop has ended; others wait for it that would not notice."""
        if self.loop is not None and not self.is_watched:
            self.is_watched = True
            watch(self, self.loop, self.abandon)

    def abandon(self) -> None:
        """End it though it has not come to its end, and never does."""
        task, flight, key = self.task, self.flight, self.key
        try:
            if task is not None and self.is_orphan:
                close(task)  # first, so that those that wait find free what it had
        finally:
            if flight is not None:
                flight.finish(key, self)


current_computations: ContextVar[tuple[Computation, ...]] = ContextVar("opero_current_computations", default=())
"""The computations that the current code is part of, outermost first. Tasks and the helper threads of timeouts copy the
context, so a function that calls itself with the same key there does not wait for itself."""

_dependencies_lock = RenewedLock()
"""Protects `waits_for` of all computations of all functions."""


class ComputationHolder(Protocol):
    """A call: what it computes is noted in it first, so that it can be finished however the call is interrupted."""

    computation: Computation | None


class SingleFlight:
    """The running computations of one function.

    Attributes:
        running: the computations that callers may join, by key.
        invalidations: the number of deletions so far.
        finished: the number of computations that have ended.
    """

    def __init__(self) -> None:
        self.running: dict[Hashable, Computation] = {}
        self.invalidations = 0
        self.finished = 0
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def after_fork(self) -> None:
        """Forget the computations of the parent's threads and event loops, which never finish in this process."""
        for computation in self.running.values():
            computation.waiters.clear()
            computation.waits_for.clear()
        self.running.clear()

    def join(
        self, key: Hashable, host: Host, tags: tuple[str, ...], holder: ComputationHolder
    ) -> tuple[Computation, Waiter | None]:
        """Return the key's computation, and a waiter if it is already running; without one, the caller computes.

        A caller for which the running computation waits would deadlock: it gets a computation of its own, which others
        cannot join.

        Args:
            key, tags: those of the result.
            host: the caller's.
            holder: its call.
        """
        own, loop = current_computations.get(), host.loop()
        self._forget_orphan(key)
        with self._lock:
            computation = self.running.get(key)
            if computation is None:
                computation = holder.computation = Computation(tags, loop, self, key)
                self.running[key] = computation
                return computation, None
            with _dependencies_lock:
                if own and computation.depends_on(own):
                    return Computation(tags, loop, self, key), None
                waiter = host.waiter()
                computation.waiters.append(waiter)
                for each in own:
                    each.waits_for.append(computation)
            computation.callers += 1
            if computation.loop is not loop:
                computation.watch()
            return computation, waiter

    def start(
        self, key: Hashable, tags: tuple[str, ...], holder: ComputationHolder, loop: Any = None
    ) -> Computation | None:
        """Return a new computation of the key, or None if one is running.

        Args:
            key: the key.
            tags: the tags of its result.
            holder: the call that computes it.
            loop: identifies the event loop that it will run in.
        """
        if loop is not None:
            self._forget_orphan(key)
        with self._lock:
            if key in self.running:
                return None
            computation = holder.computation = Computation(tags, loop, self, key)
            self.running[key] = computation
            return computation

    def is_running(self, key: Hashable) -> bool:
        """Return whether the key is being computed."""
        computation = self.running.get(key)
        return computation is not None and not computation.is_orphan

    def _forget_orphan(self, key: Hashable) -> None:
        computation = self.running.get(key)
        if computation is not None and computation.is_orphan:
            computation.abandon()

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
            task = computation.task
        if not wanted and waited and task is not None:
            cancel(task)
        return wanted

    def finish(self, key: Hashable, computation: Computation) -> None:
        """Remove a computation that has ended, and wake its waiters. A second time it has no effect."""
        with self._lock:
            self.finished += 1
            if self.running.get(key) is computation:
                del self.running[key]
            computation.task = None  # whose exception's traceback refers back to here
            computation.loop = None
        if computation.is_watched:
            unwatch(computation)
        if computation.failure is not None:
            # A copy, as the exception itself will be raised. Its traceback refers to the computation, too.
            computation.failure = shared(computation.failure) if computation.waiters else None
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
