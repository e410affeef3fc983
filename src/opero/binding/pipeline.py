"""Builds the pipeline of a call: its layers, from outer to inner.

    cache → fallback result → timeout (total) → retry → fallback values → circuit breaker → rate limit → bulkhead
    → timeout (attempt) → function

A layer exists only where its policy is set. A pipeline is built once for each configuration of a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opero.binding.fit import check
from opero.binding.invocation import Pipeline, failing, innermost

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.call import Layer
    from opero.policies.policy import Policy

__all__ = ["ExecutorProvider", "build", "migrate_state"]

ExecutorProvider = Callable[[str, Any, Callable[..., Any]], Any]
"""Returns the executor for a kind and a policy: one that functions share, or what the given factory makes. Called with
a name, the factory makes an executor to be shared under that name; called without, one for this function alone."""


def build(
    target: Target, policy: Policy, provider: ExecutorProvider | None = None, before: Pipeline | None = None
) -> Pipeline:
    """Build the pipeline of a function under a policy.

    Args:
        target: the function.
        policy: what should happen around it.
        provider: returns the executors that functions share. Default: the function has its own.
        before: the pipeline that this one may replace. Executors whose policies are equal are kept.

    Raises:
        ConfigError: the policy does not fit the function.
    """
    check(target, policy)
    own: set[str] = set()
    executors = _executors(target, policy, provider, before, own)
    function = _starting(target)
    core = innermost(target, function)

    def around(layer: Layer, *kinds: str) -> Layer:
        """Wrap the layer in those of these kinds that exist; the last is the outermost."""
        for kind in kinds:
            if kind in executors:
                executor = executors[kind]
                layer = executor.wrap_async(layer) if target.is_async else executor.wrap(layer)
        return layer

    attempt = around(core, "timeout", "bulkhead", "rate_limit", "circuit_breaker")
    retried = around(attempt, "retry")
    has_total = "timeout" in executors and policy.timeout is not None and policy.timeout.total is not None
    timed = executors["timeout"].wrap_total(retried) if has_total else retried
    whole = around(timed, "fallback")
    cached = around(whole, "cache")
    # If retry is outermost and its first attempt needs no preparation, the bound function itself makes that attempt.
    fused = cached is retried and retried is not attempt and not executors["retry"].prepares
    layer = attempt if fused else cached
    recover = (executors["retry"].recover_async if target.is_async else executors["retry"].recover) if fused else None
    return Pipeline(
        function=function if layer is core else None,
        layer=layer,
        hit=executors["cache"].hit if "cache" in executors else None,
        call=target.call,
        fail=failing(target, recover, attempt, counts="retry" not in executors and "fallback" not in executors),
        whole=whole,
        policy=policy,
        executors=executors,
        own=frozenset(own),
    )


def migrate_state(old: Pipeline, new: Pipeline) -> Pipeline:
    """Move the state of a pipeline's own executors to the one that replaces it; return the pipeline to put in force.

    The state that functions share is migrated by its owner, the registry.
    """
    for kind in new.own & old.own:
        successor, predecessor = _limit(new, kind), _limit(old, kind)
        if successor is not predecessor:
            successor.migrate_from(predecessor)
    if new.cache is not None and old.cache is not None and new.cache is not old.cache:
        new.cache.migrate_from(old.cache)
        new = replace(new, hit=new.cache.hit)
    return new


def _limit(pipeline: Pipeline, kind: str) -> Any:
    executor = pipeline.executors[kind]
    return executor.limiter if kind == "rate_limit" else executor


def _executors(
    target: Target, policy: Policy, provider: ExecutorProvider | None, before: Pipeline | None, own: set[str]
) -> dict[str, Any]:
    """Make an executor for each policy that is set; an executor's module is loaded only then.

    Kinds that functions can share, and that this function has for itself, are added to `own`.
    """
    executors: dict[str, Any] = {}
    clock, name = target.clock, target.name

    def shareable(policy: Any, executor: Callable[[Any, Any, str], Any]) -> Any:
        def make(shared_name: str | None = None) -> Any:
            if shared_name is not None:
                return executor(policy, clock, shared_name)
            own.add(policy.kind)
            kept = _limit(before, policy.kind) if before is not None and policy.kind in before.own else None
            return kept if kept is not None and kept.policy == policy else executor(policy, clock, name)

        return make() if provider is None else provider(policy.kind, policy, make)

    if timeout := policy.active("timeout"):
        from opero.executors.timeout import TimeoutExecutor

        executors["timeout"] = TimeoutExecutor(timeout, clock, name)
    if bulkhead := policy.active("bulkhead"):
        from opero.executors.bulkhead import BulkheadExecutor

        executors["bulkhead"] = shareable(bulkhead, BulkheadExecutor)
    if rate_limit := policy.active("rate_limit"):
        from opero.executors.rate_limit import Meter, RateLimitExecutor

        executors["rate_limit"] = Meter(shareable(rate_limit, RateLimitExecutor), target.function)
    if circuit_breaker := policy.active("circuit_breaker"):
        from opero.executors.circuit_breaker import CircuitBreakerExecutor

        executors["circuit_breaker"] = shareable(circuit_breaker, CircuitBreakerExecutor)
    fallback = policy.active("fallback")
    retry = policy.active("retry")
    if retry or (fallback and fallback.arg):
        from opero.executors.fallback import Alternatives
        from opero.executors.retry import RetryExecutor
        from opero.policies.retry import RetryPolicy

        alternatives = Alternatives(fallback.arg, target.function) if fallback and fallback.arg else None
        executors["retry"] = RetryExecutor(retry or RetryPolicy(retries=0), clock, name, alternatives)
    if fallback and fallback.has_result:
        from opero.executors.fallback import FallbackExecutor

        executors["fallback"] = FallbackExecutor(
            fallback, name, _conversion(target), counts_errors="retry" not in executors
        )
    if cache := policy.active("cache"):
        from opero.executors.cache import CacheExecutor

        kept = before.cache if before is not None else None
        if kept is not None and kept.policy == cache:  # its contents outlive a change of the other policies
            executors["cache"] = kept
        else:
            executors["cache"] = CacheExecutor(
                cache, clock, target.function, target.stats, is_method=target.is_method, before=kept
            )
    return executors


def _starting(target: Target) -> Callable[..., Any]:
    """Return the function; for a generator function, the function that starts it."""
    from opero.runtime.generators import start, start_async

    if target.kind == "generator":
        return start(target.function)
    return start_async(target.function) if target.kind == "async_generator" else target.function


def _conversion(target: Target) -> Callable[[Any], Any] | None:
    """Return what turns the fallback result of a generator function into a started generator; else None."""
    from opero.runtime.generators import from_items, from_items_async, start, start_async

    if target.kind == "generator":
        return start(from_items)
    return start_async(from_items_async) if target.kind == "async_generator" else None
