"""The interface of workers: threads, tasks, processes, and other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Chunk, Report

AHEAD = 2
"""Chunks under way for each worker: one that runs and one that waits."""


class Workers:
    """Runs chunks, and puts (chunk, message) into an inbox; `open` turns a message into a report.

    All methods are called by the reader of the results, one at a time.

    Attributes:
        slots: how many chunks may be under way.
        most_items: how many items may be under way; None: as many as the chunks hold.
        size: items in a chunk; None: as many as suit the time that items take.
        concurrency: how many items of a chunk run at once.
        patience: seconds after which to `watch` even if nothing has arrived; None: never.
    """

    slots: int = 1
    most_items: int | None = None
    size: int | None = None
    concurrency: int = 1
    patience: float | None = None

    @property
    def at_once(self) -> int:
        """How many chunks run at once."""
        return max(1, self.slots // AHEAD)

    def submit(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def open(self, chunk: Chunk, message: Any) -> Report | BaseException:
        """The report in a message, or the exception that ends the map."""
        return message  # type: ignore[no-any-return]

    def watch(self) -> None:
        """Check on what runs."""

    def pids(self) -> list[int]:
        """The worker processes on this machine."""
        return []

    def relieve(self, *, busy: bool) -> None:
        """Free memory by ending idle workers; if none is idle, and it may be `busy`, the one that holds most."""

    def stop(self) -> None:
        """Start no further item. Chunks come back with what they have."""

    def resume(self) -> None:
        """After `stop`, when all chunks have come back: start items again."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """After `stop`: do not wait for running items. What has finished is reported if possible."""

    async def close(self) -> None:
        """Nothing more is read: end what still runs, or abandon it."""
