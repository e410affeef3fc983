"""The retry budget: a share of a profile's calls that its retries may add to them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from opero.executors.state.allowance import FLOOR, Allowance, LocalAllowance
from opero.executors.state.home import Holder
from opero.policies.types import DEFAULT_BUDGET
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host


class RetryBudget(Holder[Allowance]):
    """A retry budget, shared by all functions that are bound to its profile.

    A success writes nothing: calls are counted by the statistics of each function, which are read when a retry is asked
    for.
    """

    def __init__(self, policy: RetryPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, LocalAllowance(policy, clock.monotonic()))
        self.clock = clock
        self.name = name
        self._seen: WeakKeyDictionary[Stats, int] = WeakKeyDictionary()
        self._lock = RenewedLock()

    def serve(self, stats: Stats) -> None:
        """Let the calls of another function pay for retries as well."""
        with self._lock:
            self._seen.setdefault(stats, stats.own_calls)

    async def allows(self, host: Host, retries: int) -> bool:
        """Return whether this many retries may begin, and deduct them from the budget if so."""
        return await self.run(host, lambda: self.ask(lambda home: self._draw(home, retries)), undo=_keep)

    def _draw(self, home: Allowance, retries: int) -> bool:
        return home.draw(self.clock.monotonic(), self._new_calls(), retries)

    def _new_calls(self) -> int:
        """Return the number of calls since this was last asked."""
        with self._lock:
            new = 0
            for stats, seen in self._seen.items():
                calls = stats.own_calls
                if calls != seen:
                    new += max(0, calls - seen)
                    self._seen[stats] = calls
            return new

    def __str__(self) -> str:
        share = self.policy.budget or DEFAULT_BUDGET
        return f"the retry budget of {self.name} ({share * 100:g}% of the calls, and {FLOOR:g}/s)"


def _keep(_: bool) -> None:
    """A call that has been cancelled meanwhile does not give back its retry: it has used the time of the service."""
