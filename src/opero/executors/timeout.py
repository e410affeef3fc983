"""Ends attempts that take too long, and sets the deadline of the call for the total timeout."""

from __future__ import annotations

from asyncio import timeout
from typing import TYPE_CHECKING, Any

from opero.errors import CallTimeoutError
from opero.policies.types import format_duration
from opero.runtime.interruption import Expired

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.executors.call import Call, Layer
    from opero.policies.timeout import TimeoutPolicy
    from opero.runtime.clock import Clock

__all__ = ["TimeoutExecutor"]


class TimeoutExecutor:
    """Limits one function's attempts to the attempt timeout and the rest of the total timeout."""

    def __init__(self, policy: TimeoutPolicy, clock: Clock, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name

    def time_for(self, call: Call) -> float:
        """Return the seconds that an attempt may take if it starts now."""
        left = call.time_left(self.clock.monotonic())
        return left if self.policy.attempt is None else min(left, self.policy.attempt)

    def expired(self, call: Call, allowed: float) -> CallTimeoutError:
        """Return the error for an attempt that took longer than `allowed` seconds, and count it."""
        call.stats.timeouts += 1
        if self.policy.total is not None and (self.policy.attempt is None or allowed < self.policy.attempt):
            scope, seconds = "total", self.policy.total
            message = f"{self.name} took longer than its total timeout of {format_duration(seconds)}"
        else:
            scope, seconds = "attempt", self.policy.attempt or 0.0
            message = f"an attempt of {self.name} took longer than its timeout of {format_duration(seconds)}"
        return CallTimeoutError(message, scope=scope, seconds=seconds)

    # The whole call

    def wrap_total(self, layer: Layer) -> Layer:
        total, now = self.policy.total or 0.0, self.clock.monotonic

        def timed(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            call.deadline = now() + total
            return layer(call, args, kwargs)  # for an async function a coroutine, which starts when it is awaited

        return timed

    # One attempt

    def wrap(self, layer: Layer) -> Layer:
        def bounded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            allowed = self.time_for(call)
            if allowed <= 0:
                raise self.expired(call, allowed)
            try:
                return self.clock.run_within(allowed, layer, call, args, kwargs)
            except Expired:
                raise self.expired(call, allowed) from None

        return bounded

    def wrap_async(self, layer: Layer) -> Layer:
        async def bounded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            allowed = self.time_for(call)
            if allowed <= 0:
                raise self.expired(call, allowed)
            try:
                async with timeout(allowed) as limit:
                    return await layer(call, args, kwargs)
            except TimeoutError:
                if not limit.expired():
                    raise  # raised by the function itself
                raise self.expired(call, allowed) from None

        return bounded
