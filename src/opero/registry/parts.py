"""What keeps a state behind the functions of a registry: limits, memories of fallback values, cache stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.registry.profile_state import SharedExecutors


class Part(NamedTuple):
    """One thing that keeps a state.

    Attributes:
        kind: the kind of policy, or "store" for the store of a cache.
        profile: the profile whose functions share it; "" if it belongs to one function.
        binding: the function to which it belongs, or which uses the store; None if functions of a profile share it.
        holder: the executor, or the store.
    """

    kind: str
    profile: str
    binding: Binding | None
    holder: Any


def is_in_shadow(executor: Any) -> bool:
    """Return whether an executor only watches: it rejects nothing, whatever its state."""
    return bool(getattr(executor.policy, "shadow", False))  # what is remembered of fallback values has none


def is_by_key(executor: Any) -> bool:
    """Return whether it has an executor for each value of an argument."""
    return getattr(executor, "by", None) is not None


def executors_of(binding: Binding) -> dict[str, Any]:
    """Return kind → the executor of a function that has been resolved."""
    executors = {kind: getattr(each, "limiter", each) for kind, each in binding.resolved().executors.items()}
    return executors | {"fallback": executors.pop("values", None)}  # a fallback result has no state


def parts(shared: SharedExecutors, bindings: Iterable[Binding]) -> Iterator[Part]:
    """Yield what keeps a state; a function that has not been called yet has none. Nothing is resolved for it.

    Args:
        shared: what the functions of profiles share.
        bindings: the functions.
    """
    known = set()
    for profile, executor in shared.held():
        known.add(id(executor))
        if executor.policy.kind in STATEFUL:
            yield Part(executor.policy.kind, profile, None, executor)
    for binding in bindings:
        if binding.is_late:
            continue
        for kind, executor in executors_of(binding).items():
            if kind in STATEFUL and executor is not None and id(executor) not in known:
                yield Part(kind, "", binding, executor)
        store = None if binding.cache is None else binding.cache.store
        if store is not None and store.is_shared:
            yield Part("store", "", binding, store)


STATEFUL = ("circuit_breaker", "throttle", "rate_limit", "bulkhead", "fallback")
"""The kinds of policy whose executors keep a state."""
