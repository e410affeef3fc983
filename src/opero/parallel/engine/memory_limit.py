"""Keeps a map under `max_memory`: starts with one item, and adds more as their memory use becomes known."""

from __future__ import annotations

import ctypes
import gc
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from opero.parallel.engine.blocks import MOST
from opero.runtime.log import log
from opero.runtime.machine import LEAST_WORKER, forget_peak, peak, resident

if TYPE_CHECKING:
    from opero.parallel.engine.window import Window
    from opero.parallel.workers.base import Workers

LOOK = 0.02
"""Seconds between two measurements."""
TIGHT = 0.9
"""Fraction of the limit that is planned with; the rest covers growth between two measurements."""
LOOKS = 64
"""Measurements that show what a chunk takes in this process."""
PEAK_LOOKS = 500
"""Measurements, at least, for which the peak of a worker process counts."""
IN_VAIN = 3
"""Workers beyond the map's count that may start and be ended without any item finishing; then nothing fits."""


def size_text(size: float) -> str:
    """Bytes as text: "1.5 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class MemoryGuard:
    """Keeps the memory of this process and of a map's workers under a limit.

    A map starts with one item. The peak of its worker, or the growth of this process, shows how many chunks fit. Each
    time items finish, the number of chunks and their size may double, so a map far below its limit soon runs as if
    there were none. If the limit is exceeded anyway, the worker that holds most is ended, and its item is run again
    alone; if it does not fit then, it fails.

    Args:
        limit: bytes.
        window: of the map.
        name: the function's name, for messages.
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
        self._begun: set[int] = set()  # the workers seen since an item last finished
        self._largest_chunk = MOST
        self._is_logged = False
        window.chunk_size.most = 1

    def check(self) -> str | None:
        """Act to stay under the limit; the problem, if nothing helps."""
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
            self._log(own + sum(held))
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
        """Learn what a worker takes; without worker processes, what a chunk takes in this one."""
        self._begun.update(pids)
        if not pids:
            running = max(1, min(len(self._window.under_way), self._window.workers.at_once))
            self._looks.append((own, running))
            most = peak(os.getpid())
            if most > self._own_peak:  # since the last measurement; not reset, as other maps may need it
                self._looks.append((most, running))
                self._own_peak = most
        self._count += 1
        if not self._count % PEAK_LOOKS:  # a large item does not slow down all later ones
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
        """How many chunks there would be without a limit; in this process, those held count, too."""
        window = self._window
        return window.workers.at_once if max(self._peaks) else window.most_held

    def _fitting(self, own: int, held: list[int], growth: int = 0) -> int:
        """How many chunks may run at once if each took `growth` times its memory more."""
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
        """Free memory after the limit was exceeded; the problem, if that is impossible."""
        window = self._window
        self._log(own + sum(held))
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
            window.most_chunks = 0  # until the reader takes them, and what runs finishes
            return None
        give_back()
        own, held = resident(os.getpid()), [resident(pid) for pid in window.workers.pids()]
        if own + sum(held) <= self.limit:
            return None
        for chunk in window.under_way:  # they can be tried again
            chunk.is_solo = False
        window.workers.relieve(busy=True)
        worker = f", and a worker takes {size_text(max(held))}" if held else ""
        return (
            f"max_memory={size_text(self.limit)} does not suffice: {size_text(own + sum(held))} are in use, "
            f"{size_text(own)} of them by this process and the results so far{worker}"
        )

    def _leaves_too_little(self, own: int, held: list[int]) -> bool:
        """Whether an item that runs alone does not fit only because of the results so far."""
        chunks = self._window.under_way
        return len(chunks) == 1 and next(iter(chunks)).is_solo and own - self._own > sum(held) / 2

    def _log(self, used: int) -> None:
        if not self._is_logged:
            self._is_logged = True
            text, values = "%s: %s of max_memory=%s are in use; fewer items run at a time", (used, self.limit)
            log("map_memory_limited", text, self._name, *map(size_text, values), used=used, limit=self.limit)


def give_back() -> None:
    """Return unused memory to the system."""
    gc.collect()
    with suppress(Exception):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
