"""Items in tasks of the running event loop: a few workers share one iterator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from opero.executors.call import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

__all__ = ["map_in_tasks"]


async def map_in_tasks(
    work: Callable[[Any], Coroutine[Any, Any, Any]],
    items: Sequence[Any],
    workers: int,
    take: Callable[[Any, Outcome], None],
    *,
    keep_going: bool,
    settle: Callable[[], Coroutine[Any, Any, object]] | None = None,
) -> None:
    """Give `take` each item with the outcome of `await work(item)`, as they come; then await `settle`.

    After a failed item nothing more is begun, and what runs is finished, unless `keep_going`. When the caller is
    cancelled, so are the workers. An item that cancels itself ends the map as if its caller were cancelled.
    """
    waiting = iter(items)
    stopped = False
    cancelled: asyncio.CancelledError | None = None

    async def worker() -> None:
        nonlocal stopped, cancelled
        for item in waiting:
            try:
                outcome = Outcome(await work(item))
            except asyncio.CancelledError as error:
                stopped, cancelled = True, error  # a task group takes it for the worker's own, and says nothing
                raise
            except Exception as error:  # noqa: BLE001  # carried as a value
                outcome = Outcome(error=error)
                stopped = stopped or not keep_going
            take(item, outcome)
            if settle is not None:
                await settle()
            if stopped:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(min(workers, len(items))):
            group.create_task(worker())
    if cancelled is not None:
        raise cancelled
