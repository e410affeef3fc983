"""The budgets of several limits in redis, from which a call takes its permits in one round trip, all or none."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from opero.executors.state.budget import AGAIN, FOREVER, LocalBudget
from opero.executors.state.budgets import (
    NO_PART,
    Account,
    Booking,
    Budgets,
    Costs,
    Mark,
    Part,
    alike,
    longest,
    terms_of,
    values_of,
)
from opero.executors.state.home import Moved
from opero.executors.state.pace import Pace
from opero.executors.state.redis_budget import RedisBudget, _News
from opero.executors.state.redis_scripts import ARGUMENTS, BOOK_ALL, SECOND, SETTLE_ALL
from opero.executors.state.redis_store import Command
from opero.policies.quantities import LONGEST
from opero.runtime.forking import renew_in_child
from opero.runtime.hosts import run_later

if TYPE_CHECKING:
    from opero.executors.state.budget import Terms
    from opero.executors.state.budgets import PermitHolder, Values
    from opero.executors.state.local_budgets import LocalBudgets
    from opero.executors.state.redis_store import RedisStore
    from opero.policies.limits import Limit
    from opero.policies.rate_limit import RateLimitPolicy

ALONE = Part(-1, 0.0)
"""The part of a reservation that the server does not know of, and that cannot be corrected."""
NOTHING_TOLD = ("",) * 6
NOTHING_AGAIN = (0, 0, 0, 0)


class RedisBudgets(Budgets):
    """Keeps the budgets in redis, or what this process may use of them while redis cannot be used.

    Args:
        store: the redis.
        key: the name of the budgets there.
        policy: what they are for.
        own: the executor's budgets in this process, on whose clock they are.
        name: what messages begin with.
    """

    is_shared: ClassVar[bool] = True

    def __init__(self, store: RedisStore, key: str, policy: RateLimitPolicy, own: LocalBudgets, name: str) -> None:
        super().__init__()
        self.blocks = True
        self.lock = threading.RLock()
        self.store = store
        self.key = key
        self.name = name
        self.monotonic = own.monotonic
        self._each: dict[str, RedisBudget] = {}
        self.apply(policy)
        renew_in_child(self, "lock")

    def apply(self, policy: RateLimitPolicy) -> None:
        with self.lock:
            self.policy = policy
            each = {}
            for name, limit in zip(policy.names, policy.each, strict=True):
                one, budget = _alone(policy, limit), self._each.get(name)
                if budget is None:
                    own = LocalBudget(one, self.monotonic)
                    budget = RedisBudget(self.store, self.key, one, own, f"{self.name} ({name})")
                    prefix = f"opero:{{{self.key}}}"
                    if policy.limits:  # else it has the keys of policies with a fixed cost, which may share it
                        budget.keys = f"{prefix}:due:{name}".encode(), f"{prefix}:used:{name}".encode()
                elif budget.policy != one:
                    budget.apply(one)
                each[name] = budget
            self._each, self.names = each, tuple(each)
            self._budgets = tuple(each.values())
            dues = [budget.keys[0] for budget in self._budgets]
            keys = [key for budget in self._budgets for key in budget.keys]
            self._book = Command(BOOK_ALL, keys, (), len(each) * ARGUMENTS)
            self._settle = Command(SETTLE_ALL, dues, (), len(each) * 7)

    @property
    def trouble(self) -> str:
        return self.store.trouble

    @property
    def terms(self) -> Mapping[str, Terms]:
        return {name: budget.terms for name, budget in self._each.items()}

    # Booking

    def book_all(self, now: float, costs: Costs, patience: float, call: PermitHolder | None = None) -> Booking:
        return self._asked(costs, patience, [NOTHING_AGAIN] * len(costs))

    def book_again(self, now: float, booking: Booking, call: PermitHolder) -> Booking:
        parts = booking.parts_for(self.names)
        if any(part.number < 0 for part in parts):
            return booking
        again = [(part.number, repr(part.cost), int(part.at), int(part.before)) for part in parts]
        found = self._asked(tuple([part.cost for part in parts]), FOREVER, again)
        if not found.parts:
            return booking
        call.permits = found
        return found

    def _asked(self, costs: Costs, patience: float, again: Sequence[tuple[Any, ...]]) -> Booking:
        with self.lock:
            self.check()
            told = [budget.news() for budget in self._budgets]
            limit, names, budgets = int(min(patience, LONGEST) * SECOND), self.names, self._budgets
        arguments: list[object] = []
        for budget, cost, (ahead, news), more in zip(budgets, costs, told, again, strict=True):
            arguments += [
                *budget.constant,
                repr(cost),
                limit,
                ahead,
                0,
                *(NOTHING_TOLD if news is None else news),
                *more,
            ]
        reply = self.store.ask(self._book, self._probe, *arguments)
        with self.lock:
            if reply is None:
                self.check()
                return Booking(0.0, 0) if again[0] is not NOTHING_AGAIN else self._book_without(costs, patience)
            wait, slowest, clock, *replies = reply
            if not replies:
                return Booking(wait / SECOND, slowest)
            parts = []
            for budget, cost, (_, news), (number, due, after, *rest) in zip(budgets, costs, told, replies, strict=True):
                parts.append(Part(number, cost, clock + wait, due) if number else NO_PART)
                budget.note(clock, due, after, news)
                if rest != [None, None] or budget.in_force is not budget.terms:
                    budget.heed_reply([wait, due, after, clock, *(rest if rest != [None, None] else ())], news)
            booking = Booking(wait / SECOND, slowest, tuple(parts) if wait <= limit else (), names)
            if self.location.home is not self:
                run_later(self._change, booking, (0.0,) * len(parts), True)
                raise Moved
            return booking

    def waits(self, now: float, costs: Costs) -> tuple[float, ...]:
        with self.lock:
            self.check()
            each = zip(self._budgets, costs, strict=True)
            return tuple([budget.expected(cost) if cost > 0 else 0.0 for budget, cost in each])

    # Correcting

    def settle(self, booking: Booking, changes: Costs) -> None:
        self.check()
        self._change(booking, changes, False)

    def cancel(self, booking: Booking) -> None:
        self.check()
        self._change(booking, (0.0,) * len(self.names), True)

    def _change(self, booking: Booking, changes: Costs, is_cancelled: bool) -> None:  # for `run_later`
        arguments: list[object] = []
        parts, budgets = booking.parts_for(self.names), self._budgets
        for budget, part, change in zip(budgets, parts, changes, strict=True):
            is_known = part.number >= 0
            cost = part.cost if is_cancelled and part.number > 0 else 0.0
            interval, burst, _ = budget.terms
            arguments += [part.number, repr(change if is_known else 0.0), repr(interval * SECOND), burst]
            arguments += [repr(cost), int(part.at), int(part.before)]
        reply = self.store.ask(self._settle, self._probe, *arguments)
        if reply is not None:
            with self.lock:
                for budget, due in zip(budgets, reply[1:], strict=True):
                    if due:
                        budget.note(reply[0], due, due, None)

    # Without the server

    def _book_without(self, costs: Costs, patience: float) -> Booking:
        parts = (ALONE,) * len(costs)
        if self.policy.on_store_error == "open":
            return Booking(0.0, 0, parts, self.names)
        if self.policy.on_store_error == "closed":
            return Booking(FOREVER, 0)
        each = list(zip(self._budgets, costs, strict=True))
        wait, slowest = longest([budget.book_turn(cost, -1.0) if cost > 0 else 0.0 for budget, cost in each])
        if wait > patience:
            return Booking(wait, slowest)
        if wait > AGAIN:
            return Booking(AGAIN, slowest)  # ask again then
        for budget, cost in each:
            if cost > 0:
                budget.book_turn(cost, LONGEST)
        return Booking(wait, slowest, parts, self.names)

    def _probe(self) -> None:
        """Find out whether the server can be used again: write what would be written, but book nothing."""
        arguments: list[object] = []
        for budget in self._budgets:
            arguments += [*budget.constant, 0, 0, 0, 0, *_News(lost=budget.lost_for()), *NOTHING_AGAIN]
        self.store.run(self._book, *arguments)

    # Moving

    def values(self) -> Values:
        found = {}
        for name, budget in self._each.items():
            due, terms, *_ = budget.values()
            found[name] = Account(1, due, (Mark(1, due, 0.0),)), terms
        return found

    def receive(self, values: Any) -> None:
        terms = terms_of(self.policy)
        if not isinstance(values, dict):
            self.heir = self.names.index(alike(values[1], terms))
        for name, (account, before) in values_of(values, terms).items():
            if name in self._each:
                self._each[name].receive((account.due, before, Pace(), None))

    def _pass(self, target: Any, receive: Any) -> None:
        if isinstance(target, RedisBudgets) and (target.store, target.key) == (self.store, self.key):
            self.refer_to(target)  # they are the same budgets
        else:
            super()._pass(target, receive)


def _alone(policy: RateLimitPolicy, limit: Limit) -> RateLimitPolicy:
    """Return the policy that has one of the limits."""
    return policy.replace(rate=limit.rate, burst=limit.burst, cost=limit.cost, cost_from_result=limit.cost_from_result)
