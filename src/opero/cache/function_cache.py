"""The cache of one function: its keys, its store, and what users may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opero.cache.clearing import clear_cache, forgo, register
from opero.cache.entry import FOREVER, SerializationError
from opero.cache.keys import KeyMaker
from opero.cache.open_store import open_store
from opero.cache.retention import Retention, copied
from opero.cache.single_flight import SingleFlight
from opero.cache.stores import MemoryStore
from opero.policies.cache import BUILT_IN
from opero.runtime.functions import full_name
from opero.runtime.hosts import Outcome
from opero.values import CacheEntry, CacheInfo

if TYPE_CHECKING:
    from opero.cache.entry import Entry
    from opero.cache.identity import Identity
    from opero.cache.stores import EntryStore, Snapshot
    from opero.observe.stats import Stats
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock


class FunctionCache:
    """Stores the results of one function.

    Args:
        policy: what to store, where, and for how long.
        clock: the source of time and randomness.
        function: the function.
        keeps_error: returns whether an exception is stored.
        is_method: whether its first parameter is an instance.
        before: the cache that this one may replace. The function keeps its identity in shared stores, which for a local
            function also depends on closure variables that may change.

    Attributes:
        name: the region's name, `namespace:module.qualname`.
        key: makes the key of a call.
        retention: makes the entries.
        store: the store of the entries.
        identity: what the function is called in a shared store; None in memory.
        single_flight: the running computations.
        stats: those of the function; None without one.

    Raises:
        ConfigError: the policy does not fit the function, or its store cannot be opened.
    """

    def __init__(
        self,
        policy: CachePolicy,
        clock: Clock,
        function: Callable[..., Any],
        keeps_error: Callable[[Exception], bool],
        *,
        is_method: bool = False,
        before: FunctionCache | None = None,
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.name = f"{policy.namespace}:{full_name(function)}"
        self.key = KeyMaker(
            function, policy.key, is_method=is_method, ignore=policy.ignore, is_shared=not policy.is_in_memory
        )
        self.retention = Retention(policy, clock, self.key, self.name, keeps_error)
        opened = open_store(policy, clock, function, None if before is None else before.identity)
        self.store: EntryStore = opened
        # In this process a function is identified by itself.
        self.identity: Identity | None = None if isinstance(opened, MemoryStore) else opened.identity
        self.is_shared = opened.is_shared
        self.retention.now = opened.now
        self.single_flight = SingleFlight()
        self.stats: Stats | None = None
        self._cleared = 0, 0, 0
        register(self)

    def migrate_from(self, predecessor: FunctionCache) -> bool:
        """Continue with the entries and running computations of a cache that this one replaces.

        Returns:
            Whether both caches have the same store; otherwise nothing is taken over.
        """
        if not self._has_store_of(predecessor):
            return False
        self.single_flight, self._cleared = predecessor.single_flight, predecessor._cleared
        if self.retention.popularity is not None and predecessor.retention.popularity is not None:
            self.retention.popularity.share_counts(predecessor.retention.popularity)
        store, old = self.store, predecessor.store
        if isinstance(store, MemoryStore) and isinstance(old, MemoryStore):
            store.backend = old.backend
            store.backend.resize(self.policy.max_size)
        elif self.policy.backend.removeprefix("opero.") not in BUILT_IN:  # the backend itself may hold the entries
            store.backend = old.backend  # type: ignore[attr-defined]
        forgo(predecessor)
        register(self)
        return True

    def _has_store_of(self, other: FunctionCache) -> bool:
        try:
            return bool(self._store_identity() == other._store_identity())
        except Exception:  # noqa: BLE001  # comparing a user's arguments and key functions may raise anything
            return False

    def _store_identity(self) -> tuple[Any, ...]:
        policy, store = self.policy, self.store
        common: tuple[Any, ...] = (
            policy.backend.removeprefix("opero."),
            policy.namespace,
            policy.key,
            policy.ignore,
            policy.version,
        )
        if isinstance(store, MemoryStore):
            return *common, store.codec and (store.codec.serializer, store.codec.secret)
        common = *common, policy.app, policy.follow_code
        return *common, store.breaker.name, type(policy).model_construct(arguments=policy.arguments)  # type: ignore[attr-defined]

    # What users may ask for

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached result of a call with these arguments, even if stale; None if there is none."""
        entry = self.store.read(self.key(args, kwargs), self.retention.tags(args, kwargs))
        return None if entry is None or entry.is_error else entry.value

    def entry(self, *args: Any, **kwargs: Any) -> CacheEntry[Any] | None:
        """Return the cached result of a call with these arguments, even if stale, and its times; None if there is none.

        So a result that is None is told from none.
        """
        entry = self.store.read(self.key(args, kwargs), self.retention.tags(args, kwargs))
        if entry is None or entry.is_error:
            return None
        now = self.store.now()
        return CacheEntry(
            entry.value, max(0.0, now - entry.written), None if entry.expires == FOREVER else entry.expires - now
        )

    def set(self, value: Any, /, *args: Any, **kwargs: Any) -> bool:
        """Store a value as the result of a call with these arguments, and return whether it was stored."""
        key = self.key(args, kwargs)
        self.single_flight.invalidate(key)
        return self.keep(key, Outcome(value), self.retention.tags(args, kwargs))

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Delete the cached result of a call with these arguments; one that is being computed is not stored."""
        key = self.key(args, kwargs)
        self.single_flight.invalidate(key)
        self.store.delete(key)

    def clear(self, *, tags: str | Collection[str] | None = None) -> None:
        """Delete all results, or those with some tags; results that are being computed are not stored.

        Tags are shared by all functions of a namespace, so their results are deleted as well.
        """
        if tags is None:
            self.single_flight.invalidate_all()
            self.store.clear()
            self._cleared = self._counts()
        else:
            clear_cache(self.policy.namespace, tags=tags)

    def clear_namespace(self, tags: Collection[str] | None, *, with_store: bool) -> None:
        """Delete this function's results for `clear_cache`.

        Args:
            tags: only results with these tags. Default: all results.
            with_store: delete from the store as well, for all functions of the namespace.
        """
        self.single_flight.invalidate_all(tags)
        if with_store and tags is not None:
            self.store.delete_tagged(tags)
        elif with_store:
            self.store.clear_namespace()
        elif tags is None:
            self.store.clear()
        if tags is None:
            self._cleared = self._counts()

    @property
    def namespace(self) -> str:
        """The namespace of its keys."""
        return self.policy.namespace

    @property
    def place(self) -> tuple[int, str]:
        """Identifies its store and namespace, which functions may share."""
        breaker = getattr(self.store, "breaker", None)
        return id(self.store if breaker is None else breaker), self.policy.namespace

    def info(self) -> CacheInfo:
        """Return what it holds, and what it has done since it was cleared."""
        hits, misses, evictions = (
            max(0, now - then) for now, then in zip(self._counts(), self._cleared, strict=True)
        )  # a test may have reset the statistics
        most = self.policy.max_size if isinstance(self.store, MemoryStore) else getattr(self.store, "max_size", None)
        return CacheInfo(hits, misses, self.store.size(), evictions, most)

    def _counts(self) -> tuple[int, int, int]:
        hits, misses = (0, 0) if self.stats is None else (self.stats.cache_hits, self.stats.cache_misses)
        return hits, misses, self.store.backend.evictions if isinstance(self.store, MemoryStore) else 0

    # Reading and writing

    def serves(self, entry: Entry) -> bool:
        """Return whether the policy allows an entry to answer calls; an earlier policy may have stored it."""
        return not entry.is_error or self.retention.keeps_error(entry.value)

    def is_stale(self, entry: Entry) -> bool:
        """Return whether an entry has outlived its time to live."""
        return entry.expires <= self.store.now()

    def keep(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...]) -> bool:
        """Store an outcome if the policy says so, and return whether it was stored."""
        entry = self.retention.entry(key, outcome, tags)
        return entry is not None and self.write(key, entry)

    def read_many(
        self, keys: Sequence[Hashable], arguments: Callable[[int], tuple[tuple[Any, ...], Mapping[str, Any]]]
    ) -> Iterable[Entry | None]:
        """Return the entries of many calls, including stale ones.

        Args:
            keys: the keys of the calls.
            arguments: returns the positional and keyword arguments of the call at a position.
        """
        if self.retention.popularity is not None:
            for key in keys:
                self.retention.popularity.count(key)
        needs_tags = self.is_shared and self.policy.tags
        tags = [self.retention.tags(*arguments(at)) for at in range(len(keys))] if needs_tags else [()] * len(keys)
        return self.store.read_many(keys, tags)

    @staticmethod
    def outcome(entry: Entry) -> Outcome:
        """Return the outcome of a call that an entry answers."""
        return Outcome(error=copied(entry.value)) if entry.is_error else Outcome(entry.value)

    def write(self, key: Hashable, entry: Entry, snapshot: Snapshot | None = None) -> bool:
        """Write an entry, and return whether that succeeded; a value that cannot be written is reported."""
        try:
            return self.store.write(key, entry, snapshot)
        except SerializationError as error:
            self.retention.not_stored.report(f"result not cached: {error}", error)
            return False
