"""Letting only so many calls run at once: places, and a queue for them that threads and tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.errors import BulkheadFullError, CallTimeoutError
from opero.executors.state.slots import Places
from opero.policies.types import format_duration
from opero.runtime.generators import Started
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking
from opero.runtime.migration import moving

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.executors.call import Call, Layer
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

__all__ = ["BulkheadExecutor"]


class BulkheadExecutor:
    """One set of places, shared by all functions that are bound to its profile, from threads and event loops alike."""

    def __init__(self, policy: BulkheadPolicy, clock: Clock, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.blocking = BlockingHost(clock)
        self.places = Places(policy.max_concurrent)

    def take_over(self, old: BulkheadExecutor) -> None:
        """Go on with the places of an executor whose policy this one's replaces (see `hand_over`)."""
        with moving:
            mine, theirs, most = self.places.now(), old.places.now(), self.policy.max_concurrent
            file = getattr(mine, "file", None)
            if file is not None and not hasattr(theirs, "file"):
                from opero.executors.state.shared_slots import share_bulkhead

                share_bulkhead(old, file, first=False)
            if file is not None or mine is theirs:
                theirs.resize(most)
            else:
                theirs.take_in(mine, most)
            self.places = theirs

    @property
    def running(self) -> int:
        """Calls that hold a place."""
        return self.places.running

    # Decisions

    def take(self) -> bool:
        """Take a free place, if there is one that nobody queues for."""
        return self.places.take()

    def leave(self) -> None:
        """Give a place back, or hand it on to who has queued longest."""
        self.places.leave()

    def refusal(self, call: Call, waited: float) -> Exception:
        """The error for a call that found no place in time."""
        call.turned_away = True
        limit = f"{self.name}: all {self.places.most} places of the bulkhead are taken"
        if self.policy.max_wait is None or waited < self.policy.max_wait:
            call.stats.timeouts += 1
            return CallTimeoutError(
                f"{limit}, and the total timeout leaves no time to queue", scope="total", waiting_for="bulkhead"
            )
        call.stats.rejections += 1
        queued = f" after {format_duration(self.policy.max_wait)} in the queue" if self.policy.max_wait else ""
        return BulkheadFullError(f"{limit}{queued}")

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        """Stand in the queue until a place is handed over."""
        started = self.clock.monotonic()
        left = call.time_left(started)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        in_time: bool | None = False
        try:
            in_time = await self.places.wait(host, self.clock, patience)
        finally:
            if in_time is not None:
                waited = self.clock.monotonic() - started
                call.stats.waits += 1
                call.stats.waited += waited
                call.waited += waited
        if in_time is False:
            raise self.refusal(call, patience)

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        def placed(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            places = self.places  # which know where they are, should they move meanwhile
            if not places.take():
                run_blocking(self.queue(self.blocking, call))
            try:
                result = layer(call, args, kwargs)
            except BaseException:
                places.leave()
                raise
            if type(result) is Started:
                result.on_end(places.leave)  # a generator holds its place until it ends
            else:
                places.leave()
            return result

        return placed

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def placed(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            places = self.places  # which know where they are, should they move meanwhile
            if not places.take():
                await self.queue(host, call)
            try:
                result = await layer(call, args, kwargs)
            except BaseException:
                places.leave()
                raise
            if type(result) is Started:
                result.on_end(places.leave)  # a generator holds its place until it ends
            else:
                places.leave()
            return result

        return placed
