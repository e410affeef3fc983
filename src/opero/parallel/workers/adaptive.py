"""Workers as many as the service serves best, that the items call: their number is found by what items take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from opero.events import LimitChanged
from opero.executors.state.adaptive_limit import Sample, learn, new_limit
from opero.parallel.workers.base import AHEAD
from opero.parallel.workers.chunk_runner import STOP
from opero.parallel.workers.event_loop import CHUNK, LoopWorkers
from opero.parallel.workers.threads import ThreadWorkers
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import MutableSequence, Sequence
    from contextvars import Context

    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Chunk, Report
    from opero.parallel.engine.inbox import AsyncInbox, Inbox
    from opero.parallel.workers.chunk_runner import ChunkRunner

FIRST = 4
"""How many workers there are at first."""
AT_MOST_EVERY = 1.0
"""Seconds between two events of one map."""


class WorkerLimit:
    """How many items of a map run at once. The caller holds a lock where several threads use it.

    Args:
        most: the most that the limit becomes.
        monotonic: tells the time.
        stats: of the function, which emits the events.
    """

    def __init__(self, most: int, monotonic: Callable[[], float], stats: Stats) -> None:
        self.state = new_limit(1, most, FIRST)
        self.monotonic = monotonic
        self.running = 0
        self._stats = stats
        self._told = self.state.found, monotonic()
        self._telling = RenewedLock()

    @property
    def limit(self) -> int:
        """How many items may run at once now."""
        return self.state.limit

    def begin(self) -> tuple[int, int, float]:
        """Begin an item; return what `end` needs."""
        self.running += 1
        return self.state.era, self.running, self.monotonic()

    def end(self, begun: tuple[int, int, float], calls: int, ok: float) -> None:
        """End an item, or several that ran one after another.

        Args:
            begun: what `begin` has returned.
            calls: how many there were; 0 if they say nothing.
            ok: which share of them has succeeded.
        """
        self.running -= 1
        if calls:
            era, in_flight, started = begun
            self.state = learn(self.state, Sample(era, in_flight, self.monotonic() - started, ok, calls=calls))

    def tell(self) -> None:
        """Emit an event if the limit has become another one. Without the lock."""
        if self.state.found == self._told[0]:
            return
        with self._telling:
            (told, at), found, now = self._told, self.state.found, self.monotonic()
            if found == told or now - at < AT_MOST_EVERY:
                return
            self._told = found, now
        self._stats.emit(LimitChanged, what="workers", before=told, after=found)


class AdaptiveLoopWorkers(LoopWorkers):
    """As many tasks as a limit says: those that are too many end with their item.

    Args:
        work: what to do with an item.
        limit: how many run at once.
        inbox: where the reports go.
        context: each task has a copy of it.
    """

    def __init__(self, work: ChunkRunner, limit: WorkerLimit, inbox: AsyncInbox, context: Context) -> None:
        super().__init__(work, limit.limit, inbox, context)
        self._limit = limit
        self._work: Any = _Measured(work, self)

    def _chunks_left(self) -> bool:
        return self._sharing <= self._count and super()._chunks_left()

    def _next_units(self) -> Iterator[tuple[Chunk, int, Any]]:
        return _Units(self, super()._next_units())

    @property
    def has_too_many(self) -> bool:
        """Whether a task is to end."""
        return self._sharing > self._count

    async def run_unit(self, work: ChunkRunner, position: int, argument: Any, report: Report) -> bool:
        """As that of `ChunkRunner`, and measured."""
        limit = self._limit
        begun, calls, succeeded = limit.begin(), 0, False
        try:
            succeeded = await work.run_unit(position, argument, report)
            calls = 1
        finally:
            limit.end(begun, calls, float(succeeded))
        if limit.limit != self._count:
            self._resize(limit.limit)
        limit.tell()
        return succeeded

    def _resize(self, count: int) -> None:
        self._count, self.slots, self.size = count, 2 * count, min(CHUNK, count)
        self.most_items = 2 * count * (self._work.batch_size or 1) + CHUNK
        if self._sharing < count and self._chunks_left():
            self._share(count - self._sharing)


class _Measured:
    """A chunk runner, for tasks whose items are measured."""

    def __init__(self, work: ChunkRunner, workers: AdaptiveLoopWorkers) -> None:
        self.batch_size = work.batch_size
        self.units = work.units
        self._work = work
        self._workers = workers

    async def run_unit(self, position: int, argument: Any, report: Report) -> bool:
        return await self._workers.run_unit(self._work, position, argument, report)


class _Units:
    """What tasks share; it has nothing for those that are too many."""

    def __init__(self, workers: AdaptiveLoopWorkers, units: Iterator[tuple[Chunk, int, Any]]) -> None:
        self._workers = workers
        self._units = units

    def __iter__(self) -> Iterator[tuple[Chunk, int, Any]]:
        return self

    def __next__(self) -> tuple[Chunk, int, Any]:
        if self._workers.has_too_many:
            raise StopIteration
        return next(self._units)


class AdaptiveThreadWorkers(ThreadWorkers):
    """Threads of which as many run a chunk as a limit says; the others wait.

    Args:
        work: what to do with a chunk.
        limit: how many run at once.
        inbox: where the reports go.
        context: a copy of it surrounds each chunk's calls.

    Attributes:
        arrived: how many chunks have been taken by a thread.
    """

    def __init__(self, work: ChunkRunner, limit: WorkerLimit, inbox: Inbox, context: Context) -> None:
        super().__init__(work, limit.limit, inbox, context)
        self._limit = limit
        self._gate = threading.Condition()
        self.arrived = self._admitted = 0
        self._run, self._work = work.run, self  # type: ignore[assignment]  # the threads ask it to `run`

    def after_fork(self) -> None:
        self._gate = threading.Condition()
        super().after_fork()

    def run(
        self, items: Sequence[Any], control: MutableSequence[int], report: Report, *, keep_going: bool = True
    ) -> None:
        """As that of `ChunkRunner`, and measured. Chunks run in the order in which they arrive here."""
        limit, gate = self._limit, self._gate
        with gate:
            place = self.arrived
            self.arrived += 1
            while (place != self._admitted or limit.running >= limit.limit) and not control[STOP]:
                gate.wait()
            self._admitted += 1
            begun = limit.begin()
            gate.notify_all()  # it may be the turn of the next one, too
        try:
            self._run(items, control, report, keep_going=keep_going)
        finally:
            calls = 0 if control[STOP] else len(report.values)
            with gate:
                limit.end(begun, calls, 1 - len(report.failures) / calls if calls else 0.0)
                self._count, self.slots = limit.limit, limit.limit * AHEAD
                gate.notify_all()
            limit.tell()
            del items, report

    def stop(self) -> None:
        super().stop()
        with self._gate:
            self._gate.notify_all()
