"""Answers calls from a cache, and computes what is missing once for all concurrent callers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.cache.computation_lock import ComputationLock
from opero.cache.function_cache import FunctionCache
from opero.cache.outage import ThrottledEvent
from opero.cache.single_flight import Computation, current_computations
from opero.cache.stores import MemoryStore
from opero.errors import describe
from opero.executors.call import MISS
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from opero.cache.entry import Entry
    from opero.cache.stores import Snapshot
    from opero.executors.call import Call, Layer
    from opero.observe.stats import Stats
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Outcome

__all__ = ["CacheExecutor"]

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

REFRESH_PAUSE = 1.0
"""Seconds after a failed refresh during which the old result is served without another refresh."""
FIRST_POLL, LONGEST_POLL = 0.005, 0.1
"""Seconds between reads of a shared store while another process computes the key."""

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
"""The body of the generated `hit`: a lookup without a layer or a lock."""


class PendingCall:
    """A call that a fresh entry did not answer: its arguments, key and tags, and the layer to call."""

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


class CacheExecutor(FunctionCache):
    """The cache layer of one function.

    When several callers need a missing key, one computes it and the others wait. If the computation fails, each of them
    tries once for itself, immediately. If its caller is cancelled, it continues for those that still wait.

    Args:
        policy, clock, function, is_method, before: as for `FunctionCache`.
        stats: counts the hits that need no layer.

    Attributes:
        hit: returns the result of a call with these arguments if a fresh one is in memory, else `MISS`; None if results
            cannot be looked up without a layer.

    Raises:
        ConfigError: the policy does not fit the function, or its store cannot be opened.
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
        super().__init__(policy, clock, function, is_method=is_method, before=before)
        self._stats = stats
        self._refresh_pauses: dict[Hashable, float] = {}
        self._refresh_failed = ThrottledEvent("cache_refresh_failed", self.name, clock)
        self.hit = self._compiled_hit()

    def migrate_from(self, predecessor: FunctionCache) -> bool:
        if not super().migrate_from(predecessor):
            return False
        if isinstance(predecessor, CacheExecutor):
            self._refresh_pauses = predecessor._refresh_pauses
        self.hit = self._compiled_hit()
        return True

    def _compiled_hit(self) -> Callable[..., Any] | None:
        store = self.store
        # A layer would call a user's own key function a second time.
        if not isinstance(store, MemoryStore) or store.codec is not None or self.policy.key is not None:
            return None
        memory, values, popularity = store.backend, store.backend.values, self.retention.popularity
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

    # The coroutines, which serve both sync and async callers

    async def answer(self, host: Host, pending: PendingCall, entry: Entry | None) -> Outcome:
        """Return the outcome of a call whose entry is missing, stale, due for a refresh, or an exception."""
        if entry is None or not self.serves(entry):
            return await self._compute(host, pending)
        pending.call.stats.cache_hits += 1
        if self._needs_refresh(entry, pending.key):
            self._start_refresh(host, pending)
        return self.outcome(entry)

    async def _compute(self, host: Host, pending: PendingCall) -> Outcome:
        """Compute a key, or wait for its running computation."""
        stats = pending.call.stats
        while True:
            computation, waiter = self.single_flight.join(pending.key, host, pending.tags)
            if waiter is None:
                leader = self._lead(host, pending, computation)
                still_wanted = partial(self.single_flight.leave, computation, waited=False)
                return await host.shielded(leader, computation, still_wanted)
            try:
                await waiter.wait(None)
            finally:
                self.single_flight.leave(computation, waited=True)
            result = computation.result  # not from the cache, which may have evicted it already
            if result is not None and (result.error is None or self.policy.cache_errors):
                stats.cache_hits += 1
                return result
            if computation.failed:
                stats.cache_misses += 1
                return await self._execute(host, pending, Computation(pending.tags), None)

    async def _lead(self, host: Host, pending: PendingCall, computation: Computation) -> Outcome:
        """Compute a key for all callers that wait for it, unless it has been stored in the meantime."""
        key, stats = pending.key, pending.call.stats
        token = current_computations.set((*current_computations.get(), computation))
        lock = self._computation_lock(key)
        try:
            if self.is_shared:
                entry, snapshot = await host.offload(self.store.begin, key, pending.tags)
                if lock is not None and (entry is None or self.is_stale(entry)):
                    entry = await self._exclude(host, pending, lock, entry)
            else:
                entry, snapshot = self.store.begin(key, pending.tags)
            if entry is not None and not self.is_stale(entry) and self.serves(entry):
                computation.result = self.outcome(entry)
                stats.cache_hits += 1
                return computation.result
            stats.cache_misses += 1
            return await self._execute(host, pending, computation, snapshot)
        finally:
            self.single_flight.finish(key, computation)
            with contextlib.suppress(ValueError):  # an abandoned coroutine is closed in another context
                current_computations.reset(token)
            if lock is not None and lock.was_requested:
                await host.offload(lock.release)

    def _computation_lock(self, key: Hashable) -> ComputationLock | None:
        mutex = self.store.mutex(key) if self.is_shared else None
        return None if mutex is None else ComputationLock(mutex, self.store.breaker)  # type: ignore[attr-defined]

    async def _exclude(
        self, host: Host, pending: PendingCall, lock: ComputationLock, entry: Entry | None
    ) -> Entry | None:
        """Acquire the lock against other processes, or return the entry that another process has written meanwhile.

        If the other process fails or takes too long, every process that waits for it computes for itself.
        """
        if await host.offload(lock.acquire):
            return entry
        wait, until = FIRST_POLL, self.clock.monotonic() + self.policy.lock_timeout
        while self.clock.monotonic() < until:
            await host.sleep(wait)
            wait = min(wait * 1.5, LONGEST_POLL)
            entry = await host.offload(self.store.read, pending.key, pending.tags)
            if entry is not None and not self.is_stale(entry):
                return entry
            if await host.offload(lock.acquire):
                # The other computation ended after the read above. If it wrote nothing, all that wait compute at once.
                entry = await host.offload(self.store.read, pending.key, pending.tags)
                await host.offload(lock.release)
                return entry
        return None

    async def _execute(
        self, host: Host, pending: PendingCall, computation: Computation, snapshot: Snapshot | None
    ) -> Outcome:
        """Call the function, and store its outcome if the policy says so."""
        key, invalidations = pending.key, self.single_flight.invalidations
        outcome = await host.attempt(pending.layer, pending.call, pending.args, pending.kwargs)
        computation.failed = True  # waiting callers compute for themselves unless `result` is set below
        try:
            if pending.call.fell_back or (outcome.error is not None and not self.policy.cache_errors):
                return outcome
            if self.single_flight.is_invalidated(key, computation, invalidations):
                computation.result = outcome  # for the callers that asked before the deletion
                return outcome
            entry = self.retention.entry(key, outcome, pending.tags)
            if entry is None:
                return outcome
            if await host.offload(self.write, key, entry, snapshot) if self.is_shared else self.write(key, entry):
                computation.result = outcome
                if self.single_flight.is_invalidated(key, computation, invalidations):  # during the write
                    if self.is_shared:
                        await host.offload(self.store.delete, key)
                    else:
                        self.store.delete(key)
            return outcome
        finally:
            del outcome  # an exception's traceback refers to this frame: break the reference cycle

    # Refresh in the background

    def _needs_refresh(self, entry: Entry, key: Hashable) -> bool:
        if entry.refresh_at > self.store.now():
            return False
        if self._refresh_pauses and self._refresh_pauses.get(key, 0.0) > self.clock.monotonic():
            return False
        return key not in self.single_flight.running

    def _start_refresh(self, host: Host, pending: PendingCall) -> None:
        key, tags = pending.key, pending.tags
        computation = self.single_flight.start(key, tags)
        own = PendingCall(pending.layer, type(pending.call)(), pending.args, pending.kwargs, key, tags)
        if computation is not None and not host.background(self._refresh(host, own, computation)):
            self.single_flight.finish(key, computation)

    async def _refresh(self, host: Host, pending: PendingCall, computation: Computation) -> None:
        current_computations.set((*current_computations.get(), computation))  # in a context of its own
        key, lock = pending.key, self._computation_lock(pending.key)
        outcome: Outcome | None = None
        try:
            snapshot = None
            if self.is_shared:
                entry, snapshot = await host.offload(self.store.begin, key, pending.tags)
                if entry is not None and entry.refresh_at > self.store.now():
                    return  # another process has refreshed it
                if lock is not None and not await host.offload(lock.acquire):
                    return  # another process is refreshing it
            outcome = await self._execute(host, pending, computation, snapshot)
            if outcome.error is not None or pending.call.fell_back:
                self._pause_refreshes(key)
                reason = describe(outcome.error) if outcome.error else "a fallback answered"
                self._refresh_failed.report(
                    f"background refresh failed, the old result is still served: {reason}", outcome.error
                )
            else:
                self._refresh_pauses.pop(key, None)
        finally:
            outcome = None
            self.single_flight.finish(key, computation)
            if lock is not None and lock.was_requested:
                await host.offload(lock.release)

    def _pause_refreshes(self, key: Hashable) -> None:
        if len(self._refresh_pauses) > self.policy.max_size:
            self._refresh_pauses.clear()
        self._refresh_pauses[key] = self.clock.monotonic() + REFRESH_PAUSE

    # The layer

    def wrap(self, layer: Layer) -> Layer:
        host, read, count = BlockingHost(self.clock), self.store.read, self._counter()

        def cached(call: Call, args: Args, kwargs: Kwargs) -> Any:
            key, tags = self.key(args, kwargs), self.retention.tags(args, kwargs)
            if count is not None:
                count(key)
            entry = read(key, tags)
            if entry is not None and not entry.is_error and entry.refresh_at > self.store.now():
                call.stats.cache_hits += 1
                return entry.value
            return run_blocking(self.answer(host, PendingCall(layer, call, args, kwargs, key, tags), entry)).get()

        return cached

    def wrap_async(self, layer: Layer) -> Layer:
        host, read, count, is_shared = AsyncHost(self.clock), self.store.read, self._counter(), self.is_shared

        async def cached(call: Call, args: Args, kwargs: Kwargs) -> Any:
            key, tags = self.key(args, kwargs), self.retention.tags(args, kwargs)
            if count is not None:
                count(key)
            entry = await host.offload(read, key, tags) if is_shared else read(key, tags)
            if entry is not None and not entry.is_error and entry.refresh_at > self.store.now():
                call.stats.cache_hits += 1
                return entry.value
            return (await self.answer(host, PendingCall(layer, call, args, kwargs, key, tags), entry)).get()

        return cached

    def _counter(self) -> Callable[[Hashable], None] | None:
        """Return what counts requests for an adaptive time to live; None if there is none, or `hit` counts them."""
        popularity = self.retention.popularity
        return None if popularity is None or self.hit is not None else popularity.count
