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
from opero.binding.making import ExecutorProvider, limit_of, make_executors
from opero.binding.observed import attempt_wrappers
from opero.binding.scoping import by_of, has_key_function
from opero.runtime.functions import is_async_function

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Layer
    from opero.executors.feedback import Feedback
    from opero.executors.responses import ResponseCheck
    from opero.observe.hooks import Hooks
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock


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
    executors = make_executors(target, policy, classifier, provider, before, own, profile, shared_cache)
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
    if policy.retry is not None and not policy.retry.idempotent:
        from opero.executors.given_up import sent_once

        timed = sent_once(timed, is_async=target.is_async)
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
        return make() if policy.kind in before.own else limit_of(before, policy.kind)

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
        successor, predecessor = limit_of(new, kind), limit_of(old, kind)
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


def _starting(target: Target) -> Callable[..., Any]:
    """Return the function; for a generator function, the function that starts it."""
    from opero.runtime.generators import start, start_async

    starting: Callable[..., Any] = target.function
    if target.is_stream:
        starting = start_async(starting) if target.is_async else start(starting)
    for each in attempt_wrappers:
        starting = each(target, starting)
    return starting
