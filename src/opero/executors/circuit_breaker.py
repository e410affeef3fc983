"""Stopping calls to a service that fails: the executor of a circuit breaker, around the function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.errors import CircuitOpenError
from opero.executors.state.circuit import (
    CircuitHome,
    LocalCircuit,
    Refusal,
    admit,
    enter,
    record,
    release,
    state_at,
)
from opero.executors.state.home import Holder, Moved
from opero.observe.logs import logger
from opero.policies.types import approximate_duration
from opero.runtime.hosts import AsyncHost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar, TypeVarTuple

    from opero.executors.call import Call, Layer
    from opero.executors.state.circuit import Circuit, State
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.runtime.clock import Clock

    R = TypeVar("R")
    Args = TypeVarTuple("Args")

__all__ = ["CircuitBreakerExecutor"]


def _describe(error: Exception) -> str:
    """An exception in one line, even one that cannot say what it is."""
    name = type(error).__name__[:200]
    try:
        return f"{name}: {error}"[:200]
    except Exception:  # noqa: BLE001  # its own __str__ fails
        return name


class CircuitBreakerExecutor(Holder[CircuitHome]):
    """A circuit breaker, shared by all functions that are bound to its profile.

    A call carries the number of the circuit's period in which it was let through, and its result counts only in that
    one: an answer from before the circuit opened cannot close it again.
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
        return self.change(state_at, self.policy, self.clock.monotonic())

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
            logger.warning("%s: circuit %s", self.name, change)
        return result

    def admit(self, now: float) -> int:
        """Let a call through: the number of the period it belongs to.

        Raises:
            CircuitOpenError: the circuit is open, or as many probes as allowed are running.
        """
        admission = self.change(admit, self.policy, now)
        if isinstance(admission, int):
            return admission
        raise self._rejection(admission)

    def release(self, period: int) -> None:
        """A call ended without a result that counts: cancelled, rejected, or by an ignored error."""
        self.change(release, period)

    def record(self, period: int, now: float, error: Exception | None, seconds: float | None = None) -> None:
        """Count the result of a call that was let through in that period.

        Args:
            period: what `admit` returned.
            now: the clock's reading.
            error: what the function raised, or None.
            seconds: how long it took; needed where the policy has `slow_call`.
        """
        slow, trouble = False, ""
        if seconds is not None and self.policy.slow_call is not None and seconds > self.policy.slow_call:
            slow, trouble = True, f"a call took {approximate_duration(seconds)}"
        if error is not None:
            trouble = _describe(error)
        self.change(record, self.policy, now, period, error is not None, slow, trouble)

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

    def enter(self, call: Call) -> int:
        """`admit` for a circuit that is not simply closed."""
        try:
            return self.admit(self.clock.monotonic())
        except CircuitOpenError:
            call.turned_away = True
            call.stats.rejections += 1
            raise

    def succeeded(self, period: int, call: Call, started: float) -> None:
        now = self.clock.monotonic()
        self.record(period, now, None, now - started - call.waited if self.times_calls else None)

    def failed(self, period: int, call: Call, started: float, error: Exception) -> None:
        if call.turned_away or isinstance(error, self.policy.ignore):
            self.release(period)
            return
        now = self.clock.monotonic()
        self.record(period, now, error, now - started - call.waited if self.times_calls else None)

    def begin(self, call: Call) -> float:
        """The moment at which the attempt starts, where its duration matters."""
        call.waited = 0.0
        return self.clock.monotonic()

    # While the circuit is closed and nothing has failed, a call reads a number before it and a flag after it, no lock.

    def wrap(self, layer: Layer) -> Layer:
        def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            home = self.home
            period = home.passing
            if period < 0:
                period = self.enter(call)
            started = self.begin(call) if self.times_calls else 0.0
            try:
                result = layer(call, args, kwargs)
            except Exception as error:
                self.failed(period, call, started, error)
                raise
            except BaseException:
                self.release(period)
                raise
            if home.needs_results:
                self.succeeded(period, call, started)
            return result

        return guarded

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            home = self.home
            period = home.passing
            if period < 0:
                period = await self.run(host, lambda: self.enter(call), self.release)
            started = self.begin(call) if self.times_calls else 0.0
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                if home.blocks:
                    await host.offload(self.failed, period, call, started, error)
                else:
                    self.failed(period, call, started, error)
                raise
            except BaseException:
                self.run_later(self.release, period)
                raise
            if home.needs_results:
                if home.blocks:
                    await host.offload(self.succeeded, period, call, started)
                else:
                    self.succeeded(period, call, started)
            return result

        return guarded
