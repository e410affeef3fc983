"""What stands between a function and its rate limit: what its calls cost, and the wrappers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from opero.executors.costs import cost_function, harmless
from opero.runtime.functions import is_async_function
from opero.runtime.hosts import AsyncHost, run_blocking

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.rate_limit import RateLimitExecutor


class Meter:
    """The rate limit in front of one function: what its calls cost, and the two wrappers.

    Raises:
        ConfigError: the policy takes the cost from an argument that the function lacks.
    """

    def __init__(self, limiter: RateLimitExecutor, function: Callable[..., Any]) -> None:
        self.limiter = limiter
        self.cost_of = cost_function(limiter.policy.cost, function)
        if self.cost_of is not None and limiter.policy.shadow:
            self.cost_of = harmless(self.cost_of, limiter.name)

    def with_limiter(self, limiter: RateLimitExecutor) -> Meter:
        """Return the same in front of another rate limit of that policy."""
        other = copy(self)
        other.limiter = limiter
        return other

    def wrap(self, layer: Layer) -> Layer:
        limiter, cost_of, now = self.limiter, self.cost_of, self.limiter.clock.monotonic
        take, usual = limiter.own.take, limiter.cost or 1.0

        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            if cost_of is not None or not take():
                cost = usual if cost_of is None else cost_of(args, kwargs)
                patience = limiter.patience_of(call, now())
                reserved = limiter.reserve(call, cost, patience)
                if reserved[0] > 0:
                    run_blocking(limiter.wait(limiter.blocking, call, cost, patience, reserved))
            return layer(call, args, kwargs)

        return limited

    def wrap_async(self, layer: Layer) -> Layer:
        limiter, cost_of, host = self.limiter, self.cost_of, AsyncHost(self.limiter.clock)
        take, usual = limiter.own.take, limiter.cost or 1.0
        awaits_cost = is_async_function(limiter.policy.cost)

        async def wait_and_go_on(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            cost: Any = usual if cost_of is None else cost_of(args, kwargs)
            await limiter.wait_in_queue(host, call, await cost if awaits_cost else cost)
            return await layer(call, args, kwargs)

        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            if cost_of is not None or limiter.queued or not take():
                return wait_and_go_on(call, args, kwargs)
            return layer(call, args, kwargs)  # nothing to wait for, so no coroutine is made for it

        return limited

    def behind_slots(self, layer: Layer, *, is_async: bool) -> Layer:
        """Return the layer inside of a bulkhead: a pause also holds for calls that waited for a slot meanwhile."""
        own, host = self.limiter, AsyncHost(self.limiter.clock)
        if not own.policy.feedback and not own.policy.is_adaptive:
            return layer

        def looked(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.waited:
                limiter = own if call.limiter is None else call.limiter
                run_blocking(limiter.wait_again(limiter.blocking, call))
            return layer(call, args, kwargs)

        async def wait_and_go_on(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            await (own if call.limiter is None else call.limiter).wait_again(host, call)
            return await layer(call, args, kwargs)

        def looked_async(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            return wait_and_go_on(call, args, kwargs) if call.waited else layer(call, args, kwargs)

        return looked_async if is_async else looked


class Noting:
    """Notes at each call which of several rate limits it has passed, so that its outcome can be told to that one.

    Args:
        meter: what is in front of the function.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def wrap(self, layer: Layer) -> Layer:
        return self._around(self.meter.wrap(layer))

    def wrap_async(self, layer: Layer) -> Layer:
        return self._around(self.meter.wrap_async(layer))

    def _around(self, inner: Layer) -> Layer:
        limiter = self.meter.limiter

        def noting(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            call.limiter = limiter
            return inner(call, args, kwargs)

        return noting
