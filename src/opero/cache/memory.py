"""The `memory` backend of dogpile.cache: it holds so many results, and the least recently used goes first."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from dogpile.cache.api import NO_VALUE, CacheBackend

from opero.cache.entry import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["MemoryBackend"]

SLACK = 64


class MemoryBackend(CacheBackend):
    """Keeps values in this process, as they are.

    Looking for a key and marking it as used take no lock, where comparing keys runs no Python code: each is one step of
    the ordered dictionary's own. All else holds the lock. No method runs a user's code while it does, but for comparing
    keys; values are let go of after it.

    Args:
        arguments: `max_size`: the most values to keep; `clock`: a function that gives the moment against which times to
            live are compared. Default: `time.monotonic`.

    Attributes:
        values: key → value, the least recently used first.
        evictions: values that went because there were too many.
        expirations: values that went because their time had passed.
        on_expiring: called with the moment of the next expiry, where that has come nearer.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.max_size: int = arguments["max_size"]
        self.now: Callable[[], float] = arguments.get("clock", time.monotonic)
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self.evictions = 0
        self.expirations = 0
        self.on_expiring: Callable[[float], object] | None = None
        self._lock = threading.RLock()  # comparing keys may run code that uses the cache
        # The moments at which values expire, soonest first. A key may stand here several times; `_due` has the one
        # that counts.
        self._expiries: list[tuple[float, int, Any]] = []
        self._due: dict[Any, int] = {}
        self._number = itertools.count()
        self._tags: dict[str, set[Any]] = {}
        self._tags_of: dict[Any, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self.values)

    # dogpile's interface

    def get(self, key: Any) -> Any:
        with self._lock:
            value = self.values.get(key, NO_VALUE)
            if value is not NO_VALUE:
                self.values.move_to_end(key)
            return value

    def get_multi(self, keys: Iterable[Any]) -> list[Any]:
        with self._lock:
            found = [self.values.get(key, NO_VALUE) for key in keys]
            for key, value in zip(keys, found, strict=True):
                if value is not NO_VALUE:
                    self.values.move_to_end(key)
            return found

    def set(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def set_multi(self, mapping: Mapping[Any, Any]) -> None:
        for key, value in mapping.items():
            self.put(key, value)

    def delete(self, key: Any) -> None:
        with self._lock:
            gone = self._drop(key)
        del gone

    def delete_multi(self, keys: Iterable[Any]) -> None:
        for key in keys:
            self.delete(key)

    # Beyond it

    def put(self, key: Any, value: Any, expires: float = FOREVER, tags: tuple[str, ...] = ()) -> None:
        """Keep a value until a moment, as part of some groups."""
        gone: list[Any] = []
        sooner = False
        with self._lock:
            if self._expiries:
                self._purge(gone)
            gone.append(self._drop(key))
            self.values[key] = value
            if expires != FOREVER:
                number = next(self._number)
                self._due[key] = number
                heapq.heappush(self._expiries, (expires, number, key))
                sooner = self._expiries[0][1] == number
                if len(self._expiries) > 2 * len(self._due) + SLACK:
                    self._expiries = [each for each in self._expiries if self._due.get(each[2]) == each[1]]
                    heapq.heapify(self._expiries)
            if tags:
                self._tags_of[key] = tags
                for tag in tags:
                    self._tags.setdefault(tag, set()).add(key)
            if len(self.values) > self.max_size:
                self._evict(gone)
        if sooner and self.on_expiring is not None:
            self.on_expiring(expires)

    def resize(self, max_size: int) -> None:
        """Keep another number of values from now on."""
        gone: list[Any] = []
        with self._lock:
            self.max_size = max_size
            if self._expiries:
                self._purge(gone)
            self._evict(gone)

    def purge(self) -> float | None:
        """Let go of everything whose time has passed; the moment of the next expiry, or None."""
        gone: list[Any] = []
        with self._lock:
            self._purge(gone)
            return self._expiries[0][0] if self._expiries else None

    def delete_tagged(self, tags: Iterable[str]) -> None:
        """Forget every value of these groups."""
        gone: list[Any] = []
        with self._lock:
            for tag in tags:
                gone.extend([self._drop(key) for key in list(self._tags.get(tag, ()))])

    def clear(self) -> None:
        """Forget everything."""
        gone: list[Any] = []
        with self._lock:
            while self.values:  # going through it would fail where readers change the order meanwhile
                gone.append(self.values.popitem())
            self._expiries.clear()
            for index in (self._due, self._tags, self._tags_of):
                index.clear()

    # With the lock held

    def _evict(self, gone: list[Any]) -> None:
        while len(self.values) > self.max_size:
            oldest, value = self.values.popitem(last=False)  # one step: readers may change the order meanwhile
            gone += (value, self._drop(oldest))
            self.evictions += 1

    def _purge(self, gone: list[Any]) -> None:
        now, expiries = self.now(), self._expiries
        while expiries and expiries[0][0] <= now:
            _, number, key = heapq.heappop(expiries)
            if self._due.get(key) == number:
                gone.append(self._drop(key))
                self.expirations += 1

    def _drop(self, key: Any) -> Any:
        """Take a key out of everything; its value, for the caller to let go of without the lock."""
        value = self.values.pop(key, None)
        if self._due:
            self._due.pop(key, None)
        for tag in self._tags_of.pop(key, ()) if self._tags_of else ():
            keys = self._tags[tag]
            keys.discard(key)
            if not keys:
                del self._tags[tag]
        return value
