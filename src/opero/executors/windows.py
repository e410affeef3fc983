"""What a circuit breaker judges: the results of the last calls, or of the last seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["CountWindow", "Counts", "TimeWindow"]


@dataclass(slots=True)
class Counts:
    """How many calls a window holds, and how many of them failed or were slow."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    def add(self, failed: bool, slow: bool, times: int = 1) -> None:  # two facts of one call
        self.calls += times
        self.failures += times * failed
        self.slow += times * slow


class CountWindow:
    """The last `size` calls."""

    # One byte a call, in a ring: processes that share a window copy it whole at each call.

    def __init__(self, size: int) -> None:
        self._size = size
        self._results = bytearray()
        self._oldest = 0
        self._sum = Counts()

    def add(self, now: float, failed: bool, slow: bool) -> None:
        """Count a call that ended `now`."""
        result = failed + 2 * slow
        if len(self._results) < self._size:
            self._results.append(result)
        else:
            oldest = self._results[self._oldest]
            self._sum.add(bool(oldest & 1), bool(oldest & 2), times=-1)
            self._results[self._oldest] = result
            self._oldest = (self._oldest + 1) % self._size
        self._sum.add(failed, slow)

    def counts(self, now: float) -> Counts:
        """What the window holds."""
        return self._sum


class TimeWindow:
    """The calls of the last `seconds`, kept in tenths: a call leaves the window at most a tenth of it early."""

    PARTS = 10

    def __init__(self, seconds: float) -> None:
        self._width = seconds / self.PARTS
        self._parts: deque[tuple[int, Counts]] = deque()
        self._sum = Counts()

    def add(self, now: float, failed: bool, slow: bool) -> None:
        """Count a call that ended `now`."""
        self._drop_old(now)
        part = int(now // self._width)
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append((part, Counts()))
        self._parts[-1][1].add(failed, slow)
        self._sum.add(failed, slow)

    def counts(self, now: float) -> Counts:
        """What the window holds at that moment."""
        self._drop_old(now)
        return self._sum

    def _drop_old(self, now: float) -> None:
        oldest = int(now // self._width) - self.PARTS
        while self._parts and self._parts[0][0] <= oldest:
            _, gone = self._parts.popleft()
            self._sum.calls -= gone.calls
            self._sum.failures -= gone.failures
            self._sum.slow -= gone.slow
