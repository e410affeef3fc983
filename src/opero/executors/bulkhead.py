"""Limiting how many calls run at once: slots, and a queue for them that threads and tasks share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import BulkheadFullError, CallTimeoutError
from opero.executors.state.home import Holder
from opero.executors.state.slots import FOREVER, LocalSlots, QueuedCall, Slots
from opero.policies.types import format_duration
from opero.runtime.generators import Started
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.executors.call import Call, Layer
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Waiter

__all__ = ["BulkheadExecutor"]


class BulkheadExecutor(Holder[Slots]):
    """A bulkhead, shared by all functions that are bound to its profile, from threads and event loops alike."""

    def __init__(self, policy: BulkheadPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, LocalSlots(policy))
        self.clock = clock
        self.name = name
        self.blocking = BlockingHost(clock)

    @property
    def running(self) -> int:
        """Calls that have a slot."""
        return self.ask(lambda slots: slots.running())

    # Decisions

    def take(self) -> bool:
        """Take a slot if one is free and no call waits for it."""
        return self.home.take() or (self.follow() and self.home.take())

    def leave(self) -> None:
        """Give a slot back, or pass it on to the call that has waited longest."""
        while not self.home.leave():
            self.follow()

    def refusal(self, call: Call, waited: float) -> Exception:
        """The error for a call that got no slot in time."""
        call.turned_away = True
        limit = self.home.successor.limit
        full = f"{self.name}: bulkhead full: {limit} of {limit} slots in use"
        if self.policy.max_wait is None or waited < self.policy.max_wait:
            call.stats.timeouts += 1
            return CallTimeoutError(
                f"{full}, and the total timeout leaves no time to queue", scope="total", waiting_for="bulkhead"
            )
        call.stats.rejections += 1
        queued = f" after {format_duration(self.policy.max_wait)} in the queue" if self.policy.max_wait else ""
        return BulkheadFullError(f"{full}{queued}")

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        """Wait in the queue for a slot, after none could be taken at once."""
        if (self.home.blocks or self.follow()) and await self.run(host, self.take, self._give_back):
            return
        started = self.clock.monotonic()
        left = call.time_left(started)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        queued = QueuedCall(host.waiter(), started)
        if await self.run(host, lambda: self._enter(queued), lambda _: self._give_up(queued)):
            return
        try:
            has_slot = await self._wait(host, queued, started + patience)
        finally:
            waited = self.clock.monotonic() - started
            call.stats.waits += 1
            call.stats.waited += waited
            call.waited += waited
        if not has_slot:
            raise self.refusal(call, patience)

    async def _wait(self, host: Host, queued: QueuedCall, until: float) -> bool:
        """Wait until the queued call has a slot; False if it has none by then."""
        try:
            while True:
                left = until - self.clock.monotonic()
                seconds = min(left, self.home.pause(queued))
                woken = await queued.waiter.wait(None if seconds == FOREVER else seconds)
                if queued.granted or await self.run(host, partial(self._look, queued, host.waiter()), lambda _: None):
                    return True
                if not woken and seconds == left:
                    break
        except BaseException:
            self.run_later(self._give_up, queued)
            raise
        return await self.run(host, lambda: self._has_slot_after_all(queued), self._give_back)

    def _enter(self, queued: QueuedCall) -> bool:
        return self.ask(lambda slots: slots.enter(queued))

    def _look(self, queued: QueuedCall, waiter: Waiter) -> bool:
        return self.ask(lambda slots: slots.look(queued, waiter))

    def _has_slot_after_all(self, queued: QueuedCall) -> bool:
        """Leave the queue; whether a slot has been granted just before."""
        return not self.ask(lambda slots: slots.withdraw(queued))

    def _give_back(self, has_slot: bool) -> None:
        if has_slot:
            self.leave()

    def _give_up(self, queued: QueuedCall) -> None:
        """Leave the queue; a slot that has been granted just before is passed on."""
        self._give_back(self._has_slot_after_all(queued))

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            home = self.home
            if not home.take():
                run_blocking(self.queue(self.blocking, call))
            try:
                result = layer(call, args, kwargs)
            except BaseException:
                self.leave()
                raise
            if type(result) is Started:
                result.on_end(self.leave)  # a generator has its slot until it ends
            elif not home.leave():
                self.leave()  # where the state is now
            return result

        return limited

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            home = self.home
            if home.blocks or not home.take():
                await self.queue(host, call)
            try:
                result = await layer(call, args, kwargs)
            except BaseException:
                self.run_later(self.leave)
                raise
            if type(result) is Started:
                result.on_end(partial(self.run_later, self.leave))  # a generator has its slot until it ends
            elif home.blocks:
                await host.offload(self.leave)
            elif not home.leave():
                self.leave()
            return result

        return limited
