"""The budgets of several limits in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from opero.executors.state.budget import HAS_GLOBAL_LOCK
from opero.executors.state.budgets import (
    Booking,
    Budgets,
    Costs,
    alike,
    booked,
    booked_again,
    expressed,
    fitting,
    later,
    settled,
    terms_of,
    values_of,
    wait_for,
    without,
)
from opero.executors.state.home import Moved
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from opero.executors.state.budget import Terms
    from opero.executors.state.budgets import PermitHolder, State, Values
    from opero.executors.state.home import Home
    from opero.policies.rate_limit import RateLimitPolicy


class LocalBudgets(Budgets):
    """Keeps the budgets in this process.

    Args:
        policy: what they are for.
        monotonic: tells the time.

    Attributes:
        is_single: whether the policy has one limit, whose budget it may share with policies of fixed cost.
    """

    # As in `LocalBudget`, no lock is needed under CPython's global lock: the state is one object, and where that is
    # compared and replaced, no function is called in between.

    def __init__(self, policy: RateLimitPolicy, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self.lock: AbstractContextManager[Any] = nullcontext()
        self.monotonic = monotonic
        self._state: State | None = expressed({}, terms_of(policy), 0.0)  # None where it has moved
        self.is_single = not policy.limits
        self.names = self.state.names

    @property
    def terms(self) -> dict[str, Terms]:
        """Name of a limit → its terms."""
        return dict(zip(*self.state[:2], strict=True))

    @property
    def state(self) -> State:
        """The state.

        Raises:
            Moved: it is kept elsewhere.
        """
        if self._state is None:
            raise Moved
        return self._state

    def book_all(self, now: float, costs: Costs, patience: float, call: PermitHolder | None = None) -> Booking:
        while True:
            state = self.state
            new, booking = booked(state, now, costs, patience)
            if self._state is state:
                self._state = new
                if call is not None and new is not state:
                    call.permits = booking
                return booking

    def book_again(self, now: float, booking: Booking, call: PermitHolder) -> Booking:
        while True:
            state = self.state
            new, found = booked_again(state, now, booking)
            if self._state is state:
                self._state = new
                call.permits = found
                return found

    def waits(self, now: float, costs: Costs) -> tuple[float, ...]:
        _, terms, accounts = self.state
        each = zip(accounts, costs, terms, strict=True)
        return tuple([wait_for(account.due, now, cost, own) for account, cost, own in each])

    def settle(self, booking: Booking, changes: Costs) -> None:
        now = self.monotonic()
        self._change(lambda state: settled(state, booking, changes, now))

    def cancel(self, booking: Booking) -> None:
        now = self.monotonic()
        self._change(lambda state: without(state, booking, now))

    def forgo(self, receipts: Collection[Any]) -> None:
        for each in receipts:
            self.cancel(each)

    def apply(self, policy: RateLimitPolicy) -> None:
        terms, now = terms_of(policy), self.monotonic()
        with suppress(Moved):
            self._change(lambda state: expressed(state.values(), terms, now))
            self.names, self.is_single = tuple(terms), not policy.limits

    def _change(self, change: Callable[[State], State]) -> None:
        while True:
            state = self.state
            new = change(state)
            if self._state is state:
                self._state = new
                return

    def values(self) -> Values:
        return self.state.values()

    def receive(self, values: Any) -> None:
        own = self._state
        terms = dict(zip(self.names, self._terms, strict=True)) if own is None else dict(zip(*own[:2], strict=True))
        if not isinstance(values, dict):
            self.heir = self.names.index(alike(values[1], terms))
        new = expressed(values_of(values, terms), terms, self.monotonic())
        self._state = new if own is None else later(new, own)

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        self.refer_to(target)
        while True:
            state = self.state
            if self._state is state:
                self._state = None
                break
        self._terms = state.terms
        receive(fitting(state.values(), target))


class LockedBudgets(LocalBudgets):
    """The same for an interpreter without a global lock."""

    def __init__(self, policy: RateLimitPolicy, monotonic: Callable[[], float]) -> None:
        super().__init__(policy, monotonic)
        self.lock = threading.RLock()
        renew_in_child(self, "lock")

    def book_all(self, now: float, costs: Costs, patience: float, call: PermitHolder | None = None) -> Booking:
        with self.lock:
            return super().book_all(now, costs, patience, call)

    def book_again(self, now: float, booking: Booking, call: PermitHolder) -> Booking:
        with self.lock:
            return super().book_again(now, booking, call)

    def _change(self, change: Callable[[State], State]) -> None:
        with self.lock:
            super()._change(change)


def new_budgets(policy: RateLimitPolicy, monotonic: Callable[[], float]) -> LocalBudgets:
    """Budgets in this process that are exact under this interpreter's threads."""
    return (LocalBudgets if HAS_GLOBAL_LOCK else LockedBudgets)(policy, monotonic)
