"""A stand-in for the policy of a profile that has not been needed yet."""

from __future__ import annotations

from typing import Any, Protocol

from opero.policies.policy import Policy


class HasPolicy(Protocol):
    @property
    def policy(self) -> Policy: ...


class LatePolicy:
    """Behaves as the effective `Policy`, which is resolved when something of it is first used.

    Args:
        binding: its `policy` is the effective one.
    """

    __slots__ = ("__weakref__", "_binding")

    def __init__(self, binding: HasPolicy) -> None:
        self._binding = binding

    def _resolve(self) -> Policy:
        return self._binding.policy

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
