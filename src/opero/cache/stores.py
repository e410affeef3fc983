"""Where entries are: in this process, or in a store of bytes that several processes share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from dogpile.cache.api import NO_VALUE

from opero.cache.digest import digest
from opero.cache.entry import FOREVER, NEVER, Entry
from opero.cache.keys import is_plain
from opero.cache.outage import Guard, Limited
from opero.cache.serializers import TOKEN, Codec, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from opero.cache.memory import MemoryBackend
    from opero.runtime.clock import Clock

__all__ = ["Mark", "MemoryStore", "SharedStore", "Store"]

Tags = tuple[str, ...]
Mark = tuple[Any, ...]
"""What a store knew of a key when its computation began; so it can tell whether the key was deleted meanwhile."""


class Store(Protocol):
    """What an executor asks of either kind.

    Attributes:
        is_shared: its operations may block, and may fail; they must not run in an event loop's thread.
        now: gives the moment, by the clock that its entries' times belong to.
    """

    is_shared: bool
    now: Callable[[], float]

    def read(self, key: Hashable, tags: Tags) -> Entry | None:
        """The entry, stale ones included; None where there is none that is usable."""

    def read_many(self, keys: Sequence[Hashable], tags: Sequence[Tags]) -> Iterable[Entry | None]:
        """The same for many keys. A shared store is asked while the result is gone through."""

    def begin(self, key: Hashable, tags: Tags) -> tuple[Entry | None, Mark | None]:
        """Read once more, and remember what a computation that begins now must not survive."""

    def write(self, key: Hashable, entry: Entry, mark: Mark | None) -> bool:
        """Keep an entry; False where the key was deleted since `mark`, or the store did not answer.

        Raises:
            CannotHoldError: the store's serializer cannot hold the value.
        """

    def delete(self, key: Hashable) -> None: ...
    def delete_tagged(self, tags: Iterable[str]) -> None: ...
    def clear(self) -> None: ...
    def clear_namespace(self) -> None: ...
    def mutex(self, key: Hashable) -> Any | None:
        """What keeps other processes from computing the key; None where there are none."""

    def size(self) -> int | None:
        """How many entries there are, where that can be told."""


class MemoryStore:
    """Entries of one function in this process.

    Args:
        backend: holds them.
        clock: where time comes from.
        codec: copies values on their way in and out; None: the objects themselves are kept and handed out.
    """

    is_shared = False

    def __init__(self, backend: MemoryBackend, clock: Clock, codec: Codec | None) -> None:
        self.backend = backend
        self.now = clock.monotonic
        self.codec = codec

    def read(self, key: Hashable, tags: Tags = ()) -> Entry | None:
        entry = self.backend.get(key)
        if entry is NO_VALUE or entry.usable <= self.now():
            return None
        return entry if self.codec is None else self.codec.decode("", entry.value)[0]

    def read_many(self, keys: Sequence[Hashable], tags: Sequence[Tags]) -> list[Entry | None]:
        if self.codec is not None:
            return [self.read(key) for key in keys]
        now = self.now()
        return [None if entry is NO_VALUE or entry.usable <= now else entry for entry in self.backend.get_multi(keys)]

    def begin(self, key: Hashable, tags: Tags) -> tuple[Entry | None, Mark | None]:
        return self.read(key), None

    def write(self, key: Hashable, entry: Entry, mark: Mark | None = None) -> bool:
        usable, tags = entry.usable, entry.tags
        if self.codec is not None:
            entry = Entry(self.codec.encode("", entry), NEVER, entry.expires, usable)
        elif not is_plain(key):
            entry.until = NEVER
        self.backend.put(key, entry, usable, tags)
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


class SharedStore:
    """Entries of one function in a store of bytes that other processes use, too. It fails like any other service.

    Deleting also leaves word for computations under way in other processes: `<namespace>#<function>` and
    `<namespace>#gone:<key>` hold tokens that change, and what began before does not get written. A tag is such a token
    as well; entries hold those of their tags, and are good while these are unchanged.

    Args:
        backend: dogpile.cache's.
        guard: runs its operations.
        namespace, name: which function's.
        codec: writes and reads bytes.
        clock: where time comes from.
        keep: seconds for which word of a deletion is left: computations take no longer.
        most: the most entries to keep, the oldest going first; None: all.
        has_mutex: its mutexes are one a key.
    """

    is_shared = True

    def __init__(
        self,
        backend: Any,
        guard: Guard,
        namespace: str,
        name: str,
        codec: Codec,
        clock: Clock,
        *,
        keep: float,
        most: int | None,
        has_mutex: bool,
    ) -> None:
        self.backend = backend
        self.guard = guard
        self.namespace = namespace = namespace.replace("%", "%25").replace(":", "%3A").replace("#", "%23")
        self.prefix = f"{namespace}:{name}:"  # so one namespace's keys never begin as another's
        self.codec = codec
        self.now = clock.time
        self.keep = keep
        self.most = most
        self.has_mutex = has_mutex
        self.unreadable = Limited("cache_unreadable", f"{namespace}:{name}", clock)
        self._expiring = hasattr(backend, "set_expiring")
        self._cleared = f"{namespace}#{name}"
        # Where a store cannot find a function's keys, all of them belong to one tag.
        self._always = () if hasattr(backend, "clear_prefix") else (self._cleared,)
        self._writes = 0

    # Names in the store

    def _key(self, key: Hashable) -> str:
        return self.prefix + digest(key)

    def _gone(self, name: str) -> str:
        return f"{self.namespace}#gone:{name.removeprefix(self.namespace)[1:]}"

    def _tokens_of(self, tags: Tags) -> list[str]:
        return [*self._always, *(f"{self.namespace}#tag:{tag}" for tag in tags)]

    # Reading

    def read(self, key: Hashable, tags: Tags = ()) -> Entry | None:
        name = self._key(key)
        watched = self._tokens_of(tags) if tags or self._always else ()
        if not watched:
            return self._entry(name, self.guard(NO_VALUE, self.backend.get_serialized, name), ())
        return self._entry(name, *self._with_tokens(self._fetch([name, *watched])))

    def read_many(self, keys: Sequence[Hashable], tags: Sequence[Tags]) -> Iterator[Entry | None]:
        names = [self._key(key) for key in keys]
        watched = [self._tokens_of(each) for each in tags]
        tokens = list(dict.fromkeys(token for each in watched for token in each))
        known = dict(zip(tokens, self._fetch(tokens), strict=True)) if tokens else {}
        for start in range(0, len(names), 1000):
            chunk = names[start : start + 1000]
            for at, (name, data) in enumerate(zip(chunk, self._fetch(chunk), strict=True), start):
                yield self._entry(name, data, tuple(known[token] for token in watched[at]))

    def begin(self, key: Hashable, tags: Tags) -> tuple[Entry | None, Mark | None]:
        name = self._key(key)
        watched = self._tokens_of(tags)
        data, gone, cleared, *tokens = self._fetch([name, self._gone(name), self._cleared, *watched])
        entry = self._entry(name, data, tuple(tokens))
        if entry is None:
            for at, token in enumerate(tokens):
                if not _is_token(token):
                    tokens[at] = os.urandom(TOKEN)
                    if watched[at] == self._cleared:
                        cleared = tokens[at]
                    self.guard(None, self.backend.set_serialized, watched[at], tokens[at])
        return entry, (gone, cleared, *tokens)

    def _fetch(self, names: list[str]) -> list[Any]:
        return list(self.guard([NO_VALUE] * len(names), self.backend.get_serialized_multi, names))

    def _with_tokens(self, data: list[Any]) -> tuple[Any, tuple[Any, ...]]:
        return data[0], tuple(data[1:])

    def _entry(self, name: str, data: Any, tokens: tuple[Any, ...]) -> Entry | None:
        if data is NO_VALUE or data is None:
            return None
        try:
            entry, written = self.codec.decode(name, data)
        except UnreadableError as error:
            self.unreadable.report(f"the store's entry {name} is left alone: {error}", error)
            return None
        if entry.usable <= self.now() or written != tokens:
            return None
        return entry

    # Writing

    def write(self, key: Hashable, entry: Entry, mark: Mark | None) -> bool:
        name = self._key(key)
        if mark is None:  # a value that was set, and belongs to nobody's computation
            mark = self.begin(key, entry.tags)[1]
        assert mark is not None
        gone, cleared, *tokens = mark
        data = self.codec.encode(name, entry, tuple(tokens))
        if self._fetch([self._gone(name), self._cleared]) != [gone, cleared]:
            return False
        seconds = None if entry.usable == FOREVER else entry.usable - self.now()
        if not self.guard(False, self._put, name, data, seconds):
            return False
        if self.most is not None:
            self._trim(self.most)
        return True

    def _put(self, name: str, data: bytes, seconds: float | None) -> bool:
        if self._expiring:
            self.backend.set_expiring(name, data, seconds)
        else:
            self.backend.set_serialized(name, data)
        return True

    def _trim(self, most: int) -> None:
        self._writes += 1
        if self._writes % max(1, most // 20) == 0 and hasattr(self.backend, "trim_prefix"):
            self.guard(None, self.backend.trim_prefix, self.prefix, most)

    # Deleting

    def delete(self, key: Hashable) -> None:
        name = self._key(key)
        if self._expiring:  # else word of it would stay for ever
            self.guard(None, self.backend.set_expiring, self._gone(name), os.urandom(TOKEN), self.keep)
        self.guard(None, self.backend.delete, name)

    def delete_tagged(self, tags: Iterable[str]) -> None:
        for tag in tags:
            self.guard(None, self.backend.set_serialized, f"{self.namespace}#tag:{tag}", os.urandom(TOKEN))

    def clear(self) -> None:
        self.guard(None, self.backend.set_serialized, self._cleared, os.urandom(TOKEN))
        if not self._always:
            self.guard(None, self.backend.clear_prefix, self.prefix)

    def clear_namespace(self) -> None:
        """Forget what every function of the namespace has in this store, whoever put it there."""
        self.clear()
        if not self._always:
            self.guard(None, self.backend.clear_prefix, f"{self.namespace}:")

    # The rest

    def mutex(self, key: Hashable) -> Any | None:
        return self.backend.get_mutex(self._key(key)) if self.has_mutex else None  # which asks nobody yet

    def size(self) -> int | None:
        if self._always:
            return None
        found: int | None = self.guard(None, self.backend.count_prefix, self.prefix)
        return found


def _is_token(data: Any) -> bool:
    return isinstance(data, bytes) and len(data) == TOKEN
