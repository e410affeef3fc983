"""Whether a policy fits a function: everything that can be checked before the first call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opero.binding.arguments import check_cost_parameter, check_functions_of_calls
from opero.binding.scoping import check_scopes
from opero.errors import ConfigError
from opero.policies.names import PARAMETER_TEXT
from opero.policies.quantities import fits
from opero.runtime.functions import argument_of, full_name, kind_of, short_name

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.policies.cache import CachePolicy
    from opero.policies.policy import Policy


AWAITED = {
    "retry": ("retry_on", "retry_if_result"),
    "circuit_breaker": ("trip_on", "ignore"),
    "throttle": ("trip_on",),
    "fallback": ("on",),
    "cache": ("cache_if", "key", "ttl"),
    "rate_limit": ("cost",),
}
"""Fields that may be or contain a function of the user's, which is awaited if it and the bound function are async."""
NEVER_AWAITED = {
    "cache": ("errors",),
    "failures": ("classify",),
    "rate_limit": ("cost_from_result", "refund_on"),
}
"""The same for functions that are called where nothing can wait."""

NAMING_PARAMETERS = ("fallback", "rate_limit", "canary")
"""Kinds of policy with a field that names a parameter of the function."""
TO_CHOOSE = "to choose a canary by"


def check(target: Target, policy: Policy) -> None:
    """Check a policy against the kind of a function.

    Raises:
        ConfigError: the policy does not fit.
    """
    traits = target.traits
    reason = traits.refusal(policy) if traits.refusal is not None else None
    if reason is None and policy.active("hedge") is not None:
        reason = _why_not_hedged(target, policy)
    if reason is not None:
        raise ConfigError(f"{target.name}: {reason}")
    if target.kind in ("generator", "async_generator"):
        reasons = {
            "cache": "it yields items one by one and has no result to keep; cache a function that returns a list",
            "hedge": "it yields items one by one, of which two attempts would yield some twice; hedge a function that "
            "returns a list",
            "parallel": "it yields items one by one; map a function that returns a value",
        }
        for kind, reason in reasons.items():
            if policy.active(kind) is not None:
                raise ConfigError(f"{target.name} is a generator function and cannot have {kind}: {reason}")
        retry = policy.active("retry")
        if retry is not None and retry.retry_if_result is not None:
            raise ConfigError(f"{target.name} is a generator function: it has no result for retry_if_result to check")
    fallback = policy.active("fallback")
    if fallback is not None and fallback.arg is not None and policy.retry is not None and not policy.retry.idempotent:
        raise ConfigError(
            f"{target.name}: arg_fallback ({fallback.arg}) makes further attempts with other values, and with "
            "idempotent=False a call is made once; remove one of the two"
        )
    if fallback is not None and fallback.function is not None and not target.is_async:
        kind = kind_of(fallback.function)
        if kind.startswith("async"):
            raise ConfigError(
                f"{target.name} is a sync function and cannot await its async fallback {full_name(fallback.function)}; "
                "use a sync fallback"
            )
    if fallback is not None and not fallback.function and fallback.has_result:
        _check_default(fallback.default, target)
    check_functions_of_calls(policy, target.function)
    check_scopes(target, policy)
    for fields, is_awaited in ((AWAITED, target.is_async), (NEVER_AWAITED, False)):
        for kind, names in fields.items():
            own = policy.active(kind)
            for field in () if own is None else names:
                _check_functions(getattr(own, field), f"{kind}.{field}", target, is_awaited=is_awaited)
    rate_limit = policy.active("rate_limit")
    for index, limit in enumerate(() if rate_limit is None else rate_limit.limits):
        place = f"rate_limit.limits.{index}"
        _check_functions(limit.cost, f"{place}.cost", target, is_awaited=target.is_async)
        _check_functions(limit.cost_from_result, f"{place}.cost_from_result", target, is_awaited=False)


def _why_not_hedged(target: Target, policy: Policy) -> str | None:
    """Return why two attempts at the function cannot run at once, with the cure; None if they can."""
    if target.traits.why_once is not None and target.traits.why_alone is None:
        return (
            "hedge makes two attempts at once, and both might take effect: it cannot be repeated while one runs; add "
            "hedge=False here"
        )
    if policy.retry is not None and not policy.retry.idempotent:
        return (
            "hedge makes two attempts at once, and with idempotent=False (retry.idempotent) a call is made once; add "
            "hedge=False here"
        )
    timeout = policy.active("timeout")
    if target.kind == "sync" and timeout is not None and timeout.enforce == "wait":
        return (
            "with timeout.enforce: wait it runs in the thread of its caller, and with hedge in helper threads: use "
            "enforce: interrupt, or add hedge=False here"
        )
    return None


def _check_functions(value: Any, field: str, target: Target, *, is_awaited: bool) -> None:
    """Check that the functions in the value of a field can be called, or awaited, where they are asked."""
    for function in value if isinstance(value, tuple) else (value,):
        if not callable(function) or isinstance(function, type) or kind_of(function) == "sync":
            continue
        is_async = kind_of(function) == "async"
        if is_async and is_awaited:
            continue
        what = "async" if is_async else "a generator function"
        why = "calling it does not give the value"
        if is_async and not target.is_async:
            why = "a sync function cannot await it"
        raise ConfigError(
            f"{target.name}: {field} is {full_name(function)}, which is {what}: {why}; use a sync function"
        )


def _check_default(default: Any, target: Target) -> None:
    """Check that each call can have a copy of a fallback's default."""
    try:
        copy.deepcopy(default)
    except Exception as error:
        raise ConfigError(
            f"{target.name}: each call gets a copy of fallback.default, and a {type(default).__name__} cannot be "
            f"copied ({type(error).__name__}); use fallback.function, which makes a value for each call"
        ) from error


def check_fit(target: Target, policy: Policy) -> None:
    """Check a policy against a function and its parameters, without building a pipeline.

    Raises:
        ConfigError: the policy does not fit.
    """
    check(target, policy)
    named = {kind: own._given() for kind in NAMING_PARAMETERS if (own := policy.active(kind)) is not None}
    if named:
        check_arguments(named, target.function)
    cache = policy.active("cache")
    if cache is not None:
        _check_cache(cache, target)


def _check_cache(policy: CachePolicy, target: Target) -> None:
    """Check that tags name parameters, and that a shared store can tell the function from others."""
    from opero.cache.identity import Identity
    from opero.cache.keys import KeyMaker
    from opero.cache.retention import Retention

    if not policy.is_in_memory:
        Identity(target.function, policy)
        if policy.key is None:
            from opero.cache.keyless import keyless_parameter

            lacking = keyless_parameter(target.function, is_method=target.is_method, ignore=policy.ignore)
            if lacking:
                raise ConfigError(f"{target.name}: {lacking}")
    if policy.serializer == "typed":
        from opero.cache.typed import TypedValues

        TypedValues.of(target.function, target.name)
    key = KeyMaker(target.function, policy.key, is_method=target.is_method, ignore=policy.ignore)
    Retention(policy, target.clock, key, f"{policy.namespace}:{full_name(target.function)}")


def check_arguments(fields: Mapping[str, Any], function: Any) -> None:
    """Check that a function has the parameters that its options name, whatever profile they will be laid over.

    Raises:
        ConfigError: the function lacks one of them.
    """
    function = getattr(function, "__func__", function)
    fallback = fields.get("fallback") or {}
    name = fallback.get("arg")
    rate_limit = fields.get("rate_limit") or {}
    costs = [rate_limit.get("cost"), *map(_cost_of, rate_limit.get("limits") or ())]
    if name is not None:
        from opero.executors.fallback import Alternatives

        Alternatives(name, function, values=fallback.get("values") or ())
    by = (fields.get("canary") or {}).get("by")
    if by is not None:
        argument_of(function, by, TO_CHOOSE)
    for cost in costs:
        if fits(PARAMETER_TEXT, cost):
            from opero.executors.costs import cost_function

            cost_function(cost, function)
            check_cost_parameter(cost, function)


def _cost_of(limit: Any) -> Any:
    """Return what one of several limits, as an option may state it, says about the cost."""
    return limit.get("cost") if isinstance(limit, Mapping) else getattr(limit, "cost", None)


def check_mode(mode: Any, name: str, *, is_async: bool) -> None:
    """Check that a mode can run sync functions, or async ones.

    Raises:
        ConfigError: it cannot.
    """
    if is_async and mode in ("thread", "process"):
        raise ConfigError(
            f"{name} is an async function, which mode {mode!r} cannot run; use mode='async', or 'async_process' for "
            "event loops in worker processes"
        )
    if not is_async and mode in ("async", "async_process"):
        serves = "thread" if mode == "async" else "process"
        other = "process" if mode == "async" else "thread"
        raise ConfigError(
            f"{name} is a sync function, which mode {mode!r} cannot run; use mode={serves!r} or {other!r}"
        )


def check_own(policy: Policy | None, function: Any, fields: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Check what only fits a function's own policy: in a profile, it is for those of its functions that have a use.

    Args:
        policy: the function's own policy; None if it has a profile.
        function: the function.
        fields: its own options, as nested fields.

    Raises:
        ConfigError: something has no effect on the function.
    """
    timeout = fields.get("timeout") or {}
    idle = timeout.get("idle") if timeout.get("enabled", True) else None
    if policy is not None:
        active = policy.active("timeout")
        idle = None if active is None else active.idle
    function = getattr(function, "__func__", function)
    mode, kind = (fields.get("parallel") or {}).get("mode"), kind_of(function)
    if mode is not None and not kind.endswith("generator"):
        check_mode(mode, short_name(function), is_async=kind == "async")
    if idle is not None and not kind.endswith("generator"):
        raise ConfigError(
            f"{short_name(function)} is not a generator function: it has no items for timeout.idle to wait for; use "
            "timeout.attempt or timeout.total"
        )
