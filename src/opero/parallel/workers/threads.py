"""Workers in threads of this process, or in the caller's own thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.parallel.engine.blocks import Report
from opero.parallel.workers.base import AHEAD, Workers
from opero.parallel.workers.chunk_runner import STOP
from opero.runtime import forking
from opero.runtime.machine import queued

if TYPE_CHECKING:
    import contextvars

    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.workers.chunk_runner import ChunkRunner

MOST_IDLE = 64

_idle: list[tuple[queue.SimpleQueue[Callable[[], None]], int]] = []
"""The queues and identifiers of threads that wait for the next map."""


forking.at_fork(in_child=_idle.clear)


def in_thread(function: Callable[[], None]) -> None:
    """Run a function in an idle thread or a new one. The threads are daemons: the program does not wait for them."""
    try:
        _idle.pop()[0].put(function)
    except IndexError:
        own: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        own.put(function)
        threading.Thread(target=_serve, args=(own,), name="opero-map", daemon=True).start()


def idle_threads() -> list[int]:
    """Return the identifiers of the threads that wait for the next map."""
    return [thread for _, thread in _idle.copy()]


def _serve(own: queue.SimpleQueue[Callable[[], None]]) -> None:
    generation = forking.generation
    while True:
        own.get()()
        if generation != forking.generation:  # the function has forked: the pool is in the parent
            return
        if len(_idle) >= MOST_IDLE:
            return
        _idle.append((own, threading.get_ident()))


class ThreadWorkers(Workers):
    """Threads that take chunks from one queue.

    Args:
        work: what to do with a chunk.
        count: the most threads.
        inbox: where the reports go.
        context: a copy of it surrounds each chunk's calls.
    """

    def __init__(self, work: ChunkRunner, count: int, inbox: Inbox, context: contextvars.Context) -> None:
        self.slots = count * AHEAD
        self._count = count
        self._work = work
        self._inbox = inbox
        self._started = 0
        self._control = [0, 0, 0]
        self._context = context
        self._chunks: queue.SimpleQueue[tuple[Chunk, Report] | None] = queue.SimpleQueue()
        self._reports: dict[Chunk, Report] = {}
        forking.renew_in_child(self)

    def after_fork(self) -> None:
        """Start no further item: the parent runs them."""
        self._control[STOP] = 1
        self._chunks.put(None)

    def submit(self, chunk: Chunk) -> None:
        report = self._reports[chunk] = Report([])
        self._chunks.put((chunk, report))
        if self._started < min(self._count, len(self._reports)):
            self._started += 1
            in_thread(self._take_chunks)

    def open(self, chunk: Chunk, message: Any) -> Report | BaseException:
        self._reports.pop(chunk, None)
        return super().open(chunk, message)

    def _take_chunks(self) -> None:
        run, put, get, control = self._work.run, self._inbox.put, self._chunks.get, self._control
        while (taken := get()) is not None:
            chunk, report = taken
            context = self._context.copy()  # what an item sets is seen within its chunk at most, as in a process
            try:
                context.run(run, chunk.items, control, report, keep_going=chunk.keep_going)
                put((chunk, report))
            except BaseException as error:  # noqa: BLE001  # raised where the results are read
                put((chunk, error))
            del taken, chunk, report

    def interrupt(self) -> None:
        """Report what has finished: a running item of a thread cannot be ended."""
        for chunk, report in self._reports.items():
            self._inbox.put((chunk, report.so_far()))

    def stop(self) -> None:
        """Start no further item. Chunks come back with what they have."""
        self._control[STOP] = 1

    def resume(self) -> None:
        self._control[STOP] = 0

    async def close(self) -> None:
        """Do not wait for what runs."""
        self.stop()
        for _ in range(self._started):
            self._chunks.put(None)


class InlineWorkers(Workers):
    """Runs chunks in the caller's own thread, and measures them.

    Args:
        work: what to do with a chunk.
        inbox: where the reports go.
        context: a copy of it surrounds each chunk's calls.

    Attributes:
        seconds, computed: how long the chunks have taken, but for waits for a processor that others used, and how much
            of that the thread has computed.
        done: how many items they had.
    """

    def __init__(self, work: ChunkRunner, inbox: Inbox, context: contextvars.Context) -> None:
        self.seconds = 0.0
        self.computed = 0.0
        self.done = 0
        self._work = work
        self._inbox = inbox
        self._control = [0, 0, 0]
        self._context = context
        self._running: tuple[Chunk, Report] | None = None

    def submit(self, chunk: Chunk) -> None:
        computed, waited, context = time.thread_time(), queued(), self._context.copy()
        report = Report([])
        self._running = chunk, report
        context.run(self._work.run, chunk.items, self._control, report, keep_going=chunk.keep_going)
        self._running = None
        self.computed += time.thread_time() - computed
        self.seconds += max(0.0, report.seconds - (queued() - waited))
        self.done += len(report.values)
        self._inbox.put((chunk, report))
        del chunk, report  # see `ChunkRunner.run`

    def interrupt(self) -> None:
        if self._running is not None:
            self._inbox.put(self._running)

    def stop(self) -> None:
        self._control[STOP] = 1

    def resume(self) -> None:
        self._control[STOP] = 0
