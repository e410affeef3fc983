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


def run_chunk(work: Callable[[Any], Any], chunk: Chunk) -> tuple[list[Outcome], float]:
    """What became of each of a chunk's items, and the seconds it took."""
    started = time.perf_counter()
    outcomes = []
    for item in chunk:
        try:
            outcomes.append(Outcome(work(item)))
        except Exception as error:  # noqa: BLE001  # carried as a value
            outcomes.append(Outcome(error=error))
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
    """
    position = 0
    size = 1
    window: dict[Future[Any], tuple[int, int]] = {}
    stopped = False
    rates: deque[float] = deque(maxlen=8)
    try:
        while window or (position < len(items) and not stopped):
            while position < len(items) and not stopped and len(window) < workers * AHEAD:
                # Towards the end the chunks shrink, so that no worker is left with the last long one alone.
                count = max(1, min(size, (len(items) - position) // (workers * AHEAD) + 1))
                chunk = list(items[position : position + count])
                window[submit(executor(), chunk)] = (position, len(chunk))
                position += len(chunk)
            done, _ = wait(window, return_when=FIRST_COMPLETED)
            for future in done:
                first, count = window.pop(future)
                try:
                    outcomes, seconds = unpack(future.result())
                except BrokenExecutor as error:
                    outcomes, seconds = [Outcome(error=error) for _ in range(count)], AIM
                rates.append(max(seconds, 1e-7) / count)
                size = max(1, min(MOST, size * 4, int(AIM * len(rates) / sum(rates))))
                for offset, outcome in enumerate(outcomes):
                    stopped = stopped or (outcome.error is not None and not keep_going)
                    yield first + offset, outcome
    finally:
        for future in window:
            future.cancel()
