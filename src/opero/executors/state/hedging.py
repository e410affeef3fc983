"""What hedges of a function depend on: how long its latest attempts took, and how many hedges they have paid for."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import sqrt
from typing import TYPE_CHECKING

from opero.observe.latency import BOUNDS, Histogram
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.observe.stats import Stats

LEAST = 30
"""Attempts without which no percentile is known."""
GENERATION = 500
"""Attempts after which the older ones of the latest are forgotten."""
EVERY = 16
"""Attempts after which the percentile is computed anew."""
DEVIATIONS = 2.0
"""Standard deviations by which a percentile of the latest attempts may be too high by chance."""
MOST_AT_ONCE = 20.0
"""Hedges that may be saved up."""


# Decisions


def percentile(weights: dict[int, int], share: float) -> float | None:
    """Return the seconds in which a share of some attempts has ended; None if they are too few to tell.

    Where a share of the attempts takes much longer than the others, the percentile may by chance lie among these slow
    ones, and would hedge nothing. So it is the lower end of what it may be. More hedges than meant are not made: there
    is the budget.
    """
    filled = sorted(weights.items())
    upto = list(accumulate(weight for _, weight in filled))
    if not filled or upto[-1] < LEAST:
        return None
    total = upto[-1]
    ended: float = share * total - DEVIATIONS * sqrt(share * (1 - share) * total)
    bound: float = BOUNDS[filled[bisect_left(upto, max(ended, 1.0))][0]]
    return bound


class RecentLatency:
    """How long the latest attempts of a function took, without waits: between `GENERATION` and twice as many.

    An attempt that was cancelled, as another one was faster, took at least as long as until then. That is longer than
    the delay of a hedge, and so no reason to hedge earlier or later.

    Attributes:
        delay: the percentile that is watched; None while it is not known.

    Args:
        after: the percentile, such as "p95", or a fixed delay.
    """

    __slots__ = ("_before", "_latest", "_share", "delay")

    def __init__(self, after: float | str) -> None:
        self._before = Histogram()
        self._latest = Histogram()
        self._share: float | None = None
        self.delay: float | None = None
        self.watch(after)

    def watch(self, after: float | str) -> None:
        """Compute a percentile, such as "p95", from now on. If the delay is fixed, nothing is measured."""
        self._share = float(after[1:]) / 100 if isinstance(after, str) else None
        self._compute()

    def add(self, seconds: float) -> None:
        """Add the duration of an attempt."""
        if self._share is None:
            return
        latest = self._latest
        latest.add(seconds)
        if latest.samples >= GENERATION:
            self._before, self._latest = latest, Histogram()
        if not latest.samples % EVERY or self.delay is None:
            self._compute()

    def _compute(self) -> None:
        if self._share is None:
            return
        both = Histogram()
        both.include(self._before)
        both.include(self._latest)
        self.delay = percentile(both.weights, self._share)


class HedgeBudget:
    """How many hedges the other attempts of a function have paid for.

    At any time, hedges <= share * (other attempts). A success writes nothing: attempts are counted by the statistics of
    the function, which are read when a hedge is asked for.

    Attributes:
        share: the share of the other attempts that hedges may add to them.
    """

    __slots__ = ("_lock", "_saved", "_seen", "_stats", "share")

    def __init__(self, stats: Stats, share: float) -> None:
        self.share = share
        self._stats = stats
        self._seen = self._others()
        self._saved = 0.0
        self._lock = RenewedLock()

    def _others(self) -> int:
        return self._stats.attempts - self._stats.hedges

    def take(self) -> bool:
        """Take a hedge from the budget; return False if it is spent."""
        with self._lock:
            others = self._others()
            new = others - self._seen if others >= self._seen else others  # the counts may have been reset
            self._seen = others
            self._saved = min(MOST_AT_ONCE, self._saved + self.share * new)
            if self._saved < 1 - 1e-9:
                return False
            self._saved -= 1
            return True

    def give_back(self) -> None:
        """Give a hedge back that was not made."""
        with self._lock:
            self._saved += 1
