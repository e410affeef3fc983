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
from opero.executors.state.pace import STEADY, Pace, due_after, paused
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, Self

    from opero.executors.state.adaptive import Flow
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
        return cls(1.0 / policy.fastest, policy.burst, unit)


Values = tuple[float, Terms, Pace, "Flow | None"]
"""The values of a budget, with moments as `due`; and how permits flow where the rate is found."""


# Decisions


def book(
    due: float, now: float, cost: float, patience: float, terms: Terms, pace: Pace = STEADY
) -> tuple[float, float]:
    """Reserve permits, if they fall due within `patience` seconds.

    Args:
        due: the moment at which the next permit would fall due if none could be saved up.
        now: the clock's reading.
        cost: how many permits.
        patience: the longest wait; a longer one reserves nothing.
        terms: those of the policy in force.
        pace: the latest pause.

    Returns:
        Seconds until the permits fall due, and `due` from now on.
    """
    interval, burst, _ = terms
    if due < now:
        due = now
    wait = due - now if cost >= burst else due - (burst - cost) * interval - now
    if wait < 0.0:
        wait = 0.0
    if wait > patience:
        return wait, due
    step = cost * interval
    return wait, due + (pace.step(now + wait, step, interval) if pace.ramp else step)


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
    """Keeps the budget of a rate limit. Its values are `due`, the `Terms` by which that is meant, and the `Pace`."""

    def take(self) -> bool:
        """Take the permits for a call of the usual cost, if it is known at once that they are due; else ask `book`."""
        return False

    @abstractmethod
    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        """As the function `book`: seconds until permits fall due, and the receipt that `refund` takes."""

    @abstractmethod
    def refund(self, receipt: Receipt) -> None:
        """As the function `refund`."""

    @abstractmethod
    def pause(self, now: float, seconds: float) -> bool:
        """Have no permit fall due for some seconds: not even one that has been reserved. Return whether that is more
        than a pause which is in force."""

    @abstractmethod
    def slow_down(self, now: float, seconds: float) -> None:
        """Have no further permit fall due for some seconds; those that have been reserved do."""

    @abstractmethod
    def resumes(self, *, is_fresh: bool = True) -> float:
        """Return the moment at which the latest pause ends, by this process's clock; 0 if there has been none.

        Args:
            is_fresh: whether to ask a server that may have been told of one by another process; that may block.
        """

    # Where the rate is found

    def left(self, receipt: Receipt, now: float) -> float:
        """Return the seconds that a reservation still has to wait; FOREVER if it has to be made again."""
        return FOREVER

    def learn(self, sent: float, now: float, *, is_accepted: bool) -> tuple[float, float]:
        """Learn that the service has accepted or refused a call. Return the rate before and after."""
        return 0.0, 0.0

    @property
    def rate(self) -> float:
        """The rate that was found; 0 where it is stated."""
        return 0.0

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
        self._pace = STEADY
        self.apply(policy)

    def apply(self, policy: RateLimitPolicy) -> None:
        self.apply_terms(Terms.of(policy))

    def apply_terms(self, terms: Terms) -> None:
        self.terms = terms
        cost = terms.unit or 1.0
        # For `take`: how long before it falls due a permit can be used out of the burst, and what taking it adds.
        self._saved = (terms.burst - min(cost, terms.burst)) * terms.interval
        if self._pace.ramp:  # `book` has to see to the pause
            self._saved = -FOREVER
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
            pace = self._pace
            if pace.ramp and now > pace.ends:
                self._resume(pace)
            wait, booked = book(due, now, cost, patience, self.terms, pace)
            if self._due == due:  # else another thread has booked meanwhile
                self._due = booked
                return wait, (due, booked)

    def _resume(self, pace: Pace) -> None:
        """The ramp is over: `take` takes permits again. When the pause has ended remains known."""
        rested = Pace(pace.resume)
        if self._pace is pace:  # else another thread has begun a new pause
            self._pace = rested
            self.apply_terms(self.terms)

    def pause(self, now: float, seconds: float) -> bool:
        pace, terms = paused(now + seconds, now), self.terms
        due = due_after(pace.resume, *terms)
        if self._due == FOREVER:
            raise Moved
        if pace.resume <= self._pace.resume:
            return False
        self._due = due  # no function is called since it has been compared
        self._saved = -FOREVER
        self._pace = pace
        return True

    def slow_down(self, now: float, seconds: float) -> None:
        later = due_after(now + seconds, *self.terms)
        due = self._due
        if due == FOREVER:
            raise Moved
        if later > due:
            self._due = later

    def resumes(self, *, is_fresh: bool = True) -> float:
        if self._due == FOREVER:
            raise Moved
        return self._pace.resume

    def refund(self, receipt: Receipt) -> None:
        before, after = receipt
        if self._due == after:  # as the function `refund`, which would be a call
            self._due = before

    def forgo(self, receipts: Collection[Receipt]) -> None:
        floor = due_after(self._pace.resume, *self.terms) if self._pace.resume else 0.0
        self._due = max(self._due - sum(after - before for before, after in receipts), min(self._due, floor))

    def batch(self, cost: float) -> float:
        """How many permits to reserve where a call takes some from a server; 0: none but its own."""
        return 0.0

    def grant(self, calls: int, moment: float) -> None:
        """Permits for as many calls have been reserved at a moment."""

    def drop(self) -> None:
        """The service has asked for a pause: what is reserved is not to be used."""

    def values(self) -> Values:
        return self._due, self.terms, self._pace, None

    def receive(self, values: Values) -> None:
        due, terms, pace, _ = values
        self._due = self._merged(due, terms, self._due)
        self._receive_pace(pace)

    def _receive_pace(self, pace: Pace) -> None:
        if pace.resume > self._pace.resume:
            if pace.ramp:
                self._saved = -FOREVER
            self._pace = pace

    def _merged(self, due: float, terms: Terms, own: float) -> float:
        due = migrated(due, self.monotonic(), terms, self.terms)
        return due if own == FOREVER else max(due, own)

    def _pass(self, target: Home, receive: Callable[[Values], None]) -> None:
        # The lock of other homes is held, so callers sent there wait until they have received.
        if not isinstance(target, LocalBudget) or target.rate:
            self.refer_to(target)
            due, self._due = self._due, FOREVER
            receive((due, self.terms, self._pace, None))
            return
        location = self.location
        while True:
            due, theirs = self._due, target._due
            merged = target._merged(due, self.terms, theirs)
            if self._due == due and target._due == theirs:  # else another thread has booked meanwhile
                self._due = FOREVER
                target._due = merged
                target._receive_pace(self._pace)
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

    def pause(self, now: float, seconds: float) -> bool:
        with self.lock:
            return super().pause(now, seconds)

    def slow_down(self, now: float, seconds: float) -> None:
        with self.lock:
            super().slow_down(now, seconds)


def new_budget(policy: RateLimitPolicy, monotonic: Callable[[], float]) -> LocalBudget:
    """A budget in this process that is exact under this interpreter's threads."""
    return (LocalBudget if HAS_GLOBAL_LOCK else LockedBudget)(policy, monotonic)
