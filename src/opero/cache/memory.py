"""The `memory` backend of dogpile.cache, for programs that use it by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from dogpile.cache.api import NO_VALUE, CacheBackend

from opero.cache.lru import Memory


class MemoryBackend(Memory, CacheBackend):
    """The memory of a process as a backend of dogpile.cache.

    Args:
        arguments: `max_size`: the maximum number of values; `clock`: a function that returns the current time for
            expiry, in seconds. Default: `time.monotonic`.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments["max_size"], arguments.get("clock", time.monotonic))

    def get(self, key: Any, default: Any = NO_VALUE) -> Any:
        return super().get(key, default)

    def get_multi(self, keys: Iterable[Any], default: Any = NO_VALUE) -> list[Any]:
        return super().get_multi(keys, default)

    def set(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def set_multi(self, mapping: Mapping[Any, Any]) -> None:
        for key, value in mapping.items():
            self.put(key, value)

    def delete_multi(self, keys: Iterable[Any]) -> None:
        for key in keys:
            self.delete(key)
