"""Whether a policy fits a function: all that can be known before its layers are built, and before the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.functions import full_name, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.binding import Binding
    from opero.policies.cache import CachePolicy
    from opero.policies.policy import Policy

__all__ = ["check", "check_arguments", "check_fit"]


def check(binding: Binding, policy: Policy) -> None:
    """Check all that can be known of a policy and a function before the first call."""
    if binding.kind in ("generator", "async_generator"):
        reasons = {
            "cache": "its items come one by one, so there is no result to keep; cache a function that returns a list",
            "parallel": "its items come one by one; map a function that returns a value",
        }
        for kind, reason in reasons.items():
            if policy.active(kind) is not None:
                raise ConfigError(f"{binding.name} is a generator function and cannot have {kind}: {reason}")
        retry = policy.active("retry")
        if retry is not None and retry.retry_if_result is not None:
            raise ConfigError(
                f"{binding.name} is a generator function: it has no result that retry_if_result could judge"
            )
    fallback = policy.active("fallback")
    if fallback is not None and fallback.function is not None and not binding.is_async:
        kind = kind_of(fallback.function)
        if kind.startswith("async"):
            raise ConfigError(
                f"{binding.name} is a sync function and its fallback {full_name(fallback.function)} is async: nobody "
                "would await it; use a sync fallback"
            )


def check_fit(binding: Binding, policy: Policy) -> None:
    """Check whether a policy fits a function, without building its layers or opening its store.

    Raises:
        ConfigError: it does not fit.
    """
    check(binding, policy)
    active = {kind: fields for kind, fields in policy.fields().items() if policy.active(kind) is not None}
    check_arguments(active, binding.function)
    cache = policy.active("cache")
    if cache is not None:
        _check_cache(cache, binding)


def _check_cache(policy: CachePolicy, binding: Binding) -> None:
    """Check that tags name parameters, and that a shared store can tell the function from others."""
    from opero.cache.digest import name_in_stores
    from opero.cache.keys import KeyMaker
    from opero.cache.retention import Retention

    name = full_name(binding.function) if policy.is_in_memory else name_in_stores(binding.function)
    key = KeyMaker(binding.function, policy.key, is_method=binding.is_method)
    Retention(policy, binding.clock, key, f"{policy.namespace}:{name}")


def check_arguments(fields: Mapping[str, Any], function: Any) -> None:
    """Check the parameters that a function's own options name, whatever profile they will be laid over.

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
