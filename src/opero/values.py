"""Plain results that users receive: the progress of a map, what a cache holds, what `tune` measured."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from opero.dataclass import dataclass

T = TypeVar("T")


class CacheInfo(NamedTuple):
    """What a function's cache holds and has done.

    Attributes:
        hits: calls answered from the cache since it was cleared; stale results count.
        misses: calls that the cache could not answer since then.
        size: results held now; None if the store cannot tell or is unavailable.
        evictions: results that the memory backend has dropped since then because it was full.
        max_size: the most results that the memory backend keeps; None if there is no limit.
    """

    hits: int
    misses: int
    size: int | None
    evictions: int
    max_size: int | None


class CacheEntry(NamedTuple, Generic[T]):
    """A cached result, which may be None, with its times.

    Attributes:
        value: the result.
        age: seconds since it was stored.
        time_left: seconds until its `ttl` ends; 0 or less if it is stale, and None if it has no end.
    """

    value: T
    age: float
    time_left: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a map has come.

    Attributes:
        name: the name of the mapped function.
        done: items finished: succeeded, failed, or answered by a cache or a journal.
        total: all items; None if the number is unknown.
        failures: items that failed.
        retries: attempts after the first, summed over all items, since the map started.
        cache_hits: calls answered by the cache since the map started.
        seconds: seconds since the map started.
    """

    name: str
    done: int
    total: int | None
    failures: int
    retries: int
    cache_hits: int
    seconds: float

    @property
    def rate(self) -> float:
        """Items a second, averaged over the whole map."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds until the map is finished; None if that is unknown."""
        if self.total is None or not self.done:
            return None
        return max(0, self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        text = f"{self.name}: {self.done:,}"
        text += f" of {self.total:,} items, {100 * self.done // self.total}%" if self.total else " items"
        text += f", {self.rate:,.0f}/s" if self.rate >= 100 else f", {self.rate:.3g}/s"
        if self.remaining is not None and self.done < (self.total or 0):
            text += f", {_rough_duration(self.remaining)} left"
        counts = {"failures": self.failures, "retries": self.retries, "cache hits": self.cache_hits}
        return text + "".join(f", {count:,} {what}" for what, count in counts.items() if count)


def _rough_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, slots=True)
class ItemCost:
    """What one item costs, as measured.

    Attributes:
        seconds: wall-clock seconds.
        computed: seconds of CPU time among them.
    """

    seconds: float
    computed: float

    @property
    def share(self) -> float:
        """The fraction of its time that an item spends computing, from 0 to 1."""
        return min(1.0, self.computed / self.seconds) if self.seconds > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of running a sample, as `tune` measured it.

    Attributes:
        mode: "sequential", or a mode of `ParallelPolicy`.
        workers: items in flight at once.
        rate: items a second.
        cpu: CPU seconds of this process for each second. For "sequential", time spent waiting for a busy processor is
            left out.
        batch_size: items a call, for functions that take lists; else None.
    """

    mode: str
    workers: int
    rate: float
    cpu: float
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `tune` recommends, and what it measured.

    Attributes:
        function: the name of the function.
        bound_by: what its time is spent on: "cpu", "io" or "both".
        mode: the recommended mode; "sequential" if no mode is faster than one item after the other ("async" for an
            async function).
        workers: the recommended number of workers.
        batch_size: items a call, for functions that take lists; else None.
        gain: speed relative to one item after the other: measured, or estimated if there was no time to measure.
        seconds: wall-clock seconds of one item.
        measurements: everything that was measured.
    """

    function: str
    bound_by: Literal["cpu", "io", "both"]
    mode: str
    workers: int
    batch_size: int | None
    gain: float
    seconds: float
    measurements: tuple[Measurement, ...] = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The recommendation as options of `@opmap`."""
        options: dict[str, Any] = {
            "mode": "thread" if self.mode == "sequential" else self.mode,
            "workers": self.workers,
        }
        return options if self.batch_size is None else {**options, "batch_size": self.batch_size}

    def __str__(self) -> str:
        what = {"cpu": "computes", "io": "waits", "both": "computes and waits"}[self.bound_by]
        lines = [
            (
                f"{self.function} {what} ({self.seconds * 1000:.3g} ms an item): "
                f"mode={self.mode!r}, workers={self.workers}"
                f"{f', batch_size={self.batch_size}' if self.batch_size else ''}, {self.gain:.1f} times as fast"
            )
        ]
        for each in self.measurements:
            batch = f", batches of {each.batch_size}" if each.batch_size else ""
            lines.append(
                f"  {each.mode:14}{each.workers:4} at a time{batch}: {each.rate:10,.1f}/s, CPU {each.cpu:4.0%}"
            )
        return "\n".join(lines)
