"""One call on its way through the layers of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.observe.stats import Stats

__all__ = ["MISS", "Call", "Layer"]

MISS: Any = object()
"""Returned by a memory cache that has no fresh entry for a key."""


class Call:
    """One call on its way through the layers.

    Each binding has a subclass of its own that holds its `stats`, so that making a call is one bare allocation.

    Attributes:
        stats: the counts of the function that is called.
        deadline: the clock's reading at which the total timeout ends the call, or None.
        waited: seconds that the running attempt has spent waiting for a permit or a place.
        turned_away: a layer has just refused the attempt, which says nothing of the service behind it.
        fell_back: the answer is a fallback result, which is not kept.
    """

    stats: Stats
    deadline: float | None = None
    waited: float = 0.0
    turned_away: bool = False
    fell_back: bool = False

    @staticmethod
    def of(stats: Stats) -> type[Call]:
        """The class of the calls that count in `stats`."""
        return type("Call", (Call,), {"stats": stats})

    def time_left(self, now: float) -> float:
        """Seconds until the deadline; infinite where there is none."""
        return float("inf") if self.deadline is None else self.deadline - now


class Layer(Protocol):
    """What every layer is to the one around it: it takes the call, and the arguments as they came.

    Under an async function it returns something to await, at once.
    """

    def __call__(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> Any: ...
