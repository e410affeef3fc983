"""A simulated service with a knee: up to a number of calls at once it answers more of them, the more are sent."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from opero.executors.state.adaptive_limit import AdaptiveLimit, Sample, learn

USUAL = 0.05
"""Seconds that a call takes while the service is not overloaded."""


class Service:
    """Answers calls, in the order in which they come.

    Args:
        knee: how many calls it works on at once; a function of the time, or one number.
        variation: how much the durations of calls vary: their standard deviation over their mean.
        thrashing: by how much each call above the knee slows down all others.
        seed: of the durations.
    """

    def __init__(
        self, knee: int | Callable[[float], int] = 8, variation: float = 0.1, thrashing: float = 0.0, seed: int = 1
    ) -> None:
        self.knee = knee
        self.variation = variation
        self.thrashing = thrashing
        self.random = random.Random(seed)
        self._ends: list[float] = []

    def ends(self, now: float) -> float:
        """Send a call; return when it is answered."""
        knee = self.knee(now) if callable(self.knee) else self.knee
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        shape = 1 / self.variation**2 if self.variation else 0.0
        seconds = self.random.gammavariate(shape, USUAL / shape) if shape else USUAL
        queued = len(self._ends) + 1 - knee
        begins = now if queued <= 0 else sorted(self._ends)[queued - 1]
        end = begins + seconds * (1 + max(0, queued) * self.thrashing)
        heapq.heappush(self._ends, end)
        return end


def run(
    service: Service, calls: int, limit: int | AdaptiveLimit, most_wanted: int = 10_000
) -> tuple[list[float], AdaptiveLimit | None, list[int]]:
    """Send a service as many calls at once as a limit says.

    Args:
        service: the service.
        calls: how many to send.
        limit: the limit.
        most_wanted: how many the callers want at once.

    Returns:
        When each call ended; the limit afterwards; the best limit that was known after each call.
    """
    state = limit if isinstance(limit, AdaptiveLimit) else None
    now, number, ended, found = 0.0, 0, list[float](), list[int]()
    under_way: list[tuple[float, int, float, int, int]] = []
    while len(ended) < calls:
        most = min(most_wanted, state.limit if state is not None else limit)  # type: ignore[type-var, arg-type]
        while len(under_way) < most:  # type: ignore[operator]
            era = 0 if state is None else state.era
            number += 1
            heapq.heappush(under_way, (service.ends(now), number, now, era, len(under_way) + 1))
        now, _, began, era, in_flight = heapq.heappop(under_way)
        ended.append(now)
        if state is not None:
            state = learn(state, Sample(era, in_flight, now - began))
            found.append(state.found)
    return ended, state, found


def rate(ended: list[float], first: int, last: int) -> float:
    """Return the calls a second between two of them."""
    return (last - first) / (ended[last - 1] - ended[first - 1])
