"""An LRU cache with expiry in the memory of this process."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from opero.cache.content import is_plain
from opero.cache.entry import FOREVER
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.cache.instances import Dependent, Token

SLACK = 64
PURGE_DELAY = 0.05
"""Seconds from an expiry to the purge, so that one purge frees many values."""


class Memory:
    """Keeps values in this process, without copying them.

    Where comparing keys runs no Python code, a reader may look up a key in `values` and mark it as used without the
    lock: each is one atomic operation of the ordered dictionary. All methods hold the lock. Values are released after
    it, so the only user code that runs under the lock is the comparison of keys.

    Values whose keys contain an instance (see `opero.cache.instances`) are removed when that is gone.

    Args:
        max_size: the maximum number of values.
        clock: returns the current time for expiry, in seconds.

    Attributes:
        values: key → value, the least recently used first.
        evictions: the number of values removed because the cache was full.
        expirations: the number of values removed because they had expired.
        on_expiring: called with the time of the next expiry whenever that becomes earlier.
    """

    def __init__(self, max_size: int, clock: Callable[[], float]) -> None:
        self.max_size = max_size
        self.now = clock
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self.evictions = 0
        self.expirations = 0
        self.on_expiring: Callable[[float], object] | None = None
        self._lock = threading.RLock()  # comparing keys may run code that uses the cache
        self._is_purged = True  # `on_expiring` knows of the next expiry
        # A heap of (expiry, number, key). A key may have several items; `_due` holds the number of the current one.
        self._expiries: list[tuple[float, int, Any]] = []
        self._due: dict[Any, int] = {}
        self._number = itertools.count()
        self._tags: dict[str, set[Any]] = {}
        self._tags_of: dict[Any, tuple[str, ...]] = {}
        self._with: dict[Token, set[Any]] = {}  # the keys that contain an instance
        self._gone: deque[Token] = deque()
        self._reference: weakref.ref[Dependent] = weakref.ref(self)
        renew_in_child(self, "_lock")

    def after_fork(self) -> None:
        self._is_purged = False  # there is no purge thread in the child

    def __len__(self) -> int:
        return len(self.values)

    def get(self, key: Any, default: Any = None) -> Any:
        with self._lock:
            value = self.values.get(key, default)
            if value is not default:
                self.values.move_to_end(key)
            return value

    def get_multi(self, keys: Iterable[Any], default: Any = None) -> list[Any]:
        with self._lock:
            found = [self.values.get(key, default) for key in keys]
            for key, value in zip(keys, found, strict=True):
                if value is not default:
                    self.values.move_to_end(key)
            return found

    def delete(self, key: Any) -> None:
        with self._lock:
            removed = self._drop(key)
        del removed

    def put(
        self,
        key: Any,
        value: Any,
        expires: float = FOREVER,
        tags: tuple[str, ...] = (),
        tokens: Collection[Token] = (),
    ) -> None:
        """Store a value with an expiry time, tags, and the tokens of the instances in its key."""
        removed: list[Any] = []
        sooner = False
        with self._lock:
            if self._expiries or self._gone:
                self._purge(removed)
            if key in self.values or key in self._due or self._tags_of or self._with:  # for most keys, none holds
                removed.append(self._drop(key))
            self.values[key] = value
            if expires != FOREVER:
                number = next(self._number)
                self._due[key] = number
                heapq.heappush(self._expiries, (expires, number, key))
                sooner = self._expiries[0][1] == number
                if len(self._expiries) > 2 * len(self._due) + SLACK:
                    self._expiries = [each for each in self._expiries if self._due.get(each[2]) == each[1]]
                    heapq.heapify(self._expiries)
                if not self._is_purged:
                    sooner = self._is_purged = True
                    expires = self._expiries[0][0]
            if tags:
                self._tags_of[key] = tags
                for tag in tags:
                    self._tags.setdefault(tag, set()).add(key)
            for token in tokens:
                self._with.setdefault(token, set()).add(key)
                token.dependents[id(self)] = self._reference
            if len(self.values) > self.max_size:
                self._evict(removed)
        if sooner and self.on_expiring is not None:
            self.on_expiring(expires)

    def resize(self, max_size: int) -> None:
        """Change the maximum number of values, and evict those that exceed it."""
        removed: list[Any] = []
        with self._lock:
            self.max_size = max_size
            if self._expiries:
                self._purge(removed)
            self._evict(removed)

    def purge(self) -> float | None:
        """Remove all expired values, and return the time of the next expiry, or None."""
        removed: list[Any] = []
        with self._lock:
            self._purge(removed)
            return self._expiries[0][0] if self._expiries else None

    def forget(self, token: Token) -> None:
        """Remove the values whose keys contain an instance that is gone.

        It is called wherever the instance ends, even within a method of this cache: then the next one removes them.
        """
        self._gone.append(token)
        if not self._lock._is_owned() and self._lock.acquire(blocking=False):  # type: ignore[attr-defined]
            removed: list[Any] = []
            try:
                self._remove_gone(removed)
            finally:
                self._lock.release()

    def delete_tagged(self, tags: Iterable[str]) -> None:
        """Remove every value that has one of these tags."""
        removed: list[Any] = []
        with self._lock:
            for tag in tags:
                removed.extend([self._drop(key) for key in list(self._tags.get(tag, ()))])

    def clear(self) -> None:
        """Remove every value."""
        removed: list[Any] = []
        with self._lock:
            while self.values:  # not iteration: readers without the lock may change the order meanwhile
                removed.append(self.values.popitem())
            self._expiries.clear()
            for index in (self._due, self._tags, self._tags_of, self._with):
                index.clear()

    # These require the lock

    def _evict(self, removed: list[Any]) -> None:
        while len(self.values) > self.max_size:
            oldest, value = self.values.popitem(last=False)  # atomic: readers may change the order meanwhile
            removed += (value, self._drop(oldest))
            self.evictions += 1

    def _remove_gone(self, removed: list[Any]) -> None:
        while self._gone:
            removed.extend([self._drop(key) for key in list(self._with.get(self._gone.popleft(), ()))])

    def _purge(self, removed: list[Any]) -> None:
        self._remove_gone(removed)
        now, expiries = self.now(), self._expiries
        while expiries and expiries[0][0] <= now:
            _, number, key = heapq.heappop(expiries)
            if self._due.get(key) == number:
                removed.append(self._drop(key))
                self.expirations += 1

    def _drop(self, key: Any) -> Any:
        """Remove a key and return its value, which the caller releases without the lock."""
        value = self.values.pop(key, None)
        if self._due:
            self._due.pop(key, None)
        for tag in self._tags_of.pop(key, ()) if self._tags_of else ():
            keys = self._tags[tag]
            keys.discard(key)
            if not keys:
                del self._tags[tag]
        if self._with:
            tokens: list[Token] = []
            is_plain(key, tokens)
            for token in tokens:
                keys = self._with.get(token, set())
                keys.discard(key)
                if not keys:
                    self._with.pop(token, None)
                    token.dependents.pop(id(self), None)
        return value


class _PurgeThread:
    """A thread that purges each cache when its next value expires.

    It keeps no cache alive, and ends when there is none left to purge.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        renew_in_child(self, "lock")
        self.after_fork()

    def after_fork(self) -> None:
        self.changed = threading.Condition(self.lock)
        self.due: list[tuple[float, int, weakref.ref[Memory]]] = []
        self.number = itertools.count()
        self.is_running = False

    def schedule(self, backend: weakref.ref[Memory], moment: float) -> None:
        """Purge a cache soon after a moment of `time.monotonic`."""
        with self.changed:
            heapq.heappush(self.due, (moment + PURGE_DELAY, next(self.number), backend))
            if not self.is_running:
                self.is_running = True
                threading.Thread(target=self.run, name="opero-cache-purge", daemon=True).start()
            elif self.due[0][0] == moment + PURGE_DELAY:
                self.changed.notify()

    def run(self) -> None:
        while (reference := self.next()) is not None:
            backend = reference()
            if backend is not None:
                following = backend.purge()
                if following is not None and not self.is_scheduled(reference):
                    self.schedule(reference, following)
            del backend

    def is_scheduled(self, backend: weakref.ref[Memory]) -> bool:
        with self.changed:
            return any(each[2] is backend for each in self.due)

    def next(self) -> weakref.ref[Memory] | None:
        """Wait for the next purge that is due, and return its cache; None if no cache is left."""
        with self.changed:
            while True:
                self.due = [each for each in self.due if each[2]() is not None]
                heapq.heapify(self.due)
                if not self.due:
                    self.is_running = False
                    return None
                wait = self.due[0][0] - time.monotonic()
                if wait <= 0:
                    return heapq.heappop(self.due)[2]
                self.changed.wait(min(wait, threading.TIMEOUT_MAX))


_purge_thread = _PurgeThread()


def purge_in_background(backend: Memory) -> None:
    """Free the cache's expired values even while it is not used."""
    reference = weakref.ref(backend)
    backend.on_expiring = lambda moment: _purge_thread.schedule(reference, moment)
