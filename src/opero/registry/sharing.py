"""The circuit breakers, rate limits and bulkheads that the functions of a profile share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.layers import Share
    from opero.policies.policy import Policy

__all__ = ["SharedExecutors"]

Key = tuple[str, str, int]
"""A profile, a kind of policy, and the identity of a clock: what runs on another clock shares nothing."""


class SharedExecutors:
    """One executor for each profile and kind, whoever asks first.

    A function has its profile's executor where it has the profile's own policy of that kind and that policy's scope is
    the profile; else it gets one of its own.
    """

    def __init__(self, held: Mapping[Key, Any] | None = None) -> None:
        self._held: dict[Key, Any] = dict(held or {})
        self._lock = threading.Lock()

    def of(self, profile: str | None, policies: Mapping[str, Policy]) -> Share:
        """What `build` asks for the executors of a function of that profile.

        Args:
            profile: the profile that the function starts from; None: it shares nothing.
            policies: the profiles that hold.
        """

        def share(kind: str, policy: Any, make: Callable[..., Any]) -> Any:
            own = None if profile is None else policies.get(profile)
            if profile is None or own is None or policy.scope != "profile" or getattr(own, kind) != policy:
                return make()
            executor = make(profile)
            with self._lock:
                key = profile, kind, id(executor.clock)
                held = self._held.get(key)
                if held is None or held.policy != policy:
                    held = self._held[key] = executor
                return held

        return share

    def draft(self) -> SharedExecutors:
        """A copy, for a configuration that may not come into force."""
        with self._lock:
            return SharedExecutors(self._held)

    def replaced_by(self, draft: SharedExecutors, policies: Mapping[str, Policy]) -> None:
        """Put a draft's executors in force. Each takes over the state of the one before it; those that no profile has
        any more are forgotten."""
        with self._lock:
            for key, executor in draft._held.items():
                before = self._held.get(key)
                if before is not None and before is not executor:
                    executor.take_over(before)
            self._held = {
                (profile, kind, clock): executor
                for (profile, kind, clock), executor in draft._held.items()
                if profile in policies and policies[profile].active(kind) == executor.policy
            }
