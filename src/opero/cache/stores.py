"""The store of cache entries in the memory of this process, and the interface of all stores."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from opero.cache.content import is_plain
from opero.cache.entry import NEVER, Entry

if TYPE_CHECKING:
    from opero.cache.instances import Token
    from opero.cache.lru import Memory
    from opero.cache.serializers import Codec
    from opero.runtime.clock import Clock

Tags = tuple[str, ...]
Snapshot = tuple[Any, ...]
"""A key's deletion tokens at the start of its computation. They tell whether the key was deleted in the meantime."""


class EntryStore(Protocol):
    """The interface of both kinds of store.

    Attributes:
        is_shared: whether operations may block and fail, so that they must not run in an event loop's thread.
        now: returns the current time by the clock of the entries' times.
    """

    is_shared: bool
    now: Callable[[], float]

    def read(self, key: Hashable, tags: Tags) -> Entry | None:
        """Return the key's entry, even if it is stale; None if there is none that is usable."""

    def read_many(self, keys: Sequence[Hashable], tags: Sequence[Tags]) -> Iterable[Entry | None]:
        """Return the entries of many keys. A shared store is read during the iteration."""

    def begin(self, key: Hashable, tags: Tags) -> tuple[Entry | None, Snapshot | None]:
        """Read a key before its computation begins, with the snapshot that `write` needs afterwards."""

    def write(self, key: Hashable, entry: Entry, snapshot: Snapshot | None) -> bool:
        """Write an entry; return False if the key was deleted since `snapshot`, or the store is down.

        Raises:
            SerializationError: the store's serializer cannot write the value.
        """

    def delete(self, key: Hashable) -> None: ...
    def delete_tagged(self, tags: Iterable[str]) -> None: ...
    def clear(self) -> None: ...
    def clear_namespace(self) -> None: ...
    def mutex(self, key: Hashable) -> Any | None:
        """Return a mutex that keeps other processes from computing the key; None if the store has none."""

    def size(self) -> int | None:
        """Return the number of entries, or None if it is unknown."""


class MemoryStore:
    """Entries of one function in the memory of this process.

    Args:
        backend: the backend that holds them.
        clock: the source of time.
        codec: encodes values, so that callers get copies; None to store the objects themselves.
    """

    is_shared = False

    def __init__(self, backend: Memory, clock: Clock, codec: Codec | None) -> None:
        self.backend = backend
        self.now = clock.monotonic
        self.codec = codec

    def read(self, key: Hashable, tags: Tags = ()) -> Entry | None:
        entry = self.backend.get(key)
        if entry is None or entry.usable <= self.now():
            return None
        return entry if self.codec is None else self.codec.decode("", entry.value)[0]

    def read_many(self, keys: Sequence[Hashable], tags: Sequence[Tags]) -> list[Entry | None]:
        if self.codec is not None:
            return [self.read(key) for key in keys]
        now = self.now()
        return [None if entry is None or entry.usable <= now else entry for entry in self.backend.get_multi(keys)]

    def begin(self, key: Hashable, tags: Tags) -> tuple[Entry | None, Snapshot | None]:
        return self.read(key), None

    def write(self, key: Hashable, entry: Entry, snapshot: Snapshot | None = None) -> bool:
        usable, tags = entry.usable, entry.tags
        tokens: list[Token] = []
        plain = is_plain(key, tokens)
        if self.codec is not None:
            entry = Entry(self.codec.encode("", entry, (), entry.written), NEVER, entry.expires, usable)
        elif not plain:
            entry.until = NEVER
        self.backend.put(key, entry, usable, tags, tokens)
        return True

    def delete(self, key: Hashable) -> None:
        self.backend.delete(key)

    def delete_tagged(self, tags: Iterable[str]) -> None:
        self.backend.delete_tagged(tags)

    def clear(self) -> None:
        self.backend.clear()

    def clear_namespace(self) -> None:
        self.backend.clear()

    def mutex(self, key: Hashable) -> None:
        return None

    def size(self) -> int:
        self.backend.purge()
        return len(self.backend)
