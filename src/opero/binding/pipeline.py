"""Builds the pipeline of a call: its layers, from outer to inner.

    cache → fallback result → timeout (total) → retry → fallback values → hedge → circuit breaker → throttle
    → rate limit → bulkhead → timeout (attempt) → function

A layer exists only where its policy is set. A pipeline is built once for each configuration of a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opero.binding.fit import check
from opero.binding.innermost import innermost
from opero.binding.invocation import Pipeline, failing
from opero.binding.observed import attempt_wrappers
from opero.binding.scoping import by_of, has_key_function, is_by, scope_of, scoped
from opero.executors.state.stated import sharing
from opero.runtime.functions import is_async_function

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Layer
    from opero.executors.feedback import Feedback
    from opero.executors.responses import ResponseCheck
    from opero.observe.hooks import Hooks
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.policies.fallback import FallbackPolicy
    from opero.policies.policy import Policy
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock

ExecutorProvider = Callable[[Any, "Clock", Callable[..., Any]], Any]
"""Returns the executor for a policy and a clock: one that functions share, or what the given factory makes. Called with
a name, the factory makes an executor to be shared under that name; called without, one for this function alone."""


def build(
    target: Target,
    policy: Policy,
    provider: ExecutorProvider | None = None,
    before: Pipeline | None = None,
    profile: str = "",
    shared_cache: CacheExecutor | None = None,
) -> Pipeline:
    """Build the pipeline of a function under a policy.

    Args:
        target: the function.
        policy: what should happen around it.
        provider: returns the executors that functions share. Default: the function has its own.
        before: the pipeline that this one may replace. Executors whose policies are equal are kept.
        profile: the name of the profile that the policy is from; "" if there is none.
        shared_cache: the function's cache, if another pipeline has it as well. Default: a new one, or that of `before`.

    Raises:
        ConfigError: the policy does not fit the function.
    """
    check(target, policy)
    own: set[str] = set()
    classifier = _classifier(policy)
    executors = _executors(target, policy, classifier, provider, before, own, profile, shared_cache)
    function = _starting(target)
    check_response = _response_check(target, policy)
    core = innermost(target, function, check_response, _feedback(policy, executors, classifier))
    judging = _judging(policy)

    def around(layer: Layer, *kinds: str) -> Layer:
        """Wrap the layer in those of these kinds that exist; the last is the outermost."""
        for kind in kinds:
            if kind in executors:
                executor = executors[kind]
                wrap = executor.wrap_async if target.is_async else executor.wrap
                layer = wrap(layer, classifier) if kind in judging else wrap(layer)
        return layer

    hedge = executors.get("hedge")
    begin = getattr(executors.get("rate_limit"), "begin", None)
    attempt = around(core if begin is None else begin(core), "timeout")
    attempt = attempt if hedge is None else hedge.mark(attempt)
    if executors.keys() >= {"bulkhead", "rate_limit"}:
        attempt = executors["rate_limit"].behind_slots(attempt, is_async=target.is_async)
    attempt = around(attempt, "bulkhead", "rate_limit")
    if target.is_async and (conditions := _async_conditions(policy)):
        from opero.executors.awaited import asking

        attempt = asking(attempt, conditions, target.clock, classifier)
    attempt = around(attempt, "throttle")
    if "circuit_breaker" in executors:
        breaker, by_round = executors["circuit_breaker"], "retry" in executors and executors["retry"].prepares
        wrap = breaker.wrap_async if target.is_async else breaker.wrap
        attempt = wrap(attempt, classifier, by_round=by_round)
    attempt = around(attempt, "hedge")
    if attempt is core and "retry" in executors and not target.is_async:
        retried = executors["retry"].wrap(core, function, check_response)
    else:
        retried = around(attempt, "retry")
    retried = around(retried, "shadow_retry")
    has_total = "timeout" in executors and policy.timeout is not None and policy.timeout.total is not None
    timed = executors["timeout"].wrap_total(retried) if has_total else retried
    whole = around(timed, "fallback", "priority")
    cache = policy.active("cache")
    if target.is_async and cache is not None and any(map(is_async_function, (cache.cache_if, cache.ttl))):
        from opero.executors.awaited import keeping

        whole = keeping(whole, cache, executors["cache"].retention.keeps_error, target.name)
    cached = around(whole, "cache")
    # If retry is outermost and its first attempt needs no preparation, the bound function itself makes that attempt.
    may_fuse = "retry" in executors and "shadow_retry" not in executors and not executors["retry"].prepares
    fused = cached is retried and may_fuse
    layer = attempt if fused else cached
    recover = (executors["retry"].recover_async if target.is_async else executors["retry"].recover) if fused else None
    return Pipeline(
        function=function if layer is core else None,
        layer=layer,
        hit=executors["cache"].hit if "cache" in executors else None,
        fail=failing(
            target, recover, attempt, executors, classifier, counts=executors.keys().isdisjoint(("retry", "fallback"))
        ),
        whole=whole,
        stats=target.stats,
        policy=policy,
        profile=profile,
        executors=executors,
        own=frozenset(own),
        check=check_response,
        classifier=classifier,
        hooks=_hooks(target, policy, profile),
        is_exact=_passes_arguments(policy),
        monotonic=target.clock.monotonic,
        inherits=not executors.keys() <= {"fallback"},
    )


def rebuild(target: Target, before: Pipeline) -> Pipeline:
    """Build the pipeline of a target whose function is another one now, with the policy and executors of before."""

    def keep(policy: Any, clock: Clock, make: Callable[..., Any]) -> Any:
        return make() if policy.kind in before.own else _limit(before, policy.kind)

    return build(target, before.policy, keep, before, before.profile)


def migrate_state(old: Pipeline, new: Pipeline) -> Pipeline:
    """Move the state of a pipeline's own executors to the one that replaces it; return the pipeline to put in force.

    The state that functions share is migrated by its owner, the registry.
    """
    migrate_limits(old, new)
    if new.cache is not None and old.cache is not None and new.cache is not old.cache:
        new.cache.migrate_from(old.cache)
        new = replace(new, hit=new.cache.hit)
    return new


def migrate_limits(old: Pipeline, new: Pipeline) -> None:
    """Move the state of a pipeline's own limits and fallback values to the one that replaces it."""
    for kind in new.own & old.own:
        successor, predecessor = _limit(new, kind), _limit(old, kind)
        if successor is not predecessor and by_of(successor) == by_of(predecessor):
            successor.migrate_from(predecessor)
    if "hedge" in new.executors and "hedge" in old.executors:
        new.executors["hedge"].migrate_from(old.executors["hedge"])


LOOKING_AT_FAILURES = ("retry", "circuit_breaker", "throttle", "fallback", "cache", "hedge")
"""Kinds of policy that ask of which kind failures are, and handle a failed response like an exception."""


def _judging(policy: Policy) -> tuple[str, ...]:
    """Return the kinds of the layers around an attempt that are told of which kind its failure is."""
    bulkhead = policy.active("bulkhead")
    return ("throttle", "bulkhead") if bulkhead is not None and bulkhead.is_adaptive else ("throttle",)


def _looks_at_failures(policy: Policy) -> bool:
    return "bulkhead" in _judging(policy) or any(policy.active(kind) is not None for kind in LOOKING_AT_FAILURES)


def bulkhead_executor(policy: BulkheadPolicy, clock: Clock, name: str) -> Any:
    """Return the executor of a bulkhead."""
    if policy.is_adaptive:
        from opero.executors.adaptive_bulkhead import AdaptiveBulkheadExecutor

        return AdaptiveBulkheadExecutor(policy, clock, name)
    from opero.executors.bulkhead import BulkheadExecutor

    return BulkheadExecutor(policy, clock, name)


def _hooks(target: Target, policy: Policy, profile: str) -> Hooks | None:
    hooks = policy.active("hooks")
    handlers = None if hooks is None else hooks.handlers()
    if not handlers:
        return None
    from opero.observe.hooks import Hooks

    return Hooks(handlers, target.stats.function, profile)


def _classifier(policy: Policy) -> Any:
    """Return what says of which kind failures are; None if no layer needs to know."""
    if not _looks_at_failures(policy):
        return None
    from opero.executors.classifier import Classifier

    return Classifier.of(policy.active("failures"))


def _response_check(target: Target, policy: Policy) -> ResponseCheck | None:
    """Return what finds failed responses among results; None if no layer is interested, or the function has none."""
    failures = policy.active("failures")
    if "generator" in target.kind or (failures is not None and not failures.responses):
        return None
    if not _looks_at_failures(policy):
        return None
    from opero.executors.responses import ResponseCheck

    return ResponseCheck(target.name, () if failures is None else failures.stated())


def _feedback(policy: Policy, executors: Mapping[str, Any], classifier: Any) -> Feedback | None:
    """Return what tells the rate limit of outcomes; None if there is no limit, or it needs none."""
    if "rate_limit" not in executors:
        return None
    fallback, failures = policy.active("fallback"), policy.active("failures")
    if classifier is None and failures is not None:
        from opero.executors.classifier import Classifier

        classifier = Classifier.of(failures)
    from opero.executors.feedback import feedback_for

    statuses = () if failures is None else failures.stated()
    has_one_quota = fallback is None or not fallback.arg  # else each value has one
    return feedback_for(executors["rate_limit"].limiter, classifier, statuses, pauses=has_one_quota)


CONDITIONS = (
    ("retry", "retry_on"),
    ("circuit_breaker", "trip_on"),
    ("circuit_breaker", "ignore"),
    ("throttle", "trip_on"),
    ("fallback", "on"),
)


def _async_conditions(policy: Policy) -> list[Callable[[Exception], Any]]:
    """Return the async functions that decide about failures."""
    conditions = [each for kind, field in CONDITIONS for each in getattr(policy.active(kind), field, ())]
    return list(dict.fromkeys(each for each in conditions if not isinstance(each, type) and is_async_function(each)))


def _passes_arguments(policy: Policy) -> bool:
    """Return whether a policy has a function of the user's that receives the arguments of calls."""
    cache, fallback, rate_limit = policy.active("cache"), policy.active("fallback"), policy.active("rate_limit")
    return (
        has_key_function(policy)
        or (cache is not None and cache.key is not None)
        or (fallback is not None and fallback.function is not None)
        or (rate_limit is not None and any(callable(each.cost) for each in rate_limit.each))
    )


def _limit(pipeline: Pipeline, kind: str) -> Any:
    executor = pipeline.executors[{"fallback": "values", "retry": "retry_budget"}.get(kind, kind)]
    return getattr(executor, "limiter", executor)


def _executors(
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
                kept = _limit(before, policy.kind) if before is not None and policy.kind in before.own else None
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
    if retry and (profile if retry.budget is None else retry.budget is not False):
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
        from opero.executors.rate_limit import Meter, RateLimitExecutor

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
    from opero.executors.rate_limit import Noting

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
        why_once = target.traits.why_once
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


def _starting(target: Target) -> Callable[..., Any]:
    """Return the function; for a generator function, the function that starts it."""
    from opero.runtime.generators import start, start_async

    starting: Callable[..., Any] = target.function
    if target.is_stream:
        starting = start_async(starting) if target.is_async else start(starting)
    for each in attempt_wrappers:
        starting = each(target, starting)
    return starting


def _conversion(target: Target) -> Callable[[Any], Any] | None:
    """Return what turns the fallback result of a generator function into a started generator; else None."""
    from opero.runtime.generators import from_items, from_items_async, start, start_async

    if target.kind == "generator":
        return start(from_items)
    return start_async(from_items_async) if target.kind == "async_generator" else None
