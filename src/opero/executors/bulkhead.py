"""Limiting how many calls run at once: slots, and a queue for them that threads and tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import BulkheadFullError, CallTimeoutError
from opero.events import Waited
from opero.executors.state.home import Holder
from opero.executors.state.slots import FOREVER, LocalSlots, QueuedCall, Slots
from opero.policies.types import format_duration
from opero.runtime import forking
from opero.runtime.generators import Started
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
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

    def take(self) -> bool:
        """Take a slot if one is free and no call waits for it."""
        return self.home.take() or (self.follow() and self.home.take())

    def leave(self, generation: int | None = None) -> None:
        """Give a slot back, or pass it on to the call that has waited longest.

        Args:
            generation: of the process in which the call got its slot: it has none here if that was a parent. Default:
                this process.
        """
        while generation in (None, forking.generation) and not self.home.leave():
            self.follow()

    def refusal(self, call: Call, waited: float) -> Exception:
        """The error for a call that got no slot in time."""
        call.turned_away = True
        limit = self.home.successor.limit
        full = f"{self.name}: bulkhead full: {limit} of {limit} slots in use"
        if self.policy.max_wait is None or waited < self.policy.max_wait:
            return call.stats.count_timeout(
                CallTimeoutError(
                    f"{full}, and the total timeout leaves no time to queue", scope="total", waiting_for="bulkhead"
                )
            )
        queued = f" after {format_duration(self.policy.max_wait)} in the queue" if self.policy.max_wait else ""
        return call.stats.count_rejection("bulkhead", BulkheadFullError(f"{full}{queued}"))

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        """Wait in the queue for a slot, after none could be taken at once. In shadow the call has one more than there
        are, and does not wait."""
        give_back = partial(self._give_back, generation=forking.generation)
        if (self.home.blocks or self.follow()) and await self.run(host, self.take, give_back):
            return
        if self.policy.shadow:
            in_use = await self.run(host, self._take_another, lambda _: give_back(has_slot=True))
            would, seconds = ("delay", None) if self.policy.max_wait != 0 else ("reject", 0.0)
            limit = self.home.successor.limit
            message = f"{self.name}: bulkhead full: {in_use} calls at once, and {limit} slots"
            call.stats.count_shadow("bulkhead", would, seconds, message=message)
            return
        started = self.clock.monotonic()
        left = call.time_left(started)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        queued = QueuedCall(host.waiter(), started, forking.generation)
        if await self.run(host, lambda: self._enter(queued), lambda _: self._give_up(queued)):
            return
        try:
            has_slot = await self._wait(host, queued, started + patience)
        finally:
            waited = self.clock.monotonic() - started
            call.stats.count_wait("bulkhead", waited)
            call.waited += waited
            call.stats.emit(Waited, what="bulkhead", seconds=waited)
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
        give_back = partial(self._give_back, generation=queued.generation)
        return await self.run(host, lambda: self._has_slot_after_all(queued), give_back)

    def _take_another(self) -> int:
        self.ask(lambda slots: slots.take_another())
        return self.running

    def _enter(self, queued: QueuedCall) -> bool:
        return self.ask(lambda slots: slots.enter(queued))

    def _look(self, queued: QueuedCall, waiter: Waiter) -> bool:
        return self.ask(lambda slots: slots.look(queued, waiter))

    def _has_slot_after_all(self, queued: QueuedCall) -> bool:
        """Leave the queue; whether a slot has been granted just before."""
        return not self.ask(lambda slots: slots.withdraw(queued))

    def _give_back(self, has_slot: bool, generation: int) -> None:
        if has_slot:
            self.leave(generation)

    def _give_up(self, queued: QueuedCall) -> None:
        """Leave the queue; a slot that has been granted just before is passed on."""
        self._give_back(self._has_slot_after_all(queued), queued.generation)

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            home = self.home
            if not home.take():
                run_blocking(self.queue(self.blocking, call))
            generation = forking.generation
            try:
                result = layer(call, args, kwargs)
            except BaseException:
                self.leave(generation)
                raise
            if type(result) is Started:
                result.on_end(lambda _: self.leave(generation))  # a generator has its slot until it ends
            elif generation == forking.generation and not home.leave():
                self.leave(generation)  # where the state is now
            return result

        return limited

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def limited(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            home = self.home
            if home.blocks or not home.take():
                await self.queue(host, call)
            generation = forking.generation
            try:
                result = await layer(call, args, kwargs)
            except BaseException:
                self.run_later(self.leave, generation)
                raise
            if type(result) is Started:
                result.on_end(lambda _: self.run_later(self.leave, generation))  # it has its slot until it ends
            elif home.blocks:
                await host.ensure(self.leave, generation)
            elif generation == forking.generation and not home.leave():
                self.leave(generation)
            return result

        return limited
