"""What runs chunks: threads, processes, tasks, other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Chunk, Report

__all__ = ["AHEAD", "Workers"]

AHEAD = 2
"""Chunks in the window, for each worker: one that runs and one that waits."""


class Workers:
    """Runs chunks, and puts (chunk, message) into an inbox; `open` makes a report of a message.

    All methods are called by whoever reads the results, one at a time.

    Attributes:
        slots: how many chunks may be under way.
        most_items: how many items may be under way; None: as many as the chunks hold.
        size: items in a chunk; None: as many as suit the time that they take.
        concurrency: how many items of a chunk run at a time.
        patience: seconds after which to `watch`, though nothing has come; None: never.
    """

    slots: int = 1
    most_items: int | None = None
    size: int | None = None
    concurrency: int = 1
    patience: float | None = None

    @property
    def at_once(self) -> int:
        """How many chunks run at a time."""
        return max(1, self.slots // AHEAD)

    def submit(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def open(self, chunk: Chunk, message: Any) -> Report | BaseException:
        """The report that a message of theirs is, or what ends the map."""
        return message  # type: ignore[no-any-return]

    def took(self, chunk: Chunk) -> None:
        """The last report of a chunk has been read."""

    def watch(self) -> None:
        """Look after what runs."""

    def pids(self) -> list[int]:
        """The processes of this machine that they have."""
        return []

    def relieve(self, *, busy: bool) -> None:
        """Free memory by ending workers that are idle; where none is, and it may be `busy`, the one that holds most."""

    def stop(self) -> None:
        """Begin no further item. Chunks come back with what they have."""

    def interrupt(self) -> None:
        """After `stop`: do not wait for what runs either. What is finished is reported, as far as it can be had."""

    async def close(self) -> None:
        """Nobody reads on, or all is done: what still runs is ended, or left alone."""
