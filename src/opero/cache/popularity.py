"""Request counts per key, which decay over time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Popularity"]


class Popularity:
    """Counts requests per key, and halves each count after every window.

    Args:
        window: the length of a window, in seconds.
        max_keys: the number of keys to count; the least recently requested are dropped first.
        now: returns the current time, in seconds.
    """

    def __init__(self, window: float, max_keys: int, now: Callable[[], float]) -> None:
        self.window = window
        self.max_keys = max_keys
        self.now = now
        self._lock = threading.RLock()
        self._counts: OrderedDict[Hashable, list[float]] = OrderedDict()

    def count(self, key: Hashable) -> None:
        """Count one request."""
        counts = self._counts
        with self._lock:  # comparing keys may run Python code, which lets other threads run
            held = counts.get(key)
            if held is None:
                counts[key] = [1.0, self.now()]
                while len(counts) > self.max_keys:
                    counts.popitem(last=False)
            else:
                self._decay(held)
                held[0] += 1
                counts.move_to_end(key)

    def of(self, key: Hashable) -> float:
        """Return the decayed number of requests for a key."""
        held = self._counts.get(key)
        if held is None:
            return 0.0
        self._decay(held)
        return held[0]

    def share_counts(self, other: Popularity) -> None:
        """Use the counts of another instance from now on, together with it."""
        with other._lock:
            self._lock, self._counts = other._lock, other._counts

    def _decay(self, held: list[Any]) -> None:
        windows = (self.now() - held[1]) // self.window
        if windows > 0:
            held[0] /= 2.0 ** min(windows, 1000)
            held[1] += windows * self.window
