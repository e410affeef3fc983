"""What a throttle counts: attempts, and how many of them the service has accepted."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, NamedTuple

from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.runtime.priorities import Priority

LAST = 30
"""Attempts after which one has lost most of its weight, as it has after the window."""
LEAST = 5
"""Attempts below which nothing is rejected: the failures of a few say too little."""
MOST = 0.95
"""The greatest share that is rejected: the others show when the service has recovered."""
SHARE_OF_RATIO: dict[Priority | None, float] = {"critical": 4.0, "normal": 1.0, None: 1.0, "background": 0.25}
"""By how much of what the ratio is above 1 a priority is judged."""


class Traffic(NamedTuple):
    """Counts that fade out.

    Attributes:
        at: the moment for which they are.
        requests: attempts, with those that were rejected here.
        accepts: those that the service has accepted.
    """

    at: float
    requests: float = 0.0
    accepts: float = 0.0


# Decisions


def faded(traffic: Traffic, window: float, now: float) -> Traffic:
    """Return the counts at a later moment."""
    left = math.exp(min(0.0, traffic.at - now) / window)
    return Traffic(now, traffic.requests * left, traffic.accepts * left)


def counted(traffic: Traffic, window: float, now: float, *, accepted: bool) -> Traffic:
    """Return the counts after one more attempt."""
    _, requests, accepts = faded(traffic, window, now)
    left = 1 - 1 / LAST
    return Traffic(now, requests * left + 1, accepts * left + accepted)


def rejected_share(traffic: Traffic, ratio: float, priority: Priority | None = None) -> float:
    """Return the probability with which an attempt of a priority is to be rejected."""
    if traffic.requests < LEAST:
        return 0.0
    ratio = 1 + (ratio - 1) * SHARE_OF_RATIO[priority]
    return min(MOST, max(0.0, (traffic.requests - ratio * traffic.accepts) / (traffic.requests + 1)))


class TrafficCell:
    """Keeps the counts in this process. Executors of a policy and of the one that replaces it share it.

    Attributes:
        traffic: the counts.
    """

    def __init__(self, now: float) -> None:
        self.traffic = Traffic(now)
        self.lock = threading.RLock()
        renew_in_child(self, "lock")

    def count(self, window: float, now: float, *, accepted: bool) -> None:
        """Count an attempt."""
        with self.lock:
            self.traffic = counted(self.traffic, window, now, accepted=accepted)
