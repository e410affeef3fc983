"""Leaving a failing service alone: the states of a circuit breaker, and the gate in front of the function."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opero.errors import CircuitOpenError
from opero.executors.state.circuit import Circuit
from opero.observe.logs import logger
from opero.policies.types import approximate_duration
from opero.runtime.migration import moving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opero.executors.call import Call, Layer
    from opero.executors.state.circuit import State
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.runtime.clock import Clock

__all__ = ["CircuitBreakerExecutor"]


def _describe(error: Exception) -> str:
    """An exception in one line, even one that cannot say what it is."""
    name = type(error).__name__[:200]
    try:
        return f"{name}: {error}"[:200]
    except Exception:  # noqa: BLE001  # its own __str__ fails
        return name


class CircuitBreakerExecutor:
    """One circuit breaker, shared by all functions that are bound to its profile.

    A call carries the number of the circuit's period in which it was let through, and its result counts only in that
    one: an answer from before the circuit opened cannot close it again.
    """

    def __init__(self, policy: CircuitBreakerPolicy, clock: Clock, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.times_calls = policy.slow_call is not None
        self.by_rate = policy.by_rate
        self.circuit = Circuit(policy, clock.monotonic())

    def take_over(self, old: CircuitBreakerExecutor) -> None:
        """Go on with the circuit of an executor whose policy this one's replaces (see `hand_over`)."""
        with moving:
            file = getattr(self.circuit, "file", None)
            if file is not None and not hasattr(old.circuit, "file"):
                from opero.executors.state.shared_circuit import share_circuit_breaker

                share_circuit_breaker(old, file, first=True)
            with old._held() as circuit:
                circuit.suit(self.policy)
                self.circuit = circuit

    # What an operator may see and do

    @property
    def state(self) -> State:
        """`closed`, `open`, `half_open`, `forced_open` or `forced_closed`."""
        with self._held() as circuit:
            if circuit.state == "open" and self._open_left(circuit, self.clock.monotonic()) <= 0:
                return "half_open"
            return circuit.state

    def force_open(self) -> None:
        """Reject every call until `reset` or `force_closed`."""
        self._enter("forced_open")

    def force_closed(self) -> None:
        """Let every call through, whatever comes of it, until `reset` or `force_open`."""
        self._enter("forced_closed")

    def reset(self) -> None:
        """Close the circuit and forget what has been counted."""
        self._enter("closed")

    def _enter(self, state: State) -> None:
        with self._held() as circuit:
            circuit.enter(state, self.clock.monotonic())
        self._tell()

    @contextmanager
    def _held(self) -> Iterator[Circuit]:
        """The circuit, with its lock held."""
        while True:
            circuit = self.circuit
            with (lock := circuit.lock):
                if circuit.lock is lock:  # else processes have come to share it meanwhile
                    yield circuit
                    return

    # Decisions

    def admit(self, now: float) -> int:
        """Let a call through: the number of the period it belongs to.

        Raises:
            CircuitOpenError: the circuit is open, or as many probes as may be are under way.
        """
        circuit = self.circuit
        lock = circuit.lock
        try:
            with lock:
                if circuit.lock is not lock:  # processes have come to share it meanwhile
                    return self.admit(now)
                return self._admit(circuit, now)
        finally:
            self._tell()

    def _admit(self, circuit: Circuit, now: float) -> int:
        policy = self.policy
        if circuit.state == "open" and self._open_left(circuit, now) <= 0:
            circuit.enter("half_open", now)
        if circuit.state == "half_open":
            if circuit.probes_passed >= policy.half_open_calls:  # which are fewer than an older policy asked for
                circuit.enter("closed", now)
                return circuit.period
            if circuit.probes_begun >= policy.half_open_calls and now - circuit.since >= policy.open_for:
                circuit.enter("half_open", now)  # probes that never came back are written off
            if circuit.probes_begun < policy.half_open_calls:
                circuit.probes_begun += 1
                return circuit.period
        elif circuit.state in ("closed", "forced_closed"):
            return circuit.period
        raise self._rejection(circuit, now)

    def release(self, period: int) -> None:
        """A call ended without saying anything of the service: cancelled, turned away, or by an ignored error."""
        with self._held() as circuit:
            if period == circuit.period and circuit.state == "half_open":
                circuit.probes_begun -= 1

    def record(self, period: int, now: float, error: Exception | None, seconds: float | None = None) -> None:
        """Count the result of a call that was let through in that period.

        Args:
            period: what `admit` answered.
            now: the clock's reading.
            error: what the function raised, or None.
            seconds: how long it took; needed where the policy names a slow call.
        """
        failed = error is not None
        slow = seconds is not None and self.policy.slow_call is not None and seconds > self.policy.slow_call
        trouble = (
            _describe(error)
            if error is not None
            else f"a call took {approximate_duration(seconds or 0.0)}"
            if slow
            else ""
        )
        circuit = self.circuit
        lock = circuit.lock
        with lock:
            if circuit.lock is not lock:  # as above
                self.record(period, now, error, seconds)
                return
            if period != circuit.period:
                return
            if trouble:
                circuit.last_error = trouble
            if circuit.state == "half_open":
                if failed or slow:
                    circuit.enter("open", now)
                else:
                    circuit.probes_passed += 1
                    if circuit.probes_passed >= self.policy.half_open_calls:
                        circuit.enter("closed", now)
            elif circuit.state == "closed":
                circuit.consecutive = circuit.consecutive + 1 if failed else 0
                circuit.alert = circuit.by_rate or failed
                if circuit.by_rate:
                    circuit.window.add(now, failed, slow)
                if self._should_open(circuit, now):
                    circuit.enter("open", now)
        if circuit.news:
            self._tell()

    def _should_open(self, circuit: Circuit, now: float) -> bool:
        policy = self.policy
        if policy.consecutive_failures is not None and circuit.consecutive >= policy.consecutive_failures:
            return True
        if not (self.by_rate and circuit.by_rate):
            return False
        counts = circuit.window.counts(now)
        if counts.calls < policy.least_calls:
            return False
        # Divided, not multiplied: 7 / 100 is the very number 0.07, while 0.07 * 100 is a little above 7.
        if policy.failure_rate is not None and counts.failures / counts.calls >= policy.failure_rate:
            return True
        return policy.slow_call is not None and counts.slow / counts.calls >= (policy.slow_rate or 1.0)

    def _tell(self) -> None:
        """Log the changes of state, now that the lock is free: a log handler may ask the breaker how it is."""
        news = self.circuit.news
        while news:
            try:
                told = news.popleft()
            except IndexError:  # another thread has told it
                return
            logger.warning("%s: circuit %s", self.name, told)

    def _open_left(self, circuit: Circuit, now: float) -> float:
        return circuit.since + self.policy.open_for - now

    def _rejection(self, circuit: Circuit, now: float) -> CircuitOpenError:
        if circuit.state == "forced_open":
            return CircuitOpenError(f"{self.name}: the circuit was forced open; reset() closes it")
        if circuit.state == "half_open":
            return CircuitOpenError(f"{self.name}: the circuit is half open and its probes are under way", retry_in=0.0)
        left = max(0.0, self._open_left(circuit, now))
        return CircuitOpenError(
            f"{self.name}: the circuit is open for another {approximate_duration(left)}; "
            f"it opened after {circuit.last_error}",
            retry_in=left,
        )

    # Around the function

    def enter(self, call: Call) -> int:
        """`admit`, for a circuit that is not simply closed."""
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
        """The moment the attempt starts, where its time matters."""
        call.waited = 0.0
        return self.clock.monotonic()

    # While the circuit is closed and nothing has failed, a call reads a number on its way in and a flag on its way out.

    def wrap(self, layer: Layer) -> Layer:
        def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            circuit = self.circuit
            period = circuit.passing
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
            if circuit.alert:
                self.succeeded(period, call, started)
            return result

        return guarded

    def wrap_async(self, layer: Layer) -> Layer:
        async def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            circuit = self.circuit
            period = circuit.passing
            if period < 0:
                period = self.enter(call)
            started = self.begin(call) if self.times_calls else 0.0
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                self.failed(period, call, started, error)
                raise
            except BaseException:
                self.release(period)
                raise
            if circuit.alert:
                self.succeeded(period, call, started)
            return result

        return guarded
