"""Windows of a circuit breaker: the results of the last calls, or of the last seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """How many calls a window holds, and how many of them failed or were slow."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    def replace_failure(self, failed: bool, slow: bool, was_slow: bool) -> None:
        """Count a call that was counted as failed by another result."""
        self.failures += failed - True
        self.slow += slow - was_slow


@dataclass(slots=True)
class _Part(Counts):
    """A tenth of a window, with its number since time began, and when its latest call ended."""

    number: int = 0
    latest: float = 0.0


class CountWindow:
    """The last `size` calls."""

    # One byte a call, in a ring: processes that share a window copy all of it at each call.

    def __init__(self, size: int) -> None:
        self._size = size
        self._results = bytearray()
        self._oldest = 0
        self._sum = Counts()

    def add(self, now: float, failed: bool, slow: bool) -> None:
        """Count a call that ended `now`."""
        result, results, counts = failed + 2 * slow, self._results, self._sum
        if len(results) < self._size:
            results.append(result)
            counts.calls += 1
        else:
            at = self._oldest
            oldest = results[at]
            results[at] = result
            self._oldest = (at + 1) % self._size
            counts.failures -= oldest & 1
            counts.slow -= oldest >> 1
        counts.failures += failed
        counts.slow += slow

    def replace(self, now: float, later: int, failed: bool, slow: bool, *, was_slow: bool) -> bool:
        """Count a call that failed by another result; False if the window does not hold the call any more.

        Args:
            now: the clock's reading.
            later: how many calls have been added after it.
            failed, slow: the result by which it counts from now on.
            was_slow: whether it has been counted as slow.
        """
        size = len(self._results)
        if later >= size:
            return False
        self._results[(self._oldest + size - 1 - later) % size] = failed + 2 * slow
        self._sum.replace_failure(failed, slow, was_slow)
        return True

    def counts(self, now: float) -> Counts:
        """What the window holds."""
        return self._sum

    def resized(self, length: int | float) -> CountWindow | TimeWindow:
        """A window of another length that holds the latest of these calls; an empty one, if it is one of time."""
        if isinstance(length, float):
            return TimeWindow(length)
        window = CountWindow(length)
        window._results = results = (self._results[self._oldest :] + self._results[: self._oldest])[-length:]
        failed, slow, both = (results.count(kind) for kind in (1, 2, 3))
        window._sum = Counts(len(results), failed + both, slow + both)
        return window


class TimeWindow:
    """The calls of the last `seconds`, kept in tenths: a call leaves the window at most a tenth of it early."""

    PARTS = 10

    def __init__(self, seconds: float) -> None:
        self._width = seconds / self.PARTS
        self._parts: list[_Part] = []  # of a few: a deque would take five times the memory
        self._sum = Counts()

    def add(self, now: float, failed: bool, slow: bool) -> None:
        """Count a call that ended `now`."""
        self._drop_old(now)
        part, total = self._part_at(now), self._sum
        part.calls += 1
        total.calls += 1
        if failed:
            part.failures += 1
            total.failures += 1
        if slow:
            part.slow += 1
            total.slow += 1

    def replace(self, now: float, later: int, failed: bool, slow: bool, *, was_slow: bool) -> bool:
        """As `CountWindow.replace`."""
        self._drop_old(now)
        for part in reversed(self._parts):
            if later < part.calls:
                part.replace_failure(failed, slow, was_slow)
                self._sum.replace_failure(failed, slow, was_slow)
                return True
            later -= part.calls
        return False

    def counts(self, now: float) -> Counts:
        """What the window holds at that moment."""
        self._drop_old(now)
        return self._sum

    def resized(self, length: int | float) -> CountWindow | TimeWindow:
        """A window of another length that holds the calls within it; an empty one, if it is one of calls.

        A tenth of this one counts as a whole, from its latest call on: so windows that change back and forth neither
        forget a call early, nor keep one for ever.
        """
        if isinstance(length, int):
            return CountWindow(length)
        window = TimeWindow(length)
        for part in self._parts:
            there = window._part_at(part.latest)
            for counts in (there, window._sum):
                counts.calls += part.calls
                counts.failures += part.failures
                counts.slow += part.slow
        return window

    def restore(self, number: int, calls: int, failures: int, slow: int, latest: float) -> None:
        """Add a tenth of the window, the next one, as another window has counted it."""
        self._parts.append(_Part(calls, failures, slow, number, latest))
        self._sum.calls += calls
        self._sum.failures += failures
        self._sum.slow += slow

    def _part_at(self, moment: float) -> _Part:
        """The part that a call belongs to which ended then, and no other later."""
        number, parts = moment // self._width, self._parts
        if not parts or parts[-1].number != number:
            parts.append(_Part(number=int(number)))
        part = parts[-1]
        part.latest = moment
        return part

    def _drop_old(self, now: float) -> None:
        oldest, parts = now // self._width - self.PARTS, self._parts
        while parts and parts[0].number <= oldest:
            gone = parts.pop(0)
            self._sum.calls -= gone.calls
            self._sum.failures -= gone.failures
            self._sum.slow -= gone.slow


def new_window(length: int | float) -> CountWindow | TimeWindow:
    """An empty window of `length` calls, or seconds where it is a float."""
    return CountWindow(length) if isinstance(length, int) else TimeWindow(length)
