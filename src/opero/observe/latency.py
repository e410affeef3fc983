"""How long the calls of a function take, and how many there are a second, from a sample of its calls.

Two readings of a clock cost more than all else that a successful call costs. So every call is timed while calls are
rare, and one of several when there are more than `MOST_SAMPLES` a second. A sample stands for all calls since the last
one. Rates are exact: they are read off the counts of calls.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import exp, log2
from time import perf_counter
from typing import Any

MOST_SAMPLES = 2_000
"""Calls that are timed in a second, at most."""
LONGEST_STRIDE = 1024
"""The most calls that one sample stands for. So at most that many calls are not timed after a burst."""

PER_OCTAVE = 8
"""Buckets by which a duration doubles: their bounds are 9 % apart."""
LOWEST = -20
"""The first bucket takes what is shorter than 2 ** -20 seconds, which is 1 µs."""
HIGHEST = 12
"""The last bucket takes what is longer than 2 ** 12 seconds, which is 68 minutes."""
OFFSET = -LOWEST * PER_OCTAVE
LAST = (HIGHEST - LOWEST) * PER_OCTAVE
SHORTEST = 2.0**LOWEST
BOUNDS = [2.0 ** ((bucket + 1 - OFFSET) / PER_OCTAVE) for bucket in range(LAST + 1)]
"""The upper bound of each bucket, in seconds."""
MIDDLE = 2.0 ** (-0.5 / PER_OCTAVE)
"""The middle of a bucket, as a share of its upper bound."""

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
WINDOWS = {"1s": 1.0, "1m": 60.0, "1h": 3600.0}
SHORTEST_TICK = 0.05
"""Seconds between two updates of the rates."""


class Histogram:
    """Durations in buckets that are 9 % wide, so that percentiles are off by 4.5 % at most.

    Attributes:
        weights: bucket → the calls in it; 257 buckets at most, and 10 to 30 for most functions.
        seconds: the sum of all durations, each by its weight.
        samples: the number of durations.
    """

    __slots__ = ("samples", "seconds", "weights")

    def __init__(self) -> None:
        self.weights: dict[int, int] = {}
        self.seconds = 0.0
        self.samples = 0

    # As in `Stats`, `+=` is atomic: nothing is called between its read and its write.

    def add(self, seconds: float, weight: int = 1) -> None:
        """Add the duration of a call, which stands for as many calls as its weight."""
        bucket = int(log2(seconds) * PER_OCTAVE + OFFSET) if seconds > SHORTEST else 0
        if bucket > LAST:
            bucket = LAST
        if bucket in self.weights:  # as `put`, which is a call
            self.weights[bucket] += weight
        else:
            self.put(bucket, weight)
        self.seconds += seconds * weight
        self.samples += 1

    def put(self, bucket: int, weight: int) -> None:
        """Add calls to a bucket."""
        try:
            self.weights[bucket] += weight
        except KeyError:
            self.weights.setdefault(bucket, 0)
            self.weights[bucket] += weight

    def as_counts(self) -> dict[str, Any]:
        """Return what `merge` takes, as plain data."""
        weights = {str(bucket): weight for bucket, weight in self.weights.copy().items()}
        return {"weights": weights, "seconds": self.seconds, "samples": self.samples}

    def merge(self, counts: dict[str, Any]) -> None:
        """Add what `as_counts` returned elsewhere."""
        for bucket, weight in counts["weights"].items():
            self.put(int(bucket), weight)
        self.seconds += counts["seconds"]
        self.samples += counts["samples"]

    def include(self, other: Histogram) -> None:
        """Add another histogram, which may be in use. This one is not: it is a sum."""
        weights = self.weights
        for bucket, weight in other.weights.copy().items():
            weights[bucket] = weights.get(bucket, 0) + weight
        self.seconds += other.seconds
        self.samples += other.samples

    def summary(self) -> dict[str, Any] | None:
        """Return count, mean, percentiles and buckets as plain data; None without a sample."""
        filled = sorted(self.weights.copy().items())
        if not filled:
            return None
        upto = list(accumulate([weight for _, weight in filled]))
        total = upto[-1]
        found: dict[str, Any] = {"count": self.samples, "sum": self.seconds, "mean": self.seconds / total}
        for name, share in PERCENTILES.items():
            bucket, _ = filled[bisect_left(upto, share * total)]
            found[name] = BOUNDS[bucket] * MIDDLE
        found["max"] = BOUNDS[filled[-1][0]]
        found["buckets"] = [[BOUNDS[bucket], weight] for bucket, weight in filled]
        return found


class Samples:
    """The sampled calls of one function, and its rates.

    Attributes:
        histogram: how long they took.
        exact: whether every call is timed.
        stride: the number of calls that one sample stands for now.
        in_flight: calls under way, as far as they were sampled, each by its weight.
        since: when the first call began, by `time.perf_counter`.
        due: when the rates are to be updated next, by `time.perf_counter`.
    """

    __slots__ = ("_at", "_last", "_rates", "_ticked", "due", "exact", "histogram", "in_flight", "since", "stride")

    def __init__(self, calls: int) -> None:
        self.histogram = Histogram()
        self.exact = False
        self.stride = 1
        self.in_flight = 0
        self._at = max(0, calls - 1)
        self._last = self.since = perf_counter()
        self._ticked = (self._last, 0, 0)
        self.due = self._last + SHORTEST_TICK
        self._rates = dict.fromkeys(WINDOWS, (0.0, 0.0))

    def begin(self, calls: int, now: float) -> int:
        """Begin a sample: return the number of calls that it stands for, and set `stride` for the next one.

        Args:
            calls: the number of calls so far, with this one.
            now: the moment, by `time.perf_counter`.
        """
        passed, weight = now - self._last, self.skip(calls, now)
        if passed > 0:  # else it is the first one, and nothing is known
            due = weight / (MOST_SAMPLES * passed)
            self.stride = 1 if due < 1 else int(due) if due < LONGEST_STRIDE else LONGEST_STRIDE
        return weight

    def skip(self, calls: int, now: float) -> int:
        """Return the number of calls since the last sample; as `begin`, where every call is timed."""
        weight = calls - self._at
        self._at, self._last = calls, now
        return weight if weight > 0 else 1  # another thread may have begun a sample meanwhile

    def tick(self, calls: int, failures: int, now: float | None = None) -> None:
        """Update the rates.

        Args:
            calls, failures: the counts so far.
            now: the moment, by `time.perf_counter`. Default: this one.
        """
        now = perf_counter() if now is None else now
        before, calls_before, failures_before = self._ticked
        passed = now - before
        if passed < SHORTEST_TICK:
            return
        self._ticked, self.due = (now, calls, failures), now + SHORTEST_TICK
        called, failed = max(0, calls - calls_before) / passed, max(0, failures - failures_before) / passed
        for name, window in WINDOWS.items():
            kept = exp(-passed / window)
            of_calls, of_failures = self._rates[name]
            self._rates[name] = of_calls * kept + called * (1 - kept), of_failures * kept + failed * (1 - kept)

    def rates(self, now: float | None = None) -> dict[str, dict[str, float]]:
        """Return the calls and failures a second, as moving averages over a second, a minute and an hour."""
        age = (perf_counter() if now is None else now) - self.since
        found: dict[str, dict[str, float]] = {"calls": {}, "failures": {}}
        for name, window in WINDOWS.items():
            known = 1 - exp(-age / window) or 1.0  # the share of the average's weight that lies after the first call
            found["calls"][name], found["failures"][name] = (each / known for each in self._rates[name])
        return found
