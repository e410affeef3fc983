"""Where the tasks of one event loop wait for permits of a rate limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from opero.runtime.async_library import await_within, in_trio, is_closed, new_lock, running_loop

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

    from opero.policies.rate_limit import RateLimitPolicy


class LoopQueue:
    """Where the tasks of one event loop wait for their turn to reserve permits: first come, first served.

    The first one passes aiolimiter, which lets tasks through at the limit's own rate, with one more at once than the
    burst, and as many more as fall due within `AHEAD`: timers of an event loop are late by a millisecond and more, and
    a task that reserves late finds its permit lapsed. The lock in front of aiolimiter keeps the order, as aiolimiter
    alone would let a new task overtake. Where costs differ or the rate is found, and under trio, for which aiolimiter
    is not made, the first task keeps its turn until its permits are due.
    """

    AHEAD = 0.02
    """Seconds that a task may reserve before its permit is due."""

    def __init__(self, policy: RateLimitPolicy, *, varying: bool) -> None:
        self.turn = new_lock()
        self.limiter: AsyncLimiter | None = None
        if not varying:
            rate = policy.fastest / policy.cost
            capacity = policy.burst + max(1.0, rate * self.AHEAD)
            from aiolimiter import AsyncLimiter  # only async callers need it

            self.limiter = AsyncLimiter(capacity, capacity / rate)

    async def enter_within(self, seconds: float, hold: Callable[[], Awaitable[None]] | None = None) -> None:
        """As `enter`.

        Raises:
            Expired: it took longer than `seconds`.
        """
        await await_within(seconds, self.enter(hold))

    async def enter(self, hold: Callable[[], Awaitable[None]] | None = None) -> None:
        """Wait for this task's turn, and before others have theirs, for `hold`."""
        await self.turn.acquire()
        if self.limiter is not None:
            try:
                if hold is not None:
                    await hold()
                await self.limiter.acquire()
            finally:
                self.turn.release()

    def leave(self) -> None:
        """Let the next task have its turn, if this one has kept it."""
        if self.limiter is None:
            self.turn.release()


class LoopQueues:
    """The queue of each event loop. It is made for the first async caller, as all others do without asyncio."""

    def __init__(self, policy: RateLimitPolicy, *, varying: bool) -> None:
        self._policy = policy
        self._varying = varying
        self._by_loop: dict[Any, LoopQueue] = {}

    def here(self) -> LoopQueue:
        """Return the queue of the event loop that runs."""
        loop = running_loop()
        queue = self._by_loop.get(loop)
        if queue is None:
            for old in [each for each in list(self._by_loop) if is_closed(each)]:
                self._by_loop.pop(old, None)
            queue = self._by_loop[loop] = LoopQueue(self._policy, varying=self._varying or in_trio())
        return queue
