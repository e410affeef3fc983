"""Stopping calls to a service that fails: the executor of a circuit breaker, around the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.dataclass import dataclass
from opero.errors import CallTimeoutError, CircuitOpenError, ResultRejectedError, describe
from opero.events import CircuitChanged, CircuitClosed, CircuitForced, CircuitHalfOpened, CircuitOpened, Shadowed
from opero.executors.conditions import Matcher
from opero.executors.state.circuit import (
    NOT_PASSING,
    Counted,
    Refusal,
    admit,
    details,
    enter,
    record,
    release,
    state_at,
)
from opero.executors.state.circuit_home import CircuitHome, LocalCircuit
from opero.executors.state.home import Holder, Moved
from opero.observe.subscriptions import emit
from opero.policies.types import approximate_duration
from opero.runtime import forking
from opero.runtime.generators import Started
from opero.runtime.hosts import AsyncHost
from opero.runtime.log import log

if TYPE_CHECKING:
    from typing import TypeVar, TypeVarTuple

    from opero.executors.call import Call, Layer
    from opero.executors.classifier import Classifier
    from opero.executors.state.circuit import Circuit, State
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

    Ignores = Callable[[Call, Exception], bool]
    R = TypeVar("R")
    Args = TypeVarTuple("Args")


CHANGES: dict[State, type[CircuitChanged]] = {
    "open": CircuitOpened,
    "half_open": CircuitHalfOpened,
    "closed": CircuitClosed,
}


WOULD = {"closed": "close", "forced_closed": "close", "half_open": "half_open"}
"""State of a circuit in shadow → what that is called in a `Shadowed` event; others are "open"."""


class CircuitBreakerExecutor(Holder[CircuitHome]):
    """A circuit breaker, shared by all functions that are bound to its profile.

    An attempt carries the number of the circuit's period in which it was let through, and its result counts only in
    that one: an answer from before the circuit opened cannot close it again. All attempts of a call count as one: each
    result replaces that of the attempt before (see `record` in `opero.executors.state.circuit`).
    """

    def __init__(self, policy: CircuitBreakerPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, LocalCircuit(policy, clock.monotonic()))
        self.clock = clock
        self.name = name
        self.times_calls = policy.slow_call is not None

    # What operators may see and do

    @property
    def state(self) -> State:
        """`closed`, `open`, `half_open`, `forced_open` or `forced_closed`."""
        now = self.clock.monotonic()
        return self.ask(lambda home: home.look(state_at, self.policy, now))

    def status(self) -> tuple[State, str]:
        """The state, and the last failure that counted, in one line; "" if there was none."""
        now = self.clock.monotonic()
        return self.ask(lambda home: home.look(lambda each: (state_at(each, self.policy, now), each.last_error)))

    def details(self) -> dict[str, Any]:
        """Return the state as plain data: `state`; `for`, the seconds since it began; `failures` in a row; `retry_in`,
        the seconds until an open circuit lets a probe through; `last_error`."""
        now = self.clock.monotonic()
        return self.ask(lambda home: home.look(details, self.policy, now))

    def force_open(self) -> None:
        """Reject every call until `reset` or `force_closed`."""
        self.change(enter, "forced_open", self.clock.monotonic())

    def force_closed(self) -> None:
        """Let every call through, whatever its result, until `reset` or `force_open`."""
        self.change(enter, "forced_closed", self.clock.monotonic())

    def reset(self) -> None:
        """Close the circuit and forget what has been counted."""
        self.change(enter, "closed", self.clock.monotonic())

    # Decisions

    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> R:
        """Run a decision on the circuit, and log a change of its state once no lock is held: a log handler may ask
        for the state."""
        while True:  # as `ask`, without a function for each call
            try:
                result, change = self.home.change(decide, *args)
                break
            except Moved:
                self.follow()
        if change is not None:
            values: dict[str, Any] = {**self.origin, "breaker": self.name, "reason": change.reason}
            values |= {"before": change.before, "state": change.after}
            values |= {"failures": change.failures, "calls": change.calls}
            if self.policy.shadow:
                log("circuit_shadowed", "%s: in shadow, circuit %s", self.name, change, clock=self.clock, **values)
                would = WOULD.get(change.after, "open")
                shown = {"by": "circuit_breaker", "would": would, "message": change.reason}
                emit(Shadowed, self.hooks, **self.origin, **shown)
            else:
                event = CHANGES.get(change.after, CircuitForced)
                log(event.name, "%s: circuit %s", self.name, change, clock=self.clock, **values)
                emit(event, self.hooks, **values)
        return result

    def admit(self, now: float, held: int = NOT_PASSING, call: Call | None = None) -> int:
        """Let an attempt through: the number of the period it belongs to.

        Args:
            now: the clock's reading.
            held: the period in which an earlier attempt of the call was let through.
            call: the call.

        Raises:
            CircuitOpenError: the circuit is open, or as many probes as allowed are running.
        """
        admission = self.change(admit, self.policy, now, held, call)
        if isinstance(admission, int):
            return admission
        raise self._rejection(admission)

    def release(self, period: int, counted: Counted | None = None, call: Call | None = None) -> None:
        """An attempt ended without a result that counts: cancelled, rejected, or by an ignored error."""
        self.change(release, period, counted, call)

    def abandon(self, call: Call) -> None:
        """Release a call that was interrupted, and is a probe still."""
        period = call.probe
        if period >= 0:
            self.run_later(self.release, period, None, call)

    def record(
        self,
        period: int,
        now: float,
        error: Exception | str | None,
        seconds: float | None = None,
        counted: Counted | None = None,
        call: Call | None = None,
    ) -> Counted | None:
        """Count a call by the result of an attempt that was let through in that period; return how it is counted.

        Args:
            period: what `admit` returned.
            now: the clock's reading.
            error: what the function raised, or that in one line; None if it raised nothing.
            seconds: how long it took; needed where the policy has `slow_call`.
            counted: how earlier attempts of the call have been counted.
            call: the call.
        """
        slow, trouble = False, ""
        if seconds is not None and self.policy.slow_call is not None and seconds > self.policy.slow_call:
            slow, trouble = True, f"a call took {approximate_duration(seconds)}"
        if error is not None:
            trouble = error if isinstance(error, str) else describe(error, 200)
        failed = error is not None
        return self.change(record, self.policy, now, self.clock.random, period, failed, slow, trouble, counted, call)

    def _rejection(self, refusal: Refusal) -> CircuitOpenError:
        if refusal.state == "forced_open":
            return CircuitOpenError(f"{self.name}: the circuit was forced open; reset() closes it")
        if refusal.state == "half_open":
            return CircuitOpenError(f"{self.name}: the circuit is half open and its probes are under way", retry_in=0.0)
        left = refusal.retry_in or 0.0
        return CircuitOpenError(
            f"{self.name}: the circuit is open for another {approximate_duration(left)}; "
            f"it opened after {refusal.last_error}",
            retry_in=left,
        )

    # Around the function

    def is_closed_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether an attempt with these arguments would pass without being a probe."""
        return self.policy.shadow or self.home.successor.passing >= 0

    def enter(self, call: Call, held: int) -> int:
        """`admit` for a circuit that is not simply closed. In shadow an attempt that it would have rejected belongs to
        no period, so its result does not count."""
        try:
            return self.admit(self.clock.monotonic(), held, call)
        except CircuitOpenError as error:
            if self.policy.shadow:
                call.stats.count_shadow("circuit_breaker", "reject", error.retry_in, message=str(error))
                return NOT_PASSING
            call.turned_away = True
            if not call.hedge:
                call.stats.count_rejection("circuit_breaker", error)
            raise

    def leave(self, call: Call, held: int, period: int) -> None:
        """`release` for an attempt that was let through and does not take place, unless its call holds on to that."""
        if period != held:
            self.release(period, None, call)

    def held(self, call: Call) -> int:
        """The period in which an earlier attempt of the call was let through, if it has not been released."""
        if call.unsettled is not None:
            return call.unsettled.period
        return NOT_PASSING if call.counted is None else call.counted.period

    def count(self, ignores: Ignores, period: int, call: Call, started: float, error: Exception | None) -> None:
        """Count the call by the result of an attempt."""
        if error is not None and ignores(call, error):
            self.release(period, call.counted, call)
            return
        now = self.clock.monotonic()
        seconds = now - started - call.waited if self.times_calls else None
        call.counted = self.record(period, now, error, seconds, call.counted, call)

    def note(self, ignores: Ignores, period: int, call: Call, started: float, error: Exception | None) -> None:
        """Keep the result of an attempt until its round ends."""
        seconds = self.clock.monotonic() - started - call.waited if self.times_calls else None
        before = call.unsettled
        ignored = error is not None and (
            ignores(call, error) or (before is not None and before.ignored and before.period == period)
        )
        call.unsettled = Unsettled(self, period, seconds, forking.generation, ignored)

    def await_end(
        self, ignores: Ignores, stream: Started, period: int, call: Call, started: float, generation: int
    ) -> None:
        """Count a call whose generator has yielded its first item when that ends. It is as slow as its first item."""
        call.unsettled = None  # the round is over; if it is a probe, so is the stream from now on
        seconds = self.clock.monotonic() - started - call.waited if self.times_calls else None

        def end(error: BaseException | None) -> None:
            if generation != forking.generation:
                return
            if error is not None and (not isinstance(error, Exception) or ignores(call, error)):
                self.release(period, call.counted, call)
            elif error is not None or self.home.needs_results:
                call.counted = self.record(period, self.clock.monotonic(), error, seconds, call.counted, call)

        stream.on_end(lambda error: self.run_later(end, error))

    def ignores(self, classifier: Classifier) -> Ignores:
        """Return what decides whether the failure of an attempt does not count."""
        trips = Matcher.of(self.policy.trip_on, classifier)
        is_ignored = Matcher.of(self.policy.ignore, classifier)

        def ignores(call: Call, error: Exception) -> bool:
            if call.turned_away or (type(error) is CallTimeoutError and error.is_unbegun):
                return True
            if type(error) is ResultRejectedError:
                return False
            return is_ignored(error, call.answers) or not trips(error, call.answers)

        return ignores

    def begin(self, call: Call) -> float:
        """The moment at which the attempt starts, where its duration matters."""
        call.waited = 0.0
        return self.clock.monotonic()

    # While the circuit is closed and nothing has failed, a call reads a number before it and a flag after it, no lock.
    # A call that forks counts in the parent; if it returns in the child as well, it counts for nothing there.

    def wrap(self, layer: Layer, classifier: Classifier, *, by_round: bool = False) -> Layer:
        """Return the layer that asks the circuit before each attempt.

        Args:
            layer: makes an attempt.
            classifier: says of which kind failures are.
            by_round: whether the layer above decides what a round of attempts has come to.
        """
        ignores = self.ignores(classifier)
        report = partial(self.note if by_round else self.count, ignores)

        def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            home = self.home
            period = home.passing
            if period < 0:
                period = self.enter(call, self.held(call))
            generation = forking.generation
            started = self.begin(call) if self.times_calls else 0.0
            try:
                result = layer(call, args, kwargs)
            except Exception as error:
                if generation == forking.generation:
                    report(period, call, started, error)
                raise
            except BaseException:
                if generation == forking.generation:
                    call.unsettled = None
                    self.release(period, call.counted, call)
                raise
            if type(result) is Started and not result.ended:
                self.await_end(ignores, result, period, call, started, generation)
            elif (home.needs_results or by_round) and generation == forking.generation:
                report(period, call, started, None)
            return result

        return guarded

    def wrap_async(self, layer: Layer, classifier: Classifier, *, by_round: bool = False) -> Layer:
        """Return the layer that asks the circuit before each attempt of an async function."""
        host = AsyncHost(self.clock)
        ignores = self.ignores(classifier)
        report = partial(self.note if by_round else self.count, ignores)

        async def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            home = self.home
            period = home.passing
            if period < 0:
                held = self.held(call)
                period = await self.run(host, partial(self.enter, call, held), partial(self.leave, call, held))
            generation = forking.generation
            started = self.begin(call) if self.times_calls else 0.0
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                if generation != forking.generation:
                    pass
                elif home.blocks and not by_round:
                    await host.ensure(report, period, call, started, error)
                else:
                    report(period, call, started, error)
                raise
            except BaseException:
                if generation == forking.generation:
                    call.unsettled = None
                    self.run_later(self.release, period, call.counted, call)
                raise
            if type(result) is Started and not result.ended:
                self.await_end(ignores, result, period, call, started, generation)
            elif (home.needs_results or by_round) and generation == forking.generation:
                if home.blocks and not by_round:
                    await host.ensure(report, period, call, started, None)
                else:
                    report(period, call, started, None)
            return result

        return guarded


@dataclass(slots=True)
class Unsettled:
    """What a circuit breaker has seen of a round that is under way: an `UnsettledRound`.

    Attributes:
        breaker: the circuit breaker.
        period: the one in which the latest attempt was let through.
        seconds: how long that took, where it matters.
        generation: that of the process that made it.
        ignored: whether an attempt of the round was rejected or failed with an ignored error.
        trouble: the last failure in one line, where other attempts may be of another circuit.
    """

    breaker: CircuitBreakerExecutor
    period: int
    seconds: float | None
    generation: int
    ignored: bool
    trouble: str = ""

    async def settle(self, host: Host, call: Call, error: Exception | None) -> None:
        home = self.breaker.home
        if self.generation != forking.generation or (error is None and not home.needs_results):
            call.unsettled = None
        elif home.blocks:
            call.unsettled = None
            await host.ensure(self._count, call, error)
        else:
            self._count(call, error)
            call.unsettled = None  # not before: if this is interrupted, the call abandons it

    def abandon(self, call: Call) -> None:
        call.unsettled = None
        if self.generation == forking.generation:
            self.breaker.run_later(self.breaker.release, self.period, call.counted, call)

    def fail(self, call: Call) -> None:
        if self.generation == forking.generation:
            self._count(call, self.trouble)
        call.unsettled = None

    def _count(self, call: Call, error: Exception | str | None) -> None:
        breaker = self.breaker
        if self.ignored and error is not None:
            breaker.release(self.period, call.counted, call)
        else:
            now = breaker.clock.monotonic()
            call.counted = breaker.record(self.period, now, error, self.seconds, call.counted, call)
