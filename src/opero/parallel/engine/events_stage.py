"""The stage of a map that reports its failed items to the handlers of `MapItemFailed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.events import MapItemFailed
from opero.parallel.engine.stage import PassingStage

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Block


class EventsStage(PassingStage):
    """A stage that delivers `MapItemFailed`. It answers no items.

    Args:
        stats: of the mapped function.
    """

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        if failed:
            self.stats.emit(MapItemFailed, index=block.indices[position], error=value)
        return value, failed
