"""Limiting the rate of calls: one exact budget for all callers, and a queue in front of it for each event loop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from opero.errors import RateLimitExceededError, RejectedError
from opero.events import Waited
from opero.executors.state.budget import AGAIN, FOREVER, LATER, Budget, LocalBudget, Terms, new_budget
from opero.executors.state.home import Holder, Moved
from opero.executors.state.reserving_budget import ReservingBudget
from opero.policies.quantities import LONGEST
from opero.policies.types import approximate_duration, format_duration
from opero.runtime import forking
from opero.runtime.hosts import BlockingHost
from opero.runtime.interruption import Expired
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Call
    from opero.executors.limit_queue import LoopQueue, LoopQueues
    from opero.executors.state.budget import Receipt
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

EARLY = 0.001
"""Seconds by which a clock may be off where a pause ends."""
LOOK = 0.25
"""Seconds between two looks at when a permit falls due, where the rate is found."""


class RateLimitExecutor(Holder[Budget]):
    """A rate limit, shared by all functions that are bound to its profile, from threads and event loops alike.

    A sync caller reserves permits and sleeps until they fall due. Async callers wait in their loop's queue (aiolimiter)
    first, which lets them through about as fast as permits fall due: so a cancelled one has reserved nothing yet, and
    sync callers never wait behind a long row of reserved tasks.
    """

    own: LocalBudget
    _queues: LoopQueues | None = None

    def __init__(self, policy: RateLimitPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, self.new_home(policy, clock))
        self.clock = clock
        self.name = name
        self.cost = policy.cost if isinstance(policy.cost, float | int) else None
        self.varies = self.cost is None or isinstance(policy.rate, str)
        self.heeds = policy.feedback or policy.is_adaptive
        self.patience = LONGEST if policy.max_wait is None else policy.max_wait
        self.blocking = BlockingHost(clock)
        self.queued = 0
        self._waiting: dict[object, Receipt] = {}
        forking.renew_in_child(self)

    def new_home(self, policy: RateLimitPolicy, clock: Clock) -> LocalBudget:
        """Return a home in this process for the budget."""
        if policy.is_adaptive:
            from opero.executors.state.adaptive_budget import AdaptiveBudget

            return AdaptiveBudget(policy, clock.monotonic)
        new = ReservingBudget if policy.reserve and policy.share == "redis" else new_budget
        return new(policy, clock.monotonic)

    def after_fork(self) -> None:
        """Forget the calls that wait: they are the parent's, and so are the permits that they have reserved."""
        vars(self).pop("_queues", None)
        self.queued = 0
        self.home.successor.forgo(self._waiting.values())
        self._waiting.clear()

    def next_permit(self) -> float:
        """Seconds until a call would get its permit, if its cost is the usual one. Nothing is reserved."""
        now, cost = self.clock.monotonic(), self.cost or 1.0
        return self.ask(lambda home: home.book(now, cost, -1.0)[0])

    def rate(self) -> float:
        """The permits per second that are in force."""
        return self.ask(lambda home: home.rate) or self.policy.fastest

    def paused_for(self) -> float:
        """Seconds until calls go on, as the service has asked for a pause; 0 if it has not."""
        if not self.heeds:
            return 0.0
        return max(0.0, self.ask(lambda home: home.resumes(is_fresh=False)) - self.clock.monotonic())

    def load(self) -> tuple[float, float, int]:
        """Return the share of the burst that is used up, the seconds until the next permit, and how many calls of this
        process wait."""
        now, (interval, burst, _) = self.clock.monotonic(), Terms.of(self.policy)
        if self.policy.is_adaptive:
            interval = 1 / self.rate()
        backlog = self.ask(lambda home: home.book(now, burst, -1.0)[0])
        return min(1.0, backlog / (burst * interval)), self.next_permit(), self.queued + len(self._waiting)

    def loads(self) -> dict[str, tuple[float, float]]:
        """Return the first two of these by the names of all limits."""
        return {self.policy.names[0]: self.load()[:2]}

    def settle(self, actual: float | Mapping[str, float]) -> bool:
        """Say what the call under way has really cost of this limit, as `opero.settle` does for the innermost call;
        return whether it has an estimated cost here."""
        return False

    # Decisions

    def patience_of(self, call: Call, now: float) -> float:
        """The longest wait that this call accepts."""
        return 0.0 if call.hedge else min(self.patience, call.time_left(now))

    def refusal(self, call: Call, wait: float, now: float) -> Exception:
        """The error for a call whose permit is too far away."""
        call.turned_away = True
        if call.hedge:
            return RejectedError(f"{self.name}: no hedge, as it would wait for a permit", retry_in=wait)
        if wait == FOREVER:
            text = f"{self.name}: the budget it shares cannot be reached, and on_store_error is closed: "
            error = RateLimitExceededError(text + self.home.trouble, retry_in=1.0)
            return call.stats.count_rejection("rate_limit", error)
        away, why = approximate_duration(wait), ""
        if (paused := self.paused_for()) > 0:
            why = f"the service has asked for a pause, which lasts {approximate_duration(paused)} more: "
        if call.time_left(now) <= wait and call.time_left(now) < self.patience:
            left = approximate_duration(max(0.0, call.time_left(now)))
            text = f"{self.name}: {why}the next rate-limit permit is {away} away, and {call.limit} leaves {left}"
            return call.out_of_time(text, "rate_limit")
        error = RateLimitExceededError(
            f"{self.name}: {why}the next permit{self._of_rate()} is {away} away, and max_wait is "
            f"{format_duration(self.patience)}",
            retry_in=wait,
        )
        return call.stats.count_rejection("rate_limit", error)

    def _of_rate(self) -> str:
        """The rate in a message."""
        rate = self.policy.rate if isinstance(self.policy.rate, float) else self.ask(lambda home: home.rate)
        return f" of {rate:.3g}/s" if self.policy.is_adaptive else f" of {rate:g}/s" if rate else ""

    def reserve(self, call: Call, cost: float, patience: float) -> tuple[float, Receipt]:
        """Reserve permits: seconds until they fall due, and the receipt by which they can be given back.

        In shadow no call waits for them: the seconds are 0, and no error is raised.

        Raises:
            RateLimitExceededError, CallTimeoutError: they do not fall due within `patience`; nothing is reserved.
        """
        now = self.clock.monotonic()
        while True:
            try:
                wait, receipt = self.home.book(now, cost, patience)
                break
            except Moved:
                self.follow()
        if self.policy.shadow:
            if wait > 0:
                self._tell(call, wait, patience)
            return 0.0, receipt
        if wait > patience:
            raise self.refusal(call, wait, now)
        return wait, receipt

    def _tell(self, call: Call, wait: float, patience: float) -> None:
        """Count what would have happened to a call in shadow."""
        away = approximate_duration(min(wait, LONGEST))
        message = f"{self.name}: the next permit{self._of_rate()} is {away} away"
        call.stats.count_shadow("rate_limit", "reject" if wait > patience else "delay", wait, message=message)

    def migrate_from(self, old: Holder[Budget]) -> None:
        super().migrate_from(old)
        if old.policy.shadow and not self.policy.shadow:
            # No call waited for what was reserved in shadow, so the next ones must not wait for it either.
            wait, (_, due) = self.ask(lambda home: home.book(self.clock.monotonic(), self.cost or 1.0, -1.0))
            if wait > 0:
                self.refund((due - wait, due))

    def refund(self, receipt: Receipt) -> None:
        """Give reserved permits back."""
        self.ask(lambda budget: budget.refund(receipt))

    def wait_at(self, now: float, cost: float) -> float:
        """Seconds until permits would fall due; nothing is reserved."""
        return self.ask(lambda budget: budget.book(now, cost, -1.0))[0]

    # What waits

    async def wait(
        self, host: Host, call: Call, cost: float, patience: float, reserved: tuple[float, Receipt], queued: float = 0.0
    ) -> None:
        """Wait until reserved permits fall due, after `queued` seconds in a queue."""
        until = self.clock.monotonic() + patience
        (wait, receipt), waits, waited = reserved, 1, 0.0

        async def reserve_again() -> tuple[float, Receipt]:
            left = max(0.0, until - self.clock.monotonic())
            return await self.run(
                host, partial(self.reserve, call, cost, left), lambda reserved: self.refund(reserved[1])
            )

        while True:
            while receipt == LATER:
                self._count(call, AGAIN)
                await host.sleep(AGAIN)
                wait, receipt = await reserve_again()
            resumes = self.ask(lambda home: home.resumes(is_fresh=False)) if self.heeds else 0.0
            text = "%s: waits %.3g s for a permit"
            log("waiting", text, self.name, wait, about=call.stats, what="rate_limit", seconds=wait)
            self._waiting[call] = receipt
            generation = forking.generation
            try:
                if self.policy.is_adaptive:
                    began = self.clock.monotonic()
                    self._count(call, 0.0, waits)
                    is_due = await self._flow(host, call, wait, receipt)
                    wait = self.clock.monotonic() - began
                else:
                    self._count(call, wait, waits)
                    await host.sleep(wait)
                    is_due = not self.heeds or not await self._is_paused(host, resumes)
            except BaseException:
                if generation == forking.generation:
                    self.run_later(self.refund, receipt)
                raise
            finally:
                self._waiting.pop(call, None)
            waited += wait
            if is_due:
                break
            waits = 0
            wait, receipt = await reserve_again()  # as the service has asked for a pause, or the policy has changed
            if wait <= 0:
                break
        call.stats.emit(Waited, what="rate_limit", seconds=queued + waited)

    async def wait_again(self, host: Host, call: Call) -> None:
        """Wait if the service has asked for a pause since the call got its permit, as while it waited for a slot."""
        now = self.clock.monotonic()
        if await self.run(host, self._resumes, lambda _: None) > now + EARLY:
            cost, patience = self.cost or 1.0, self.patience_of(call, now)
            reserved = await self.run(
                host, partial(self.reserve, call, cost, patience), lambda reserved: self.refund(reserved[1])
            )
            if reserved[0] > 0:
                await self.wait(host, call, cost, patience, reserved)

    def _count(self, call: Call, seconds: float, waits: int = 0) -> None:
        call.stats.count_wait("rate_limit", seconds, waits=waits)
        call.waited += seconds

    async def _is_paused(self, host: Host, known: float) -> bool:
        """Return whether the service has asked for a pause since a permit was reserved, or such a pause lasts."""
        resumes = await self.run(host, self._resumes, lambda _: None)
        return resumes != known or resumes > self.clock.monotonic() + EARLY

    def _resumes(self) -> float:
        return self.ask(lambda home: home.resumes())

    def _left(self, receipt: Receipt) -> float:
        now = self.clock.monotonic()
        return self.ask(lambda home: home.left(receipt, now))

    async def _flow(self, host: Host, call: Call, wait: float, receipt: Receipt) -> bool:
        """Wait for a permit that falls due earlier or later when the rate changes; return whether it has."""
        while 0 < wait < FOREVER:
            started = self.clock.monotonic()
            await host.sleep(min(wait, LOOK))
            self._count(call, self.clock.monotonic() - started)
            wait = await self.run(host, partial(self._left, receipt), lambda _: None)
            wait = 0.0 if wait < EARLY / 10 else wait
        return wait <= 0

    async def wait_in_queue(self, host: Host, call: Call, cost: float) -> None:
        """Reserve permits and wait until they fall due, after the other tasks of this event loop."""
        started = self.clock.monotonic()
        patience = self.patience_of(call, started)
        if self.policy.shadow or (patience <= 0 and not self.queued):  # it does not wait, or not at all
            await self.run(host, lambda: self.reserve(call, cost, patience), lambda reserved: self.refund(reserved[1]))
            return
        expected = 0.0
        if patience < LONGEST:
            wait = await self.run(host, lambda: self.wait_at(started, cost), lambda _: None)
            expected = wait + self.queued * cost / self.rate()
            if expected > patience:
                raise self.refusal(call, expected, started)
        queue, generation = self._queue(), forking.generation
        self.queued += 1
        try:
            hold = self._hold if self.heeds else None
            await (queue.enter(hold) if patience == LONGEST else queue.enter_within(patience, hold))
        except Expired:
            raise self.refusal(call, expected, self.clock.monotonic()) from None
        finally:
            if generation == forking.generation:
                self.queued -= 1
            passed = self.clock.monotonic() - started
            call.waited += passed
            call.stats.count_wait("rate_limit", passed, waits=0)
        try:
            left = max(0.0, patience - passed)
            reserved = await self.run(
                host, lambda: self.reserve(call, cost, left), lambda reserved: self.refund(reserved[1])
            )
            if reserved[0] > 0:
                await self.wait(host, call, cost, left, reserved, passed)
        finally:
            queue.leave()

    async def _hold(self) -> None:
        """Wait until a pause is over, for all tasks behind this one."""
        while (seconds := self.paused_for()) > 0:
            await self.clock.async_sleep(seconds)

    def _queue(self) -> LoopQueue:
        queues = self._queues
        if queues is None:
            from opero.executors.limit_queue import LoopQueues

            # Atomic: a task of another thread's event loop may do the same.
            queues = vars(self).setdefault("_queues", LoopQueues(self.policy, varying=self.varies))
        return queues.here()
