"""The budgets of several limits, from which a call takes its permits together or not at all.

What a call costs may be an estimate, and become known when it has ended. So a reservation can be corrected after others
have been made, and no permit may be lost by that, or be given twice. A budget is therefore not only the moment at which
its next permit falls due, but a list of such moments, its *marks*: each as it would be without what was reserved before
a certain reservation. The latest decides. If less was used than reserved, the marks up to that reservation move back,
and those after it stay. So in any time

    permits used <= burst + rate * time

however late it becomes known how many were used. What a call uses beyond its reservation is taken when that is known,
and those who come after wait for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from opero.executors.state.budget import Budget, Terms, migrated
from opero.executors.state.pace import Pace

if TYPE_CHECKING:
    from typing import Any

    from opero.executors.state.budget import Receipt
    from opero.executors.state.home import Home
    from opero.policies.rate_limit import RateLimitPolicy

MOST_MARKS = 32
"""More marks are merged: then part of what is given back is lost, and nothing is given twice."""
NEVER = float("-inf")
MERGED = 0.0
"""The moment of marks that stand for several reservations, and stay if one of them is cancelled."""
SAME = 1e-6
"""Seconds by which marks may differ and count as one."""

Costs = tuple[float, ...]


class Mark(NamedTuple):
    """When the next permit falls due without what was reserved before a certain reservation.

    Attributes:
        number: that of the reservation.
        due: the moment.
        at: the moment for which the reservation has taken its permits. Until then it may be cancelled, and the mark
            disappears.
    """

    number: int
    due: float
    at: float


class Account(NamedTuple):
    """The budget of one limit.

    Attributes:
        number: how many reservations and corrections there have been.
        due: the moment at which the next permit would fall due if none could be saved up: that of the latest mark.
        marks: in the order of the reservations, without those that can never become the latest again.
    """

    number: int = 0
    due: float = 0.0
    marks: tuple[Mark, ...] = (Mark(0, 0.0, MERGED),)


class Part(NamedTuple):
    """What a reservation has taken from one budget.

    Attributes:
        number: of the reservation there; 0 if it has taken nothing.
        cost: the permits.
        at: the moment for which they were taken.
        before: `due` without it.
    """

    number: int
    cost: float
    at: float = 0.0
    before: float = 0.0


NO_PART = Part(0, 0.0)
ALL_PART = Part(1 << 60, 0.0)
"""A part by which everything that is reserved can be corrected."""


class Booking(NamedTuple):
    """A reservation of permits from several budgets.

    Attributes:
        wait: seconds until they fall due.
        slowest: the index of the limit whose permits fall due last.
        parts: what it has taken from each; empty if nothing has been taken, as the wait was too long, or as it has to
            be asked again after the wait.
        names: those of the limits.
    """

    wait: float
    slowest: int
    parts: tuple[Part, ...] = ()
    names: tuple[str, ...] = ()

    def parts_for(self, names: tuple[str, ...]) -> tuple[Part, ...]:
        """Return the parts of limits with these names, which may be those of another policy."""
        if names == self.names:
            return self.parts
        own = dict(zip(self.names, self.parts, strict=False))
        return tuple([own.get(name, NO_PART) for name in names])


class PermitHolder(Protocol):
    """Who may have reserved permits: a call.

    They are reserved together with this note of them, between two moments at which Python runs signal handlers. So
    whatever interrupts a call, such as Ctrl-C, it is known what it has.

    Attributes:
        permits: what it has reserved and may not have used yet; None if that is nothing.
    """

    permits: Booking | None


# Decisions


def wait_for(due: float, now: float, cost: float, terms: Terms) -> float:
    """Return the seconds until permits fall due; none for no permits."""
    if cost <= 0.0:
        return 0.0
    if cost >= terms.burst:
        return max(0.0, due - now)
    return max(0.0, due - (terms.burst - cost) * terms.interval - now)


def longest(waits: Sequence[float]) -> tuple[float, int]:
    """Return the longest wait, and its index."""
    slowest = max(range(len(waits)), key=waits.__getitem__)
    return waits[slowest], slowest


def taken(account: Account, now: float, at: float, cost: float, terms: Terms) -> Account:
    """Return the account after permits were taken for a moment, which has come or will be waited for."""
    number, step = account.number + 1, cost * terms.interval
    if account.due <= at <= now:
        return Account(number, at + step, (Mark(number, at + step, at),))
    marks = [Mark(each, due + step, moment) for each, due, moment in account.marks]
    marks.append(Mark(number, at + step, at))
    return _account(number, marks, now)


def corrected(account: Account, part: Part, change: float, now: float, terms: Terms) -> Account:
    """Return the account once it is known that a reservation uses more permits, or fewer, than it has taken.

    Args:
        account: the account.
        part: what the reservation has taken.
        change: how many permits more.
        now: the clock's reading.
        terms: those of the policy in force.
    """
    if change > 0.0:
        return taken(account, now, now, change, terms)
    return _account(account.number + 1, _moved(account.marks, part.number, change * terms.interval), now)


def cancelled(account: Account, part: Part, now: float, terms: Terms) -> Account:
    """Return the account without a reservation that was not used."""
    marks = _moved(account.marks, part.number, -part.cost * terms.interval)
    own = next((each for each in marks if each.number == part.number), None)
    if own is not None and own.at != MERGED:
        marks.remove(own)
        if part.at <= now:  # marks that were earlier moments have been left out
            marks.append(own._replace(due=own.due + min(0.0, part.before - part.at)))
            marks.sort()
    return _account(account.number + 1, marks, now)


def _moved(marks: Sequence[Mark], number: int, step: float) -> list[Mark]:
    """Return marks of which those up to a reservation have moved."""
    return [Mark(each, due + step, at) if each <= number else Mark(each, due, at) for each, due, at in marks]


def _account(number: int, marks: list[Mark], now: float) -> Account:
    """Return an account of those marks that may ever be the latest."""
    kept: list[Mark] = []
    latest, place = NEVER, -1  # of those that stay
    for mark in reversed(marks):
        if mark.due <= latest:
            continue
        if mark.due <= latest + SAME:
            latest = mark.due
            kept[place] = kept[place]._replace(due=latest)
            continue
        kept.append(mark)
        if mark.at <= now:
            latest, place = mark.due, len(kept) - 1
    kept.reverse()
    if len(kept) > MOST_MARKS:
        gaps = [abs(one.due - next_.due) for one, next_ in pairwise(kept)]
        closest = gaps.index(min(gaps))
        one, other = kept[closest : closest + 2]
        kept[closest : closest + 2] = [Mark(other.number, max(one.due, other.due), MERGED)]
    return Account(number, max(mark.due for mark in kept), tuple(kept))


def migrated_account(account: Account, now: float, before: Terms, after: Terms) -> Account:
    """Express an account in the terms of a new policy. What was reserved until then cannot be given back any more."""
    if before[:2] == after[:2]:
        return account
    number = account.number + 1
    due = migrated(account.due, now, before, after)
    return Account(number, due, (Mark(number, due, now),))


Values = dict[str, tuple[Account, Terms]]
"""Name of a limit → its account, and the terms by which that is meant."""


def terms_of(policy: RateLimitPolicy) -> dict[str, Terms]:
    """Return what a policy says about the budget of each of its limits."""
    return {name: Terms.of(limit) for name, limit in zip(policy.names, policy.each, strict=True)}


def values_of(values: Any, terms: Mapping[str, Terms]) -> Values:
    """Return what moves from a home of whatever kind as accounts.

    The budget of a policy with one limit continues as that of the first limit whose cost is known in the same way.
    """
    if isinstance(values, dict):
        return values
    due, before, *_ = values
    return {alike(before, terms): (Account(1, due, (Mark(1, due, 0.0),)), before)}


def alike(one: Terms, others: Mapping[str, Terms]) -> str:
    """Return the name of the first limit whose cost is fixed, or depends on the arguments, as that of another limit."""
    return next((name for name, each in others.items() if bool(each.unit) == bool(one.unit)), next(iter(others)))


class Budgets(Budget):
    """Keeps the budgets of several limits. Its values are `Values`.

    Attributes:
        names: those of the limits, by the newest policy of this process; costs are in their order.
    """

    names: tuple[str, ...]
    if TYPE_CHECKING:

        @property
        def terms(self) -> Mapping[str, Terms]:
            """Name of a limit → its terms, by the newest policy of this process."""

    _resumes = 0.0
    heir = 0
    """The index of the limit that has continued the budget of a policy with one limit."""

    @abstractmethod
    def book_all(self, now: float, costs: Costs, patience: float, call: PermitHolder | None = None) -> Booking:
        """Reserve permits from all budgets if all of them fall due within `patience`, and note them at the call."""

    @abstractmethod
    def waits(self, now: float, costs: Costs) -> tuple[float, ...]:
        """Return the seconds until permits would fall due at each budget, without reserving any."""

    @abstractmethod
    def settle(self, booking: Booking, changes: Costs) -> None:
        """Take as many permits more from each budget, or give as many back."""

    @abstractmethod
    def cancel(self, booking: Booking) -> None:
        """Give back a reservation that has not been used."""

    def book_again(self, now: float, booking: Booking, call: PermitHolder) -> Booking:
        """Reserve the same permits anew if they fall due sooner now, as others have given some back."""
        return booking

    # Pauses that a service asks for. They use up permits, so that those of all budgets fall due after the pause.

    def resumes(self, *, is_fresh: bool = True) -> float:
        return self._resumes

    def pause(self, now: float, seconds: float) -> bool:
        if now + seconds <= self._resumes:
            return False
        self._resumes = now + seconds
        self.slow_down(now, seconds)
        return True

    def slow_down(self, now: float, seconds: float) -> None:
        terms = tuple(self.terms.values())
        backlogs = self.waits(now, tuple([each.burst for each in terms]))
        changes = []
        for (interval, burst, unit), backlog in zip(terms, backlogs, strict=True):
            least = min(unit or 1.0, burst)
            changes.append(max(0.0, (seconds + (burst - least) * interval - backlog) / interval))
        self.settle(Booking(0.0, 0, (ALL_PART,) * len(terms), self.names), tuple(changes))

    # For calls under way when a policy with one limit has been replaced

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        costs = tuple([cost if index == self.heir else 0.0 for index in range(len(self.names))])
        return self.book_all(now, costs, patience).wait, NOT_GIVEN_BACK

    def refund(self, receipt: Receipt) -> None:
        """What such a call has waited for in vain is not given back."""

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        receive(fitting(self.values(), target))
        self.refer_to(target)
        self.vacate()


NOT_GIVEN_BACK: Receipt = (0.0, 0.0)


def fitting(values: Values, target: Home) -> Any:
    """Return what moves to a home of whatever kind."""
    if isinstance(target, Budgets):
        return values
    terms = getattr(target, "terms", None) or next(iter(values.values()))[1]
    account, before = values[alike(terms, {name: each for name, (_, each) in values.items()})]
    return account.due, before, Pace(), None


class State(NamedTuple):
    """The budgets in this process."""

    names: tuple[str, ...]
    terms: tuple[Terms, ...]
    accounts: tuple[Account, ...]

    def values(self) -> Values:
        return dict(zip(self.names, zip(self.accounts, self.terms, strict=True), strict=True))


def booked(state: State, now: float, costs: Costs, patience: float) -> tuple[State, Booking]:
    """Reserve permits from all budgets if all of them fall due within `patience`: the state from now on."""
    names, terms, accounts = state
    each = zip(accounts, costs, terms, strict=True)
    waits = [wait_for(account.due, now, cost, own) for account, cost, own in each]
    wait, slowest = longest(waits)
    if wait > patience:
        return state, Booking(wait, slowest)
    at, after, parts = now + wait, [], []
    for account, cost, own in zip(accounts, costs, terms, strict=True):
        if cost > 0.0:
            new = taken(account, now, at, cost, own)
            parts.append(Part(new.number, cost, at, account.due))
        else:
            new = account
            parts.append(NO_PART)
        after.append(new)
    return State(names, terms, tuple(after)), Booking(wait, slowest, tuple(parts), names)


def settled(state: State, booking: Booking, changes: Costs, now: float) -> State:
    """Take as many permits more than were reserved, or give as many back: the state from now on."""
    names, terms, accounts = state
    each = zip(accounts, booking.parts_for(names), changes, terms, strict=True)
    after = [
        corrected(account, part, change, now, own) if change and part.number >= 0 else account
        for account, part, change, own in each
    ]
    return State(names, terms, tuple(after))


def without(state: State, booking: Booking, now: float) -> State:
    """Give back a reservation that has not been used: the state from now on."""
    names, terms, accounts = state
    each = zip(accounts, booking.parts_for(names), terms, strict=True)
    after = [cancelled(account, part, now, own) if part.number > 0 else account for account, part, own in each]
    return State(names, terms, tuple(after))


def booked_again(state: State, now: float, booking: Booking) -> tuple[State, Booking]:
    """Reserve the same permits anew if they fall due sooner now: the state from now on."""
    names = state.names
    costs = tuple([part.cost for part in booking.parts_for(names)])
    at = max(part.at for part in booking.parts)
    new, found = booked(without(state, booking, now), now, costs, at - now - SAME)
    return (new, found) if found.parts else (state, booking)


def expressed(values: Values, terms: Mapping[str, Terms], now: float) -> State:
    """Return the state of limits with these terms; one that is new begins with a full budget."""
    found = []
    for name, each in terms.items():
        account, before = values.get(name, (Account(), each))
        found.append(migrated_account(account, now, before, each))
    return State(tuple(terms), tuple(terms.values()), tuple(found))


def later(one: State, other: State) -> State:
    """Return the state of those who have used two of them until now, with the same limits."""
    pairs = zip(one.accounts, other.accounts, strict=True)
    return one._replace(accounts=tuple([max(pair, key=lambda account: account.due) for pair in pairs]))
