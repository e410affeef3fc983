"""What every bound function carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opero.binding.binding import Binding
    from opero.observe.stats import Stats
    from opero.policies.policy import Policy
    from opero.values import CacheInfo

__all__ = ["Carries"]


class Carries(ABC):
    """What every bound function carries."""

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
        """Counts of what it has done so far."""

    @property
    @abstractmethod
    def binding(self) -> Binding:
        """The function under its policy, live: its state, its circuit breaker."""

    @abstractmethod
    def cache_clear(self, *, tags: str | Collection[str] | None = None) -> None:
        """Forget every cached result, or those of some groups (see `CachePolicy.tags`)."""

    @abstractmethod
    def cache_info(self) -> CacheInfo:
        """Hits and misses, how many results there are, and how many have been evicted."""
