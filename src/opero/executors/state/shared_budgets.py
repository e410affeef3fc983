"""The budgets of several limits in a file that the processes of a machine share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.executors.state.budget import Terms
from opero.executors.state.budgets import (
    MERGED,
    Account,
    Booking,
    Budgets,
    Costs,
    Mark,
    State,
    alike,
    booked,
    booked_again,
    expressed,
    later,
    settled,
    terms_of,
    values_of,
    wait_for,
    without,
)
from opero.executors.state.pace import Pace
from opero.executors.state.shared_home import FileHome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.executors.state.budgets import PermitHolder, Values
    from opero.executors.state.local_budgets import LocalBudgets
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.state_file import StateFile


class SharedBudgets(FileHome, Budgets):
    """Keeps the budgets in a file, each by the name of its limit and with the terms of the newest policy.

    Args:
        file: the file. A new one has no budgets yet: some move there.
        own: the executor's budgets in this process, on whose clock they are.
    """

    def __init__(self, file: StateFile, own: LocalBudgets) -> None:
        super().__init__(file)
        self.monotonic = own.monotonic
        self.names, self._terms, self._is_single = own.names, own.terms, own.is_single

    @property
    def terms(self) -> Mapping[str, Terms]:
        return self._terms

    def book_all(self, now: float, costs: Costs, patience: float, call: PermitHolder | None = None) -> Booking:
        with self.lock:
            state = self._state()
            new, booking = booked(state, now, costs, patience)
            self._write(new, state)
            if call is not None and new is not state:
                call.permits = booking
            return booking

    def book_again(self, now: float, booking: Booking, call: PermitHolder) -> Booking:
        with self.lock:
            state = self._state()
            new, found = booked_again(state, now, booking)
            self._write(new, state)
            call.permits = found
            return found

    def waits(self, now: float, costs: Costs) -> tuple[float, ...]:
        with self.lock:
            _, terms, accounts = self._state()
        each = zip(accounts, costs, terms, strict=True)
        return tuple([wait_for(account.due, now, cost, own) for account, cost, own in each])

    def settle(self, booking: Booking, changes: Costs) -> None:
        self._change(lambda state: settled(state, booking, changes, self.monotonic()))

    def cancel(self, booking: Booking) -> None:
        self._change(lambda state: without(state, booking, self.monotonic()))

    def _change(self, change: Callable[[State], State]) -> None:
        with self.lock:
            state = self._state()
            self._write(change(state), state)

    def apply(self, policy: RateLimitPolicy) -> None:
        terms = terms_of(policy)
        with self.lock:
            state = expressed(self._read(), terms, self.monotonic())
            self.names, self._terms, self._is_single = tuple(terms), terms, not policy.limits
            self._write(state)

    def values(self) -> Values:
        return self._state().values()

    def receive(self, values: Any) -> None:
        if not isinstance(values, dict):
            self.heir = self.names.index(alike(values[1], self._terms))
        held, now = self._read(), self.monotonic()
        terms = {name: held[name][1] if name in held else each for name, each in self._terms.items()}
        new = expressed(values_of(values, terms), terms, now)
        self._write(later(new, expressed(held, terms, now)) if held else new)

    def _state(self) -> State:
        """The budgets of this process's limits, in the terms of the newest policy of all."""
        self.check()
        held = self._read()
        terms = {name: held[name][1] if name in held else each for name, each in self._terms.items()}
        return expressed(held, terms, 0.0)

    # The budget of a policy with one limit is kept as `SharedBudget` keeps it, so that both may share it.

    def _read(self) -> Values:
        held = self.file.read()
        if held is None:
            return {}
        if not self._is_single:
            return {name: _account(*of) for name, of in held.items()}
        due, ((interval, burst, unit), *_, number, marks) = self.file.number, (*held, 0, ())[:5]
        if not marks or max(mark[1] for mark in marks) != due:  # one of fixed cost has booked since
            number, marks = number + 1, ((number + 1, due, MERGED),)
        account = Account(number, due, tuple([Mark(*mark) for mark in marks]))
        return {self.names[0]: (account, Terms(interval, burst, unit))}

    def _write(self, state: State, before: State | None = None) -> None:
        if state is before:
            return
        if self._is_single:
            [account], [terms] = state.accounts, state.terms
            self.file.number = account.due
            pace = (self.file.read() or (None, tuple(Pace())))[1]
            self.file.write((tuple(terms), pace, None, account.number, tuple(map(tuple, account.marks))))
            if before is None or before.terms != state.terms:
                self.file.version += 1
            return
        changed = {
            name: (account.number, account.due, tuple(map(tuple, account.marks)), tuple(terms))
            for name, (account, terms) in state.values().items()
        }
        self.file.write({**(self.file.read() or {}), **changed})


def _account(number: int, due: float, marks: Any, terms: Any) -> tuple[Account, Terms]:
    return Account(number, due, tuple([Mark(*mark) for mark in marks])), Terms(*terms)
