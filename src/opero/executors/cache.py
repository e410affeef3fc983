"""Remembering results: a dogpile.cache region a binding, and one computation of a key at a time."""

from __future__ import annotations

import threading
from asyncio import current_task
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
    """A computation under way, and who waits for it."""

    __slots__ = ("failed", "owner", "waiters")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.waiters: list[Waiter] = []
        self.failed = False


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
        self._lock = threading.Lock()

    # What users may ask of it

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """The cached result of such a call, or None."""
        outcome = self.look_up(self.key(args, kwargs))
        return None if outcome is None else outcome.value

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Forget the cached result of such a call."""
        self.region.delete(self.key(args, kwargs))

    def clear(self) -> None:
        """Forget every result."""
        self.backend.clear()

    # Decisions

    def look_up(self, key: Hashable) -> Outcome | None:
        """The stored result, if there is one and its time has not passed."""
        entry = self.region.get(key)
        if entry is NO_VALUE:
            return None
        expires, value = entry
        if expires <= self.clock.monotonic():
            self.region.delete(key)
            return None
        return Outcome(value)

    def store(self, key: Hashable, value: Any) -> None:
        """Remember a result for the policy's time to live. An answer is never lost to a time that cannot be told."""
        ttl = self.policy.ttl
        if callable(ttl):
            try:
                ttl = parse_duration(ttl())
            except Exception:  # noqa: BLE001  # whatever a user's function raises
                logger.exception("%s: the cache_ttl function gave no time, so the result was not kept", self.name)
                return
        expires = FOREVER if ttl is None else self.clock.monotonic() + ttl
        if expires > self.clock.monotonic():
            self.region.set(key, (expires, value))

    def _join(self, key: Hashable, host: Host, owner: object) -> tuple[_Flight, Waiter | None]:
        """The computation of that key: one to lead (no waiter), or one under way to wait for."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(owner)
                return flight, None
            if flight.owner == owner:
                return _Flight(owner), None  # the function calls itself with the same arguments: let it
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
        self,
        host: Host,
        layer: Layer,
        call: Call,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: Hashable,
        owner: object,
    ) -> Outcome:
        """The result of a call that is not in the cache: computed once, whoever asks for it meanwhile."""
        while True:
            flight, waiter = self._join(key, host, owner)
            if waiter is not None:
                await waiter.wait(None)
                found = self.look_up(key)
                if found is not None:
                    call.stats.cache_hits += 1
                    return found
                if flight.failed:
                    call.stats.cache_misses += 1
                    return await self._execute(host, layer, call, args, kwargs, key)
                continue
            try:
                found = self.look_up(key)  # another may have landed since we looked
                if found is not None:
                    call.stats.cache_hits += 1
                    return found
                call.stats.cache_misses += 1
                outcome = await self._execute(host, layer, call, args, kwargs, key)
                flight.failed = True  # for those whose look-up finds nothing: an error, or a result that was not kept
                return outcome
            finally:
                self._land(key, flight)

    async def _execute(
        self, host: Host, layer: Layer, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], key: Hashable
    ) -> Outcome:
        outcome = await host.attempt(layer, call, args, kwargs)
        if outcome.error is None and not call.fell_back:
            self.store(key, outcome.value)
        return outcome

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        host = BlockingHost(self.clock)

        def cached(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            key = self.key(args, kwargs)
            found = self.look_up(key)
            if found is not None:
                call.stats.cache_hits += 1
                return found.value
            return run_blocking(self.compute(host, layer, call, args, kwargs, key, threading.get_ident())).get()

        return cached

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def cached(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            key = self.key(args, kwargs)
            found = self.look_up(key)
            if found is not None:
                call.stats.cache_hits += 1
                return found.value
            return (await self.compute(host, layer, call, args, kwargs, key, current_task())).get()

        return cached
