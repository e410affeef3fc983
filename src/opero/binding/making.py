"""Makes the executors of a function under a policy: one for each policy that is set, or those that functions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.binding.scoping import by_of, is_by, scope_of, scoped
from opero.executors.state.stated import sharing

if TYPE_CHECKING:
    from opero.binding.invocation import Pipeline
    from opero.binding.target import Target
    from opero.executors.cache import CacheExecutor
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.policies.fallback import FallbackPolicy
    from opero.policies.policy import Policy
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock

ExecutorProvider = Callable[[Any, "Clock", Callable[..., Any]], Any]
"""Returns the executor for a policy and a clock: one that functions share, or what the given factory makes. Called with
a name, the factory makes an executor to be shared under that name; called without, one for this function alone."""


def bulkhead_executor(policy: BulkheadPolicy, clock: Clock, name: str) -> Any:
    """Return the executor of a bulkhead."""
    if policy.is_adaptive:
        from opero.executors.adaptive_bulkhead import AdaptiveBulkheadExecutor

        return AdaptiveBulkheadExecutor(policy, clock, name)
    from opero.executors.bulkhead import BulkheadExecutor

    return BulkheadExecutor(policy, clock, name)


def limit_of(pipeline: Pipeline, kind: str) -> Any:
    executor = pipeline.executors[{"fallback": "values", "retry": "retry_budget"}.get(kind, kind)]
    return getattr(executor, "limiter", executor)


def make_executors(
    target: Target,
    policy: Policy,
    classifier: Any,
    provider: ExecutorProvider | None,
    before: Pipeline | None,
    own: set[str],
    profile: str,
    shared_cache: CacheExecutor | None,
) -> dict[str, Any]:
    """Make an executor for each policy that is set; an executor's module is loaded only then.

    Kinds that functions can share, and that this function has for itself, are added to `own`.
    """
    executors: dict[str, Any] = {}
    clock, name = target.clock, target.name

    def shareable(policy: Any, executor: Callable[[Any, Any, str], Any]) -> Any:
        scope = scope_of(target, policy)

        def make(shared_name: str | None = None) -> Any:
            origin = {"function": target.stats.function, "policy": profile}
            if shared_name is None:
                own.add(policy.kind)
                kept = limit_of(before, policy.kind) if before is not None and policy.kind in before.own else None
                if kept is not None and kept.policy == policy and by_of(kept) == (scope and scope.by):
                    kept.origin = origin
                    return kept
            shown, shared = shared_name or name, shared_name or target.stats.function
            if scope is None:
                made = sharing(executor(policy, clock, shown), shared)
            else:
                from opero.executors.by_key import ByKey

                made = ByKey(policy, scope, clock, shown, executor, shared)
            made.origin = origin if shared_name is None else {"policy": shared_name}
            return made

        if scope is not None:
            make.by = scope.by  # type: ignore[attr-defined]  # a profile shares the states by it
        return make() if provider is None else provider(policy, clock, make)

    timeout = policy.active("timeout")
    if timeout and timeout.shadow:
        from opero.executors.shadow import ShadowTimeout

        executors["timeout"] = ShadowTimeout(timeout, clock, name, is_stream=target.is_stream, is_async=target.is_async)
    elif timeout:
        from opero.executors.timeout import TimeoutExecutor

        executors["timeout"] = TimeoutExecutor(timeout, clock, name, is_stream=target.is_stream)
    if bulkhead := policy.active("bulkhead"):
        executors["bulkhead"] = scoped(target, shareable(bulkhead, bulkhead_executor))
    if rate_limit := policy.active("rate_limit"):
        executors["rate_limit"] = _meter(target, rate_limit, policy, classifier, shareable)
    if circuit_breaker := policy.active("circuit_breaker"):
        from opero.executors.circuit_breaker import CircuitBreakerExecutor

        executors["circuit_breaker"] = scoped(target, shareable(circuit_breaker, CircuitBreakerExecutor))
    if hedge := policy.active("hedge"):
        from opero.executors.hedge import HedgeExecutor

        why_alone = target.traits.why_alone
        executors["hedge"] = HedgeExecutor(hedge, clock, target.stats, classifier, executors, why_alone)
    if throttle := policy.active("throttle"):
        from opero.executors.throttle import ThrottleExecutor

        executors["throttle"] = shareable(throttle, ThrottleExecutor)
    if priority := policy.active("priority"):
        from opero.executors.priorities import PriorityExecutor

        executors["priority"] = PriorityExecutor(priority)
    fallback = policy.active("fallback")
    retry, watched = policy.in_force("retry"), policy.active("retry")
    one_shot = None
    if retry or fallback:
        from opero.executors.one_shot import OneShotArguments

        one_shot = OneShotArguments(target.function, is_method=target.is_method)
    if retry or (fallback and fallback.arg):
        executors.update(_retrying(target, retry, fallback, classifier, shareable, one_shot))
        executors["retry"].is_by_value = fallback is not None and is_by(policy, fallback.arg)
    if retry and retry.has_budget(profile):
        from opero.executors.retry_budget import RetryBudget

        budget = executors["retry_budget"] = executors["retry"].budget = shareable(retry, RetryBudget)
        budget.serve(target.stats)
    if watched and watched.shadow:
        from opero.executors.retry import RetryExecutor
        from opero.executors.shadow import ShadowRetry

        executors["shadow_retry"] = ShadowRetry(RetryExecutor(watched, clock, name, classifier))
    if fallback and fallback.has_result:
        from opero.executors.fallback import FallbackExecutor

        executors["fallback"] = FallbackExecutor(
            fallback,
            name,
            classifier,
            _conversion(target),
            counts_errors="retry" not in executors,
            one_shot=one_shot,
        )
    if cache := policy.active("cache"):
        from opero.executors.cache import CacheExecutor

        kept = before.cache if before is not None else None
        # Its contents outlive a change of the other policies.
        if shared_cache is not None:
            executors["cache"] = shared_cache
        elif kept is not None and kept.policy == cache and kept.classifier is classifier:
            executors["cache"] = kept
        else:
            executors["cache"] = CacheExecutor(
                cache, clock, target.function, target.stats, classifier, is_method=target.is_method, before=kept
            )
    return executors


def _meter(
    target: Target, rate_limit: RateLimitPolicy, policy: Policy, classifier: Any, shareable: Callable[[Any, Any], Any]
) -> Any:
    """Make what stands between the function and its rate limit."""
    if not rate_limit.limits and not rate_limit.is_estimated:
        from opero.executors.meter import Meter
        from opero.executors.rate_limit import RateLimitExecutor

        meter = Meter(limiter := shareable(rate_limit, RateLimitExecutor), target.function)
        if by_of(limiter) is None:
            return meter
        layer = scoped(target, limiter, _each_key(meter, rate_limit))
        layer.behind_slots = meter.behind_slots
        return layer
    from opero.executors.classifier import Classifier
    from opero.executors.limits import LimitsExecutor
    from opero.executors.metering import LimitsMeter

    classifier = classifier or Classifier.of(policy.active("failures"))
    limits = LimitsMeter(limiter := shareable(rate_limit, LimitsExecutor), target.function, classifier)
    if by_of(limiter) is None:
        return limits
    layer = scoped(target, limiter, _each_key(limits, rate_limit))
    layer.begin, layer.behind_slots = limits.begin, limits.behind_slots
    return layer


def _each_key(meter: Any, rate_limit: RateLimitPolicy) -> Callable[[Any], Any]:
    """Return what makes the same in front of the rate limit of one key."""
    if not rate_limit.feedback and not rate_limit.is_adaptive:
        return meter.with_limiter  # type: ignore[no-any-return]
    from opero.executors.meter import Noting

    return lambda limiter: Noting(meter.with_limiter(limiter))


def _retrying(
    target: Target,
    retry: RetryPolicy | None,
    fallback: FallbackPolicy | None,
    classifier: Any,
    shareable: Callable[[Any, Any], Any],
    one_shot: Any,
) -> dict[str, Any]:
    """Make the executor that runs the attempts, and the memory of the values among which they choose, if any."""
    from opero.executors.retry import RetryExecutor
    from opero.policies.retry import RetryPolicy

    clock, name, retry = target.clock, target.name, retry or RetryPolicy(retries=0)
    if fallback is None or not fallback.arg:
        why_once = target.traits.why_once if retry.idempotent else _why_sent_once(target.traits.why_once)
        return {"retry": RetryExecutor(retry, clock, name, classifier, None, one_shot, why_once)}
    from opero.executors.fallback import Alternatives

    alternatives = Alternatives(fallback.arg, target.function, fallback.on, classifier, fallback.values)
    if not fallback.has_memory:
        return {"retry": RetryExecutor(retry, clock, name, classifier, alternatives, one_shot)}
    from opero.executors.value_memory import ValueMemory
    from opero.executors.values import ValuesRetryExecutor

    memory = scoped(target, shareable(fallback, ValueMemory))
    if not hasattr(memory, "limiter"):
        executor = ValuesRetryExecutor(retry, clock, name, classifier, alternatives, memory, one_shot)
    else:
        from opero.executors.scoped_values import ScopedValues

        executor = ScopedValues(retry, clock, name, classifier, alternatives, memory, one_shot)
    return {"retry": executor, "values": memory}


def _why_sent_once(why_once: Callable[..., str | None] | None) -> Callable[..., str | None]:
    """Return what says why a call that is not idempotent must not be repeated after an exception.

    Args:
        why_once: what says so of the function, whatever its policy.
    """
    from opero.executors.unsent import is_unsent

    def why(error: Exception, *args: Any, **kwargs: Any) -> str | None:
        if not is_unsent(error):
            return "it is not idempotent (retry.idempotent), and the service may have received it"
        return None if why_once is None else why_once(error, *args, **kwargs)

    return why


def _conversion(target: Target) -> Callable[[Any], Any] | None:
    """Return what turns the fallback result of a generator function into a started generator; else None."""
    from opero.runtime.generators import from_items, from_items_async, start, start_async

    if target.kind == "generator":
        return start(from_items)
    return start_async(from_items_async) if target.kind == "async_generator" else None
