"""The engine of every map: a bounded window of chunks over some workers, sized by the time that they take."""

from __future__ import annotations

import heapq
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from opero.parallel.engine.blocks import Block, Chunk, Piece, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.engine.source import Source
    from opero.parallel.workers.base import Workers
    from opero.runtime.hosts import Host

__all__ = ["AIM", "MOST", "Stage", "Window"]

AIM = 0.02
"""Seconds of work in a chunk: long against what it costs to send, short against the whole."""
LEAST = 0.001
"""Seconds of work in a chunk, below which sending smaller ones towards the end gains nothing."""
FEW = 4
"""Where a chunk would hold no more items than this, it holds one: nobody waits for others then."""
MOST = 4096
READ_AHEAD = 4
"""How many windows' worth of items may be read and not consumed, unless the policy says."""
LAST_ITEM, LAST_REPORT = 0.05, 0.3
"""Seconds for what runs to end of itself, and then to be given back unfinished, when a map is ended."""
STOCK = 50_000
"""The most items that are read at one go where a stage answers nearly all of them."""


class Stage(Protocol):
    """What knows of items beforehand, and wants to know what becomes of the others: a cache, a journal.

    Attributes:
        is_blocking: `look` and `settle` wait for a disk or a network, and the reader of the results must not.
        answers_failures: it has an answer where an item fails.
    """

    is_blocking: bool

    @property
    def answers_failures(self) -> bool: ...

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        """Fill in the items at these positions that need no call; the positions of the others."""

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        """An item is finished: what it comes to, and whether that is a failure. Not to `keep`: a fallback gave it."""

    def followers(self) -> list[tuple[Block, int]]:
        """Items that were answered with what has been taken since this was last asked."""

    def settle(self) -> None:
        """Write what has come."""

    def forget(self, block: Block) -> None:
        """All items of a block are finished."""


class Window:
    """Reads items, sends them in chunks, and hands out what is finished.

    Args:
        source: the items.
        workers: who works on them; they may be replaced while nothing is under way.
        inbox: where the workers' reports come.
        host: what the reader of the results may do to wait.
        size: the most items that are read and not consumed; None: as suits their speed.
        grain: items that belong together: a batch.
        ordered: hand out in the order of the source.
        keeps: hand out nothing: who reads looks at `blocks` and `pieces` when all is done.
        stages: who knows of items beforehand.
        judge: is told when items have failed, and says whether to go on.
        keep_going: failed items do not end their chunk.

    Attributes:
        finished, failed: items so far.
        blocks: by number, the blocks of which something has not been handed out.
        pieces: what is ready to be handed out.
        is_stopped: nothing more is begun.
        most_chunks: chunks that may be under way, where that is fewer than the workers' slots.
        most_in_chunk: items that a chunk may hold, where that is fewer than suit their speed.
        patience: seconds after which to `watch`, though nothing has come; None: never.
        watch: is called between reports.
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
        stages: Sequence[Any] = (),
        judge: Callable[[], bool] = lambda: True,
        keep_going: bool = True,
    ) -> None:
        self.source = source
        self.workers = workers
        self.inbox = inbox
        self.host = host
        self.size = size
        self.grain = grain
        self.ordered = ordered
        self.keeps = keeps
        self.stages = stages
        self.judge = judge
        self.keep_going = keep_going
        self.blocks: dict[int, Block] = {}
        self.under_way: set[Chunk] = set()
        self._items_under_way = 0
        self.waiting: deque[Chunk] = deque()
        self.finished = 0
        self.failed = 0
        self.is_stopped = False
        self.most_chunks: int | None = None
        self.most_in_chunk: int | None = None
        self.patience: float | None = None
        self.watch: Callable[[], None] = lambda: None
        self._read = 0
        self._consumed = 0
        self._handed: list[Piece] = []
        self.pieces: list[Piece] = []
        self._complete: list[tuple[int, Block]] = []  # a heap, by the blocks' numbers
        self._next_block = 0
        self._number = 0
        self._missing: deque[tuple[Block, int]] = (
            deque()
        )  # items that were read, and are neither answered nor in a chunk
        self._answered = 0.0
        self._rates: deque[float] = deque(maxlen=8)
        self._chunk_size = 1
        self._least = 1

    # What waits

    async def step(self) -> list[Piece]:
        """What has been finished, as soon as there is something; an empty list at the end.

        By asking, whoever reads tells that all he was given before is consumed.
        """
        if self._handed:
            self._consume()
            self.watch()  # whoever reads may have been away for long
        while True:
            if not self.pieces or not self.source.is_slow:
                await self._fill()
            if self.pieces and not self.keeps:
                self._handed, self.pieces = self.pieces, []
                return self._handed
            if not self.under_way and (self.is_over or self.is_stopped):
                return []
            awaits = not (self.source.has_arrived or self.is_stopped) and self._room > 0
            arriving = (self.source.arriving(self._room),) if awaits else ()
            for chunk, message in await self.inbox.get(self._patience, *arriving):
                self._take(chunk, self.workers.open(chunk, message))
            self.workers.watch()
            self.watch()
            await self._settle()

    async def end(self) -> None:
        """Begin nothing more, and take what is finished. Whoever reads cannot wait for the rest any longer."""
        self.stop()
        await self._take_what_comes(LAST_ITEM)
        if self.under_way:
            self.workers.interrupt()
            await self._take_what_comes(LAST_REPORT)
        await self._settle()

    async def _take_what_comes(self, seconds: float) -> None:
        """Take reports until none has come for so long."""
        while self.under_way and (messages := await self.inbox.get(seconds)):
            for chunk, message in messages:
                with suppress(Exception):  # there is a reason already why the map ends
                    if chunk in self.under_way:
                        self._take(chunk, self.workers.open(chunk, message))

    async def _settle(self) -> None:
        for stage in self.stages:
            if stage.is_blocking:
                await self.host.offload(stage.settle)
            else:
                stage.settle()

    async def _fill(self) -> None:
        """Send what there is room for."""
        while not self.is_stopped and self._has_slot:
            if self.waiting and self.waiting[0].is_solo and self.under_way:
                return
            chunk = self.waiting.popleft() if self.waiting else await self._next_chunk()
            if chunk is None:
                return
            self.under_way.add(chunk)
            self._items_under_way += len(chunk.items)
            self.workers.submit(chunk)
            if self.source.is_slow:  # what has come meanwhile does not wait for the next item
                if self.pieces or self.inbox.has_some:
                    return
                self.watch()

    async def _next_chunk(self) -> Chunk | None:
        """The next items that need a call; None where there are none now."""
        size = self._whole(self._suitable_size())
        while len(self._missing) < size and (self.stages or not self._missing):
            room = self._room
            if room <= 0 or self.source.is_exhausted or not self.source.has_arrived:
                break
            wanted = min(room, size)
            if self.stages and self.most_chunks is None:  # where most are answered, more are read
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
            self.watch()  # where a stage answers all, there is nobody else to wait for
            if self.is_stopped:
                return None
            if self.source.is_slow and self._missing:  # what has come does not wait until it is a whole chunk
                break
        if not self._missing:
            return None
        may_grow = not self.source.is_exhausted and not self.source.is_slow
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
                self._tell(number, block, sorted(finished if block.done is None else finished & block.done))
        self._missing.extend((block, position) for position in positions)
        answered = 1 - len(positions) / len(block.items)
        self._answered += (answered - self._answered) / 2
        done = len(block.items) - block.pending
        if done:
            self.finished += done
            self._hand_out(block, block.finished() if block.pending else None)

    def _tell(self, number: int, block: Block, positions: Sequence[int]) -> None:
        """Tell the stages before one of what it has answered."""
        for stage in self.stages[:number]:
            for at in positions:
                stage.took(block, at, block.values[at], failed=at in block.failures, keep=True)

    # Sizes

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
            return STOCK if few is None else self._whole(self._suitable_size()) * max(1, few)
        if few is None:
            most = self.size or (workers.most_items or self._suitable_size() * workers.slots) * READ_AHEAD
        else:
            most = self._suitable_size() * max(1, few)
        return max(most, self.grain) - (self._read - self._consumed)

    @property
    def most_held(self) -> int:
        """How many chunks may be read and not consumed."""
        return self.workers.slots * (1 if self.keeps else READ_AHEAD)

    @property
    def has_results(self) -> bool:
        """Whether there is something to hand out."""
        return bool(self.pieces) and not self.keeps

    def _suitable_size(self) -> int:
        """Items in the next chunk."""
        size, slots = self.workers.size or self._chunk_size, self.workers.slots
        left = self.source.left
        if left is not None:  # so that towards the end no worker is left with the last long one alone
            size = min(size, max(left // slots + 1, min(self._least, left // self.workers.at_once)))
        if self.size is not None:
            size = min(size, self.size // slots)
        if self.most_in_chunk is not None:
            size = min(size, self.most_in_chunk)
        return max(1, size)

    def _whole(self, size: int) -> int:
        """As many whole batches as that comes to."""
        return max(1, size // self.grain) * self.grain

    def _learn(self, report: Report) -> None:
        """How long an item takes tells how many make a chunk."""
        count = len(report.values)
        if not count:
            return
        self._rates.append(max(report.seconds, 1e-7) / count)
        rate = len(self._rates) / sum(self._rates)
        size, self._least = int(AIM * rate), int(LEAST * rate)
        concurrency = self.workers.concurrency
        size = max(size, concurrency * FEW) if concurrency > 1 else size if size > FEW else 1
        self._chunk_size = max(1, min(MOST, self._chunk_size * 4, size))

    # What comes back

    def _take(self, chunk: Chunk, report: Report | BaseException) -> None:
        if isinstance(report, BaseException):
            self._leave(chunk)
            raise report
        if report.is_last:
            self._leave(chunk)
        self._learn(report)
        count = len(report.values)
        self.finished += count
        block = chunk.block
        if block is not None and not self.stages and not report.failures and report.is_whole(len(block.indices)):
            block.fill(report.values)
            self._hand_out(block, None)
        elif count:
            self._distribute(chunk, report)
        if report.again is not None:
            self.waiting.extendleft(reversed(report.again))
        elif report.is_last and count < len(chunk.items):
            self._take_back(chunk)

    def _leave(self, chunk: Chunk) -> None:
        self.under_way.discard(chunk)
        self._items_under_way -= len(chunk.items)
        self.workers.took(chunk)

    def _distribute(self, chunk: Chunk, report: Report) -> None:
        """Put a report's values where they belong."""
        failures, fell_back = set(report.failures), set(report.fell_back)
        touched: dict[Block, list[int]] = {}
        positions = range(len(report.values)) if report.positions is None else report.positions
        for position, got in zip(positions, report.values, strict=True):
            block, at = chunk.place(position)
            value, failed = got, position in failures
            for stage in reversed(self.stages):
                value, failed = stage.took(block, at, value, failed=failed, keep=position not in fell_back)
            block.put(at, value, failed=failed)
            touched.setdefault(block, []).append(at)
        for number, stage in enumerate(self.stages):
            for block, at in stage.followers():
                self.finished += 1
                touched.setdefault(block, []).append(at)
                self._tell(number, block, [at])
        for block, finished in touched.items():
            self._hand_out(block, finished)

    def _take_back(self, chunk: Chunk) -> None:
        """Items of a chunk that were not begun wait again, before all others."""
        places = [chunk.place(position) for position in range(len(chunk.items))]
        rest = [(block, at) for block, at in places if block.done is not None and at not in block.done]
        self._missing.extendleft(reversed(rest))

    def _hand_out(self, block: Block, positions: Sequence[int] | None) -> None:
        """Hand a block's finished items on: at once, or when their turn has come."""
        if block.failures:
            failed = len(block.failures) if positions is None else sum(each in block.failures for each in positions)
            self.failed += failed
            if failed and not self.judge():
                self.stop()
        if not block.pending:
            for stage in self.stages:
                stage.forget(block)
            if not block.failures:
                block.items = []
        if not self.ordered:
            self._give(block, positions)
            if not block.pending and not self.keeps:
                del self.blocks[block.number]
        elif not self.keeps:
            self._give_in_turn(block)

    def _give_in_turn(self, block: Block) -> None:
        """Hand on what is finished of a block if all before it is, and then what comes after it."""
        if not block.pending:
            heapq.heappush(self._complete, (block.number, block))
        while self._complete and self._complete[0][0] == self._next_block:
            _, block = heapq.heappop(self._complete)
            self._next_block += 1
            del self.blocks[block.number]
            self._give(block, block.prefix() if block.given else None)
        begun = self.blocks.get(self._next_block)
        if begun is not None and begun.done and (finished := begun.prefix()):
            self._give(begun, finished)

    def _give(self, block: Block, positions: Sequence[int] | None) -> None:
        if block.pending:
            assert positions is not None
            block.given.update(positions)
        self.pieces.append(Piece(block, positions))

    def _consume(self) -> None:
        for piece in self._handed:
            self._consumed += piece.size
        self._handed = []

    def shrink(self) -> int:
        """Have half as many items in the next chunks at most, and tell how many."""
        self.most_in_chunk = max(1, min(self._chunk_size, self.most_in_chunk or MOST) // 2)
        return self.most_in_chunk

    def stop(self) -> None:
        """Begin nothing more, and finish what runs."""
        if not self.is_stopped:
            self.is_stopped = True
            self.workers.stop()
