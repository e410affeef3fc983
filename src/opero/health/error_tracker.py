"""How often functions fail, within a window of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opero.errors import message_of
from opero.events import CallFailed, CallSucceeded
from opero.observe.subscriptions import on
from opero.policies.quantities import parse_duration
from opero.policies.types import format_duration
from opero.runtime.clock import SYSTEM
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike
    from opero.runtime.clock import Clock

STEPS = 360
"""Into how many steps a window is divided."""
MOST_ERRORS = 1000
"""Errors that are kept with their texts."""
LONGEST_MESSAGE = 500
FEW_FUNCTIONS = 1000
"""Functions that are kept even if they have not been recorded for longer than the window."""


class ErrorTracker:
    """Counts errors and successes of functions by name, within a window of time. Thread-safe.

        tracker = ErrorTracker()
        tracker.record_error("charge", error)
        tracker.record_success("charge")
        tracker.get_error_rate("charge", "5m")      # 0.5

    `follow` records the calls of bound functions by itself.

    Times are kept in 360 steps of the window (10 s for an hour): a count includes everything of the asked time, and of
    what is older by up to one step as well. So memory is bounded, however many calls there are.

    Args:
        window: how long to remember: seconds, a `timedelta` or text such as "1h".
        clock: the source of time. Default: the system's.

    Raises:
        ValueError: the window is no duration, or not more than 0.
    """

    def __init__(self, window: DurationLike = "1h", *, clock: Clock | None = None) -> None:
        self._window = parse_duration(window)
        if self._window <= 0:
            raise ValueError(f"ErrorTracker(window={window!r}) would remember nothing: use more than 0")
        self._step = self._window / STEPS
        self._clock = clock or SYSTEM
        self._functions: dict[str, _Function] = {}
        self._sweep_at = FEW_FUNCTIONS
        self._errors: deque[dict[str, Any]] = deque(maxlen=MOST_ERRORS)
        self._lock = RenewedLock()

    # Recording

    def record_error(self, func_name: str, error: BaseException, context: Mapping[str, Any] | None = None) -> None:
        """Count a failed call.

        Args:
            func_name: the name of the function.
            error: the exception. Its type and text are kept, the object is not.
            context: what else to keep with it in `error_history`.
        """
        described = {
            "timestamp": self._now(),
            "function": func_name,
            "error_type": type(error).__name__,
            "error_message": message_of(error, LONGEST_MESSAGE),
            "context": dict(context or {}),
        }
        with self._lock:
            self._errors.append(described)
            self._add(func_name, 1, 0)

    def record_success(self, func_name: str) -> None:
        """Count a call that succeeded."""
        with self._lock:
            self._add(func_name, 0, 1)

    def record_recovery(self, func_name: str, attempts: int, total_time: float) -> None:
        """Count a call that succeeded after failed attempts.

        Args:
            func_name: the name of the function.
            attempts: how many attempts it took.
            total_time: the seconds that it took.
        """
        recovery = {"attempts": attempts, "total_time": total_time, "timestamp": self._now()}
        with self._lock:
            self._add(func_name, 0, 1).recovery = recovery

    def follow(self, *, policy: str | None = None, function: str | None = None) -> Callable[[], None]:
        """Count the calls of bound functions from now on, under their names "module:qualname", without a wrapper.

        Calls count, not attempts: one that succeeds after retries is a success.

        Args:
            policy: the name of a profile, or a pattern such as "api-*". Default: all calls.
            function: the name of a function, or a pattern such as "app.users:*". Default: all.

        Returns:
            A function that ends it.
        """

        def failed(event: CallFailed) -> None:
            self.record_error(event.function, event.error, {"policy": event.policy, "kind": event.kind.value})

        def succeeded(event: CallSucceeded) -> None:
            self.record_success(event.function)

        offs = (
            on(CallFailed, failed, policy=policy, function=function),
            on(CallSucceeded, succeeded, policy=policy, function=function),
        )

        def off() -> None:
            for each in offs:
                each()

        return off

    # Asking

    def get_error_rate(self, func_name: str, time_window: DurationLike | None = None) -> float:
        """Return the share of failed calls among all that were recorded: from 0.0, also if there were none, to 1.0.

        Args:
            func_name: the name of the function.
            time_window: how far back to look. Default: the whole window.

        Raises:
            ValueError: the time is no duration, or longer than the window.
        """
        errors, successes = self._counts(func_name, time_window)
        return errors / (errors + successes) if errors else 0.0

    def get_error_count(self, func_name: str, time_window: DurationLike | None = None) -> int:
        """Return the number of failed calls; see `get_error_rate`."""
        return self._counts(func_name, time_window)[0]

    def should_circuit_break(
        self, func_name: str, threshold: int = 10, time_window: DurationLike | None = None
    ) -> bool:
        """Return whether more calls than `threshold` have failed within a time.

        `circuit_breaker` policies decide by themselves; this is for code that is bound to none.

        Args:
            func_name: the name of the function.
            threshold: a number of failed calls.
            time_window: how far back to look. Default: 5 minutes, or the window if that is shorter.

        Raises:
            TypeError: the threshold is not a whole number.
            ValueError: the time is no duration, or longer than the window.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, int):
            raise TypeError(f"threshold is a number of errors, not {threshold!r}; for a share use get_error_rate()")
        seconds = min(300.0, self._window) if time_window is None else time_window
        return self.get_error_count(func_name, seconds) > threshold

    @property
    def error_history(self) -> list[dict[str, Any]]:
        """The last 1000 errors, the newest last: `timestamp`, `function`, `error_type`, `error_message`, `context`."""
        with self._lock:
            return list(self._errors)

    @property
    def recovery_times(self) -> dict[str, dict[str, Any]]:
        """The last recovery of each function: `attempts`, `total_time` and `timestamp`."""
        with self._lock:
            return {name: each.recovery for name, each in self._functions.items() if each.recovery is not None}

    # Counts. The lock is held.

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time(), UTC)

    def _add(self, name: str, errors: int, successes: int) -> _Function:
        step = int(self._clock.monotonic() // self._step)
        function = self._functions.get(name)
        if function is None:
            if len(self._functions) >= self._sweep_at:
                self._forget(step - STEPS)
            function = self._functions[name] = _Function()
        function.add(step, errors, successes)
        return function

    def _forget(self, oldest: int) -> None:
        """Forget functions that have not been recorded within the window."""
        self._functions = {name: each for name, each in self._functions.items() if each.steps[-1][0] >= oldest}
        self._sweep_at = max(FEW_FUNCTIONS, 2 * len(self._functions))

    def _counts(self, name: str, time_window: DurationLike | None) -> tuple[int, int]:
        seconds = self._window if time_window is None else parse_duration(time_window)
        if seconds > self._window:
            kept = format_duration(self._window)
            raise ValueError(f"this tracker remembers {kept}: use ErrorTracker(window={time_window!r})")
        with self._lock:
            function = self._functions.get(name)
            oldest = int((self._clock.monotonic() - seconds) // self._step)
            return (0, 0) if function is None else function.since(oldest)


class _Function:
    """The counts of one function.

    Attributes:
        steps: the number of each step in which something was recorded, with its errors and successes.
        recovery: the last one.
    """

    __slots__ = ("recovery", "steps")

    def __init__(self) -> None:
        self.steps: deque[list[int]] = deque()
        self.recovery: dict[str, Any] | None = None

    def add(self, step: int, errors: int, successes: int) -> None:
        steps = self.steps
        if not steps or steps[-1][0] != step:
            steps.append([step, 0, 0])
            while steps[0][0] < step - STEPS - 1:  # one more: rounding may put the beginning of the window there
                steps.popleft()
        steps[-1][1] += errors
        steps[-1][2] += successes

    def since(self, oldest: int) -> tuple[int, int]:
        errors = successes = 0
        for step, failed, succeeded in reversed(self.steps):
            if step < oldest:
                break
            errors += failed
            successes += succeeded
        return errors, successes
