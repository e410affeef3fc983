"""Several limits, or limits whose costs are estimates, in front of one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opero.executors.conditions import Matcher
from opero.executors.costs import cost_function, harmless
from opero.executors.meter import Meter
from opero.executors.settling import AsyncSteps, Steps, Usage, current, reader_of, restore
from opero.executors.state.budgets import Booking, Costs
from opero.runtime.functions import is_async_function
from opero.runtime.generators import Started
from opero.runtime.hosts import AsyncHost, run_blocking

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.classifier import Classifier
    from opero.executors.limits import LimitsExecutor
    from opero.policies.limits import Limit


class LimitsMeter(Meter):
    """Several limits in front of one function: what its calls cost and have cost, and the wrappers.

    Args:
        limiter: the limits.
        function: the function.
        classifier: says of which kind failures are.

    Raises:
        ConfigError: the policy takes a cost from an argument that the function lacks.
    """

    limiter: LimitsExecutor

    def __init__(self, limiter: LimitsExecutor, function: Callable[..., Any], classifier: Classifier) -> None:
        self.limiter = limiter
        policy = limiter.policy
        self.cost_of: Any = costs_function(policy.each, function, limiter.name if policy.shadow else None)
        self.awaits_cost = any(is_async_function(each.cost) for each in policy.each)
        self.readers = tuple([reader_of(each.cost_from_result, limiter.name) for each in policy.each])
        self.is_refused = Matcher.of(policy.refund_on, classifier)

    def abandon(self, call: Call) -> None:
        """Give back what a call holds whose function has not begun."""
        self.limiter.abandon(call)

    # The innermost of the two layers notes that the function begins: from then on it may have used what was reserved.

    def begin(self, layer: Layer) -> Layer:
        """Return the layer around the function itself."""

        def begun(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            call.permits = None
            return layer(call, args, kwargs)

        return begun

    def wrap(self, layer: Layer) -> Layer:
        limiter, cost_of = self.limiter, self.cost_of
        estimated = bool(limiter.estimated)

        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            costs = limiter.usual if cost_of is None else cost_of(args, kwargs)
            if not limiter.at_once(call, costs):
                run_blocking(limiter.acquire(limiter.blocking, call, costs))
            if not estimated:
                try:
                    return layer(call, args, kwargs)
                except BaseException:
                    if call.permits is not None:
                        limiter.abandon(call, waits=True)
                    raise
            usage = self._usage(call, costs, is_async=False)
            token = current.set(usage)
            try:
                result = layer(call, args, kwargs)
            except BaseException as error:
                self._failed(call, usage, error)
                raise
            finally:
                restore(token)
            self._returned(usage, result, Steps)
            return result

        return limited

    def wrap_async(self, layer: Layer) -> Layer:
        limiter, cost_of, host = self.limiter, self.cost_of, AsyncHost(self.limiter.clock)
        estimated = bool(limiter.estimated)

        async def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            costs: Any = limiter.usual if cost_of is None else cost_of(args, kwargs)
            if self.awaits_cost:
                costs = await costs
            if not limiter.at_once(call, costs):
                await limiter.acquire(host, call, costs)
            if not estimated:
                try:
                    return await layer(call, args, kwargs)
                except BaseException:
                    if call.permits is not None:
                        limiter.abandon(call)
                    raise
            usage = self._usage(call, costs, is_async=True)
            token = current.set(usage)
            try:
                result = await layer(call, args, kwargs)
            except BaseException as error:
                self._failed(call, usage, error)
                raise
            finally:
                restore(token)
            self._returned(usage, result, AsyncSteps)
            return result

        return limited

    def _usage(self, call: Call, costs: Costs, *, is_async: bool) -> Usage:
        booking = call.permits or Booking(0.0, 0)
        return Usage(self.limiter, booking, costs, self.readers, is_async=is_async, outer=current.get())

    def _failed(self, call: Call, usage: Usage, error: BaseException) -> None:
        if call.permits is not None:  # the function has not begun
            self.limiter.abandon(call, waits=not usage.is_async)
        elif isinstance(error, Exception) and self.is_refused(error, call.answers):
            usage.used_nothing()

    def _returned(self, usage: Usage, result: Any, steps: type[Steps]) -> None:
        if type(result) is not Started:
            usage.read(result)
            return
        result.steps = running = steps(usage, result.generator, result.steps)
        if not result.ended:
            usage.read_item(result.first, running.found)
        result.on_end(lambda _: usage.end(running.found))


def costs_function(
    limits: Sequence[Limit], function: Callable[..., Any], in_shadow: str | None
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any] | None:
    """A function that computes what a call costs of each limit; None where all calls cost the same. It is async if a
    cost is.

    Args:
        limits: the limits.
        function: the function that is called.
        in_shadow: the name for messages if exceptions of costs are logged, and not raised.

    Raises:
        ConfigError: a cost names a parameter that the function lacks.
    """
    each = [cost_function(limit.cost, function) for limit in limits]
    if not any(each):
        return None
    if in_shadow is not None:
        each = [one and harmless(one, in_shadow) for one in each]
    fixed = [limit.cost for limit in limits]

    def costs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Costs:
        return tuple([cost if of is None else of(args, kwargs) for cost, of in zip(fixed, each, strict=True)])

    async def awaited(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Costs:
        found = []
        for cost, of in zip(fixed, each, strict=True):
            own: Any = cost if of is None else of(args, kwargs)
            found.append(await own if of is not None and is_async_function(of) else own)
        return tuple(found)

    return awaited if any(is_async_function(of) for of in each if of is not None) else costs
