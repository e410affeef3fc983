"""Items in tasks of the running event loop: a few workers share one iterator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from opero.executors.call import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

__all__ = ["map_in_tasks"]


async def map_in_tasks(
    work: Callable[[Any], Coroutine[Any, Any, Any]], items: Sequence[Any], workers: int, *, keep_going: bool
) -> dict[int, Outcome]:
    """The outcome of `await work(item)` for every item by its index, in the order in which they came.

    When the caller is cancelled, so are the workers.
    """
    outcomes: dict[int, Outcome] = {}
    waiting = enumerate(items)
    stopped = False

    async def worker() -> None:
        nonlocal stopped
        for index, item in waiting:
            try:
                outcomes[index] = Outcome(await work(item))
            except Exception as error:  # noqa: BLE001  # carried as a value
                outcomes[index] = Outcome(error=error)
                stopped = stopped or not keep_going
            if stopped:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(min(workers, len(items))):
            group.create_task(worker())
    return outcomes
