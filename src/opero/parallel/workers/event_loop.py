"""Workers in the running event loop: tasks that share one iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from opero.parallel.engine.blocks import Report
from opero.parallel.workers.base import Workers
from opero.parallel.workers.chunk_runner import Pause

if TYPE_CHECKING:
    from contextvars import Context

    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.engine.inbox import AsyncInbox
    from opero.parallel.workers.chunk_runner import ChunkRunner

CHUNK = 256


class LoopWorkers(Workers):
    """Tasks that take one item after another from all chunks. Each result is reported at once.

    Args:
        work: what to do with an item.
        count: the most tasks.
        inbox: where the reports go.
        context: each task has a copy of it.
    """

    def __init__(self, work: ChunkRunner, count: int, inbox: AsyncInbox, context: Context) -> None:
        self.slots = 2 * count
        self.most_items = 2 * count * (work.batch_size or 1) + CHUNK
        self.size = min(CHUNK, count)
        self._work = work
        self._count = count
        self._inbox = inbox
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[Chunk] = deque()
        self._is_used_up = True
        self._units: Iterator[tuple[Chunk, int, Any]] = iter(())
        self._tasks: set[asyncio.Task[None]] = set()
        self._sharing = 0  # tasks that will take another item; one that is about to end does not
        self._reports: dict[Chunk, Report] = {}
        self._left: dict[Chunk, int] = {}
        self._changed: dict[Chunk, None] = {}
        self._pause = Pause()
        self._is_stopped = False

    def submit(self, chunk: Chunk) -> None:
        if self._is_stopped:
            self._inbox.put_here((chunk, Report([])))
            return
        self._chunks.append(chunk)
        self._left[chunk] = len(chunk.items)
        self._reports[chunk] = Report([], positions=[])
        self._share(min(len(chunk.items), self._count - self._sharing))

    def _share(self, tasks: int) -> None:
        """Start that many tasks more."""
        for _ in range(tasks):
            self._sharing += 1
            task = self._loop.create_task(self._take_items_counted(), context=self._context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._end)

    def _next_units(self) -> Iterator[tuple[Chunk, int, Any]]:
        self._is_used_up = False
        while self._chunks:
            chunk = self._chunks.popleft()
            for position, argument in self._work.units(chunk.items):
                yield chunk, position, argument
        self._is_used_up = True

    async def _take_items_counted(self) -> None:
        try:
            await self._take_items()
        finally:
            self._sharing -= 1

    async def _take_items(self) -> None:
        run, changed = self._work.run_unit, self._changed
        while self._chunks_left():
            for chunk, position, argument in self._units:
                if self._is_stopped:
                    break
                try:
                    succeeded = await run(position, argument, self._reports[chunk])
                except BaseException as error:
                    # An item that cancels its task ends the map as if its reader had been cancelled.
                    self._inbox.put_here((chunk, error))
                    raise
                if not changed:
                    self._loop.call_soon(self._report_finished)
                changed[chunk] = None
                if not succeeded and not chunk.keep_going:
                    self._report_finished()  # before what is sent until the reader knows of it comes back
                    self.stop()
                if self._pause.is_due():
                    await asyncio.sleep(0)

    def _chunks_left(self) -> bool:
        """Whether the shared iterator has an item; makes a new iterator if needed."""
        if self._is_stopped or (not self._chunks and self._is_used_up):
            return False
        if self._is_used_up:
            self._units = self._next_units()
        return True

    def _report_finished(self) -> None:
        """Report what has finished."""
        changed = list(self._changed)
        self._changed.clear()
        for chunk in changed:
            if chunk not in self._left:  # it was given back before this finished
                continue
            report = self._reports[chunk].split()  # running items add to the same report
            left = self._left[chunk] = self._left[chunk] - len(report.values)
            report.is_last = not left
            if not left:
                del self._reports[chunk], self._left[chunk]
            self._inbox.put_here((chunk, report))

    def stop(self) -> None:
        self._is_stopped = True
        if not self._tasks:
            self._return_chunks()

    def resume(self) -> None:
        self._is_stopped = False
        self._chunks.clear()
        self._reports.clear()
        self._units, self._is_used_up = iter(()), True

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._is_stopped and not self._tasks:
            self._return_chunks()

    def _return_chunks(self) -> None:
        """Give back the items that were not started."""
        self._report_finished()
        for chunk in list(self._left):
            self._inbox.put_here((chunk, Report([], positions=[])))
        self._left.clear()

    def interrupt(self) -> None:
        self._return_chunks()

    async def close(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
