"""The units of a map: blocks of items as read, chunks as sent, reports as received, pieces as delivered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any, NamedTuple

from opero.dataclass import dataclass

AIM = 0.02
"""Seconds of work in a chunk: long compared with the cost of sending it, short compared with the whole map."""
LEAST = 0.001
"""Seconds of work in a chunk below which smaller chunks towards the end gain nothing."""
FEW = 4
"""A chunk that would hold no more items than this holds one, so that no item waits for another."""
MOST = 4096


@dataclass(slots=True, eq=False)
class Block:
    """Items that were read together, and their results.

    Attributes:
        number: the number of blocks read before it.
        indices: the items' numbers in the source.
        items: the items themselves; they may be cleared when all have finished.
        values: the result of each item, or its exception if its position is in `failures`.
        failures: the positions that failed.
        left_out: the positions that have no result.
        given: the positions that were delivered before all had finished.
        done: the positions that have finished; None: all of them.
        pending: how many have not finished.
    """

    number: int
    indices: Sequence[int]
    items: list[Any]
    values: list[Any] = field(default_factory=list)
    failures: set[int] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)
    done: set[int] | None = field(default_factory=set)
    pending: int = field(init=False)

    def __post_init__(self) -> None:
        self.pending = len(self.items)

    def fill(self, values: list[Any]) -> None:
        """Record that all items have succeeded."""
        self.values = values
        self.pending = 0
        self.done = None

    def put(self, position: int, value: Any, *, failed: bool) -> None:
        """Record the outcome of one item."""
        if self.done is None or position in self.done:
            return
        if not self.values:
            self.values = [None] * len(self.indices)
        self.values[position] = value
        if failed:
            self.failures.add(position)
        self.done.add(position)
        self.pending -= 1
        if not self.pending:
            self.done = None

    def leave_out(self, position: int) -> None:
        """Record that one item is not run and has no result."""
        self.left_out.add(position)
        self.put(position, None, failed=False)

    def finished(self) -> Sequence[int]:
        """The positions that have finished, in order."""
        return range(len(self.indices)) if self.done is None else sorted(self.done)

    def prefix(self) -> range:
        """The finished positions after those given, up to the first that has not finished."""
        first = last = len(self.given)
        done, count = self.done, len(self.indices)
        while last < count and (done is None or last in done):
            last += 1
        return range(first, last)

    def unfinished(self) -> Sequence[int]:
        """The positions that have not finished, in order."""
        done = self.done
        return () if done is None else [each for each in range(len(self.indices)) if each not in done]


class Piece(NamedTuple):
    """Finished items of a block, ready for the reader; `positions` None: the whole block."""

    block: Block
    positions: Sequence[int] | None = None

    @property
    def size(self) -> int:
        return len(self.all_positions)

    @property
    def all_positions(self) -> Sequence[int]:
        return range(len(self.block.indices)) if self.positions is None else self.positions

    @property
    def has_failures(self) -> bool:
        failures = self.block.failures
        return bool(failures) and (self.positions is None or not failures.isdisjoint(self.positions))

    def outcomes(self) -> Iterator[tuple[int, int, Any, bool]]:
        """For each item: its position in the block, its index, its value, and whether it failed."""
        block = self.block
        for position in self.all_positions:
            if position in block.left_out:
                continue
            yield position, block.indices[position], block.values[position], position in block.failures

    def values(self) -> list[Any]:
        """The results, and the exceptions of items that failed."""
        block = self.block
        if self.positions is None and not block.left_out:
            return block.values
        return [block.values[position] for position in self.all_positions if position not in block.left_out]

    def take(self) -> list[Any]:
        """The results, as `values`; the block keeps none of them."""
        block = self.block
        if self.positions is None and not block.left_out:
            values, block.values = block.values, []
            return values
        values = self.values()
        for position in self.all_positions:
            block.values[position] = None
        return values

    def copy(self) -> Piece:
        """The same items in a block of their own, which keeps no others alive."""
        kept, block, positions = self.block, Block(self.block.number, [], []), self.all_positions
        block.indices = [kept.indices[position] for position in positions]
        block.items = [kept.items[position] for position in positions] if kept.items else []
        block.fill([kept.values[position] for position in positions])
        block.failures = {place for place, position in enumerate(positions) if position in kept.failures}
        block.left_out = {place for place, position in enumerate(positions) if position in kept.left_out}
        return Piece(block)


@dataclass(slots=True, eq=False)
class Chunk:
    """Items that are sent together: a whole block, or items of several blocks.

    Attributes:
        items: the items.
        block: the block, if they are all of its items in order; None: see `places`.
        places: the block and position of each item.
        keep_going: a failed item does not end the chunk.
        suspect: how many workers its item may have killed; if any, it has a worker to itself.
        is_solo: nothing else of the map runs beside it.
        is_unreadable: a worker could not unpickle its items together.
    """

    items: list[Any]
    block: Block | None = None
    places: list[tuple[Block, int]] | None = None
    keep_going: bool = True
    suspect: int = 0
    is_solo: bool = False
    is_unreadable: bool = False

    def place(self, position: int) -> tuple[Block, int]:
        """The block and position of an item of the chunk."""
        if self.block is not None:
            return self.block, position
        assert self.places is not None
        return self.places[position]

    def index(self, position: int) -> int:
        """The index of an item of the chunk in the source."""
        block, at = self.place(position)
        return block.indices[at]

    def part(self, positions: Sequence[int]) -> Chunk:
        """A chunk of some of its items."""
        return Chunk(
            [self.items[each] for each in positions],
            places=[self.place(each) for each in positions],
            keep_going=self.keep_going,
            is_unreadable=self.is_unreadable,
        )

    def same_part(self, positions: Sequence[int]) -> Chunk:
        """A chunk of some of its items, of which the same is known."""
        part = self.part(positions)
        part.suspect, part.is_solo = self.suspect, self.is_solo
        return part


@dataclass(slots=True, eq=False)
class Report:
    """The results of a chunk, or of a part of it.

    Attributes:
        values: the results of the items at `positions`, or of the first items if that is None; the exception of an item
            in `failures`.
        failures: the positions in the chunk that failed.
        fell_back: the positions that a fallback answered; their results are not cached.
        seconds: how long they took together.
        is_last: no further report of the chunk follows: its other items were not started.
        again: chunks to send in its place; None: its unfinished items are sent again.
    """

    values: list[Any]
    failures: list[int] = field(default_factory=list)
    positions: list[int] | None = None
    fell_back: list[int] = field(default_factory=list)
    seconds: float = 0.0
    is_last: bool = True
    again: list[Chunk] | None = None

    def so_far(self) -> Report:
        """A snapshot while another thread adds to it, which adds a failure before its value."""
        values = list(self.values)
        count = len(values)
        failures = [each for each in list(self.failures) if each < count]
        return Report(values, failures, fell_back=[each for each in list(self.fell_back) if each < count])

    def leave_interrupted(self) -> None:
        """Leave out items that were interrupted in their workers, as if they had not been started."""
        hit = {place for place, value in enumerate(self.values) if _was_interrupted(value)}
        if not hit:
            return
        positions = list(range(len(self.values))) if self.positions is None else self.positions
        lost = {positions[place] for place in hit}
        self.positions = [each for each in positions if each not in lost]
        self.values = [value for place, value in enumerate(self.values) if place not in hit]
        self.failures = [each for each in self.failures if each not in lost]

    def is_whole(self, count: int) -> bool:
        """Whether it has the results of that many items, in order."""
        positions = self.positions
        return len(self.values) == count and (positions is None or positions == list(range(count)))

    def split(self) -> Report:
        """Move its contents to another report."""
        report = Report(self.values, self.failures, positions=self.positions, fell_back=self.fell_back)
        self.values, self.failures, self.positions, self.fell_back = [], [], [], []
        return report


def interrupted(error: KeyboardInterrupt) -> Exception:
    """The failure of an item that raised `KeyboardInterrupt` in its worker."""
    failure = RuntimeError("the item was interrupted in its worker, by itself: the program was not")
    failure.__cause__ = error
    return failure


def _was_interrupted(value: Any) -> bool:
    return isinstance(value, RuntimeError) and isinstance(value.__cause__, KeyboardInterrupt)


class ChunkSize:
    """The size of the next chunk.

    Args:
        window: the most items read and not consumed; None: no limit.
        grain: items that belong together: a batch.

    Attributes:
        learned: the size that suits the items so far.
        most: an upper limit, set while memory is scarce; None: there is none.
    """

    def __init__(self, window: int | None, grain: int) -> None:
        self.learned = 1
        self.most: int | None = None
        self._window = window
        self._grain = grain
        self._least = 1
        self._rates: deque[float] = deque(maxlen=8)

    def learn(self, report: Report, concurrency: int) -> None:
        """Learn from a report how long an item takes."""
        count = len(report.values)
        if not count:
            return
        self._rates.append(max(report.seconds, 1e-7) / count)
        rate = len(self._rates) / sum(self._rates)
        size, self._least = int(AIM * rate), int(LEAST * rate)
        size = max(size, concurrency * FEW) if concurrency > 1 else size if size > FEW else 1
        self.learned = max(1, min(MOST, self.learned * 4, size))

    def next(self, slots: int, at_once: int, left: int | None, fixed: int | None) -> int:
        """Return the number of items in the next chunk.

        Args:
            slots: chunks that may be in flight.
            at_once: chunks that run at a time.
            left: items left, if known: towards the end no worker is left alone with a long chunk.
            fixed: the size that the workers demand, or None.
        """
        size = fixed or self.learned
        if left is not None:
            size = min(size, max(left // slots + 1, min(self._least, left // at_once)))
        if self._window is not None:
            size = min(size, self._window // slots)
        if self.most is not None:
            size = min(size, self.most)
        return max(1, size)

    def whole(self, size: int) -> int:
        """As many whole batches as that comes to."""
        return max(1, size // self._grain) * self._grain

    def shrink(self) -> int:
        """Halve the next chunks, and return their new limit."""
        self.most = max(1, min(self.learned, self.most or MOST) // 2)
        return self.most
