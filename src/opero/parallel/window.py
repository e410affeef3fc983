"""The engine of every map over an executor: a bounded window of chunks, sized by the time that they take."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from typing import TYPE_CHECKING, Any

from opero.executors.call import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor, Future

__all__ = ["Chunk", "run_chunk", "run_window"]

Chunk = list[Any]
AIM = 0.02
"""Seconds of work in a chunk: long against what it costs to send, short against the whole."""
MOST = 4096
AHEAD = 2
"""Chunks in the window, for each worker."""


def run_chunk(work: Callable[[Any], Any], chunk: Chunk, keep_going: bool = True) -> tuple[list[Outcome], float]:
    """What became of a chunk's items, and the seconds it took; unless `keep_going`, none after one that failed."""
    started = time.perf_counter()
    outcomes = []
    for item in chunk:
        try:
            outcomes.append(Outcome(work(item)))
        except Exception as error:  # noqa: BLE001  # carried as a value
            outcomes.append(Outcome(error=error))
            if not keep_going:
                break
    return outcomes, time.perf_counter() - started


def run_window(
    executor: Callable[[], Executor],
    submit: Callable[[Executor, Chunk], Future[Any]],
    items: Sequence[Any],
    workers: int,
    *,
    keep_going: bool,
    unpack: Callable[[Any], tuple[list[Outcome], float]] = lambda result: result,
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of every item with its index, as they come.

    Args:
        executor: gives the executor; asked again when one has broken.
        submit: sends a chunk to it.
        items: what to work on.
        workers: how many work at once.
        keep_going: go on after a failed item; else nothing more is sent, and what runs is finished.
        unpack: makes what `run_chunk` returns of what the executor's future gives.

    When a worker dies, its executor is broken, and with it every chunk in the window, whichever was to blame. So each
    of them is sent again, alone; one that breaks the executor again, item by item; and an item that does so has failed.
    """
    position = 0
    size = 1
    window: dict[Future[Any], tuple[int, int]] = {}
    suspects: deque[tuple[int, int]] = deque()
    alone = False
    stopped = False
    rates: deque[float] = deque(maxlen=8)

    def send(first: int, count: int) -> None:
        chunk = list(items[first : first + count])
        try:
            future = submit(executor(), chunk)
        except BrokenExecutor:  # it broke since it was looked at
            future = submit(executor(), chunk)
        window[future] = (first, count)

    try:
        while window or suspects or (position < len(items) and not stopped):
            if suspects and not window:
                send(*suspects.popleft())
                alone = True
            while (
                not suspects and not alone and position < len(items) and not stopped and len(window) < workers * AHEAD
            ):
                # Towards the end the chunks shrink, so that no worker is left with the last long one alone.
                count = max(1, min(size, (len(items) - position) // (workers * AHEAD) + 1))
                send(position, count)
                position += count
            done, _ = wait(window, return_when=FIRST_COMPLETED)
            for future in done:
                first, count = window.pop(future)
                try:
                    outcomes, seconds = unpack(future.result())
                except BrokenExecutor as error:
                    if not (alone and count == 1):
                        suspects.extend([(first + each, 1) for each in range(count)] if alone else [(first, count)])
                        continue
                    outcomes, seconds = [Outcome(error=error)], AIM
                rates.append(max(seconds, 1e-7) / count)
                size = max(1, min(MOST, size * 4, int(AIM * len(rates) / sum(rates))))
                for offset, outcome in enumerate(outcomes):
                    stopped = stopped or (outcome.error is not None and not keep_going)
                    yield first + offset, outcome
            if stopped:  # what no worker has begun is not begun any more
                for future in [each for each in window if each.cancel()]:
                    del window[future]
            alone = alone and bool(window)
    finally:
        for future in window:
            future.cancel()
