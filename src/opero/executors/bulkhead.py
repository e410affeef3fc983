"""Limiting how many calls run at once: slots, and a queue for them that threads and tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import BulkheadFullError, RejectedError
from opero.events import Waited
from opero.executors.state.home import Holder
from opero.executors.state.slots import ANYONE, FOREVER, LocalSlots, QueuedCall, Slots
from opero.policies.types import format_duration
from opero.runtime.generators import Started
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking
from opero.runtime.priorities import place_in_time

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.state.slots import SlotHolder
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Waiter


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

    def load(self) -> tuple[int, int, int]:
        """Return how many calls have a slot, how many slots there are, and how many calls of this process wait."""
        home = self.home.successor
        return self.running, int(home.limit), len(home.queue)

    # Decisions

    def take(self, holder: SlotHolder = ANYONE) -> bool:
        """Take a slot if one is free and no call waits for it."""
        return self.home.take(holder) or (self.follow() and self.home.take(holder))

    def leave(self, holder: SlotHolder = ANYONE) -> None:
        """Give the slot of a call back, or pass it on to the call that has waited longest. A second time, and in a
        forked child if the call is the parent's, it has no effect."""
        while not self.home.leave(holder):
            self.follow()

    def abandon(self, call: Call) -> None:
        """Give back what a call has that was interrupted, also if that was just when it took or gave back something."""
        queued, call.queued = call.queued, None
        if queued is not None:
            self.run_later(self._give_up, queued)
        elif call.slot is not None:
            self.run_later(self.leave, call)

    def refusal(self, call: Call, waited: float) -> Exception:
        """The error for a call that got no slot in time."""
        call.turned_away = True
        if call.hedge:
            return RejectedError(f"{self.name}: no hedge, as it would wait for a slot")
        limit = self.home.successor.limit
        full = f"{self.name}: bulkhead full: {limit} of {limit} slots in use"
        if trouble := self.home.successor.trouble:
            full = f"{self.name}: no slot for this process while the store of the bulkhead cannot be used ({trouble})"
        if self.policy.max_wait is None or waited < self.policy.max_wait:
            return call.out_of_time(f"{full}, and {call.limit} leaves no time to queue", "bulkhead")
        queued = f" after {format_duration(self.policy.max_wait)} in the queue" if self.policy.max_wait else ""
        return call.stats.count_rejection("bulkhead", BulkheadFullError(f"{full}{queued}"))

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        """Wait in the queue for a slot, after none could be taken at once. In shadow the call has one more than there
        are, and does not wait."""

        def give_back(_: object) -> None:
            self.leave(call)

        if (self.home.blocks or self.follow()) and await self.run(host, partial(self.take, call), give_back):
            return
        if self.policy.shadow:
            in_use = await self.run(host, partial(self._take_another, call), give_back)
            would, seconds = ("delay", None) if self.policy.max_wait != 0 else ("reject", 0.0)
            limit = self.home.successor.limit
            message = f"{self.name}: bulkhead full: {in_use} calls at once, and {limit} slots"
            call.stats.count_shadow("bulkhead", would, seconds, message=message)
            return
        started = self.clock.monotonic()
        left = call.time_left(started)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        patience = 0.0 if call.hedge else patience
        if patience <= 0:
            raise self.refusal(call, patience)
        queued = call.queued = QueuedCall(host.waiter(), place_in_time(started), call)
        if await self.run(host, lambda: self._enter(queued), lambda _: self._give_up(queued)):
            call.queued = None
            return
        try:
            has_slot = await self._wait(host, queued, started + patience)
        finally:
            waited = self.clock.monotonic() - started
            call.stats.count_wait("bulkhead", waited)
            call.waited += waited
            call.stats.emit(Waited, what="bulkhead", seconds=waited)
        call.queued = None
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
        return await self.run(host, lambda: self._has_slot_after_all(queued), lambda _: self.leave(queued.holder))

    def _take_another(self, call: Call) -> int:
        self.ask(lambda slots: slots.take_another(call))
        return self.running

    def _enter(self, queued: QueuedCall) -> bool:
        return self.ask(lambda slots: slots.enter(queued))

    def _look(self, queued: QueuedCall, waiter: Waiter) -> bool:
        return self.ask(lambda slots: slots.look(queued, waiter))

    def _has_slot_after_all(self, queued: QueuedCall) -> bool:
        """Leave the queue; whether a slot has been granted just before."""
        return not self.ask(lambda slots: slots.withdraw(queued))

    def _give_up(self, queued: QueuedCall) -> None:
        """Leave the queue; a slot that has been granted just before is passed on."""
        self._has_slot_after_all(queued)
        self.leave(queued.holder)

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            home = self.home
            if not home.take(call):
                run_blocking(self.queue(self.blocking, call))
            try:
                result = layer(call, args, kwargs)
            except BaseException:
                self.leave(call)
                raise
            if type(result) is Started:
                result.on_end(lambda _: self.leave(call))  # a generator has its slot until it ends
            elif not home.leave(call):
                self.leave(call)  # where the state is now
            return result

        return limited

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            home = self.home
            if home.blocks or not home.take(call):
                await self.queue(host, call)
            try:
                result = await layer(call, args, kwargs)
            except BaseException:
                self.run_later(self.leave, call)
                raise
            if type(result) is Started:
                result.on_end(lambda _: self.run_later(self.leave, call))  # it has its slot until it ends
            elif home.blocks:
                await host.ensure(self.leave, call)
            elif not home.leave(call):
                self.leave(call)
            return result

        return limited
