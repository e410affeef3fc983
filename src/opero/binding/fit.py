"""Whether a policy fits a function: everything that can be checked before the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.runtime.functions import full_name, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.binding.target import Target
    from opero.policies.cache import CachePolicy
    from opero.policies.policy import Policy

__all__ = ["check", "check_arguments", "check_fit"]


def check(target: Target, policy: Policy) -> None:
    """Check a policy against the kind of a function.

    Raises:
        ConfigError: the policy does not fit.
    """
    if target.kind in ("generator", "async_generator"):
        reasons = {
            "cache": "it yields items one by one and has no result to keep; cache a function that returns a list",
            "parallel": "it yields items one by one; map a function that returns a value",
        }
        for kind, reason in reasons.items():
            if policy.active(kind) is not None:
                raise ConfigError(f"{target.name} is a generator function and cannot have {kind}: {reason}")
        retry = policy.active("retry")
        if retry is not None and retry.retry_if_result is not None:
            raise ConfigError(f"{target.name} is a generator function: it has no result for retry_if_result to check")
    fallback = policy.active("fallback")
    if fallback is not None and fallback.function is not None and not target.is_async:
        kind = kind_of(fallback.function)
        if kind.startswith("async"):
            raise ConfigError(
                f"{target.name} is a sync function and cannot await its async fallback {full_name(fallback.function)}; "
                "use a sync fallback"
            )


def check_fit(target: Target, policy: Policy) -> None:
    """Check a policy against a function and its parameters, without building a pipeline.

    Raises:
        ConfigError: the policy does not fit.
    """
    check(target, policy)
    active = {kind: fields for kind, fields in policy.fields().items() if policy.active(kind) is not None}
    check_arguments(active, target.function)
    cache = policy.active("cache")
    if cache is not None:
        _check_cache(cache, target)


def _check_cache(policy: CachePolicy, target: Target) -> None:
    """Check that tags name parameters, and that a shared store can tell the function from others."""
    from opero.cache.digest import name_in_stores
    from opero.cache.keys import KeyMaker
    from opero.cache.retention import Retention

    name = full_name(target.function) if policy.is_in_memory else name_in_stores(target.function)
    key = KeyMaker(target.function, policy.key, is_method=target.is_method)
    Retention(policy, target.clock, key, f"{policy.namespace}:{name}")


def check_arguments(fields: Mapping[str, Any], function: Any) -> None:
    """Check that a function has the parameters that its options name, whatever profile they will be laid over.

    Raises:
        ConfigError: the function lacks one of them.
    """
    function = getattr(function, "__func__", function)
    name = (fields.get("fallback") or {}).get("arg")
    cost = (fields.get("rate_limit") or {}).get("cost")
    if name is not None:
        from opero.executors.fallback import Alternatives

        Alternatives(name, function)
    if isinstance(cost, str) and ":" not in cost:
        from opero.executors.rate_limit import cost_function

        cost_function(cost, function)
