"""How long to wait after a failed attempt: the backoff and its jitter, or what the error asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.errors import FailedResponseError, OperoError, RejectedError
from opero.executors.classifier import BY_SHAPE, Classifier
from opero.failures import Kind, retry_after
from opero.policies.retry import THROTTLED_DELAY

if TYPE_CHECKING:
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock

Wait = tuple[float, bool]
"""The seconds until another attempt, and whether the error asks for them."""
NO_WAIT: Wait = (0.0, False)


def exponential(first: float, longest: float, factor: float) -> Callable[[Any], float]:
    """Return tenacity's exponential delay.

    tenacity is imported after the first failure, as that takes as long as a tenth of a program's first call. If it
    cannot be imported because no file can be opened, which may be that failure, the delay is the same.
    """
    try:
        from tenacity import wait_exponential
    except OSError:
        return lambda progress: _power(first, longest, factor, progress.attempt_number - 1)
    return wait_exponential(first, longest, factor)


def _power(first: float, longest: float, factor: float, exponent: int) -> float:
    try:
        return min(longest, first * factor**exponent)
    except OverflowError:
        return longest


class Progress:
    """All that tenacity's strategies read of its `RetryCallState`, which takes longer to make than an attempt."""

    __slots__ = ("attempt_number",)

    def __init__(self) -> None:
        self.attempt_number = 1


class Backoff:
    """Decides how long to wait after a failed attempt. It neither waits nor keeps state."""

    def __init__(self, policy: RetryPolicy, clock: Clock, classifier: Classifier = BY_SHAPE) -> None:
        self.kind_of = classifier.kind_of
        self.asks_of_all = classifier.kind_of is not BY_SHAPE.kind_of
        self.policy = policy
        self.clock = clock
        self.jitter = policy.jitter
        self.exponential: Callable[[Any], float] | None = None
        self.slow_exponential: Callable[[Any], float] | None = None

    def _exponential(self) -> Callable[[Any], float]:
        """Return what returns the longest delay before a round."""
        policy = self.policy
        # Full jitter draws from an interval that ends where the next delay without jitter would be.
        first = policy.min_delay * policy.backoff_factor if policy.jitter == "full" else policy.min_delay
        self.exponential = exponential(first, policy.max_delay, policy.backoff_factor)
        return self.exponential

    def _slow_exponential(self) -> Callable[[Any], float]:
        """Return the same for a throttled attempt."""
        policy = self.policy
        first = max(policy.min_delay, THROTTLED_DELAY)
        self.slow_exponential = exponential(first, policy.max_delay, policy.backoff_factor)
        return self.slow_exponential

    def asked(self, error: Exception) -> float | None:
        """Return the seconds that an error asks to wait, or None if it does not say."""
        if isinstance(error, OperoError) and not isinstance(error, FailedResponseError):
            return getattr(error, "retry_in", None) or None  # a half-open circuit says 0, which means soon
        return retry_after(error, self.clock.time()) if self.policy.retry_after else None

    def after(self, error: Exception, progress: Any, chance: float | None = None) -> Wait:
        """Return how long to wait after a failed attempt.

        Only what the error asks for may be longer than `max_delay`.

        Args:
            error: the exception of the attempt.
            progress: the number of rounds so far.
            chance: a random number from 0 to 1 that decides the jitter. Default: drawn, if there is jitter.
        """
        jitter = self.jitter
        if chance is None and jitter != "none":
            chance = self.clock.random.random()
        # A builtin exception without attributes of its own has no response: reading it would take longer than all else.
        if self.asks_of_all or type(error).__module__ != "builtins" or error.__dict__:
            asked = self.asked(error)
            if asked is not None:
                return asked, True
            if self.kind_of(error) is Kind.THROTTLED and not isinstance(error, RejectedError):
                return self.slow_delay(progress, chance), False
        if not self.policy.min_delay:  # tenacity takes a power that overflows for the longest delay, even then
            return NO_WAIT
        delay = (self.exponential or self._exponential())(progress)
        if jitter == "full":
            return delay * chance, False  # type: ignore[operator]  # drawn above
        if jitter == "equal":
            return delay * (1.0 + chance) / 2, False  # type: ignore[operator]  # drawn above
        return delay, False

    def slow_delay(self, progress: Any, chance: float | None) -> float:
        """Return the delay after a throttled attempt whose error does not say how long to wait.

        With jitter it is between the exponential delay and twice that, or if `max_delay` is less, between half of
        `max_delay` and `max_delay`: callers are told apart even there.
        """
        least = (self.slow_exponential or self._slow_exponential())(progress)
        if chance is None or self.jitter == "none":
            return least
        longest = self.policy.max_delay
        upper = min(2 * least, longest)
        lower = max(upper / 2, min(THROTTLED_DELAY, longest))
        return min(upper, lower + (upper - lower) * chance)


class Schedule:
    """When each value of the fallback argument may be tried again. The soonest decides when the next round is.

    Args:
        values: the values, in order; any objects.
        retries: how often each value is tried again. A round that has to leave a value out is none of its retries.

    Attributes:
        kinds: of the last failure of each value, in the order tried.
    """

    def __init__(self, values: list[Any], retries: int) -> None:
        self.values = [*values]
        self.retries = retries
        self.progress = {id(value): Progress() for value in values}
        self.waits: dict[int, tuple[float, bool, float]] = {}
        self.kinds: dict[int, Kind] = {}

    def failed(self, value: Any, wait: Wait, now: float) -> None:
        """Record that the value's attempt failed, and how long to wait from now."""
        self.waits[id(value)] = (*wait, now)
        self.progress[id(value)].attempt_number += 1

    def hold(self, value: Any, seconds: float, now: float) -> None:
        """Add a value that must not be tried yet."""
        self.values.append(value)
        self.progress[id(value)] = Progress()
        self.waits[id(value)] = seconds, True, now

    def drop(self, value: Any) -> None:
        """Record that the value is not tried again."""
        self.waits.pop(id(value), None)

    def next_round(self, now: float, least: Wait | None) -> tuple[Wait, list[Any]]:
        """Return how long to wait for the next round, and the values that it tries.

        If no value is left, it is how long to wait for the next call.

        Args:
            now: the current time.
            least: what a rejection asks for that concerns all values; else None.
        """
        waits = {key: (seconds - (now - since), asked) for key, (seconds, asked, since) in self.waits.items()}
        left = {key: wait for key, wait in waits.items() if self.progress[key].attempt_number <= self.retries + 1}
        wait = min((left or waits).values(), default=(0.0, False))
        if least is not None:
            wait = max(wait, least)
        due = [each for each in self.values if id(each) in left and left[id(each)][0] <= wait[0]]
        return (max(0.0, wait[0]), wait[1]), due
