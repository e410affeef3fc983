"""How often keys are asked for, of late."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Popularity"]


class Popularity:
    """Counts requests by key; a count is halved after every window.

    Args:
        window: seconds.
        most: how many keys to count; those not asked for the longest are forgotten first.
        now: gives the moment.
    """

    def __init__(self, window: float, most: int, now: Callable[[], float]) -> None:
        self.window = window
        self.most = most
        self.now = now
        self._lock = threading.RLock()
        self._counts: OrderedDict[Hashable, list[float]] = OrderedDict()

    def count(self, key: Hashable) -> None:
        """Count a request."""
        counts = self._counts
        with self._lock:  # comparing keys may run Python code, during which others must not come in
            held = counts.get(key)
            if held is None:
                counts[key] = [1.0, self.now()]
                while len(counts) > self.most:
                    counts.popitem(last=False)
            else:
                self._halve(held)
                held[0] += 1
                counts.move_to_end(key)

    def of(self, key: Hashable) -> float:
        """How often a key has been asked for."""
        held = self._counts.get(key)
        if held is None:
            return 0.0
        self._halve(held)
        return held[0]

    def migrate_from(self, old: Popularity) -> None:
        """Continue with the counts of another one; both share them from now on."""
        with old._lock:
            self._lock, self._counts = old._lock, old._counts

    def _halve(self, held: list[Any]) -> None:
        windows = (self.now() - held[1]) // self.window
        if windows > 0:
            held[0] /= 2.0 ** min(windows, 1000)
            held[1] += windows * self.window
