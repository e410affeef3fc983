"""Remembering results: a dogpile.cache region a binding, and one computation of a key at a time."""

from __future__ import annotations

import contextlib
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from opero.cache.keys import KeyMaker
from opero.executors.call import AsyncHost, BlockingHost, Outcome, run_blocking
from opero.logs import logger
from opero.policies.types import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from opero.cache.memory import MemoryBackend
    from opero.clock import Clock
    from opero.executors.call import Call, Host, Layer, Waiter
    from opero.policies.cache import CachePolicy

__all__ = ["CacheExecutor"]

FOREVER = float("inf")


class _Flight:
    """A computation under way, and who waits for it.

    Attributes:
        waiters: who is to be woken when it ends.
        kept: the result, where it was one to keep.
        failed: it came to its end with nothing to keep.
        outdated: its key has been deleted since it began.
    """

    __slots__ = ("failed", "kept", "outdated", "waiters")

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []
        self.kept: Outcome | None = None
        self.failed = False
        self.outdated = False


_leading: ContextVar[tuple[_Flight, ...]] = ContextVar("opero_cache_leading", default=())
"""The computations that this code is part of. Tasks and a timeout's helper threads get a copy of the context, so a
function that asks itself the same there does not wait for itself."""


class CacheExecutor:
    """The cache of one binding.

    Where several callers ask for a key that is not there, one computes it and the others wait for it. If it fails,
    each of them tries on its own account, at once; if it is cancelled, the next one takes its place.
    """

    def __init__(
        self, policy: CachePolicy, clock: Clock, name: str, function: Callable[..., Any], *, is_method: bool = False
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.name = f"{policy.namespace}:{name}"
        self.key = KeyMaker(function, policy.key, is_method=is_method)
        # dogpile types keys as text; the memory backend takes whatever is hashable, and tells 1 from 1.0 and True so.
        self.region: Any = make_region(name=self.name).configure(
            "opero.memory", arguments={"max_size": policy.max_size}
        )
        self.backend: MemoryBackend = self.region.backend
        self._flights: dict[Hashable, _Flight] = {}
        self._forgotten = 0
        self._lock = threading.Lock()

    # What users may ask of it

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """The cached result of such a call, or None."""
        outcome = self.look_up(self.key(args, kwargs))
        return None if outcome is None else outcome.value

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Forget the cached result of such a call, and do not keep one that is being computed."""
        key = self.key(args, kwargs)
        with self._lock:
            self._forgotten += 1
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.outdated = True
        self.region.delete(key)

    def clear(self) -> None:
        """Forget every result, and do not keep those that are being computed."""
        with self._lock:
            self._forgotten += 1
            for flight in self._flights.values():
                flight.outdated = True
            self._flights.clear()
        self.backend.clear()

    # Decisions

    def look_up(self, key: Hashable) -> Outcome | None:
        """The stored result, if there is one and its time has not passed."""
        entry = self.region.get(key)
        if entry is NO_VALUE:
            return None
        expires, value = entry
        # What is too old stays until the next result replaces it: deleting it could hit one that has just come.
        return Outcome(value) if expires > self.clock.monotonic() else None

    def store(self, key: Hashable, value: Any) -> bool:
        """Remember a result for the policy's time to live; whether it has any.

        An answer is never lost to a time that cannot be told.
        """
        ttl = self.policy.ttl
        if callable(ttl):
            try:
                ttl = parse_duration(ttl())
            except Exception:  # noqa: BLE001  # whatever a user's function raises
                logger.exception("%s: the cache_ttl function gave no time, so the result was not kept", self.name)
                return False
        expires = FOREVER if ttl is None else self.clock.monotonic() + ttl
        if expires <= self.clock.monotonic():
            return False
        self.region.set(key, (expires, value))
        return True

    def _join(self, key: Hashable, host: Host) -> tuple[_Flight, Waiter | None]:
        """The computation of that key: one to lead (no waiter), or one under way to wait for."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight()
                return flight, None
            if flight in _leading.get():
                return _Flight(), None  # the function calls itself with the same arguments: let it
            waiter = host.waiter()
            flight.waiters.append(waiter)
            return flight, waiter

    def _land(self, key: Hashable, flight: _Flight) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        for waiter in flight.waiters:
            waiter.wake()

    # What waits

    async def compute(
        self, host: Host, layer: Layer, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Hashable
    ) -> Outcome:
        """The result of a call that is not in the cache: computed once, whoever asks for it meanwhile."""
        while True:
            flight, waiter = self._join(key, host)
            if waiter is not None:
                await waiter.wait(None)
                found = flight.kept  # and not the cache, which may have dropped it already
                if found is not None:
                    call.stats.cache_hits += 1
                    return found
                if flight.failed:
                    call.stats.cache_misses += 1
                    return await self._execute(host, layer, call, args, kwargs, key, _Flight())
                continue
            leading = _leading.set((*_leading.get(), flight))
            try:
                found = self.look_up(key)  # another may have landed since we looked
                if found is not None:
                    flight.kept = found
                    call.stats.cache_hits += 1
                    return found
                call.stats.cache_misses += 1
                outcome = await self._execute(host, layer, call, args, kwargs, key, flight)
                flight.failed = True  # for those who find nothing kept: an error, or a result that has no time to live
                return outcome
            finally:
                self._land(key, flight)
                with contextlib.suppress(ValueError):  # an abandoned coroutine is closed in another context
                    _leading.reset(leading)

    async def _execute(
        self,
        host: Host,
        layer: Layer,
        call: Call,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: Hashable,
        flight: _Flight,
    ) -> Outcome:
        forgotten = self._forgotten
        outcome = await host.attempt(layer, call, args, kwargs)
        if outcome.error is None and not call.fell_back:
            if self._outdated(key, flight, forgotten):
                flight.kept = outcome  # for those who asked before; the next one computes anew
            elif self.store(key, outcome.value):
                flight.kept = outcome
                if self._outdated(key, flight, forgotten):  # just now
                    self.region.delete(key)
        return outcome

    def _outdated(self, key: Hashable, flight: _Flight, forgotten: int) -> bool:
        """Whether the key has been deleted since; where nobody can join the computation, whether any has been."""
        return flight.outdated or (self._forgotten != forgotten and self._flights.get(key) is not flight)

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        host = BlockingHost(self.clock)

        def cached(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            key = self.key(args, kwargs)
            found = self.look_up(key)
            if found is not None:
                call.stats.cache_hits += 1
                return found.value
            return run_blocking(self.compute(host, layer, call, args, kwargs, key)).get()

        return cached

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def cached(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            key = self.key(args, kwargs)
            found = self.look_up(key)
            if found is not None:
                call.stats.cache_hits += 1
                return found.value
            return (await self.compute(host, layer, call, args, kwargs, key)).get()

        return cached
