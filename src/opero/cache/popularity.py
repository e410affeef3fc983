"""Request counts per key, which decay over time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from opero.runtime.forking import renew_in_child


class _Counts:
    """Counts, which several instances of `Popularity` may share."""

    __slots__ = ("__weakref__", "by_key", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.by_key: OrderedDict[Hashable, list[float]] = OrderedDict()
        renew_in_child(self, "lock")


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
        self._shared = _Counts()

    def count(self, key: Hashable) -> None:
        """Count one request."""
        shared = self._shared
        counts = shared.by_key
        with shared.lock:  # comparing keys may run Python code, which lets other threads run
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
        held = self._shared.by_key.get(key)
        if held is None:
            return 0.0
        self._decay(held)
        return held[0]

    def share_counts(self, other: Popularity) -> None:
        """Use the counts of another instance from now on, together with it."""
        self._shared = other._shared

    def _decay(self, held: list[Any]) -> None:
        windows = (self.now() - held[1]) // self.window
        if windows > 0:
            held[0] /= 2.0 ** min(windows, 1000)
            held[1] += windows * self.window
