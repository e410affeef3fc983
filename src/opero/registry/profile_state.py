"""The circuit breakers, rate limits and bulkheads that the functions of a profile share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from opero.policies.scope import owner_of
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.binding.making import ExecutorProvider
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock

Key = tuple[str, str, int, Any]
"""A profile, a kind of policy, the identity of a clock, and what chooses among states, if there is one for each value
of an argument: functions with different clocks, or that choose by something else, share nothing."""

_all: WeakSet[SharedExecutors] = WeakSet()
_all_lock = RenewedLock()


def forget_shared_state() -> None:
    """Have the functions of every profile begin with new limits when they are resolved next."""
    with _all_lock:
        known = list(_all)
    for each in known:
        each.forget()


class SharedExecutors:
    """One executor for each profile and kind under one configuration.

    A function shares its profile's executor if it has the profile's own policy of that kind and the scope of that
    policy is the profile; otherwise it has one of its own.

    Another configuration has an object of its own, the `successor`. Executors of unchanged policies belong to both. The
    state of others migrates when the successor is put in force (`migrate`), and not before, as that may never happen.

    Args:
        policies: the profiles of the configuration.

    Attributes:
        is_replaced: whether a successor is being put in force; a function that asks now must ask the successor.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = policies
        self._held: dict[Key, Any] = {}
        self._predecessors: dict[Key, Any] = {}
        """The predecessor of an executor that has not been made yet."""
        self._pending: list[tuple[Any, Any]] | None = None
        """Executors made before this is in force, each with its predecessor; None once it is."""
        self._lock = RenewedLock()
        self.is_replaced = False
        with _all_lock:
            _all.add(self)

    def forget(self) -> None:
        """Drop the executors: functions that are resolved from now on get new ones."""
        with self._lock:
            self._held, self._predecessors = {}, {}

    def of(self, profile: str | None) -> ExecutorProvider:
        """Return the provider of executors for the functions of a profile; None: a provider that shares nothing."""

        def provide(policy: Any, clock: Clock, make: Callable[..., Any]) -> Any:
            kind = policy.kind
            own = None if profile is None else self._policies.get(profile)
            if profile is None or own is None or owner_of(policy) != "profile" or getattr(own, kind) != policy:
                return make()
            key = profile, kind, id(clock), getattr(make, "by", None)
            held = self._held.get(key)
            if held is not None:
                return held
            executor = make(profile)
            with self._lock:
                held = self._held.get(key)
                if held is not None:
                    return held
                if self.is_replaced:
                    return executor
                self._held[key] = executor
                predecessor = self._predecessors.pop(key, None)
                if predecessor is not None and self._pending is not None:
                    self._pending.append((executor, predecessor))
                elif predecessor is not None:
                    executor.migrate_from(predecessor)
                return executor

        return provide

    def held(self) -> list[tuple[str, Any]]:
        """Return the executors that functions share, each with the name of its profile."""
        with self._lock:
            return [(profile, executor) for (profile, *_), executor in self._held.items()]

    def successor(self, policies: Mapping[str, Policy]) -> SharedExecutors:
        """Return the executors of another configuration, which may be put in force later."""
        draft = SharedExecutors(policies)
        draft._pending = []
        with self._lock:
            held = dict(self._held)
            predecessors = dict(self._predecessors)
        for key, executor in (*predecessors.items(), *held.items()):
            draft._inherit(key, executor)
        return draft

    def _inherit(self, key: Key, executor: Any) -> None:
        """Keep an executor of the previous configuration if its policy is unchanged, else keep it as a predecessor."""
        profile, kind, *_ = key
        policy = self._policies[profile].active(kind) if profile in self._policies else None
        if policy is not None and policy == executor.policy:
            self._held.setdefault(key, executor)
        elif policy is not None and owner_of(policy) == "profile" and key not in self._held:
            self._predecessors.setdefault(key, executor)

    def migrate(self, draft: SharedExecutors) -> None:
        """Move the state to a successor, which the caller puts in force at once."""
        for executor, predecessor in draft._pending or ():
            executor.migrate_from(predecessor)
        with self._lock:
            self.is_replaced = True
            for key, executor in self._held.items():  # including executors made meanwhile
                draft._inherit(key, executor)
        draft._pending = None
