"""Staying under `max_memory`: fewer and smaller chunks first, then workers that begin anew, then an item alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opero.logs import logger
from opero.parallel.machine import resident

if TYPE_CHECKING:
    from opero.parallel.window import Window

__all__ = ["LOOK", "MemoryGuard", "size_text"]

LOOK = 0.02
"""Seconds between looks at the memory that is in use."""
TIGHT, EASY = 0.9, 0.7
"""Parts of the limit above which less is begun, and below which more is begun again."""


def size_text(size: float) -> str:
    """Bytes for a message: "1.5 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class MemoryGuard:
    """Looks at the memory of this process and its map's workers.

    Args:
        limit: bytes.
        window: the map's.
        name: the function's, for messages.
    """

    def __init__(self, limit: int, window: Window, name: str) -> None:
        self.limit = limit
        self._window = window
        self._name = name

    def used(self) -> int:
        """Bytes that this process and the map's workers hold."""
        return resident(os.getpid()) + sum(map(resident, self._window.workers.pids()))

    def check(self) -> str | None:
        """Do what can be done to stay under the limit; if nothing can, what is wrong."""
        used, window = self.used(), self._window
        if used <= EASY * self.limit:
            if window.most_chunks is not None:
                window.most_chunks += 1
                if window.most_chunks >= window.workers.slots:
                    window.most_chunks = None
            return None
        if used <= TIGHT * self.limit:
            return None
        if window.most_chunks is None:
            logger.info(
                "%s: %s of max_memory=%s are in use; fewer items run at a time",
                self._name,
                size_text(used),
                size_text(self.limit),
            )
        window.most_chunks = max(1, len(window.under_way) // 2)
        window.shrink()
        if used > self.limit or not window.under_way:
            relieved = window.workers.relieve()
            if used > self.limit and not relieved and self.used() > self.limit:
                return (
                    f"max_memory={size_text(self.limit)} does not suffice: {size_text(self.used())} are in use, "
                    f"{size_text(resident(os.getpid()))} of them by this process and the results so far"
                )
        return None
