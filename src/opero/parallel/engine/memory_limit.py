"""Staying under `max_memory`: one item first, more as it shows what they take; then workers that begin anew."""

from __future__ import annotations

import ctypes
import gc
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from opero.observe.logs import logger
from opero.parallel.engine.chunk_size import MOST
from opero.runtime.machine import LEAST_WORKER, forget_peak, peak, resident

if TYPE_CHECKING:
    from opero.parallel.engine.window import Window
    from opero.parallel.workers.base import Workers

__all__ = ["LOOK", "MemoryGuard", "give_back", "size_text"]

LOOK = 0.02
"""Seconds between looks at the memory that is in use."""
TIGHT = 0.9
"""Part of the limit that is given out: what comes between two looks has the rest."""
LOOKS = 64
"""How many looks back show what a chunk takes in this process."""
MEMORY_OF_LOOKS = 500
"""How many looks back show, at least, what a worker process takes."""
IN_VAIN = 3
"""So many workers more than the map may have begin and end without any item that is finished; then nothing fits."""


def size_text(size: float) -> str:
    """Bytes for a message: "1.5 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class MemoryGuard:
    """Keeps the memory of this process and its map's workers under a limit.

    A map begins with one item. What its worker has held at most, or this process beside what it holds anyway, tells how
    many chunks fit; after each that is finished there are at most twice as many as before, and in each at most twice as
    many items. So a map that is far below its limit soon runs as if there were none. Where the limit is passed all the
    same, a worker that holds much is ended, and its item begun again alone; if it does not fit then, it fails.

    Args:
        limit: bytes.
        window: the map's.
        name: the function's, for messages.
    """

    def __init__(self, limit: int, window: Window, name: str) -> None:
        self.limit = limit
        self._window = window
        self._name = name
        self._workers: Workers | None = None
        self._finished = 0
        self._looks: deque[tuple[int, int]] = deque(maxlen=LOOKS)
        self._own = resident(os.getpid())
        self._own_peak = peak(os.getpid())
        self._count = 0
        self._pids: set[int] = set()
        self._peaks = [0, 0]
        self._begun: set[int] = set()  # the workers that were seen since an item was last finished
        self._largest_chunk = MOST
        self._is_told = False
        window.chunk_size.most = 1

    def check(self) -> str | None:
        """Do what can be done to stay under the limit; if nothing can, what is wrong."""
        window = self._window
        if window.workers is not self._workers:
            self._workers = window.workers
            window.most_chunks = 1
        has_progressed = window.finished > self._finished
        self._finished = window.finished
        if has_progressed:
            self._begun.clear()
        pids = window.workers.pids()
        own, held = resident(os.getpid()), sorted(map(resident, pids))
        self._learn(own, pids)
        if own + sum(held) > self.limit:
            return self._relieve(own, held)
        fit, most = self._fitting(own, held), self._most
        if fit < most:
            self._tell(own + sum(held))
        now = most if window.most_chunks is None else max(1, window.most_chunks)
        allowed = max(1, min(fit, 2 * now if has_progressed else now))
        window.most_chunks = None if allowed >= most else allowed
        if not fit:
            window.workers.relieve(busy=False)
            if has_progressed:
                window.chunk_size.shrink()
        elif window.chunk_size.most is not None and has_progressed and self._fitting(own, held, growth=1) >= allowed:
            size = min(2 * window.chunk_size.most, self._largest_chunk)
            window.chunk_size.most = size if size < MOST else None
        return None

    def _learn(self, own: int, pids: list[int]) -> None:
        """What a worker takes; without worker processes, what a chunk takes of this one."""
        self._begun.update(pids)
        if not pids:
            running = max(1, min(len(self._window.under_way), self._window.workers.at_once))
            self._looks.append((own, running))
            most = peak(os.getpid())
            if most > self._own_peak:  # since the last look; it is not forgotten, as it is not this map's alone
                self._looks.append((most, running))
                self._own_peak = most
        self._count += 1
        if not self._count % MEMORY_OF_LOOKS:  # what takes much does not slow down all that comes after it
            self._peaks = [0, self._peaks[0]]
            self._largest_chunk = min(MOST, 2 * self._largest_chunk)
            self._pids.clear()
        for pid in pids:
            if pid not in self._pids:
                self._pids.add(pid)
                forget_peak(pid)  # it may have served other maps
            self._peaks[0] = max(self._peaks[0], peak(pid))

    @property
    def _most(self) -> int:
        """How many chunks there may be at a time without a limit: at work, and in this process those held, too."""
        window = self._window
        return window.workers.at_once if max(self._peaks) else window.most_held

    def _fitting(self, own: int, held: list[int], growth: int = 0) -> int:
        """How many chunks may run at a time, if each took so many times more, besides, than it does."""
        room, most = TIGHT * self.limit, self._most
        unit = max(self._peaks)
        if not unit:
            return self._fitting_here(own, room, most, growth)
        unit += growth * max(0, unit - LEAST_WORKER)
        for count in range(most, 0, -1):
            idle = sum(held[: max(0, len(held) - count)])
            if own + count * unit + idle <= room:
                return count
        return 0

    def _fitting_here(self, own: int, room: float, most: int, growth: int) -> int:
        base = min(each for each, _ in self._looks)
        unit = max((each - base) / running for each, running in self._looks)
        if not unit:
            return most
        at_work = min(len(self._window.under_way), most)
        left = room - max(base, own - at_work * unit)
        return max(0, min(most, int(left / (unit * (1 + growth)))))

    def _relieve(self, own: int, held: list[int]) -> str | None:
        """The limit is passed."""
        window = self._window
        self._tell(own + sum(held))
        under_way = len(window.under_way)
        window.most_chunks = max(1, under_way // 2)
        can_shrink = window.chunk_size.most != 1
        if under_way:
            self._largest_chunk = window.chunk_size.shrink()
        is_in_vain = len(self._begun) > window.workers.at_once + IN_VAIN or self._leaves_too_little(own, held)
        if own <= self.limit and held and not is_in_vain:
            window.workers.relieve(busy=True)
            return None
        if window.has_results or (not held and (under_way > 1 or (under_way and can_shrink))):
            window.most_chunks = 0  # a reader takes them, and what runs comes to its end
            return None
        give_back()
        own, held = resident(os.getpid()), [resident(pid) for pid in window.workers.pids()]
        if own + sum(held) <= self.limit:
            return None
        for chunk in window.under_way:  # they are not to blame, and can be tried again
            chunk.is_solo = False
        window.workers.relieve(busy=True)
        worker = f", and a worker takes {size_text(max(held))}" if held else ""
        return (
            f"max_memory={size_text(self.limit)} does not suffice: {size_text(own + sum(held))} are in use, "
            f"{size_text(own)} of them by this process and the results so far{worker}"
        )

    def _leaves_too_little(self, own: int, held: list[int]) -> bool:
        """Whether an item that runs alone does not fit because of the results so far."""
        chunks = self._window.under_way
        return len(chunks) == 1 and next(iter(chunks)).is_solo and own - self._own > sum(held) / 2

    def _tell(self, used: int) -> None:
        if not self._is_told:
            self._is_told = True
            logger.info(
                "%s: %s of max_memory=%s are in use; fewer items run at a time",
                self._name,
                size_text(used),
                size_text(self.limit),
            )


def give_back() -> None:
    """Give back to the system what this process holds and does not use."""
    gc.collect()
    with suppress(Exception):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
