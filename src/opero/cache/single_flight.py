"""Computations under way: one for a key at a time, and who waits for it."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from opero.runtime.hosts import Host, Outcome, Waiter

__all__ = ["Flight", "Flights", "leading"]


class Flight:
    """A computation under way.

    Attributes:
        waiters: who is to be woken when it ends.
        kept: the result, where it was one to keep.
        failed: it came to its end with nothing to keep.
        outdated: its key, or one of its tags, has been deleted since it began.
        tags: the groups that its result will belong to.
        cancel: ends it, where it runs in a task of its own; only for when nobody wants it any more.
        callers: how many want its result.
        waits_for: the computations that its function waits for.
    """

    __slots__ = ("callers", "cancel", "failed", "kept", "outdated", "tags", "waiters", "waits_for")

    def __init__(self, tags: tuple[str, ...] = ()) -> None:
        self.waiters: list[Waiter] = []
        self.kept: Outcome | None = None
        self.failed = False
        self.outdated = False
        self.tags = tags
        self.cancel: Callable[[], object] | None = None
        self.callers = 1
        self.waits_for: list[Flight] = []

    def depends_on(self, others: tuple[Flight, ...]) -> bool:
        """Whether it cannot end before one of these does."""
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


leading: ContextVar[tuple[Flight, ...]] = ContextVar("opero_cache_leading", default=())
"""The computations that this code is part of. Tasks and a timeout's helper threads get a copy of the context, so a
function that asks itself the same there does not wait for itself."""

_waits = threading.Lock()
"""Held to look at and change who waits for whom, over all functions."""


class Flights:
    """The computations of one function.

    Attributes:
        forgotten: how often something has been deleted.
    """

    def __init__(self) -> None:
        self.under_way: dict[Hashable, Flight] = {}
        self.forgotten = 0
        self._lock = threading.Lock()

    def join(self, key: Hashable, host: Host, tags: tuple[str, ...]) -> tuple[Flight, Waiter | None]:
        """The computation of that key: one to lead (no waiter), or one under way to wait for.

        Who cannot wait for it, since it waits for them, leads one of their own, which nobody else joins.
        """
        mine = leading.get()
        with self._lock:
            flight = self.under_way.get(key)
            if flight is None:
                flight = self.under_way[key] = Flight(tags)
                return flight, None
            with _waits:
                if mine and flight.depends_on(mine):
                    return Flight(tags), None
                for each in mine:
                    each.waits_for.append(flight)
            waiter = host.waiter()
            flight.waiters.append(waiter)
            flight.callers += 1
            return flight, waiter

    def start(self, key: Hashable, tags: tuple[str, ...]) -> Flight | None:
        """A computation of that key to lead, or None where one is under way."""
        with self._lock:
            if key in self.under_way:
                return None
            flight = self.under_way[key] = Flight(tags)
            return flight

    def leave(self, flight: Flight, *, waited: bool) -> bool:
        """One caller less; whether others still want the result. `waited`: they had joined it."""
        if waited:
            with _waits:
                for each in leading.get():
                    if flight in each.waits_for:
                        each.waits_for.remove(flight)
        with self._lock:
            flight.callers -= 1
            wanted = flight.callers > 0
            cancel = flight.cancel
        if not wanted and waited and cancel is not None:
            cancel()
        return wanted

    def land(self, key: Hashable, flight: Flight) -> None:
        """The computation has ended."""
        with self._lock:
            if self.under_way.get(key) is flight:
                del self.under_way[key]
            flight.cancel = None  # which leads to the task, and so to an exception whose traceback leads here
        for waiter in flight.waiters:
            waiter.wake()

    def forget(self, key: Hashable) -> None:
        """Do not keep what is being computed for that key."""
        with self._lock:
            self.forgotten += 1
            flight = self.under_way.pop(key, None)
            if flight is not None:
                flight.outdated = True

    def forget_all(self, tags: Iterable[str] | None = None) -> None:
        """Do not keep what is being computed: anything, or what belongs to one of these groups."""
        groups = None if tags is None else set(tags)
        with self._lock:
            self.forgotten += 1
            for key, flight in list(self.under_way.items()):
                if groups is None or groups.intersection(flight.tags):
                    flight.outdated = True
                    del self.under_way[key]

    def is_outdated(self, key: Hashable, flight: Flight, forgotten: int) -> bool:
        """Whether the key has been deleted since; where nobody can join the computation, whether any has been."""
        return flight.outdated or (self.forgotten != forgotten and self.under_way.get(key) is not flight)
