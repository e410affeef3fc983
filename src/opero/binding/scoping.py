"""Policies with a state for each value of an argument: by what the states are chosen, and what chooses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.policies.scope import KeyedScope, scope_by

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.scope_keys import KeyOf
    from opero.policies.policy import Policy

SCOPED = ("circuit_breaker", "rate_limit", "bulkhead", "fallback")
"""Kinds of policy that may have a state for each value of an argument."""


def by_of(executor: Any) -> Any:
    """Return what chooses among the states of an executor; None if it has one."""
    return getattr(executor, "by", None)


def has_key_function(policy: Policy) -> bool:
    """Return whether a function of the user's makes keys of the arguments of calls."""
    scopes = (scope_by(policy.active(kind)) for kind in SCOPED)
    return any(scope is not None and callable(scope.by) for scope in scopes)


def is_by(policy: Policy, name: str | None) -> bool:
    """Return whether calls with different values of an argument may have different states of a limit."""
    scopes = [scope_by(policy.active(kind)) for kind in SCOPED[:3]]
    return name is not None and any(each is not None and (each.by == name or callable(each.by)) for each in scopes)


def scope_of(target: Target, policy: Any) -> KeyedScope | None:
    """Return the keyed scope that a policy has for a function; None if it has one state."""
    scope = scope_by(policy)
    keys = target.traits.keys
    if scope is not None or not keys or policy.kind not in SCOPED or policy.scope != "auto":
        return scope
    if policy.kind == "fallback" or policy.share == "machine":
        return None
    return KeyedScope(by=next(iter(keys)))


def check_scopes(target: Target, policy: Policy) -> None:
    """Check that a function has the arguments by which its states are chosen.

    Raises:
        ConfigError: it lacks one.
    """
    for kind in SCOPED:
        own = policy.active(kind)
        scope = None if own is None else scope_of(target, own)
        if scope is not None:
            key_of(target, scope, kind)


def key_of(target: Target, scope: KeyedScope, kind: str) -> KeyOf:
    """Return what makes the key of a call."""
    from opero.executors.scope_keys import key_function

    return key_function(scope, target.function, f"{kind}.scope.by", target.traits.keys)


def scoped(target: Target, executor: Any, around: Callable[[Any], Any] | None = None) -> Any:
    """Return what stands for an executor in the layers of a function: itself, or what picks one by a call's key.

    Args:
        target: the function.
        executor: the executor, or those of all keys.
        around: see `Scoped`.

    Raises:
        ConfigError: the function lacks the argument that the key is made of.
    """
    if by_of(executor) is None:
        return executor
    from opero.executors.scoped import Scoped, ScopedBreaker

    kind = executor.policy.kind
    layer = ScopedBreaker if kind == "circuit_breaker" else Scoped
    return layer(executor, key_of(target, executor.scope, kind), is_stream=target.is_stream, around=around)
