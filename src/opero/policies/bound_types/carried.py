"""The attributes that every bound function carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opero.observe.stats import Stats
    from opero.policies.policy import Policy
    from opero.values import CacheInfo

__all__ = ["Carries", "CircuitBreakerControl", "LiveBinding"]


class CircuitBreakerControl(Protocol):
    """A live circuit breaker, as users see it."""

    @property
    def state(self) -> str:
        """The state now: "closed", "open", "half_open", "forced_open" or "forced_closed"."""

    def force_open(self) -> None:
        """Reject every call until `reset`."""

    def force_closed(self) -> None:
        """Let every call through until `reset`."""

    def reset(self) -> None:
        """Close it, with nothing counted."""


class LiveBinding(Protocol):
    """A bound function under its policy, live: what `f.binding` is."""

    @property
    def function(self) -> Callable[..., Any]:
        """The function as its user wrote it."""

    @property
    def name(self) -> str:
        """Its qualified name."""

    @property
    def policy(self) -> Policy:
        """The effective policy; resolved now if nothing has needed it yet."""

    @property
    def stats(self) -> Stats:
        """The counts of its calls."""

    @property
    def circuit_breaker(self) -> CircuitBreakerControl | None:
        """Its circuit breaker; None if there is none."""

    def swap(self, policy: Policy) -> None:
        """Put another policy in force. Calls under way finish on the old one; counts continue."""


class Carries(ABC):
    """The attributes that every bound function carries."""

    __name__: str
    __qualname__: str
    __module__: str
    __wrapped__: Callable[..., Any]

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The effective policy."""

    @property
    @abstractmethod
    def stats(self) -> Stats:
        """The counts of its calls."""

    @property
    @abstractmethod
    def binding(self) -> LiveBinding:
        """The function under its policy, live: its state, its circuit breaker."""

    @abstractmethod
    def cache_clear(self, *, tags: str | Collection[str] | None = None) -> None:
        """Delete all cached results, or those with some tags (see `CachePolicy.tags`)."""

    @abstractmethod
    def cache_info(self) -> CacheInfo:
        """Hits, misses, results held, and evictions."""
