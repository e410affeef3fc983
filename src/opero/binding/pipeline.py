"""The layers of a call, from outer to inner:

    cache → fallback result → timeout (total) → retry → fallback values → circuit breaker → rate limit → bulkhead
    → timeout (attempt) → function

A layer exists only where its policy is set. They are put together here, once for each configuration of a binding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opero.binding.fit import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.binding.binding import Binding
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Call, Layer
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock

__all__ = ["Chain", "Share", "build", "hand_over"]

Share = Callable[[str, Any, Callable[..., Any]], Any]
"""Gives the executors that several functions share: of a kind and policy, made by the function it gets, unless there is
one already."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The layers of a call, as one configuration built them.

    Attributes:
        function: what to call, where there is no layer around it but an outermost retry; else None.
        layer: the outermost layer, an outermost retry left out.
        hit: gives a call's result where a cache in memory has it, else `MISS`; None where there is no such cache.
        call: makes the `Call` that the layers pass on.
        fail: what follows an exception that came out of `function` or `layer`: retry, where that is outermost.
        whole: all layers within the cache, for a map that reads and fills the cache itself.
        policy: what it was built from.
        executors: kind of policy → its executor.
        own: the kinds of those whose state is this function's alone, though functions may share it.
    """

    function: Callable[..., Any] | None
    layer: Layer
    hit: Callable[..., Any] | None
    call: type[Call]
    fail: Callable[..., Any]
    whole: Layer
    policy: Policy
    executors: Mapping[str, Any]
    own: frozenset[str]

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Begin a call: its result, or under an async function something to await."""
        return self.layer(self.call(), args, kwargs) if self.function is None else self.function(*args, **kwargs)

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache, or None where there is none."""
        return self.executors.get("cache")


def build(binding: Binding, policy: Policy, share: Share | None = None) -> Chain:
    """The layers for a function under a policy.

    Args:
        binding: the function's.
        policy: what should happen around it.
        share: gives the executors that several functions share. Default: the binding's own.

    Raises:
        ConfigError: the policy does not fit the function.
        NotImplementedError: an option that has no executor yet.
    """
    check(binding, policy)
    own: set[str] = set()
    executors = _executors(binding, policy, share or binding.share, own)
    function = _starting(binding)
    innermost = invoking(binding, function)

    def around(layer: Layer, *kinds: str) -> Layer:
        """The layer with those of these kinds around it that there are; the last is the outermost."""
        for kind in kinds:
            if kind in executors:
                executor = executors[kind]
                layer = executor.wrap_async(layer) if binding.is_async else executor.wrap(layer)
        return layer

    attempt = around(innermost, "timeout", "bulkhead", "rate_limit", "circuit_breaker")
    retried = around(attempt, "retry")
    has_total = "timeout" in executors and policy.timeout is not None and policy.timeout.total is not None
    timed = executors["timeout"].wrap_total(retried) if has_total else retried
    whole = around(timed, "fallback")
    cached = around(whole, "cache")
    # Where retry is outermost and its first attempt needs no preparation, the bound function itself does its part.
    fused = cached is retried and retried is not attempt and not executors["retry"].prepares
    layer = attempt if fused else cached
    recover = (executors["retry"].recover_async if binding.is_async else executors["retry"].recover) if fused else None
    return Chain(
        function=function if layer is innermost else None,
        layer=layer,
        hit=executors["cache"].hit if "cache" in executors else None,
        call=binding.call,
        fail=failing(binding, recover, attempt, counts="retry" not in executors and "fallback" not in executors),
        whole=whole,
        policy=policy,
        executors=executors,
        own=frozenset(own),
    )


def hand_over(old: Chain, new: Chain) -> Chain:
    """Let the layers that are put in force go on with the state of those before; the layers to put in force.

    What functions share is seen to by who shares it: the registry.
    """
    for kind in new.own & old.own:
        mine, theirs = _limit(new, kind), _limit(old, kind)
        if mine is not theirs:
            mine.migrate_from(theirs)
    if new.cache is not None and old.cache is not None and new.cache is not old.cache:
        new.cache.migrate_from(old.cache)
        new = replace(new, hit=new.cache.hit)
    return new


def _limit(chain: Chain, kind: str) -> Any:
    executor = chain.executors[kind]
    return executor.limiter if kind == "rate_limit" else executor


def _executors(binding: Binding, policy: Policy, share: Share | None, own: set[str]) -> dict[str, Any]:
    """An executor for each policy that is set; each executor's module is loaded only when it is.

    Kinds of which the function has one of its own, although functions may share such, are added to `own`.
    """
    executors: dict[str, Any] = {}
    clock, name = binding.clock, binding.name
    if timeout := policy.active("timeout"):
        from opero.executors.timeout import TimeoutExecutor

        executors["timeout"] = TimeoutExecutor(timeout, clock, name)
    if bulkhead := policy.active("bulkhead"):
        from opero.executors.bulkhead import BulkheadExecutor

        executors["bulkhead"] = _shared(binding, share, bulkhead, BulkheadExecutor, own)
    if rate_limit := policy.active("rate_limit"):
        from opero.executors.rate_limit import Meter, RateLimitExecutor

        limiter = _shared(binding, share, rate_limit, RateLimitExecutor, own)
        executors["rate_limit"] = Meter(limiter, binding.function)
    if circuit_breaker := policy.active("circuit_breaker"):
        from opero.executors.circuit_breaker import CircuitBreakerExecutor

        executors["circuit_breaker"] = _shared(binding, share, circuit_breaker, CircuitBreakerExecutor, own)
    fallback = policy.active("fallback")
    retry = policy.active("retry")
    if retry or (fallback and fallback.arg):
        from opero.executors.fallback import Alternatives
        from opero.executors.retry import RetryExecutor
        from opero.policies.retry import RetryPolicy

        alternatives = Alternatives(fallback.arg, binding.function) if fallback and fallback.arg else None
        executors["retry"] = RetryExecutor(retry or RetryPolicy(retries=0), clock, name, alternatives)
    if fallback and fallback.has_result:
        from opero.executors.fallback import FallbackExecutor

        executors["fallback"] = FallbackExecutor(
            fallback, name, _conversion(binding), counts_errors="retry" not in executors
        )
    if cache := policy.active("cache"):
        from opero.executors.cache import CacheExecutor

        held: Chain | None = getattr(binding, "chain", None)
        kept = held.cache if held is not None else None
        if kept is not None and kept.policy == cache:  # what it holds outlives a change of the other policies
            executors["cache"] = kept
        else:
            executors["cache"] = CacheExecutor(
                cache, clock, binding.function, binding.stats, is_method=binding.is_method, before=kept
            )
    return executors


def _shared(
    binding: Binding,
    share: Share | None,
    policy: Any,
    executor: Callable[[Any, Clock, str], Any],
    own: set[str],
) -> Any:
    """An executor whose state functions may share: the profile's where there is one, else this function's own."""

    def make(name: str | None = None) -> Any:
        """A new one that functions share under that name; without a name, this function's own."""
        if name is not None:
            return executor(policy, binding.clock, name)
        own.add(policy.kind)
        held: Chain | None = getattr(binding, "chain", None)
        kept = _limit(held, policy.kind) if held is not None and policy.kind in held.own else None
        return kept if kept is not None and kept.policy == policy else executor(policy, binding.clock, binding.name)

    return make() if share is None else share(policy.kind, policy, make)


def _starting(binding: Binding) -> Callable[..., Any]:
    """The function; of a generator function what starts it."""
    from opero.runtime.generators import start, start_async

    if binding.kind == "generator":
        return start(binding.function)
    return start_async(binding.function) if binding.kind == "async_generator" else binding.function


def _conversion(binding: Binding) -> Callable[[Any], Any] | None:
    """What makes a started generator of a generator function's fallback result."""
    from opero.runtime.generators import from_items, from_items_async, start, start_async

    if binding.kind == "generator":
        return start(from_items)
    return start_async(from_items_async) if binding.kind == "async_generator" else None


def invoking(binding: Binding, function: Callable[..., Any]) -> Layer:
    """The function as the innermost layer. An async function's coroutine is passed on; none is made around it."""
    stats = binding.stats

    def invoke(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        stats.executed += 1
        return function(*args, **kwargs)

    return invoke


def failing(
    binding: Binding, recover: Callable[..., Any] | None, attempt: Layer, *, counts: bool
) -> Callable[..., Any]:
    """What is done about an exception that came out of the layers.

    Args:
        binding: the function's binding.
        recover: makes the further attempts, where retry is outermost; else None.
        attempt: what such an attempt goes through.
        counts: no layer has counted the failed attempt's error.
    """
    stats, new_call = binding.stats, binding.call

    # An exception's traceback leads to the frames it came through: none of them may go on holding the exception.

    def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            if recover is not None:
                return recover(attempt, new_call(), args, kwargs, error)
            if counts:
                stats.count_error(error)
            raise error
        except BaseException:
            stats.failures += 1
            raise
        finally:
            del error

    async def fail_async(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            if recover is not None:
                return await recover(attempt, new_call(), args, kwargs, error)
            if counts:
                stats.count_error(error)
            raise error
        except BaseException:
            stats.failures += 1
            raise
        finally:
            del error

    return fail_async if binding.is_async else fail
