"""Permits that a process has reserved ahead from the budget on a server, so that not each call asks the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opero.executors.state.budget import LockedBudget
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.policies.rate_limit import RateLimitPolicy


class ReservingBudget(LockedBudget):
    """Keeps the budget in this process, and where that has moved to a server, what is reserved there.

    A reserved permit may be used for as long as the limit takes for `reserve` permits, and lapses then. So in any time
    there are at most `reserve` more calls than permits, and as the burst on the server is smaller by as many, the limit
    holds exactly. A process reserves as many as it uses in that time.

    Args:
        policy: what it is for.
        monotonic: tells the time.
    """

    def __init__(self, policy: RateLimitPolicy, monotonic: Callable[[], float]) -> None:
        super().__init__(policy, monotonic)
        self._reserved: list[None] = []  # one for each call; taking one is atomic
        self._until = 0.0
        self._granted = 0  # the last time
        self._calls = 1  # for how many calls to reserve
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Leave the reserved permits to the parent."""
        self._reserved.clear()

    def apply(self, policy: RateLimitPolicy) -> None:
        super().apply(policy)
        self._lasts = policy.reserve / policy.fastest
        self._most = int(min(policy.reserve, policy.burst - policy.reserve) / (self.terms.unit or policy.reserve))

    def take(self) -> bool:
        if self.monotonic() < self._until:
            try:
                self._reserved.pop()
            except IndexError:
                return super().take()
            return True
        return super().take()

    def batch(self, cost: float) -> float:
        if cost != self.terms.unit:
            return 0.0
        with self.lock:
            if self._granted:
                left = len(self._reserved)
                self._calls = min(2 * self._calls, self._most) if left == 0 else max(1, self._granted - left)
                self._granted = 0
            elif self._calls == 1:
                self._calls = min(2, self._most)
            return self._calls * cost if self._calls > 1 else 0.0

    def drop(self) -> None:
        self._reserved.clear()

    def grant(self, calls: int, moment: float) -> None:
        with self.lock:
            self._reserved = [None] * calls
            self._granted = calls + 1
            self._until = moment + self._lasts
