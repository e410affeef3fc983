"""Leaving a failing service alone: the states of a circuit breaker, and the gate in front of the function."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from opero.errors import CircuitOpenError
from opero.executors.windows import CountWindow, TimeWindow
from opero.logs import logger
from opero.policies.types import approximate_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.clock import Clock
    from opero.executors.call import Call, Layer
    from opero.policies.circuit_breaker import CircuitBreakerPolicy

__all__ = ["CircuitBreakerExecutor", "State"]

State = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]


def _describe(error: Exception) -> str:
    """An exception in one line, even one that cannot say what it is."""
    name = type(error).__name__[:200]
    try:
        return f"{name}: {error}"[:200]
    except Exception:  # noqa: BLE001  # its own __str__ fails
        return name


class CircuitBreakerExecutor:
    """One circuit breaker, shared by all functions that are bound to its profile.

    Every change of state begins a new period. A call carries the number of the period in which it was let through,
    and its result counts only in that one: an answer from before the circuit opened cannot close it again.
    """

    def __init__(self, policy: CircuitBreakerPolicy, clock: Clock, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.times_calls = policy.slow_call is not None
        self.by_rate = policy.failure_rate is not None or policy.slow_call is not None
        self._lock = threading.Lock()
        self._state: State | Literal["shared"] = "closed"
        self._period = 0
        self._since = clock.monotonic()
        self._consecutive = 0
        self._probes_begun = 0
        self._probes_passed = 0
        self._last_error = ""
        self._alert = self.by_rate
        """A success has something to change: there is a window to fill, a failure to forget, or a probe to count."""
        self._window = self._new_window()
        self._news: deque[str] = deque()
        """Changes of state that have not been logged yet."""

    # What an operator may see and do

    @property
    def state(self) -> State:
        """`closed`, `open`, `half_open`, `forced_open` or `forced_closed`."""
        with self._lock:
            if self._state == "shared":  # with other processes, since this waited for the lock that it had before
                return self.state
            if self._state == "open" and self._open_left() <= 0:
                return "half_open"
            return self._state

    def force_open(self) -> None:
        """Reject every call until `reset` or `force_closed`."""
        with self._lock:
            self._enter("forced_open")
        self._tell()

    def force_closed(self) -> None:
        """Let every call through, whatever comes of it, until `reset` or `force_open`."""
        with self._lock:
            self._enter("forced_closed")
        self._tell()

    def reset(self) -> None:
        """Close the circuit and forget what has been counted."""
        with self._lock:
            self._enter("closed")
        self._tell()

    # Decisions

    def admit(self, now: float) -> int:
        """Let a call through: the number of the period it belongs to.

        Raises:
            CircuitOpenError: the circuit is open, or as many probes as may be are under way.
        """
        try:
            with self._lock:
                if self._state == "shared":  # as above
                    return self.admit(now)
                if self._state == "open" and self._open_left(now) <= 0:
                    self._enter("half_open", now)
                if self._state == "half_open":
                    if self._probes_begun >= self.policy.half_open_calls and now - self._since >= self.policy.open_for:
                        self._enter("half_open", now)  # probes that never came back are written off
                    if self._probes_begun < self.policy.half_open_calls:
                        self._probes_begun += 1
                        return self._period
                elif self._state in ("closed", "forced_closed"):
                    return self._period
                raise self._rejection(now)
        finally:
            self._tell()

    def release(self, period: int) -> None:
        """A call ended without saying anything of the service: cancelled, turned away, or by an ignored error."""
        with self._lock:
            if period == self._period and self._state == "half_open":
                self._probes_begun -= 1

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
        with self._lock:
            if period != self._period:
                return
            if trouble:
                self._last_error = trouble
            if self._state == "half_open":
                if failed or slow:
                    self._enter("open", now)
                else:
                    self._probes_passed += 1
                    if self._probes_passed >= self.policy.half_open_calls:
                        self._enter("closed", now)
            elif self._state == "closed":
                self._consecutive = self._consecutive + 1 if failed else 0
                self._alert = self.by_rate or failed
                if self.by_rate:
                    self._window.add(now, failed, slow)
                if self._should_open(now):
                    self._enter("open", now)
        if self._news:
            self._tell()

    def _should_open(self, now: float) -> bool:
        policy = self.policy
        if policy.consecutive_failures is not None and self._consecutive >= policy.consecutive_failures:
            return True
        if not self.by_rate:
            return False
        counts = self._window.counts(now)
        if counts.calls < policy.least_calls:
            return False
        # Divided, not multiplied: 7 / 100 is the very number 0.07, while 0.07 * 100 is a little above 7.
        if policy.failure_rate is not None and counts.failures / counts.calls >= policy.failure_rate:
            return True
        return policy.slow_call is not None and counts.slow / counts.calls >= (policy.slow_rate or 1.0)

    def _enter(self, state: State, now: float | None = None) -> None:
        if state != self._state:
            self._news.append(state.replace("_", " ") + (f" after {self._last_error}" if state == "open" else ""))
        self._state = state
        self._since = self.clock.monotonic() if now is None else now
        self._period += 1
        self._consecutive = self._probes_begun = self._probes_passed = 0
        self._alert = self.by_rate or state != "closed"
        if state == "closed":
            self._window = self._new_window()

    def _tell(self) -> None:
        """Log the changes of state, now that the lock is free: a log handler may ask the breaker how it is."""
        while self._news:
            try:
                news = self._news.popleft()
            except IndexError:  # another thread has told it
                return
            logger.warning("%s: circuit %s", self.name, news)

    def _new_window(self) -> CountWindow | TimeWindow:
        window = self.policy.window
        return CountWindow(window) if isinstance(window, int) else TimeWindow(window)

    def _open_left(self, now: float | None = None) -> float:
        return self._since + self.policy.open_for - (self.clock.monotonic() if now is None else now)

    def _rejection(self, now: float) -> CircuitOpenError:
        if self._state == "forced_open":
            return CircuitOpenError(f"{self.name}: the circuit was forced open; reset() closes it")
        if self._state == "half_open":
            return CircuitOpenError(f"{self.name}: the circuit is half open and its probes are under way", retry_in=0.0)
        left = max(0.0, self._open_left(now))
        return CircuitOpenError(
            f"{self.name}: the circuit is open for another {approximate_duration(left)}; "
            f"it opened after {self._last_error}",
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

    # While the circuit is closed and nothing has failed, a call reads two attributes on its way in and one on its way
    # out. The period is read first: should the state change in between, the result counts for neither.

    def wrap(self, layer: Layer) -> Layer:
        def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            period = self._period
            if self._state != "closed":
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
            if self._alert:
                self.succeeded(period, call, started)
            return result

        return guarded

    def wrap_async(self, layer: Layer) -> Layer:
        async def guarded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            period = self._period
            if self._state != "closed":
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
            if self._alert:
                self.succeeded(period, call, started)
            return result

        return guarded
