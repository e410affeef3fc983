"""Limiting the rate of calls: one exact budget for all callers, and a queue in front of it for each event loop."""

from __future__ import annotations

import inspect
from asyncio import Lock, get_running_loop, timeout
from typing import TYPE_CHECKING, Any

from aiolimiter import AsyncLimiter

from opero.errors import CallTimeoutError, ConfigError, RateLimitExceededError, nearest
from opero.executors.state.budget import FOREVER, Budget, LocalBudget, new_budget
from opero.executors.state.home import Holder, Moved
from opero.observe.logs import logger
from opero.policies.types import approximate_duration, format_duration
from opero.runtime.functions import short_name
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Mapping

    from opero.executors.call import Call, Layer
    from opero.executors.state.budget import Receipt
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

__all__ = ["Meter", "RateLimitExecutor", "cost_function"]


def cost_function(
    cost: Any, function: Callable[..., Any]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], float] | None:
    """A function that computes a call's cost from its arguments; None where every call costs the same.

    Raises:
        ConfigError: `cost` names a parameter that the function lacks.
    """
    if isinstance(cost, float | int):
        return None
    if callable(cost):
        return lambda args, kwargs: _checked(cost(*args, **kwargs), function)
    signature = inspect.signature(function)
    if cost not in signature.parameters:
        known = nearest(cost, signature.parameters)
        raise ConfigError(f"{short_name(function)} has no parameter {cost!r} to take the cost from{known}")

    def from_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _checked(bound.arguments[cost], function)

    return from_argument


def _checked(cost: Any, function: Callable[..., Any]) -> float:
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < FOREVER:
        where = short_name(function)
        raise ValueError(f"the rate-limit cost of a call of {where} is {cost!r}; it must be a number, 0 or more")
    return float(cost)


class RateLimitExecutor(Holder[Budget]):
    """A rate limit, shared by all functions that are bound to its profile, from threads and event loops alike.

    A sync caller reserves permits and sleeps until they fall due. Async callers wait in their loop's queue (aiolimiter)
    first, which lets them through about as fast as permits fall due: so a cancelled one has reserved nothing yet, and
    sync callers never wait behind a long row of reserved tasks.
    """

    own: LocalBudget

    def __init__(self, policy: RateLimitPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, new_budget(policy, clock.monotonic))
        self.clock = clock
        self.name = name
        self.cost = policy.cost if isinstance(policy.cost, float | int) else None
        self.patience = FOREVER if policy.max_wait is None else policy.max_wait
        self.blocking = BlockingHost(clock)
        self._queues: dict[AbstractEventLoop, _Queue] = {}
        self.queued = 0

    # Decisions

    def patience_of(self, call: Call, now: float) -> float:
        """The longest wait that this call accepts."""
        return min(self.patience, call.time_left(now))

    def refusal(self, call: Call, wait: float, now: float) -> Exception:
        """The error for a call whose permit is too far away."""
        call.turned_away = True
        away = approximate_duration(wait)
        if call.time_left(now) <= wait and call.time_left(now) < self.patience:
            call.stats.timeouts += 1
            left = approximate_duration(max(0.0, call.time_left(now)))
            return CallTimeoutError(
                f"{self.name}: the next rate-limit permit is {away} away, and the total timeout leaves {left}",
                scope="total",
                waiting_for="rate_limit",
            )
        call.stats.rejections += 1
        return RateLimitExceededError(
            f"{self.name}: the next permit of {self.policy.rate:g}/s is {away} away, and max_wait is "
            f"{format_duration(self.patience)}",
            retry_in=wait,
        )

    def reserve(self, call: Call, cost: float, patience: float) -> tuple[float, Receipt]:
        """Reserve permits: seconds until they fall due, and the receipt by which they can be given back.

        Raises:
            RateLimitExceededError, CallTimeoutError: they do not fall due within `patience`; nothing is reserved.
        """
        now = self.clock.monotonic()
        while True:
            try:
                wait, receipt = self.home.book(now, cost, patience)
                break
            except Moved:
                self.follow()
        if wait > patience:
            raise self.refusal(call, wait, now)
        return wait, receipt

    def refund(self, receipt: Receipt) -> None:
        """Give reserved permits back."""
        self.ask(lambda budget: budget.refund(receipt))

    def wait_at(self, now: float, cost: float) -> float:
        """Seconds until permits would fall due; nothing is reserved."""
        return self.ask(lambda budget: budget.book(now, cost, -1.0))[0]

    # What waits

    async def wait(self, host: Host, call: Call, wait: float, receipt: Receipt) -> None:
        """Wait until reserved permits fall due."""
        call.stats.waits += 1
        call.stats.waited += wait
        call.waited += wait
        logger.debug("%s: waits %.3g s for a permit", self.name, wait)
        try:
            await host.sleep(wait)
        except BaseException:
            self.run_later(self.refund, receipt)
            raise

    async def wait_in_queue(self, host: Host, call: Call, cost: float) -> None:
        """Reserve permits and wait until they fall due, after the other tasks of this event loop."""
        started = self.clock.monotonic()
        patience = self.patience_of(call, started)
        wait = await self.run(host, lambda: self.wait_at(started, cost), lambda _: None)
        expected = wait + self.queued * cost / self.policy.rate
        if expected > patience:
            raise self.refusal(call, expected, started)
        queue = self._queue()
        self.queued += 1
        try:
            async with timeout(None if patience == FOREVER else patience):
                await queue.enter()
        except TimeoutError:
            raise self.refusal(call, expected, self.clock.monotonic()) from None
        finally:
            self.queued -= 1
            passed = self.clock.monotonic() - started
            call.waited += passed
            call.stats.waited += passed
        try:
            left = patience - passed
            wait, receipt = await self.run(
                host, lambda: self.reserve(call, cost, left), lambda reserved: self.refund(reserved[1])
            )
            if wait > 0:
                await self.wait(host, call, wait, receipt)
        finally:
            queue.leave()

    def _queue(self) -> _Queue:
        loop = get_running_loop()
        queue = self._queues.get(loop)
        if queue is None:
            for old in [each for each in list(self._queues) if each.is_closed()]:
                self._queues.pop(old, None)
            queue = self._queues[loop] = _Queue(self.policy, varying=self.cost is None)
        return queue


class Meter:
    """The rate limit in front of one function: what its calls cost, and the two wrappers.

    Raises:
        ConfigError: the policy takes the cost from an argument that the function lacks.
    """

    def __init__(self, limiter: RateLimitExecutor, function: Callable[..., Any]) -> None:
        self.limiter = limiter
        self.cost_of = cost_function(limiter.policy.cost, function)

    def wrap(self, layer: Layer) -> Layer:
        limiter, cost_of, now = self.limiter, self.cost_of, self.limiter.clock.monotonic
        take, usual = limiter.own.take, limiter.cost or 1.0

        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if cost_of is not None or not take():
                cost = usual if cost_of is None else cost_of(args, kwargs)
                wait, receipt = limiter.reserve(call, cost, limiter.patience_of(call, now()))
                if wait > 0:
                    run_blocking(limiter.wait(limiter.blocking, call, wait, receipt))
            return layer(call, args, kwargs)

        return limited

    def wrap_async(self, layer: Layer) -> Layer:
        limiter, cost_of, host = self.limiter, self.cost_of, AsyncHost(self.limiter.clock)
        take, usual = limiter.own.take, limiter.cost or 1.0

        async def wait_and_go_on(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            await limiter.wait_in_queue(host, call, usual if cost_of is None else cost_of(args, kwargs))
            return await layer(call, args, kwargs)

        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if cost_of is not None or limiter.queued or not take():
                return wait_and_go_on(call, args, kwargs)
            return layer(call, args, kwargs)  # nothing to wait for, so no coroutine is made for it

        return limited


class _Queue:
    """Where the tasks of one event loop wait for their turn to reserve permits: first come, first served.

    The first one passes aiolimiter, which lets tasks through at the limit's own rate, with one more at once than the
    burst, and as many more as fall due within `AHEAD`: timers of an event loop are late by a millisecond and more, and
    a task that reserves late finds its permit lapsed. The lock in front of aiolimiter keeps the order, as aiolimiter
    alone would let a new task overtake. Where costs differ the first task keeps its turn until its permits are due.
    """

    AHEAD = 0.02
    """Seconds that a task may reserve before its permit is due."""

    def __init__(self, policy: RateLimitPolicy, *, varying: bool) -> None:
        self.turn = Lock()
        self.limiter: AsyncLimiter | None = None
        if not varying:
            rate = policy.rate / policy.cost
            capacity = policy.burst + max(1.0, rate * self.AHEAD)
            self.limiter = AsyncLimiter(capacity, capacity / rate)

    async def enter(self) -> None:
        """Wait for this task's turn."""
        await self.turn.acquire()
        if self.limiter is not None:
            try:
                await self.limiter.acquire()
            finally:
                self.turn.release()

    def leave(self) -> None:
        """Let the next task have its turn, if this one has kept it."""
        if self.limiter is None:
            self.turn.release()
