"""The circuit breakers, rate limits and bulkheads that the functions of a profile share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.binding.pipeline import ExecutorProvider
    from opero.policies.policy import Policy

__all__ = ["SharedExecutors"]

Key = tuple[str, str, int]
"""A profile, a kind of policy, and the identity of a clock: what runs on another clock shares nothing."""


class SharedExecutors:
    """One executor for each profile and kind under one configuration, whoever asks first.

    A function has its profile's executor where it has the profile's own policy of that kind and that policy's scope is
    the profile; else it gets one of its own.

    Another configuration has an object of its own, the `successor`. Executors of unchanged policies are in both; others
    take over from those before them when it comes into force (`give_way`), and not before: it may never do so.

    Args:
        policies: the profiles of the configuration.

    Attributes:
        is_over: a successor is coming into force: who asks now is to ask again there.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = policies
        self._held: dict[Key, Any] = {}
        self._earlier: dict[Key, Any] = {}
        """What the first executor of a key is to take over from."""
        self._heirs: list[tuple[Any, Any]] | None = None
        """Executors of one that is not in force yet, and whom they are to take over from."""
        self._lock = RenewedLock()
        self.is_over = False

    def of(self, profile: str | None) -> ExecutorProvider:
        """What `build` asks for the executors of a function of that profile; None: it shares nothing."""

        def provide(kind: str, policy: Any, make: Callable[..., Any]) -> Any:
            own = None if profile is None else self._policies.get(profile)
            if profile is None or own is None or policy.scope != "profile" or getattr(own, kind) != policy:
                return make()
            executor = make(profile)
            key = profile, kind, id(executor.clock)
            with self._lock:
                held = self._held.get(key)
                if held is not None:
                    return held
                if self.is_over:
                    return executor
                self._held[key] = executor
                earlier = self._earlier.pop(key, None)
                if earlier is not None and self._heirs is not None:
                    self._heirs.append((executor, earlier))
                elif earlier is not None:
                    executor.take_over(earlier)
                return executor

        return provide

    def successor(self, policies: Mapping[str, Policy]) -> SharedExecutors:
        """What another configuration's functions share, if it comes into force."""
        draft = SharedExecutors(policies)
        draft._heirs = []
        with self._lock:
            held = dict(self._held)
            earlier = dict(self._earlier)
        for key, executor in (*earlier.items(), *held.items()):
            draft._inherit(key, executor)
        return draft

    def _inherit(self, key: Key, executor: Any) -> None:
        """Keep an executor of another configuration, or its state for who follows it. What has gone is forgotten."""
        profile, kind, _ = key
        policy = self._policies[profile].active(kind) if profile in self._policies else None
        if policy is not None and policy == executor.policy:
            self._held.setdefault(key, executor)
        elif policy is not None and policy.scope == "profile" and key not in self._held:
            self._earlier.setdefault(key, executor)

    def give_way(self, draft: SharedExecutors) -> None:
        """Hand over to a successor, which whoever calls this puts in force at once."""
        for executor, earlier in draft._heirs or ():
            executor.take_over(earlier)
        with self._lock:
            self.is_over = True
            for key, executor in self._held.items():  # also what somebody has asked for meanwhile
                draft._inherit(key, executor)
        draft._heirs = None
