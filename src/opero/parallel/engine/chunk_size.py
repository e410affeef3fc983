"""How many items make a chunk, learned from the time that items take."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Report
    from opero.parallel.workers.base import Workers

__all__ = ["MOST", "ChunkSize"]

AIM = 0.02
"""Seconds of work in a chunk: long compared with the cost of sending it, short compared with the whole map."""
LEAST = 0.001
"""Seconds of work in a chunk below which smaller chunks towards the end gain nothing."""
FEW = 4
"""A chunk that would hold no more items than this holds one, so that no item waits for another."""
MOST = 4096


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

    def next(self, workers: Workers, left: int | None) -> int:
        """Items in the next chunk.

        Args:
            workers: the map's.
            left: items left, if known: towards the end no worker is left alone with a long chunk.
        """
        size = workers.size or self.learned
        if left is not None:
            size = min(size, max(left // workers.slots + 1, min(self._least, left // workers.at_once)))
        if self._window is not None:
            size = min(size, self._window // workers.slots)
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
