"""Answers calls from a cache, and computes what is missing once for all concurrent callers."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

from opero.cache.function_cache import FunctionCache
from opero.cache.outage import ThrottledFailure
from opero.cache.retention import shared
from opero.cache.single_flight import Computation, current_computations
from opero.cache.stores import MemoryStore
from opero.errors import FailedResponseError, RejectedError, describe, is_by_deadline
from opero.events import CacheHit, CacheRefreshed, watched
from opero.executors.call import MISS, Call
from opero.executors.conditions import Matcher
from opero.runtime.deadlines import current
from opero.runtime.hosts import AsyncHost, BlockingHost, Outcome, run_blocking

if TYPE_CHECKING:
    from opero.cache.computation_lock import ComputationLock
    from opero.cache.entry import Entry
    from opero.cache.stores import Snapshot
    from opero.executors.call import Layer
    from opero.executors.classifier import Classifier
    from opero.observe.stats import Stats
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Waiter

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

REFRESH_PAUSE = 1.0
"""Seconds after a failed refresh during which the old result is served without another refresh."""
FIRST_POLL, LONGEST_POLL = 0.005, 0.1
"""Seconds between reads of a shared store while another process computes the key."""

HIT = """
def generated({parameters}):
    try:
        _key = {key}
    except NO_KEY as _error:
        raise explained(_error, {args}, {kwargs}) from None
    {count}
    _entry = get(_key)
    if _entry is None or _entry.until <= now():
        if type(_key) is tuple:
            missed((_key, {args}, {kwargs}))
        return miss
    try:
        use(_key)
    except KeyError:
        return miss
    stats.cache_hits += 1
    if watched.hits:
        stats.emit(CacheHit)
    return _entry.value
"""
"""The template of `hit`: a lookup without a layer or a lock."""
FLAT = frozenset({str, int, bytes, bool, type(None)})
"""The types of parts of keys that cost nothing to make or to look up again. Other keys are handed on to the layer."""


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

    When several callers need a missing key, one computes it and the others wait. If that fails, they share the failure,
    or compute one at a time (`share_errors`); a result that is not to be cached is computed by each of them. If the
    caller of a computation is cancelled, it continues for those that still wait.

    Args:
        policy, clock, function, is_method, before: as for `FunctionCache`.
        stats: counts the hits that need no layer.
        classifier: says of which kind failures are.

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
        classifier: Classifier,
        *,
        is_method: bool = False,
        before: CacheExecutor | None = None,
    ) -> None:
        self.classifier = classifier
        is_meant = Matcher.of(policy.errors, classifier)

        def keeps_error(error: Exception) -> bool:
            return not isinstance(error, RejectedError | FailedResponseError) and is_meant(error)

        super().__init__(policy, clock, function, keeps_error, is_method=is_method, before=before)
        self.stats = stats
        self._refresh_pauses: dict[Hashable, float] = {}
        # Keys that `hit` has not found and the arguments they were made of, unless they are flat: for the layer, which
        # is called next. An interruption in between leaves some, so there are never more than a few.
        self._missed: deque[tuple[Hashable, Args, Kwargs]] = deque(maxlen=4)
        self._refresh_failed = ThrottledFailure("refresh", self.name, clock)
        for each in (self._refresh_failed, self.retention.not_stored, getattr(self.store, "unreadable", None)):
            if each is not None:
                each.stats = stats
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
        memory, popularity = store.backend, self.retention.popularity
        values = {
            "get": memory.values.get,
            "use": memory.values.move_to_end,
            "now": memory.now,
            "miss": MISS,
            "missed": self._hand_on,
            "stats": self.stats,
            "watched": watched,
            "CacheHit": CacheHit,
            "count_request": popularity and popularity.count,
        }
        return self.key.compiled(HIT, values=values, count="" if popularity is None else "count_request(_key)")

    # The coroutines, which serve both sync and async callers

    async def answer(self, host: Host, pending: PendingCall, entry: Entry | None) -> Outcome:
        """Return the outcome of a call whose entry is missing, stale, due for a refresh, or an exception."""
        if entry is None or not self.serves(entry):
            return await self._compute(host, pending)
        pending.call.stats.count_hit(is_stale=self.is_stale(entry))
        if self._needs_refresh(entry, pending.key):
            self._start_refresh(host, pending)
        return self.outcome(entry)

    async def _compute(self, host: Host, pending: PendingCall) -> Outcome:
        """Compute a key, or wait for its running computation."""
        stats = pending.call.stats
        while True:
            computation, waiter = self.single_flight.join(pending.key, host, pending.tags, pending.call)
            if waiter is None:
                leader = self._lead(host, pending, computation)
                still_wanted = partial(self.single_flight.leave, computation, waited=False)
                return await host.shielded(leader, computation, still_wanted)
            try:
                await self._wait(waiter, pending.call)
            finally:
                self.single_flight.leave(computation, waited=True)
            result = computation.result  # not from the cache, which may have evicted it already
            if result is not None and (result.error is None or self.retention.keeps_error(result.error)):
                stats.count_hit()
                return shared(result) if result.error is not None else result
            if computation.failure is not None:
                if self.policy.share_errors:
                    return shared(computation.failure)
                continue  # the first of those that waited tries, and the others wait for it
            if computation.failed:
                stats.count_miss()
                return await self._execute(host, pending, Computation(pending.tags), None)

    async def _wait(self, waiter: Waiter, call: Call) -> None:
        """Wait for the end of a computation, at most until the deadline that the call has inherited."""
        if call.inherited is None:
            await waiter.wait(None)
        elif not await waiter.wait(max(0.0, call.time_left(self.clock.monotonic()))):
            text = f"{self.name}: another call computes the result, and {call.limit} has passed"
            raise call.out_of_time(text, "cache")

    async def _lead(self, host: Host, pending: PendingCall, computation: Computation) -> Outcome:
        """Compute a key for all callers that wait for it, unless it has been stored in the meantime."""
        key, stats = pending.key, pending.call.stats
        token = current_computations.set((*current_computations.get(), computation))
        lock = self._computation_lock(key, computation)
        try:
            if self.is_shared:
                entry, snapshot = await host.offload(self.store.begin, key, pending.tags)
                if lock is not None and (entry is None or self.is_stale(entry)):
                    entry = await self._exclude(host, pending, lock, entry)
            else:
                entry, snapshot = self.store.begin(key, pending.tags)
            if entry is not None and not self.is_stale(entry) and self.serves(entry):
                computation.result = self.outcome(entry)
                stats.count_hit()
                return computation.result
            stats.count_miss()
            return await self._execute(host, pending, computation, snapshot)
        finally:
            try:
                self.single_flight.finish(key, computation)
                with contextlib.suppress(ValueError):  # an abandoned coroutine is closed in another context
                    current_computations.reset(token)
            finally:  # Ctrl-C may have come within these
                if lock is not None and lock.was_requested:
                    await host.ensure(lock.release)

    def _computation_lock(self, key: Hashable, computation: Computation) -> ComputationLock | None:
        mutex = self.store.mutex(key) if self.is_shared else None
        if mutex is not None:
            from opero.cache.computation_lock import ComputationLock

            computation.watch()  # for other processes
            computation.lock = ComputationLock(mutex, self.store.breaker)  # type: ignore[attr-defined]
        return computation.lock

    @staticmethod
    async def _acquire(host: Host, lock: ComputationLock) -> bool:
        lock.was_requested = True  # now: a cancelled caller may release it before the other thread begins to acquire it
        return await host.offload(lock.acquire)

    async def _exclude(
        self, host: Host, pending: PendingCall, lock: ComputationLock, entry: Entry | None
    ) -> Entry | None:
        """Acquire the lock against other processes, or return the entry that another process has written meanwhile.

        If the other process fails, one of those that wait computes next. If it takes too long, or its result is not
        cached, each of them computes for itself.
        """
        if await self._acquire(host, lock):
            return entry
        call, now = pending.call, self.clock.monotonic()
        wait, until = FIRST_POLL, now + min(self.policy.lock_timeout, call.time_left(now))
        while self.clock.monotonic() < until:
            await host.sleep(wait)
            wait = min(wait * 1.5, LONGEST_POLL)
            entry = await host.offload(self.store.read, pending.key, pending.tags)
            if entry is not None and not self.is_stale(entry):
                return entry
            if await self._acquire(host, lock):
                # The other computation ended after the read above. If it wrote nothing, it failed or is not cached.
                entry = await host.offload(self.store.read, pending.key, pending.tags)
                if entry is None and await host.offload(self.store.is_uncached, pending.key):  # type: ignore[attr-defined]
                    await host.ensure(lock.release)
                return entry
        if call.time_left(self.clock.monotonic()) <= 0:
            text = f"{self.name}: another process computes the result, and {call.limit} has passed"
            raise call.out_of_time(text, "cache")
        return None

    async def _execute(
        self, host: Host, pending: PendingCall, computation: Computation, snapshot: Snapshot | None
    ) -> Outcome:
        """Call the function, and store its outcome if the policy says so."""
        key, invalidations = pending.key, self.single_flight.invalidations
        outcome = await host.attempt(pending.layer, pending.call, pending.args, pending.kwargs)
        if self._was_short_of_time(pending.call, outcome.error):
            return outcome
        computation.failed = True  # waiting callers compute for themselves unless there is an outcome for them below
        try:
            if pending.call.is_fallback or (
                outcome.error is not None and not self.retention.keeps_error(outcome.error)
            ):
                computation.failure = outcome
                return outcome
            if not self.is_shared:
                if not pending.call.fell_back:
                    self._settle(key, computation, outcome, invalidations, pending.call.ttl)
                return outcome
            if self.single_flight.is_invalidated(key, computation, invalidations):
                computation.result = outcome  # for the callers that asked before the deletion
                return outcome
            fell_back, ttl = pending.call.fell_back, pending.call.ttl
            entry = None if fell_back else self.retention.entry(key, outcome, pending.tags, ttl)
            if entry is None or not await host.offload(self.write, key, entry, snapshot):
                await host.offload(self.store.mark_uncached, key)  # type: ignore[attr-defined]
            else:
                computation.result = outcome
                if self.single_flight.is_invalidated(key, computation, invalidations):  # during the write
                    await host.offload(self.store.delete, key)
            return outcome
        finally:
            del outcome  # an exception's traceback refers to this frame: break the reference cycle

    def _was_short_of_time(self, call: Call, error: Exception | None) -> bool:
        """Return whether a call has failed, or a fallback has answered it, for the deadline that it has inherited.

        That is neither stored nor shared: the first of those that wait computes next, in its own time.
        """
        deadline = call.inherited
        if deadline is None or (error is None and not call.fell_back):
            return False
        return call.is_cut_short or deadline.left() <= 0 or is_by_deadline(error)

    def _settle(
        self,
        key: Hashable,
        computation: Computation,
        outcome: Outcome,
        invalidations: int,
        ttl: float | None = None,
    ) -> None:
        """Store the outcome of a computation in memory, and give it to the callers that wait for it."""
        is_invalidated = self.single_flight.is_invalidated
        if is_invalidated(key, computation, invalidations):
            computation.result = outcome  # for the callers that asked before the deletion
            return
        entry = self.retention.entry(key, outcome, computation.tags, ttl)
        if entry is not None and self.write(key, entry):
            computation.result = outcome
            if is_invalidated(key, computation, invalidations):  # during the write
                self.store.delete(key)

    # Refresh in the background

    def _needs_refresh(self, entry: Entry, key: Hashable) -> bool:
        if entry.refresh_at > self.store.now():
            return False
        if self._refresh_pauses and self._refresh_pauses.get(key, 0.0) > self.clock.monotonic():
            return False
        return not self.single_flight.is_running(key)

    def _start_refresh(self, host: Host, pending: PendingCall) -> None:
        key, tags = pending.key, pending.tags
        computation = self.single_flight.start(key, tags, pending.call, host.loop())
        own = PendingCall(pending.layer, Call.of(pending.call.stats), pending.args, pending.kwargs, key, tags)
        if computation is not None and not host.background(self._refresh(host, own, computation), computation):
            self.single_flight.finish(key, computation)

    async def _refresh(self, host: Host, pending: PendingCall, computation: Computation) -> None:
        current_computations.set((*current_computations.get(), computation))  # in a context of its own
        current.set(None)  # it is for later callers
        key, lock = pending.key, self._computation_lock(pending.key, computation)
        outcome: Outcome | None = None
        try:
            snapshot = None
            if self.is_shared:
                entry, snapshot = await host.offload(self.store.begin, key, pending.tags)
                if entry is not None and entry.refresh_at > self.store.now():
                    return  # another process has refreshed it
                if lock is not None and not await self._acquire(host, lock):
                    return  # another process is refreshing it
            outcome = await self._execute(host, pending, computation, snapshot)
            if outcome.error is not None or pending.call.fell_back:
                self._pause_refreshes(key)
                reason = describe(outcome.error) if outcome.error else "its result is not to be cached"
                self._refresh_failed.report(
                    f"background refresh failed, the old result is still served: {reason}", outcome.error
                )
            else:
                self._refresh_pauses.pop(key, None)
                pending.call.stats.emit(CacheRefreshed)
        finally:
            outcome = None
            self.single_flight.finish(key, computation)
            if lock is not None and lock.was_requested:
                await host.ensure(lock.release)

    def _pause_refreshes(self, key: Hashable) -> None:
        if len(self._refresh_pauses) > self.policy.max_size:
            self._refresh_pauses.clear()
        self._refresh_pauses[key] = self.clock.monotonic() + REFRESH_PAUSE

    def abandon(self, call: Call) -> None:
        """Finish what a call computes that was interrupted, unless a task computes it for others as well."""
        computation = call.computation
        if computation is None or computation.task is not None:
            return
        self.single_flight.finish(computation.key, computation)
        own = current_computations.get()
        if computation in own:
            current_computations.set(tuple([each for each in own if each is not computation]))
        if computation.lock is not None and computation.lock.was_requested:
            computation.lock.release()

    # The layer

    def wrap(self, layer: Layer) -> Layer:
        host, read, count = BlockingHost(self.clock), self.store.read, self._counter()
        computes_here = not self.is_shared and not self.policy.errors

        def cached(call: Call, args: Args, kwargs: Kwargs) -> Any:
            key, tags = self._key_of(args, kwargs), self.retention.tags(args, kwargs)
            if count is not None:
                count(key)
            finished = self.single_flight.finished
            entry = read(key, tags)
            if entry is not None and not entry.is_error and entry.refresh_at > self.store.now():
                call.stats.count_hit()
                return entry.value
            computation = self.single_flight.start(key, tags, call) if entry is None and computes_here else None
            if computation is None:
                return run_blocking(self.answer(host, PendingCall(layer, call, args, kwargs, key, tags), entry)).get()
            # What `_lead` does, for the usual case: it takes a quarter of the time, and recursion fewer frames.
            token = current_computations.set((*current_computations.get(), computation))
            try:
                if self.single_flight.finished != finished and (entry := read(key, tags)) is not None:
                    call.stats.count_hit()  # stored in the meantime
                    computation.result = Outcome(entry.value)
                    return entry.value
                call.stats.count_miss()
                invalidations = self.single_flight.invalidations
                value = layer(call, args, kwargs)
                if self._was_short_of_time(call, None):
                    return value
                computation.failed = True  # waiting callers compute for themselves unless it has a result below
                if call.is_fallback:
                    computation.failure = Outcome(value)
                elif not call.fell_back:
                    self._settle(key, computation, Outcome(value), invalidations)
                return value
            except Exception as error:
                if not self._was_short_of_time(call, error):
                    computation.failure = Outcome(error=error)
                raise
            finally:
                self.single_flight.finish(key, computation)
                current_computations.reset(token)
                del computation  # the traceback refers to this frame: break the reference cycle

        return cached

    def wrap_async(self, layer: Layer) -> Layer:
        host, read, count, is_shared = AsyncHost(self.clock), self.store.read, self._counter(), self.is_shared
        awaits_key = self.key.is_async

        async def cached(call: Call, args: Args, kwargs: Kwargs) -> Any:
            key = await self.key.awaited(args, kwargs) if awaits_key else self._key_of(args, kwargs)
            tags = self.retention.tags(args, kwargs)
            if count is not None:
                count(key)
            entry = await host.offload(read, key, tags) if is_shared else read(key, tags)
            if entry is not None and not entry.is_error and entry.refresh_at > self.store.now():
                call.stats.count_hit()
                return entry.value
            return (await self.answer(host, PendingCall(layer, call, args, kwargs, key, tags), entry)).get()

        return cached

    def _hand_on(self, missed: tuple[tuple[Any, ...], Args, Kwargs]) -> None:
        if not FLAT.issuperset(map(type, missed[0])):
            self._missed.append(missed)

    def _key_of(self, args: Args, kwargs: Kwargs) -> Hashable:
        """Return the key of a call: the one that `hit` has made, if these are the arguments it was made of."""
        if not self._missed:
            return self.key(args, kwargs)
        try:
            key, those, named = self._missed.pop()
        except IndexError:  # another thread has taken it
            return self.key(args, kwargs)
        self._missed.clear()  # what an interrupted call has left must never serve another, whose arguments have changed
        if kwargs or named or len(those) != len(args) or not all(map(is_, those, args)):
            return self.key(args, kwargs)
        return key

    def _counter(self) -> Callable[[Hashable], None] | None:
        """Return what counts requests for an adaptive time to live; None if there is none, or `hit` counts them."""
        popularity = self.retention.popularity
        return None if popularity is None or self.hit is not None else popularity.count
