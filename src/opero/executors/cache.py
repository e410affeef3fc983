"""Remembering results: a dogpile.cache region a binding, and one computation of a key at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.cache.clearing import clear_cache, forgo, register
from opero.cache.digest import name_in_stores
from opero.cache.keys import KeyMaker
from opero.cache.open_store import OWN, open_store
from opero.cache.outage import Limited
from opero.cache.retention import Retention, copied
from opero.cache.serializers import CannotHoldError
from opero.cache.single_flight import Flight, Flights, leading
from opero.cache.stores import MemoryStore
from opero.executors.call import MISS
from opero.runtime.byte_locks import Hold
from opero.runtime.functions import full_name
from opero.runtime.hosts import AsyncHost, BlockingHost, Outcome, run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

    from opero.cache.entry import Entry
    from opero.cache.stores import Mark, Store
    from opero.executors.call import Call, Layer
    from opero.observe.stats import Stats
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

__all__ = ["CacheExecutor"]

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

REST = 1.0
"""Seconds after a failed refresh for which the old result is served without another try."""
FIRST_LOOK, LONGEST_LOOK = 0.005, 0.1
"""Seconds between looks at a store where another process is computing the key."""

HIT = """
_opero_key = {{key}}
{count}
_opero_entry = _opero_get(_opero_key)
if _opero_entry is None or _opero_entry.until <= _opero_now(): return _opero_miss
try: _opero_use(_opero_key)
except _opero_gone: return _opero_miss
_opero_stats.cache_hits += 1
return _opero_entry.value
"""
"""What `hit` does with a key: no layer, no lock."""


class Asked:
    """A call that the cache could not answer at once: what to call, its arguments, and their key and tags."""

    __slots__ = ("args", "call", "key", "kwargs", "layer", "tags")

    def __init__(
        self, layer: Layer, call: Call, args: Args, kwargs: Kwargs, key: Hashable, tags: tuple[str, ...]
    ) -> None:
        self.layer = layer
        self.call = call
        self.args = args
        self.kwargs = kwargs
        self.key = key
        self.tags = tags


class CacheExecutor:
    """The cache of one binding.

    Where several callers ask for a key that is not there, one computes it and the others wait for it. If it fails,
    each of them tries on its own account, at once; if it is cancelled, it goes on for those who still wait.

    Args:
        policy: what to remember, where, and for how long.
        clock: where time and chance come from.
        function: whose results.
        is_method: its first parameter is an instance.
        stats: where hits that need no layer are counted.
        before: the executor that this one may take over from: the function keeps the name that it has in stores, where
            that tells of a local function's variables, too, which change.

    Attributes:
        name: the region's: `namespace:module.qualname`.
        key: makes the key of a call.
        region: dogpile.cache's.
        store: where entries are.
        hit: gives the result of a call with these arguments where it is in memory and fresh, else `MISS`; None where
            there is no memory to look into at once.

    Raises:
        ConfigError: the policy does not fit the function, or its store cannot be had.
    """

    def __init__(
        self,
        policy: CachePolicy,
        clock: Clock,
        function: Callable[..., Any],
        stats: Stats,
        *,
        is_method: bool = False,
        before: CacheExecutor | None = None,
    ) -> None:
        self.policy = policy
        self.clock = clock
        # In this process a function is itself; elsewhere only its name can tell it from others.
        self.stored_as: str | None = None if before is None else before.stored_as
        if policy.is_in_memory:
            name = full_name(function)
        else:
            name = self.stored_as = self.stored_as or name_in_stores(function)
        self.name = f"{policy.namespace}:{name}"
        self.key = KeyMaker(function, policy.key, is_method=is_method)
        self.retention = Retention(policy, clock, self.key, self.name)
        self.region, opened = open_store(policy, clock, name)
        self.store: Store = opened
        self.is_shared = opened.is_shared
        self.retention.now = opened.now
        self.flights = Flights()
        self._stats = stats
        # A user's own key function is asked once a call, and so not by `hit`.
        is_plain = isinstance(opened, MemoryStore) and opened.codec is None and policy.key is None
        self.hit = self._hit() if is_plain else None
        self._resting: dict[Hashable, float] = {}
        self._not_refreshed = Limited("cache_refresh_failed", self.name, clock)
        register(self)

    def migrate_from(self, old: CacheExecutor) -> None:
        """Continue with the results and computations of an executor whose policy this one's replaces."""
        if not self._is_where(old):
            return
        self.flights, self._resting = old.flights, old._resting
        if self.retention.popularity is not None and old.retention.popularity is not None:
            self.retention.popularity.migrate_from(old.retention.popularity)
        mine, theirs = self.store, old.store
        if isinstance(mine, MemoryStore) and isinstance(theirs, MemoryStore):
            mine.backend, self.region = theirs.backend, old.region
            mine.backend.resize(self.policy.max_size)
            self.hit = self._hit() if self.hit is not None else None
        elif self.policy.backend.removeprefix("opero.") not in OWN:  # the backend may hold what it remembers itself
            mine.backend, self.region = theirs.backend, old.region  # type: ignore[attr-defined]
        forgo(old)
        register(self)

    def _is_where(self, other: CacheExecutor) -> bool:
        """Whether the results of both are in the same place."""
        try:
            return bool(self._whereabouts() == other._whereabouts())
        except Exception:  # noqa: BLE001  # arguments and keys are a user's own
            return False

    def _whereabouts(self) -> tuple[Any, ...]:
        policy, store = self.policy, self.store
        where: tuple[Any, ...] = policy.backend.removeprefix("opero."), policy.namespace, policy.key
        if isinstance(store, MemoryStore):
            return *where, store.codec and (store.codec.serializer, store.codec.secret)
        return *where, store.guard.name, type(policy).model_construct(arguments=policy.arguments)  # type: ignore[attr-defined]

    def _hit(self) -> Callable[..., Any]:
        assert isinstance(self.store, MemoryStore)
        memory = self.store.backend
        values = memory.values
        popularity = self.retention.popularity
        return self.key.compiled(
            HIT.format(count="" if popularity is None else "_opero_count(_opero_key)"),
            _opero_get=values.get,
            _opero_use=values.move_to_end,
            _opero_now=memory.now,
            _opero_miss=MISS,
            _opero_gone=KeyError,
            _opero_stats=self._stats,
            _opero_count=popularity and popularity.count,
        )

    # What users may ask of it

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """The cached result of such a call, or None. A stale result counts, an exception does not."""
        entry = self.store.read(self.key(args, kwargs), self.retention.tags(args, kwargs))
        return None if entry is None or entry.is_error else entry.value

    def set(self, value: Any, /, *args: Any, **kwargs: Any) -> bool:
        """Keep a value as the result of such a call; whether it could be kept."""
        key = self.key(args, kwargs)
        self.flights.forget(key)
        return self.keep(key, Outcome(value), self.retention.tags(args, kwargs))

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Forget the cached result of such a call, and do not keep one that is being computed."""
        key = self.key(args, kwargs)
        self.flights.forget(key)
        self.store.delete(key)

    def clear(self, *, tags: str | Collection[str] | None = None) -> None:
        """Forget every result, or those of some groups, and do not keep those that are being computed.

        Groups go beyond a function: those of others in this namespace are forgotten, too.
        """
        if tags is None:
            self.flights.forget_all()
            self.store.clear()
        else:
            clear_cache(self.policy.namespace, tags=tags)

    def clear_namespace(self, tags: Collection[str] | None, *, with_store: bool) -> None:
        """This function's part in `clear_cache`; `with_store`: not only what is under way here."""
        self.flights.forget_all(tags)
        if with_store and tags is not None:
            self.store.delete_tagged(tags)
        elif with_store:
            self.store.clear_namespace()
        elif tags is None:
            self.store.clear()

    @property
    def place(self) -> tuple[int, str]:
        """Tells stores apart that are cleared of a namespace one by one."""
        guard = getattr(self.store, "guard", None)
        return id(self.store if guard is None else guard), self.policy.namespace

    def extent(self) -> tuple[int | None, int, int | None]:
        """How many results there are, how many have been evicted, and how many there may be."""
        if isinstance(self.store, MemoryStore):
            return self.store.size(), self.store.backend.evictions, self.policy.max_size
        return self.store.size(), 0, getattr(self.store, "most", None)

    # Decisions

    def refreshes(self, entry: Entry, key: Hashable) -> bool:
        """Whether an entry that is served is to be computed anew."""
        if entry.refresh_at > self.store.now():
            return False
        if self._resting and self._resting.get(key, 0.0) > self.clock.monotonic():
            return False
        return key not in self.flights.under_way

    def serves(self, entry: Entry) -> bool:
        """Whether the policy has such an entry answer calls; an older one may have kept it."""
        return not entry.is_error or self.policy.cache_errors

    def is_stale(self, entry: Entry) -> bool:
        return entry.expires <= self.store.now()

    def keep(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...]) -> bool:
        """Remember an outcome, where the policy does; whether it is kept."""
        entry = self.retention.entry(key, outcome, tags)
        return entry is not None and self.write(key, entry)

    def read_many(
        self, keys: Sequence[Hashable], arguments: Callable[[int], tuple[Args, Kwargs]]
    ) -> Iterable[Entry | None]:
        """The entries of many calls, stale ones included; `arguments` gives those of the call at a position."""
        if self.retention.popularity is not None:
            for key in keys:
                self.retention.popularity.count(key)
        tagged = self.is_shared and self.policy.tags
        tags = [self.retention.tags(*arguments(index)) for index in range(len(keys))] if tagged else [()] * len(keys)
        return self.store.read_many(keys, tags)

    @staticmethod
    def outcome(entry: Entry) -> Outcome:
        """What a call comes to that an entry answers."""
        return Outcome(error=copied(entry.value)) if entry.is_error else Outcome(entry.value)

    def write(self, key: Hashable, entry: Entry, mark: Mark | None = None) -> bool:
        """Keep an entry; whether the store could. An answer is never lost to a store that cannot hold it."""
        try:
            return self.store.write(key, entry, mark)
        except CannotHoldError as error:
            self.retention.not_stored.report(f"a result was not kept: {error}", error)
            return False

    # What waits

    async def answer(self, host: Host, asked: Asked, entry: Entry | None) -> Outcome:
        """The result of a call whose entry is not there, stale, to be refreshed, or an exception."""
        if entry is None or not self.serves(entry):
            return await self._compute(host, asked)
        asked.call.stats.cache_hits += 1
        if self.refreshes(entry, asked.key):
            self._refresh(host, asked)
        return self.outcome(entry)

    async def _compute(self, host: Host, asked: Asked) -> Outcome:
        stats = asked.call.stats
        while True:
            flight, waiter = self.flights.join(asked.key, host, asked.tags)
            if waiter is None:
                leader = self._lead(host, asked, flight)
                return await host.apart(leader, flight, lambda: self.flights.leave(flight, waited=False))  # noqa: B023
            try:
                await waiter.wait(None)
            finally:
                self.flights.leave(flight, waited=True)
            found = flight.kept  # and not the cache, which may have dropped it already
            if found is not None and (found.error is None or self.policy.cache_errors):
                stats.cache_hits += 1
                return found
            if flight.failed:
                stats.cache_misses += 1
                return await self._execute(host, asked, Flight(asked.tags), None)

    async def _lead(self, host: Host, asked: Asked, flight: Flight) -> Outcome:
        """Compute a key for all who wait for it, unless it has come meanwhile."""
        key, stats = asked.key, asked.call.stats
        token = leading.set((*leading.get(), flight))
        hold = self._hold(key)
        try:
            if self.is_shared:
                entry, mark = await host.offload(self.store.begin, key, asked.tags)
                if hold is not None and (entry is None or self.is_stale(entry)):
                    entry = await self._exclude(host, asked, hold, entry)
            else:
                entry, mark = self.store.begin(key, asked.tags)
            if entry is not None and not self.is_stale(entry) and self.serves(entry):
                flight.kept = self.outcome(entry)
                stats.cache_hits += 1
                return flight.kept
            stats.cache_misses += 1
            return await self._execute(host, asked, flight, mark)
        finally:
            self.flights.land(key, flight)
            with contextlib.suppress(ValueError):  # an abandoned coroutine is closed in another context
                leading.reset(token)
            if hold is not None and hold.is_asked_for:
                await host.offload(hold.give_up)

    def _hold(self, key: Hashable) -> Hold | None:
        mutex = self.store.mutex(key) if self.is_shared else None
        return None if mutex is None else Hold(mutex, self.store.guard)  # type: ignore[attr-defined]

    async def _exclude(self, host: Host, asked: Asked, hold: Hold, entry: Entry | None) -> Entry | None:
        """See to it that no other process computes the key, or give the entry that another has made.

        Where another's computation has failed or takes too long, each who waits for it computes for itself.
        """
        if await host.offload(hold.take):
            return entry
        wait, until = FIRST_LOOK, self.clock.monotonic() + self.policy.lock_timeout
        while self.clock.monotonic() < until:
            await host.sleep(wait)
            wait = min(wait * 1.5, LONGEST_LOOK)
            entry = await host.offload(self.store.read, asked.key, asked.tags)
            if entry is not None and not self.is_stale(entry):
                return entry
            if await host.offload(hold.take):
                # It has ended between our look and this. If it left nothing, all who wait go on at once.
                entry = await host.offload(self.store.read, asked.key, asked.tags)
                await host.offload(hold.give_up)
                return entry
        return None

    async def _execute(self, host: Host, asked: Asked, flight: Flight, mark: Mark | None) -> Outcome:
        key, forgotten = asked.key, self.flights.forgotten
        outcome = await host.attempt(asked.layer, asked.call, asked.args, asked.kwargs)
        flight.failed = True  # for those who find nothing kept: an error, or a result that has no time to live
        try:
            if asked.call.fell_back or (outcome.error is not None and not self.policy.cache_errors):
                return outcome
            if self.flights.is_outdated(key, flight, forgotten):
                flight.kept = outcome  # for those who asked before; the next one computes anew
                return outcome
            entry = self.retention.entry(key, outcome, asked.tags)
            if entry is None:
                return outcome
            if await host.offload(self.write, key, entry, mark) if self.is_shared else self.write(key, entry):
                flight.kept = outcome
                if self.flights.is_outdated(key, flight, forgotten):  # just now
                    if self.is_shared:
                        await host.offload(self.store.delete, key)
                    else:
                        self.store.delete(key)
            return outcome
        finally:
            del outcome  # an exception's traceback leads back to this frame: leave no cycle for the collector

    # In the background

    def _refresh(self, host: Host, asked: Asked) -> None:
        flight = self.flights.start(asked.key, asked.tags)
        again = Asked(asked.layer, type(asked.call)(), asked.args, asked.kwargs, asked.key, asked.tags)
        if flight is not None and not host.background(self._refreshed(host, again, flight)):
            self.flights.land(asked.key, flight)

    async def _refreshed(self, host: Host, asked: Asked, flight: Flight) -> None:
        leading.set((*leading.get(), flight))  # a context of its own
        key, hold = asked.key, self._hold(asked.key)
        outcome: Outcome | None = None
        try:
            mark = None
            if self.is_shared:
                entry, mark = await host.offload(self.store.begin, key, asked.tags)
                if entry is not None and entry.refresh_at > self.store.now():
                    return  # another process has done it
                if hold is not None and not await host.offload(hold.take):
                    return  # another process is at it
            outcome = await self._execute(host, asked, flight, mark)
            if outcome.error is not None or asked.call.fell_back:
                self._rest(key)
                self._not_refreshed.report(
                    "a refresh in the background failed, and the old result is served on: "
                    + (f"{type(outcome.error).__name__}: {outcome.error}" if outcome.error else "a fallback answered"),
                    outcome.error,
                )
            else:
                self._resting.pop(key, None)
        finally:
            outcome = None
            self.flights.land(key, flight)
            if hold is not None and hold.is_asked_for:
                await host.offload(hold.give_up)

    def _rest(self, key: Hashable) -> None:
        if len(self._resting) > self.policy.max_size:
            self._resting.clear()
        self._resting[key] = self.clock.monotonic() + REST

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        host, read, count = BlockingHost(self.clock), self.store.read, self._count()

        def cached(call: Call, args: Args, kwargs: Kwargs) -> Any:
            key, tags = self.key(args, kwargs), self.retention.tags(args, kwargs)
            if count is not None:
                count(key)
            entry = read(key, tags)
            if entry is not None and not entry.is_error and entry.refresh_at > self.store.now():
                call.stats.cache_hits += 1
                return entry.value
            return run_blocking(self.answer(host, Asked(layer, call, args, kwargs, key, tags), entry)).get()

        return cached

    def wrap_async(self, layer: Layer) -> Layer:
        host, read, count, is_shared = AsyncHost(self.clock), self.store.read, self._count(), self.is_shared

        async def cached(call: Call, args: Args, kwargs: Kwargs) -> Any:
            key, tags = self.key(args, kwargs), self.retention.tags(args, kwargs)
            if count is not None:
                count(key)
            entry = await host.offload(read, key, tags) if is_shared else read(key, tags)
            if entry is not None and not entry.is_error and entry.refresh_at > self.store.now():
                call.stats.cache_hits += 1
                return entry.value
            return (await self.answer(host, Asked(layer, call, args, kwargs, key, tags), entry)).get()

        return cached

    def _count(self) -> Callable[[Hashable], None] | None:
        """What counts requests where the time to live depends on them; None also where `hit` does."""
        popularity = self.retention.popularity
        return None if popularity is None or self.hit is not None else popularity.count
