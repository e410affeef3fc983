"""A call as it passes through the layers of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.observe.stats import Stats

__all__ = ["MISS", "Call", "Layer"]

MISS: Any = object()
"""Returned by a memory cache that has no fresh entry for a key."""


class Call:
    """The state of one call, which its layers share.

    Each binding has its own subclass with its `stats`, so that creating a call sets no attributes.

    Attributes:
        stats: the statistics of the called function.
        deadline: the time at which the total timeout ends the call, by the clock's `monotonic`; None for no timeout.
        waited: seconds that the current attempt has waited for a permit or a slot.
        turned_away: whether a layer has rejected the current attempt, so that its error is not the function's.
        fell_back: whether the result is a fallback result, which is not cached.
    """

    stats: Stats
    deadline: float | None = None
    waited: float = 0.0
    turned_away: bool = False
    fell_back: bool = False

    @staticmethod
    def of(stats: Stats) -> type[Call]:
        """Return a class of calls that count in `stats`."""
        return type("Call", (Call,), {"stats": stats})

    def time_left(self, now: float) -> float:
        """Return the seconds until the deadline; infinity if there is none."""
        return float("inf") if self.deadline is None else self.deadline - now


class Layer(Protocol):
    """A layer of a pipeline: called with the call and its arguments, it returns the result.

    For an async function it returns an awaitable immediately.
    """

    def __call__(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> Any: ...
