"""A stand-in for the policy of a profile that has not been needed yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opero.policies.policy import Policy


class LatePolicy:
    """Behaves as the effective `Policy`, which is resolved when something of it is first used.

    Args:
        resolve: returns the effective policy.
    """

    def __init__(self, resolve: Callable[[], Policy]) -> None:
        self._resolve = resolve

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolve(), name)

    def __reduce__(self) -> Any:
        return _resolved, (self._resolve(),)

    def __eq__(self, other: object) -> bool:
        return self._resolve() == (other._resolve() if isinstance(other, LatePolicy) else other)

    def __hash__(self) -> int:
        return hash(self._resolve())

    def __repr__(self) -> str:
        return repr(self._resolve())


def _resolved(policy: Policy) -> Policy:
    return policy
