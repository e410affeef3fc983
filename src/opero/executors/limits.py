"""Several limits of one rate limit policy, and limits whose costs are estimates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import RateLimitExceededError
from opero.events import Waited
from opero.executors.rate_limit import RateLimitExecutor
from opero.executors.settling import current
from opero.executors.state.budgets import ALL_PART, NO_PART, Booking, Budgets, Costs, alike, longest, terms_of
from opero.executors.state.home import Holder, Moved
from opero.executors.state.local_budgets import LocalBudgets, new_budgets
from opero.policies.quantities import LONGEST
from opero.policies.types import approximate_duration, format_duration
from opero.runtime import forking
from opero.runtime.forking import RenewedLock
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Call
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Waiter


class Turn:
    """A call in the queue for permits.

    Attributes:
        waiter: wakes it.
        costs: what it takes of each limit.
        has_reserved: whether it has reserved that, and waits until it falls due.
    """

    __slots__ = ("costs", "has_reserved", "waiter")

    def __init__(self, waiter: Waiter, costs: Costs) -> None:
        self.waiter = waiter
        self.costs = costs
        self.has_reserved = False


class LimitsExecutor(RateLimitExecutor):
    """Several limits, shared by all functions that are bound to their profile.

    Callers of a process wait in one queue. Only the first of them has reserved its permits, and reserves them anew when
    others give some back: so a call that waits, and may be cancelled, takes nothing from others, and an estimate that
    was too high delays other calls only until that is known.
    """

    own: LocalBudgets  # type: ignore[assignment]  # another kind of home for the same kind of limit

    AHEAD = 0.02
    """Seconds before its permits fall due that the first call in the queue leaves it: threads and timers wake late by a
    millisecond and more, and permits of small bursts would lapse if the next call were woken only then."""

    def __init__(self, policy: RateLimitPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, clock, name)
        self.names = policy.names
        self.limits = dict(zip(self.names, policy.each, strict=True))
        self.estimated = tuple([index for index, each in enumerate(policy.each) if each.is_estimated])
        self.usual = tuple([each.cost if isinstance(each.cost, float) else 1.0 for each in policy.each])
        self.turns: deque[Turn] = deque()
        self._booked: dict[object, Booking] = {}  # what calls have reserved that wait
        self._lock = RenewedLock()
        self._reported: set[int] = set()

    def new_home(self, policy: RateLimitPolicy, clock: Clock) -> Any:
        return new_budgets(policy, clock.monotonic)

    def after_fork(self) -> None:
        self.turns = deque()
        home = self.home.successor
        if isinstance(home, LocalBudgets):
            home.forgo(self._booked.values())
        self._booked.clear()

    def migrate_from(self, old: Holder[Any]) -> None:
        Holder.migrate_from(self, old)
        if old.policy.shadow and not self.policy.shadow:
            # No call waited for what was reserved in shadow, so the next ones must not wait for it either.
            terms = terms_of(self.policy)
            waits = self.waits(self.usual)
            changes = tuple([-wait / terms[name].interval for name, wait in zip(self.names, waits, strict=True)])
            self._correct(Booking(0.0, 0, (ALL_PART,) * len(waits), self.names), changes)

    # What is shown

    def rate(self) -> float:
        return float(self.policy.fastest)

    def next_permit(self) -> float:
        return max(self.waits(self.usual))

    def load(self) -> tuple[float, float, int]:
        loads = self.loads().values()
        return max(each[0] for each in loads), max(each[1] for each in loads), len(self.turns)

    def loads(self) -> dict[str, tuple[float, float]]:
        """Return of each limit the share of its burst that is used up, and the seconds until the next permit."""
        terms = [terms_of(self.policy)[name] for name in self.names]
        backlogs, nexts = self.waits(tuple([each.burst for each in terms])), self.waits(self.usual)
        each = zip(self.names, backlogs, nexts, terms, strict=True)
        return {name: (min(1.0, backlog / (own.burst * own.interval)), soon) for name, backlog, soon, own in each}

    # Decisions

    def waits(self, costs: Costs) -> tuple[float, ...]:
        """Return the seconds until a call would get its permits, by limit. Nothing is reserved."""
        now = self.clock.monotonic()

        def of(home: Any) -> tuple[float, ...]:
            if not isinstance(home, Budgets):  # a policy with one limit is in force
                return tuple([home.book(now, cost, -1.0)[0] for cost in costs])
            waits: tuple[float, ...] = home.waits(now, _in_order(costs, self.names, home.names))
            return waits if home.names == self.names else (max(waits),) * len(costs)

        return self.ask(of)

    def book(self, call: Call, costs: Costs, patience: float) -> Booking:
        """Reserve permits from all limits, if all of them fall due within `patience`."""

        def of(home: Any) -> Booking:
            now = self.clock.monotonic()
            if isinstance(home, Budgets):
                found = home.book_all(now, _in_order(costs, self.names, home.names), patience, call)
                if home.names == self.names:
                    return found
                name = home.names[found.slowest]
                return found._replace(slowest=self.names.index(name) if name in self.names else 0)
            terms = terms_of(self.policy)  # a policy with one limit is in force
            mine = self.names.index(alike(getattr(home, "terms", terms[self.names[0]]), terms))
            wait = home.book(now, costs[mine], patience)[0]
            return Booking(wait, mine, (NO_PART,) * (wait <= patience))  # without names: it cannot be corrected

        booking = self.ask(of)
        if booking.parts:
            call.permits = booking
        return booking

    def cancel(self, booking: Booking) -> None:
        """Give back permits that have not been used."""
        if booking.names:
            self.ask(lambda home: home.cancel(booking) if isinstance(home, Budgets) else None)
            self._wake_first()

    def correct(self, booking: Booking, changes: Costs, *, is_async: bool) -> None:
        """Take what a call has used more than reserved, or give back what it has not used."""
        if booking.names:
            (self.run_later if is_async else _now)(self._correct, booking, changes)

    def _correct(self, booking: Booking, changes: Costs) -> None:
        def of(home: Any) -> None:
            if isinstance(home, Budgets):
                home.settle(booking, _in_order(changes, self.names, home.names))

        self.ask(of)
        if min(changes) < 0:
            self._wake_first()

    def abandon(self, call: Call, *, waits: bool = False) -> None:
        """Give back what a call holds whose function has not begun.

        Args:
            call: the call.
            waits: whether the caller may wait for a server meanwhile.
        """
        booking, call.permits = call.permits, None
        if booking is not None:
            (_now if waits else self.run_later)(self.cancel, booking)

    def settle(self, actual: float | Mapping[str, float]) -> bool:
        usage = current.get()
        while usage is not None:
            limiter = usage.limiter
            if isinstance(limiter, LimitsExecutor) and limiter.home.successor is self.home.successor:
                usage.settle(actual)
                return True
            usage = usage.outer
        return False

    def too_late(self, call: Call, wait: float, slowest: int, now: float) -> Exception:
        """The error for a call whose permits are too far away."""
        name = self.names[slowest]
        limit = self.limits[name]
        if wait < LONGEST and not call.time_left(now) <= wait:
            call.turned_away = True
            text = (
                f"{self.name}: the next permit of {name} ({limit.rate:g}/s) is {approximate_duration(wait)} away, and "
                f"max_wait is {format_duration(self.patience)}"
            )
            error = RateLimitExceededError(text, retry_in=wait)
            return call.stats.count_rejection("rate_limit", error, limit=name)
        return self.refusal(call, wait, now)

    def _tell_all(self, call: Call, costs: Costs, patience: float) -> None:
        """Take permits in shadow: no call waits for them."""
        wait, slowest = longest(self.waits(costs))
        self.book(call, costs, patience)
        if wait > 0:
            name, away = self.names[slowest], approximate_duration(min(wait, LONGEST))
            message = f"{self.name}: the next permit of {name} ({self.limits[name].rate:g}/s) is {away} away"
            call.stats.count_shadow("rate_limit", "reject" if wait > patience else "delay", wait, message=message)

    def report_unknown(self, index: int, result: Any) -> None:
        """Log once that the cost of a call cannot be read from its result."""
        if index not in self._reported:
            self._reported.add(index)
            name = self.names[index]
            log(
                "cost_unknown",
                "%s: cost_from_result of %s finds no number in a result of type %s; the estimate stands",
                self.name,
                name,
                type(result).__name__,
                policy=self.name,
                limit=name,
            )

    # The queue

    def _enter(self, turn: Turn) -> None:
        with self._lock:
            self.turns.append(turn)

    def _leave(self, turn: Turn) -> None:
        with self._lock:
            if turn in self.turns:
                self.turns.remove(turn)
        self._wake_first()

    def _wake_first(self) -> None:
        while self.turns:
            with self._lock:
                first = self.turns[0] if self.turns else None
            if first is None or first.waiter.wake():
                return
            with self._lock:  # its event loop is closed
                if first in self.turns:
                    self.turns.remove(first)

    def _ahead_of(self, turn: Turn) -> Costs:
        """Return what a call costs, and what those before it in the queue cost, as it waits for them as well."""
        before = []
        for each in self.turns.copy():
            if each is turn:
                break
            if not each.has_reserved:
                before.append(each.costs)
        return tuple(map(sum, zip(turn.costs, *before, strict=True)))

    # What waits

    def at_once(self, call: Call, costs: Costs) -> bool:
        """Take permits that are due, without waiting for a server or another call."""
        if self.turns or self.policy.shadow:
            return False
        try:
            return bool(self.own.book_all(self.clock.monotonic(), costs, 0.0, call).parts)
        except Moved:
            return False

    async def acquire(self, host: Host, call: Call, costs: Costs) -> None:
        """Wait until permits of all limits fall due.

        Raises:
            RateLimitExceededError, CallTimeoutError: they do not within `max_wait`, or the time that the call has left.
        """
        started = self.clock.monotonic()
        patience = self.patience_of(call, started)
        if self.policy.shadow:
            await self.run(host, lambda: self._tell_all(call, costs, patience), lambda _: self.abandon(call))
            return
        turn = Turn(host.waiter(), costs)
        generation, has_waited, slowest = forking.generation, False, 0
        try:
            if self.turns:
                has_waited = True
                await self._await_turn(host, turn, call, patience)
            booking = await self._reserve(host, call, costs, started + patience)
            slowest = booking.slowest
            if booking.wait > 0:
                has_waited = True
                await self._await_permits(host, turn, call, booking)
            if self.paused_for() > 0:  # since the permits were reserved
                has_waited = True
                await self._await_pause(host, call, started + patience)
        except BaseException:
            if generation == forking.generation:
                self.abandon(call)
            raise
        finally:
            if generation == forking.generation:
                self._leave(turn)
                self._booked.pop(call, None)
            waited = self.clock.monotonic() - started
            if has_waited and waited > 0:
                call.waited += waited
                call.stats.count_wait("rate_limit", waited)
        if has_waited and waited > 0:
            call.stats.emit(Waited, what="rate_limit", seconds=waited, limit=self.names[slowest])

    async def wait_again(self, host: Host, call: Call) -> None:
        now = self.clock.monotonic()
        await self._await_pause(host, call, now + self.patience_of(call, now))

    async def _await_pause(self, host: Host, call: Call, until: float) -> None:
        """Wait for the end of a pause that the service has asked for."""
        while (paused := self.paused_for()) > 0:
            now = self.clock.monotonic()
            if now + paused > until:
                raise self.refusal(call, paused, now)
            await host.sleep(paused)

    async def _await_turn(self, host: Host, turn: Turn, call: Call, patience: float) -> None:
        """Wait in the queue until this call is the first."""
        now = self.clock.monotonic()
        until = now + patience
        self._enter(turn)
        if patience < LONGEST:
            wait, slowest = longest(await self.run(host, lambda: self.waits(self._ahead_of(turn)), lambda _: None))
            if wait > patience:
                raise self.too_late(call, wait, slowest, now)
        while self.turns and self.turns[0] is not turn:
            now = self.clock.monotonic()
            left = None if patience >= LONGEST else max(0.0, until - now)
            if not await turn.waiter.wait(left) and left is not None and self.turns and self.turns[0] is not turn:
                wait, slowest = longest(await self.run(host, lambda: self.waits(turn.costs), lambda _: None))
                raise self.too_late(call, wait, slowest, now)
            turn.waiter = host.waiter()

    async def _reserve(self, host: Host, call: Call, costs: Costs, until: float) -> Booking:
        """Reserve permits; a server that cannot be used may make the call ask again after a while."""
        while True:
            now = self.clock.monotonic()
            left = max(0.0, until - now)
            booking = await self.run(host, partial(self.book, call, costs, left), lambda _: self.abandon(call))
            if booking.wait > left:
                raise self.too_late(call, booking.wait, booking.slowest, now)
            if booking.parts or booking.wait == 0:
                return booking
            await host.sleep(booking.wait)

    async def _await_permits(self, host: Host, turn: Turn, call: Call, booking: Booking) -> None:
        """Wait until reserved permits fall due, and reserve them anew when others give some back."""
        wait, name = booking.wait, self.names[booking.slowest]
        text = "%s: waits %.3g s for a permit of %s"
        log("waiting", text, self.name, wait, name, about=call.stats, what="rate_limit", seconds=wait)
        turn.has_reserved = True
        if wait > self.AHEAD and turn not in self.turns:
            self._enter(turn)
        due = self.clock.monotonic() + wait
        self._booked[call] = booking
        while (left := due - self.clock.monotonic()) > 0:
            if left <= self.AHEAD:
                self._leave(turn)
                await host.sleep(left)
            elif await turn.waiter.wait(left):
                turn.waiter = host.waiter()
                if self.home.blocks:  # noted again when that has ended, should the call be cancelled meanwhile
                    call.permits = None
                again = await self.run(host, partial(self._book_again, call, booking), lambda _: self.abandon(call))
                if again is not booking:
                    booking, due = again, self.clock.monotonic() + again.wait
                    self._booked[call] = booking

    def _book_again(self, call: Call, booking: Booking) -> Booking:
        def of(home: Any) -> Booking:
            if not isinstance(home, Budgets) or not booking.names or home.names != booking.names:
                return booking
            return home.book_again(self.clock.monotonic(), booking, call)

        call.permits = found = self.ask(of)
        return found


def executor_of(policy: RateLimitPolicy) -> type[RateLimitExecutor]:
    """Return the class of the executor that a policy takes."""
    return LimitsExecutor if policy.limits or policy.is_estimated else RateLimitExecutor


def _now(operation: Callable[..., object], *args: Any) -> None:
    operation(*args)


def _in_order(costs: Costs, names: tuple[str, ...], others: tuple[str, ...]) -> Costs:
    """Return costs as those of limits with other names."""
    if names == others:
        return costs
    own = dict(zip(names, costs, strict=True))
    return tuple([own.get(name, 0.0) for name in others])
