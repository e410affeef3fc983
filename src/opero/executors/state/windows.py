"""Windows of a circuit breaker: the results of the last calls, or of the last seconds."""

from __future__ import annotations

from typing import Any

from opero.dataclass import dataclass

DIGITS, RESULTS = bytes.maketrans(b"\0\1\2\3", b"0123"), bytes.maketrans(b"0123", b"\0\1\2\3")
"""Results of a window as text, and the reverse."""


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
        at = (self._oldest + size - 1 - later) % size
        before, self._results[at] = self._results[at], failed + 2 * slow
        self._sum.failures += failed - (before & 1)
        self._sum.slow += slow - (before >> 1)
        return True

    def counts(self, now: float) -> Counts:
        """What the window holds."""
        return self._sum

    def resized(self, length: int | float) -> CountWindow | TimeWindow:
        """A window of another length that holds the latest of these calls; an empty one, if it is one of time."""
        if isinstance(length, float):
            return TimeWindow(length)
        return CountWindow.of(length, self._in_order())

    def _in_order(self) -> bytearray:
        return self._results[self._oldest :] + self._results[: self._oldest]

    def plain(self, offset: float) -> Any:
        """The window as plain data, for `of`."""
        return self._in_order().translate(DIGITS).decode("ascii")

    @classmethod
    def of(cls, length: int, results: bytearray) -> CountWindow:
        """A window that holds the latest of these results."""
        window = cls(length)
        window._results = results = results[-length:]
        failed, slow, both = (results.count(kind) for kind in (1, 2, 3))
        window._sum = Counts(len(results), failed + both, slow + both)
        return window


class TimeWindow:
    """The calls of the last `seconds`, kept in tenths: a call leaves the window at most a tenth of it early."""

    PARTS = 10

    def __init__(self, seconds: float, origin: float = 0.0) -> None:
        self._width = seconds / self.PARTS
        self._origin = origin  # when time began: parts are counted from there
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
                if not part.failures:  # it is not the call's, whose place is known only roughly if others add calls
                    return False
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

    def plain(self, offset: float) -> Any:
        """The window as plain data, for `of`.

        Args:
            offset: what a reading of this clock is ahead of the one by which the data is.
        """
        moments = (part.latest - offset for part in self._parts)
        return [
            [moment // self._width, moment, part.calls, part.failures, part.slow]
            for moment, part in zip(moments, self._parts, strict=True)
        ]

    @classmethod
    def of(cls, length: float, parts: Any, offset: float) -> TimeWindow:
        """A window of plain data.

        Args:
            length: its seconds.
            parts: what `plain` returned.
            offset: what a reading of the clock that it is for is ahead of the one by which the data is.
        """
        window = cls(length, offset)
        for number, latest, calls, failures, slow in parts:
            window._parts.append(_Part(calls, failures, slow, int(number), latest + offset))
            window._sum.calls += calls
            window._sum.failures += failures
            window._sum.slow += slow
        return window

    def _part_at(self, moment: float) -> _Part:
        """The part that a call belongs to which ended then, and no other later."""
        number, parts = (moment - self._origin) // self._width, self._parts
        if not parts or parts[-1].number != number:
            parts.append(_Part(number=int(number)))
        part = parts[-1]
        part.latest = moment
        return part

    def _drop_old(self, now: float) -> None:
        oldest, parts = (now - self._origin) // self._width - self.PARTS, self._parts
        while parts and parts[0].number <= oldest:
            gone = parts.pop(0)
            self._sum.calls -= gone.calls
            self._sum.failures -= gone.failures
            self._sum.slow -= gone.slow


def window_of(length: int | float, data: Any, offset: float) -> CountWindow | TimeWindow:
    """The window that `plain` has made data of; see `TimeWindow.of`."""
    if isinstance(length, float):
        return TimeWindow.of(length, data, offset)
    return CountWindow.of(length, bytearray(data, "ascii").translate(RESULTS))


def new_window(length: int | float) -> CountWindow | TimeWindow:
    """An empty window of `length` calls, or seconds where it is a float."""
    return CountWindow(length) if isinstance(length, int) else TimeWindow(length)
