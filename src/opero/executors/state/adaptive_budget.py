"""The budget of a rate limit that finds the rate by itself, in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from opero.executors.state.adaptive import after_accepted, after_pause, after_refused, capped, started
from opero.executors.state.budget import FOREVER, LockedBudget, Terms, migrated
from opero.executors.state.home import Moved
from opero.executors.state.pace import Pace

if TYPE_CHECKING:
    from opero.executors.state.budget import Receipt, Values
    from opero.executors.state.home import Home
    from opero.policies.rate_limit import RateLimitPolicy


class AdaptiveBudget(LockedBudget):
    """Keeps the budget of a rate that is found. Here `due` is a number of permits; see `Flow`.

    Args:
        policy: what it is for.
        monotonic: tells the time.
    """

    def __init__(self, policy: RateLimitPolicy, monotonic: Callable[[], float]) -> None:
        self.flow = started(policy, monotonic())
        super().__init__(policy, monotonic)

    def apply(self, policy: RateLimitPolicy) -> None:
        self.most = policy.fastest
        with self.lock:
            self.apply_terms(Terms.of(policy))
            self.flow = capped(self.flow, self.monotonic(), self.most)

    def take(self) -> bool:
        with self.lock:
            now = self.monotonic()
            if self._due == FOREVER:
                return False
            wait, self._due = self.flow.book(self._due, now, 0.0, self.terms.burst)
            return wait <= 0.0

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock:
            self._check()
            before = self._due
            wait, self._due = self.flow.book(before, now, patience, self.terms.burst)
            return wait, (before, self._due)

    def _check(self) -> None:
        if self._due == FOREVER:
            raise Moved

    def pause(self, now: float, seconds: float) -> bool:
        with self.lock:
            self._check()
            if now + seconds <= self.flow.moment:
                return False
            self.flow = after_pause(self.flow, now, seconds)
            return True

    def slow_down(self, now: float, seconds: float) -> None:
        with self.lock:
            self._check()
            self.flow = self.flow.held(now, seconds)

    def resumes(self, *, is_fresh: bool = True) -> float:
        with self.lock:
            self._check()
            return self.flow.moment

    def left(self, receipt: Receipt, now: float) -> float:
        with self.lock:
            self._check()
            return self.flow.left(receipt[1], now, self.terms.burst)

    def learn(self, sent: float, now: float, *, is_accepted: bool) -> tuple[float, float]:
        with self.lock:
            self._check()
            before = self.flow.found
            self.flow = self.flow.learned(
                now, after_accepted(before, sent, now, self.most) if is_accepted else after_refused(before, sent, now)
            )
            return before.rate, self.flow.found.rate

    @property
    def rate(self) -> float:
        return self.flow.found.rate

    def forgo(self, receipts: Collection[Receipt]) -> None:
        self._due -= len(receipts)

    def values(self) -> Values:
        now, rate = self.monotonic(), self.flow.found.rate
        due = now + self.flow.until(self._due, now) if self._due else 0.0
        return due, self.terms._replace(interval=1 / rate), Pace(self.flow.moment), self.flow

    def receive(self, values: Values) -> None:
        due, terms, pace, flow = values
        now = self.monotonic()
        if flow is not None:
            self.flow = capped(flow, now, self.most)
        elif pace.resume > now:
            self.flow = self.flow.held(now, pace.resume - now)
        if due:
            interval = 1 / self.flow.found.rate
            due = migrated(due, now, terms, self.terms._replace(interval=interval))
            own = 0.0 if self._due == FOREVER else self._due
            self._due = max(own, self.flow.at(now) + (due - max(now, self.flow.moment)) / interval)
        elif self._due == FOREVER:
            self._due = 0.0

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        values = self.values()
        self.refer_to(target)
        self._due = FOREVER
        receive(values)
