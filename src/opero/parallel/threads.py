"""Items in threads of this process."""

from __future__ import annotations

import contextvars
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from opero.parallel.window import Chunk, run_chunk, run_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opero.executors.call import Outcome

__all__ = ["map_in_threads"]


def map_in_threads(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int, *, keep_going: bool
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of `work(item)` for every item with its index, as they come. Context variables reach the threads."""

    def submit(executor: Executor, chunk: Chunk) -> Future[tuple[list[Outcome], float]]:
        return executor.submit(contextvars.copy_context().run, run_chunk, work, chunk, keep_going)

    pool = ThreadPoolExecutor(min(workers, max(1, len(items))), thread_name_prefix="opero-map")
    try:
        yield from run_window(lambda: pool, submit, items, workers, keep_going=keep_going)
    except BaseException:  # Ctrl-C, or nobody reads on: what runs is not waited for
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
