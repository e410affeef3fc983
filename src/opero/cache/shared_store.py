"""The store of cache entries in a backend that several processes share."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from dogpile.cache.api import NO_VALUE

from opero.cache.digest import digest
from opero.cache.entry import FOREVER, Entry
from opero.cache.keys import Digest
from opero.cache.outage import StoreBreaker, ThrottledFailure
from opero.cache.serializers import TOKEN, Codec, UnreadableError

if TYPE_CHECKING:
    from opero.cache.identity import Identity
    from opero.cache.stores import Snapshot, Tags
    from opero.runtime.clock import Clock

UNCACHED = 10.0
"""Seconds for which processes that find a key locked know that its results are not cached."""
LONGEST_TAG = 200


class SharedStore:
    """Entries of one function in a backend of bytes that other processes use too, and that may fail.

    Deletions must reach computations that run in other processes. The keys `<namespace>#<function>` and
    `<namespace>#gone:<key>` hold random tokens, which deletions replace; a computation whose tokens have changed does
    not write its result. Each tag has such a token as well: an entry holds the tokens of its tags, and is valid while
    they are unchanged.

    Args:
        backend: the dogpile.cache backend.
        breaker: runs the backend's operations.
        namespace: the policy's namespace.
        identity: what the function is called in stores.
        codec: converts entries to bytes and back.
        clock: the source of time.
        deletion_ttl: seconds for which the token of a deleted key is kept: the longest time of a computation.
        max_size: the maximum number of entries, of which the oldest are removed first; None for no limit.
        has_mutex: whether the backend has a mutex per key.
    """

    is_shared = True

    def __init__(
        self,
        backend: Any,
        breaker: StoreBreaker,
        namespace: str,
        identity: Identity,
        codec: Codec,
        clock: Clock,
        *,
        deletion_ttl: float,
        max_size: int | None,
        has_mutex: bool,
    ) -> None:
        self.backend = backend
        self.breaker = breaker
        self.namespace = namespace = _clean(namespace).replace("%", "%25").replace(":", "%3A").replace("#", "%23")
        self.identity = identity
        self.codec = codec
        self.now = clock.time
        self.deletion_ttl = deletion_ttl
        self.max_size = max_size
        self.has_mutex = has_mutex
        self.unreadable = ThrottledFailure("unreadable", f"{namespace}:{identity.name}", clock)
        self._can_expire = hasattr(backend, "set_expiring")
        breaker.users.add(self)
        # If the backend cannot delete a function's keys, all its entries share a tag, which `clear` changes.
        self._has_prefixes = hasattr(backend, "clear_prefix")
        self._writes = 0

    @functools.cached_property
    def prefix(self) -> str:
        """What the function's keys begin with: escaped, so that no namespace's keys begin with another namespace."""
        return f"{self.namespace}:{_clean(self.identity.text)}:"

    @functools.cached_property
    def _cleared(self) -> str:
        return f"{self.namespace}#{_clean(self.identity.text)}"

    @functools.cached_property
    def _common_tokens(self) -> tuple[str, ...]:
        return () if self._has_prefixes else (self._cleared,)

    def ask(self) -> object:
        """Read a few bytes; fails if the store does not answer."""
        return self.backend.get_serialized(f"{self.namespace}#")

    def ask_to_write(self) -> object:
        """Write a few bytes; fails if the store accepts no writes."""
        return self._put(f"{self.namespace}#", b"1", 1.0)

    # Keys in the backend

    def _key(self, key: Hashable) -> str:
        text = key if type(key) is Digest else digest(key)
        return f"{self.prefix}{{{text}}}"  # in braces: a redis cluster keeps what belongs to a key together

    def _gone(self, name: str) -> str:
        return f"{self.namespace}#gone:{name.removeprefix(self.namespace)[1:]}"

    def _tokens_of(self, tags: Tags) -> list[str]:
        return [*self._common_tokens, *map(self._tag, tags)]

    def _tag(self, tag: str) -> str:
        # Tags contain arguments, and so anything: lone surrogates and megabytes, which stores refuse.
        clean = _clean(tag)
        if clean != tag or len(tag) > LONGEST_TAG:
            clean = f"{clean[:LONGEST_TAG]}…{blake2b(tag.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
        return f"{self.namespace}#tag:{clean}"

    # Reading

    def read(self, key: Hashable, tags: Tags = ()) -> Entry | None:
        name = self._key(key)
        token_names = self._tokens_of(tags) if tags or self._common_tokens else ()
        if not token_names:
            return self._entry(name, self.breaker(NO_VALUE, self.backend.get_serialized, name), ())
        data, *tokens = self._fetch([name, *token_names])
        return self._entry(name, data, tuple(tokens))

    def read_many(self, keys: Sequence[Hashable], tags: Sequence[Tags]) -> Iterator[Entry | None]:
        names = [self._key(key) for key in keys]
        token_names = [self._tokens_of(each) for each in tags]
        distinct = list(dict.fromkeys(token for each in token_names for token in each))
        tokens = dict(zip(distinct, self._fetch(distinct), strict=True)) if distinct else {}
        for start in range(0, len(names), 1000):
            chunk = names[start : start + 1000]
            for at, (name, data) in enumerate(zip(chunk, self._fetch(chunk), strict=True), start):
                yield self._entry(name, data, tuple(tokens[each] for each in token_names[at]))

    def begin(self, key: Hashable, tags: Tags) -> tuple[Entry | None, Snapshot | None]:
        name = self._key(key)
        token_names = self._tokens_of(tags)
        data, gone, cleared, *tokens = self._fetch([name, self._gone(name), self._cleared, *token_names])
        entry = self._entry(name, data, tuple(tokens))
        if entry is None:
            for at, token in enumerate(tokens):
                if not (isinstance(token, bytes) and len(token) == TOKEN):  # the tag has no token yet
                    tokens[at] = os.urandom(TOKEN)
                    if token_names[at] == self._cleared:
                        cleared = tokens[at]
                    self.breaker.write(None, self.backend.set_serialized, token_names[at], tokens[at])
        return entry, (gone, cleared, *tokens)

    def _fetch(self, names: list[str]) -> list[Any]:
        return self.breaker([NO_VALUE] * len(names), self._fetched, names)

    def _fetched(self, names: list[str]) -> list[Any]:
        found = self.backend.get_serialized_multi(names)
        if not isinstance(found, Sequence) or len(found) != len(names):
            # For example the reply to another command, after an interrupted one left its own unread.
            raise TypeError(f"the reply to a read of {len(names)} keys has another shape: {type(found).__name__}")
        return list(found)

    def _entry(self, name: str, data: Any, tokens: tuple[Any, ...]) -> Entry | None:
        if data is NO_VALUE or data is None:
            return None
        try:
            entry, written = self.codec.decode(name, data, self.now())
        except UnreadableError as error:
            self.unreadable.report(f"cannot read cache entry {name}: {error}", error)
            return None
        if entry.usable <= self.now() or written != tokens:
            return None
        return entry

    # Results that are not cached

    def mark_uncached(self, key: Hashable) -> None:
        """Tell the processes that wait for a key that its computation succeeded, and that nothing was stored."""
        if self.has_mutex and self._can_expire:
            self.breaker.write(None, self.backend.set_expiring, self._uncached(key), b"1", UNCACHED)

    def is_uncached(self, key: Hashable) -> bool:
        """Return whether a computation has said so in the last seconds."""
        return self._fetch([self._uncached(key)]) == [b"1"]

    def _uncached(self, key: Hashable) -> str:
        return f"{self.namespace}#uncached:{self._key(key).removeprefix(self.namespace)[1:]}"

    # Writing

    def write(self, key: Hashable, entry: Entry, snapshot: Snapshot | None) -> bool:
        name = self._key(key)
        if snapshot is None:  # the value was set by the user, not computed
            snapshot = self.begin(key, entry.tags)[1]
        assert snapshot is not None
        gone, cleared, *tokens = snapshot
        data = self.codec.encode(name, entry, tuple(tokens), self.now())
        if self._fetch([self._gone(name), self._cleared]) != [gone, cleared]:
            return False
        seconds = None if entry.usable == FOREVER else entry.usable - self.now()
        if not self.breaker.write(False, self._put, name, data, seconds):
            return False
        if self.max_size is not None:
            self._trim(self.max_size)
        return True

    def _put(self, name: str, data: bytes, seconds: float | None) -> bool:
        if self._can_expire:
            self.backend.set_expiring(name, data, seconds)
        else:
            self.backend.set_serialized(name, data)
        return True

    def _trim(self, max_size: int) -> None:
        self._writes += 1
        if self._writes % max(1, max_size // 20) == 0 and hasattr(self.backend, "trim_prefix"):
            self.breaker.write(None, self.backend.trim_prefix, self.prefix, max_size)

    # Deleting

    def delete(self, key: Hashable) -> None:
        name = self._key(key)
        if self._can_expire:  # otherwise the token would stay forever
            self.breaker.delete(None, self.backend.set_expiring, self._gone(name), os.urandom(TOKEN), self.deletion_ttl)
        self.breaker.delete(None, self.backend.delete, name)

    def delete_tagged(self, tags: Iterable[str]) -> None:
        for tag in tags:
            if not self.breaker.delete(False, self._put, self._tag(tag), os.urandom(TOKEN), None):
                self.breaker.delete(None, self.backend.delete, self._tag(tag))  # a full store accepts that

    def clear(self) -> None:
        self.breaker.delete(None, self.backend.set_serialized, self._cleared, os.urandom(TOKEN))
        if not self._common_tokens:
            self.breaker.delete(None, self.backend.clear_prefix, self.prefix)

    def clear_namespace(self) -> None:
        """Delete the entries of all functions of the namespace, including those written by other processes."""
        self.clear()
        if not self._common_tokens:
            self.breaker.delete(None, self.backend.clear_prefix, f"{self.namespace}:")

    # Mutex and size

    def mutex(self, key: Hashable) -> Any | None:
        return self.backend.get_mutex(self._key(key)) if self.has_mutex else None  # no request to the backend yet

    def size(self) -> int | None:
        if self._common_tokens:
            return None
        found = self.breaker(None, self.backend.count_prefix, self.prefix)
        return found if isinstance(found, int) else None


def _clean(text: str) -> str:
    """Return text that every store can hold."""
    return text.encode("utf-8", "backslashreplace").decode()
