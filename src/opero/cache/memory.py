"""The `memory` backend of dogpile.cache: it holds so many results, and the least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, CacheBackend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MemoryBackend"]


class MemoryBackend(CacheBackend):
    """Keeps values in this process, as they are.

    Args:
        arguments: `max_size`: the most values to keep.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.max_size: int = arguments["max_size"]
        self.evictions = 0
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> Any:
        with self._lock:
            value = self._values.get(key, NO_VALUE)
            if value is not NO_VALUE:
                self._values.move_to_end(key)
            return value

    def get_multi(self, keys: Iterable[Any]) -> list[Any]:
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.max_size:
                self._values.popitem(last=False)
                self.evictions += 1

    def set_multi(self, mapping: Mapping[Any, Any]) -> None:
        for key, value in mapping.items():
            self.set(key, value)

    def delete(self, key: Any) -> None:
        with self._lock:
            self._values.pop(key, None)

    def delete_multi(self, keys: Iterable[Any]) -> None:
        for key in keys:
            self.delete(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()


register_backend("opero.memory", "opero.cache.memory", "MemoryBackend")  # type: ignore[no-untyped-call]
