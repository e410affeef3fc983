"""The engine of every map: a bounded window of chunks over some workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from opero.parallel.engine.blocks import Block, Chunk, ChunkSize, Report
from opero.parallel.engine.delivery import Delivery
from opero.runtime import forking

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Piece
    from opero.parallel.engine.inbox import Inbox, Message
    from opero.parallel.engine.source import Source
    from opero.parallel.engine.stage import Stage
    from opero.parallel.workers.base import Workers
    from opero.runtime.hosts import Host

READ_AHEAD = 4
"""How many windows of items may be read and not consumed, unless the policy says."""
LAST_ITEM, LAST_REPORT = 0.05, 0.3
"""Seconds that items have to finish when a map is ended, and that workers then have to report without them."""
STOCK = 50_000
"""The most items read at once if a stage answers nearly all of them."""


class Window:
    """Reads items, sends them in chunks, and hands out what has finished.

    Args:
        source: the items.
        workers: they may be replaced while nothing is under way.
        inbox: where the workers' reports arrive.
        host: how the reader of the results waits.
        size: the most items read and not consumed; None: as many as suit their speed.
        grain: items that belong together: a batch.
        ordered: hand out in the order of the source.
        keeps: hand out nothing: `blocks` and `pieces` are read at the end.
        stages: what may answer items beforehand.
        continues: called after failures; whether to continue.
        keep_going: a failed item does not end its chunk.
        completes: when a failure stops the map, run the items before it all the same.

    Attributes:
        finished, failed: items so far.
        is_stopped: nothing more is started, except items before the first failure if this `completes` them.
        most_chunks: chunks that may be under way, if fewer than the workers' slots.
        chunk_size: of the next chunk.
        patience: seconds after which to `watch` even if nothing has arrived; None: never.
        watch: called between reports.
    """

    def __init__(
        self,
        source: Source,
        workers: Workers,
        inbox: Inbox,
        host: Host,
        *,
        size: int | None = None,
        grain: int = 1,
        ordered: bool = True,
        keeps: bool = False,
        stages: Sequence[Stage] = (),
        continues: Callable[[], bool] = lambda: True,
        keep_going: bool = True,
        completes: bool = False,
    ) -> None:
        self.source = source
        self.workers = workers
        self.inbox = inbox
        self.host = host
        self.size = size
        self.grain = grain
        self.keeps = keeps
        self.stages = stages
        self.continues = continues
        self.keep_going = keep_going
        self.completes = completes
        self.under_way: set[Chunk] = set()
        self.waiting: deque[Chunk] = deque()
        self.finished = self.failed = 0
        self.is_stopped = False
        self.most_chunks: int | None = None
        self.patience: float | None = None
        self.watch: Callable[[], None] = lambda: None
        self.chunk_size = ChunkSize(size, grain)
        self._delivery = Delivery(ordered=ordered, keeps=keeps)
        self._items_under_way = self._read = self._number = 0
        self._missing: deque[tuple[Block, int]] = deque()  # items read, neither answered nor in a chunk
        self._has_stopped_workers = self._is_ended = False
        self._first_failure: int | None = None  # its index, while the items before it are to be run
        self._answered = 0.0  # the fraction of the last items that stages have answered
        self._generation = forking.generation

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child, and workers, journal and display are those of the parent."""
        return self._generation != forking.generation

    @property
    def blocks(self) -> dict[int, Block]:
        """By number, the blocks of which something was not handed out."""
        return self._delivery.blocks

    @property
    def pieces(self) -> list[Piece]:
        """What is ready to be handed out."""
        return self._delivery.pieces

    # Sending

    async def step(self) -> list[Piece]:
        """What has finished, as soon as there is something; an empty list at the end.

        By calling this, the reader says that it has consumed what it was given before.
        """
        if self._delivery.consume() and not self.is_inherited:
            self.watch()  # the reader may have been away for long
        while True:
            if self.is_inherited:
                raise RuntimeError("a map does not continue in a forked child: it runs in the parent process")
            if not self.pieces or not self.source.is_slow:
                await self._fill()
            if self.pieces and not self.keeps:
                return self._delivery.hand_out()
            if not self.under_way and (self.is_over or self.is_stopped):
                if not self._has_earlier():
                    return []
                if self._has_stopped_workers:
                    self._has_stopped_workers = False
                    self.workers.resume()
                    continue
            awaits = not (self.source.has_arrived or self.is_stopped) and self._room > 0
            arriving = (self.source.arriving(self._room),) if awaits else ()
            self._receive(await self.inbox.get(self._patience, *arriving))
            self.workers.watch()
            self.watch()
            await self.settle()

    async def end(self) -> None:
        """Start nothing more, and take what has finished: the reader cannot wait for the rest.

        Raises:
            Exception: a stage could not write what it took. All that can be taken has been.
        """
        if self.is_inherited:
            return
        self.stop()
        self._is_ended = True
        await self._take_reports(LAST_ITEM)
        if self.under_way:
            self.workers.interrupt()
            await self._take_reports(LAST_REPORT)
        await self.settle()

    async def _take_reports(self, seconds: float) -> None:
        """Take reports until none has arrived for that long."""
        while self.under_way and (messages := await self.inbox.get(seconds)):
            with suppress(Exception):  # the map ends for another reason already
                self._receive([each for each in messages if each[0] in self.under_way])

    async def settle(self) -> None:
        """Have the stages write what they took."""
        for stage in self.stages:
            if stage.is_blocking:
                await self.host.offload(stage.settle)
            else:
                stage.settle()

    async def _fill(self) -> None:
        """Send chunks while there are free slots."""
        while not self._has_stopped_workers and self._has_slot:
            if self.waiting and self.waiting[0].is_solo and self.under_way:
                return
            chunk = self.waiting.popleft() if self.waiting else await self._next_chunk()
            if chunk is None:
                return
            self.under_way.add(chunk)
            self._items_under_way += len(chunk.items)
            self.workers.submit(chunk)
            del chunk  # workers in this thread have run it: exceptions of its items refer to this frame
            if self.source.is_slow:  # results do not wait for the next item
                if self.pieces or self.inbox.has_some:
                    return
                self.watch()

    async def _next_chunk(self) -> Chunk | None:
        """The next items that need a call; None if there are none now."""
        size = self.chunk_size.whole(self._next_size)
        while len(self._missing) < size and (self.stages or not self._missing):
            room = self._room
            if room <= 0 or not self._may_read:
                break
            wanted = min(room, size)
            if self.stages and self.most_chunks is None:  # if most are answered, read more
                wanted = min(room, max(size, int((size - len(self._missing)) / max(1 - self._answered, 1e-3))), STOCK)
            indices, items = self.source.read(wanted)
            if not items:
                continue
            block = Block(self._number, indices, items)
            self._number += 1
            self._read += len(items)
            self.blocks[block.number] = block
            if not self.stages:
                return self._chunk(Chunk(items, block))
            await self._ask_stages(block)
            self.watch()  # if a stage answers everything, nothing else calls it
            if self.is_stopped:
                return None
            if self.source.is_slow and self._missing:  # items do not wait until the chunk is full
                break
        if not self._missing:
            return None
        may_grow = not (self.source.is_exhausted or self.source.is_slow or self.is_stopped)
        if self.stages and len(self._missing) < size and may_grow and self.under_way:
            return None
        places = [self._missing.popleft() for _ in range(min(size, len(self._missing)))]
        return self._chunk(Chunk([block.items[position] for block, position in places], places=places))

    def _chunk(self, chunk: Chunk) -> Chunk:
        chunk.keep_going = self.keep_going and not any(stage.answers_failures for stage in self.stages)
        return chunk

    async def _ask_stages(self, block: Block) -> None:
        positions: Sequence[int] = range(len(block.items))
        for number, stage in enumerate(self.stages):
            asked = positions
            if stage.is_blocking:
                positions = await self.host.offload(stage.look, block, positions)
            else:
                positions = stage.look(block, positions)
            if number and len(positions) < len(asked):
                finished = set(asked) - set(positions)
                self._pass_on(number, block, sorted(finished if block.done is None else finished & block.done))
        self._missing.extend((block, position) for position in positions)
        answered = 1 - len(positions) / len(block.items)
        self._answered += (answered - self._answered) / 2
        done = len(block.items) - block.pending
        if done:
            self.finished += done
            self._hand_out(block, block.finished() if block.pending else None)

    def _pass_on(self, number: int, block: Block, positions: Sequence[int]) -> None:
        """Pass what a stage has answered to the stages before it."""
        for stage in self.stages[:number]:
            for at in positions:
                stage.took(block, at, block.values[at], failed=at in block.failures, keep=True)

    # Sizes

    @property
    def _may_read(self) -> bool:
        return not self.is_stopped and not self.source.is_exhausted and self.source.has_arrived

    @property
    def _patience(self) -> float | None:
        return min((each for each in (self.patience, self.workers.patience) if each is not None), default=None)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be sent."""
        return self.source.is_exhausted and not self.waiting and not self._missing

    @property
    def _has_slot(self) -> bool:
        most, slots, under_way = self.workers.most_items, self.workers.slots, self.under_way
        if len(under_way) == 1 and next(iter(under_way)).is_solo:
            return False
        if self.most_chunks is not None:
            slots = min(slots, self.most_chunks)
        return len(under_way) < slots and (most is None or self._items_under_way < most)

    @property
    def _room(self) -> int:
        """How many items may be read."""
        workers, few = self.workers, self.most_chunks
        if self.keeps:
            return STOCK if few is None else self.chunk_size.whole(self._next_size) * max(1, few)
        if few is None:
            most = self.size or (workers.most_items or self._next_size * workers.slots) * READ_AHEAD
        else:
            most = self._next_size * max(1, few)
        return max(most, self.grain) - (self._read - self._delivery.consumed)

    @property
    def most_held(self) -> int:
        """How many chunks may be read and not consumed."""
        return self.workers.slots * (1 if self.keeps else READ_AHEAD)

    @property
    def has_results(self) -> bool:
        """Whether there is something to hand out."""
        return bool(self.pieces) and not self.keeps

    @property
    def _next_size(self) -> int:
        workers = self.workers
        return self.chunk_size.next(workers.slots, workers.at_once, self.source.left, workers.size)

    # Receiving

    def _receive(self, messages: Sequence[Message]) -> None:
        """Take all reports of some messages, also if one of them ends the map."""
        error: BaseException | None = None
        for chunk, message in messages:
            try:
                if error is None or chunk in self.under_way:
                    self._take(chunk, self.workers.open(chunk, message))
            except BaseException as raised:  # noqa: BLE001  # raised below
                error = error or raised
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _take(self, chunk: Chunk, report: Report | BaseException) -> None:
        if isinstance(report, BaseException):
            self._leave(chunk)
            raise report
        if report.is_last:
            self._leave(chunk)
        if self._is_ended:  # Ctrl-C interrupts workers of executors as well
            report.leave_interrupted()
        self.chunk_size.learn(report, self.workers.concurrency)
        count = len(report.values)
        self.finished += count
        block = chunk.block
        if block is not None and not self.stages and not report.failures and report.is_whole(len(block.indices)):
            block.fill(report.values)
            self._hand_out(block, None)
        elif count:
            try:
                self._distribute(chunk, report)
            finally:
                report.values.clear()  # the thread that has put it may hold it for a moment
        if report.again is not None:
            self.waiting.extendleft(reversed(report.again))
        elif report.is_last and count < len(chunk.items):
            self._take_back(chunk)

    def _leave(self, chunk: Chunk) -> None:
        self.under_way.discard(chunk)
        self._items_under_way -= len(chunk.items)

    def _distribute(self, chunk: Chunk, report: Report) -> None:
        """Record a report's values in their blocks.

        Raises:
            Exception: a stage has failed, such as a journal on a full disk. All values are recorded nevertheless.
        """
        failures, fell_back = set(report.failures), set(report.fell_back)
        touched: dict[Block, list[int]] = {}
        positions = range(len(report.values)) if report.positions is None else report.positions
        error: Exception | None = None
        for position, got in zip(positions, report.values, strict=True):
            block, at = chunk.place(position)
            value, failed = got, position in failures
            try:
                for stage in reversed(self.stages):
                    value, failed = stage.took(block, at, value, failed=failed, keep=position not in fell_back)
            except Exception as raised:  # noqa: BLE001  # raised below
                error = error or raised
            block.put(at, value, failed=failed)
            touched.setdefault(block, []).append(at)
        for number, stage in enumerate(self.stages):
            for block, at in stage.followers():
                self.finished += 1
                touched.setdefault(block, []).append(at)
                self._pass_on(number, block, [at])
        for block, finished in touched.items():
            self._hand_out(block, finished)
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _take_back(self, chunk: Chunk) -> None:
        """Queue the items of a chunk that were not started before all others."""
        places = [chunk.place(position) for position in range(len(chunk.items))]
        rest = [each for each, (block, at) in enumerate(places) if block.done is not None and at not in block.done]
        if rest and chunk.suspect:  # its item may have killed workers, which counts when it runs again
            self.waiting.appendleft(chunk.same_part(rest))
        else:
            self._missing.extendleft(places[each] for each in reversed(rest))

    def _hand_out(self, block: Block, positions: Sequence[int] | None) -> None:
        """Count what has finished of a block, and deliver it; None: all of it."""
        if block.failures:
            failed = block.failures if positions is None else block.failures.intersection(positions)
            self.failed += len(failed)
            if failed and not self.continues():
                self._stop_at(min(block.indices[each] for each in failed))
        if not block.pending:
            for stage in self.stages:
                stage.forget(block)
            if not block.failures:
                block.items = []
        self._delivery.add(block, positions)

    # The end

    def stop(self) -> None:
        """Start nothing more; what runs may finish."""
        self.is_stopped = True
        self._first_failure = None
        self._stop_workers()

    def _stop_at(self, index: int) -> None:
        """Stop because of a failed item, but for the items before it if this `completes` them."""
        if not self.completes:
            self.stop()
        elif self._first_failure is not None or not self.is_stopped:
            self.is_stopped = True
            self._first_failure = index if self._first_failure is None else min(index, self._first_failure)
            self._stop_workers()

    def _stop_workers(self) -> None:
        if not self._has_stopped_workers:
            self._has_stopped_workers = True
            self.workers.stop()

    def _has_earlier(self) -> bool:
        """Whether items before the first failure are left. Drops all others, which are not run."""
        first = self._first_failure
        if first is None:
            return False
        self._missing = deque((block, at) for block, at in self._missing if block.indices[at] < first)
        waiting, self.waiting = self.waiting, deque()
        for chunk in waiting:
            positions = [each for each in range(len(chunk.items)) if chunk.index(each) < first]
            if positions:
                self.waiting.append(chunk.same_part(positions))
        return bool(self._missing or self.waiting)
