"""The budget of a rate limit: the moment at which the next permit falls due, as one number.

This is the generic cell rate algorithm (GCRA), a token bucket without a counter. A permit is reserved first and waited
for afterwards: callers are served in the order in which they reserve, and one that wakes late delays no other.
"""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from opero.executors.state.home import Home, Moved
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, Self

    from opero.policies.limits import Limit
    from opero.policies.rate_limit import RateLimitPolicy

FOREVER = float("inf")
HAS_GLOBAL_LOCK: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


Receipt = tuple[float, float]
"""What a reservation has changed: `due` before and after it."""


LATER: Receipt = (-1.0, -1.0)
"""The receipt of a reservation that has not been made, as it would be far away while the server that keeps the budget
cannot be used: ask again after `AGAIN` seconds."""
AGAIN = 1.0


class Terms(NamedTuple):
    """What a policy says about its budget.

    Attributes:
        interval: seconds from one permit to the next.
        burst: permits that may be saved up.
        unit: permits that the cheapest call takes; 0 where that depends on its arguments.
    """

    interval: float
    burst: float
    unit: float

    @classmethod
    def of(cls, policy: RateLimitPolicy | Limit) -> Self:
        unit = policy.cost if isinstance(policy.cost, float | int) else 0.0
        return cls(1.0 / policy.rate, policy.burst, unit)


# Decisions


def book(due: float, now: float, cost: float, patience: float, terms: Terms) -> tuple[float, float]:
    """Reserve permits, if they fall due within `patience` seconds.

    Args:
        due: the moment at which the next permit would fall due if none could be saved up.
        now: the clock's reading.
        cost: how many permits.
        patience: the longest wait; a longer one reserves nothing.
        terms: those of the policy in force.

    Returns:
        Seconds until the permits fall due, and `due` from now on.
    """
    interval, burst, _ = terms
    if due < now:
        due = now
    wait = due - now if cost >= burst else due - (burst - cost) * interval - now
    if wait < 0.0:
        wait = 0.0
    return wait, due + cost * interval if wait <= patience else due


def refund(due: float, receipt: Receipt) -> float:
    """Give back a reservation: `due` from now on. It is kept if others have reserved after it."""
    before, after = receipt
    return before if due == after else due


def migrated(due: float, now: float, before: Terms, after: Terms) -> float:
    """Express `due` in the terms of a new policy.

    The moment at which the next permit falls due stays, so no new call overtakes one that has reserved. Permits that
    are saved up stay, as many as the new burst holds.
    """
    unit = min(before.unit, after.unit, before.burst, after.burst)
    saved = before.burst - (due - now) / before.interval if due > now else before.burst
    if saved >= unit:
        return now + (after.burst - saved) * after.interval  # before `now` where the new burst holds fewer: it is full
    return due + (after.burst - unit) * after.interval - (before.burst - unit) * before.interval


class Budget(Home):
    """Keeps the budget of a rate limit. Its values are `due` and the `Terms` by which that is meant."""

    def take(self) -> bool:
        """Take the permits for a call of the usual cost, if it is known at once that they are due; else ask `book`."""
        return False

    @abstractmethod
    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        """As the function `book`: seconds until permits fall due, and the receipt that `refund` takes."""

    @abstractmethod
    def refund(self, receipt: Receipt) -> None:
        """As the function `refund`."""

    def forgo(self, receipts: Collection[Receipt]) -> None:
        """In a forked child: the calls that wait for these reservations are the parent's."""


class LocalBudget(Budget):
    """Keeps the budget in this process.

    Args:
        policy: what it is for; `take` takes its cost.
        monotonic: tells the time.
    """

    # Where `_due` is read, compared and written, no function is called and no loop jumps back in between. So under
    # CPython's global lock no other thread and no signal handler runs there, and no lock is needed. A lock would cost
    # more than the rest of a permit, and an interruption just after acquiring it would leave it locked.

    def __init__(self, policy: RateLimitPolicy, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self.lock: AbstractContextManager[Any] = nullcontext()
        self.monotonic = monotonic
        self._due = 0.0  # FOREVER where the state has moved
        self.apply(policy)

    def apply(self, policy: RateLimitPolicy) -> None:
        self.terms = terms = Terms.of(policy)
        cost = terms.unit or 1.0
        # For `take`: how long before it falls due a permit can be used out of the burst, and what taking it adds.
        self._saved = (terms.burst - min(cost, terms.burst)) * terms.interval
        self._step = cost * terms.interval

    def take(self) -> bool:
        now = self.monotonic()
        due = self._due
        if due - self._saved > now:
            return False
        self._due = (due if due > now else now) + self._step  # noqa: FURB136  # max() is a call
        return True

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        while True:
            due = self._due
            if due == FOREVER:
                raise Moved
            wait, booked = book(due, now, cost, patience, self.terms)
            if self._due == due:  # else another thread has booked meanwhile
                self._due = booked
                return wait, (due, booked)

    def refund(self, receipt: Receipt) -> None:
        before, after = receipt
        if self._due == after:  # as the function `refund`, which would be a call
            self._due = before

    def forgo(self, receipts: Collection[Receipt]) -> None:
        self._due -= sum(after - before for before, after in receipts)

    def batch(self, cost: float) -> float:
        """How many permits to reserve where a call takes some from a server; 0: none but its own."""
        return 0.0

    def grant(self, calls: int, moment: float) -> None:
        """Permits for as many calls have been reserved at a moment."""

    def values(self) -> tuple[float, Terms]:
        return self._due, self.terms

    def receive(self, values: tuple[float, Terms]) -> None:
        self._due = self._merged(*values, self._due)

    def _merged(self, due: float, terms: Terms, own: float) -> float:
        due = migrated(due, self.monotonic(), terms, self.terms)
        return due if own == FOREVER else max(due, own)

    def _pass(self, target: Home, receive: Callable[[tuple[float, Terms]], None]) -> None:
        if not isinstance(target, LocalBudget):  # its lock is held, so callers sent there wait until it has received
            self.refer_to(target)
            due, self._due = self._due, FOREVER
            receive((due, self.terms))
            return
        location = self.location
        while True:
            due, theirs = self._due, target._due
            merged = target._merged(due, self.terms, theirs)
            if self._due == due and target._due == theirs:  # else another thread has booked meanwhile
                self._due = FOREVER
                target._due = merged
                location.home = target
                target.location = location
                return


class LockedBudget(LocalBudget):
    """The same for an interpreter without a global lock."""

    def __init__(self, policy: RateLimitPolicy, monotonic: Callable[[], float]) -> None:
        super().__init__(policy, monotonic)
        self.lock = threading.RLock()
        renew_in_child(self, "lock")

    def take(self) -> bool:
        with self.lock:
            return super().take()

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock:
            return super().book(now, cost, patience)

    def refund(self, receipt: Receipt) -> None:
        with self.lock:
            super().refund(receipt)


def new_budget(policy: RateLimitPolicy, monotonic: Callable[[], float]) -> LocalBudget:
    """A budget in this process that is exact under this interpreter's threads."""
    return (LocalBudget if HAS_GLOBAL_LOCK else LockedBudget)(policy, monotonic)
