"""The stage of a map that reports its failed items to the handlers of `MapItemFailed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opero.events import MapItemFailed

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Block


class EventsStage:
    """A stage that delivers `MapItemFailed`. It answers no items.

    Args:
        stats: of the mapped function.
    """

    is_blocking = False
    answers_failures = False

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        return positions

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        if failed:
            self.stats.emit(MapItemFailed, index=block.indices[position], error=value)
        return value, failed

    def followers(self) -> list[tuple[Block, int]]:
        return []

    def settle(self) -> None:
        pass

    def forget(self, block: Block) -> None:
        pass
