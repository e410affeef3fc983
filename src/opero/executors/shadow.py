"""Timeouts and retries in shadow: layers that tell what these policies would have done, and let each call pass.

The circuit breaker, the rate limit and the bulkhead count in shadow as they always do, and so tell it themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from opero.errors import AllFailedError, RejectedError, describe
from opero.executors.backoff import Progress
from opero.executors.unsent import is_unsent
from opero.policies.types import approximate_duration, format_duration
from opero.runtime.generators import Started
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.retry import RetryExecutor
    from opero.observe.stats import Stats
    from opero.policies.timeout import TimeoutPolicy
    from opero.runtime.clock import Clock

Limits = list[tuple[float, str]]


class ShadowTimeout:
    """Measures attempts, calls and items of one function, and tells which a timeout would have ended.

    It tells when they have ended, so nothing of one that never does.

    Args:
        policy: the timeout policy.
        clock: the source of time.
        name: the function's name, for messages.
        is_stream: whether the function is a generator.
        is_async: whether its attempts are awaited.
    """

    def __init__(self, policy: TimeoutPolicy, clock: Clock, name: str, *, is_stream: bool, is_async: bool) -> None:
        self.now = clock.monotonic
        self.name = name
        self.is_async = is_async
        self.idle: Limits = [(policy.idle, "idle")] if is_stream and policy.idle is not None else []
        self.total: Limits = [] if policy.total is None else [(policy.total, "total")]
        self.attempt = sorted([*self.idle, *([] if policy.attempt is None else [(policy.attempt, "attempt")])])

    def judge(self, stats: Stats, limits: Limits, started: float) -> None:
        """Tell if what has just ended took longer than the shortest of these limits."""
        seconds, scope = limits[0]
        took = self.now() - started
        if took > seconds:
            message = (
                f"{self.name} took {approximate_duration(took)}, and timeout.{scope} is {format_duration(seconds)}"
            )
            stats.count_shadow("timeout", "end", seconds, message=message)

    def wrap(self, layer: Layer) -> Layer:
        """Return the layer that measures attempts."""
        return self._measured(layer, self.attempt) if self.attempt else layer

    def wrap_async(self, layer: Layer) -> Layer:
        """Return the layer that measures attempts of an async function."""
        return self._measured_async(layer, self.attempt) if self.attempt else layer

    def wrap_total(self, layer: Layer) -> Layer:
        """Return the layer that measures whole calls."""
        return (self._measured_async if self.is_async else self._measured)(layer, self.total)

    def _measured(self, layer: Layer, limits: Limits) -> Layer:
        def measured(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            started = self.now()
            try:
                result = layer(call, args, kwargs)
            finally:
                self.judge(call.stats, limits, started)
            if self.idle and type(result) is Started:
                result.steps = _Steps(self, call.stats, result)
            return result

        return measured

    def _measured_async(self, layer: Layer, limits: Limits) -> Layer:
        async def measured(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            started = self.now()
            try:
                result = await layer(call, args, kwargs)
            finally:
                self.judge(call.stats, limits, started)
            if self.idle and type(result) is Started:
                result.steps = _AsyncSteps(self, call.stats, result)
            return result

        return measured


class _Steps:
    """Measures the wait for each item of a generator."""

    def __init__(self, timeout: ShadowTimeout, stats: Stats, started: Started) -> None:
        self.timeout = timeout
        self.stats = stats
        self.close = started.generator.close

    def run(self, step: Callable[[Any], Any], message: Any) -> Any:
        """Return the next item."""
        started = self.timeout.now()
        try:
            return step(message)
        finally:
            self.timeout.judge(self.stats, self.timeout.idle, started)


class _AsyncSteps:
    """Measures the wait for each item of an async generator."""

    def __init__(self, timeout: ShadowTimeout, stats: Stats, started: Started) -> None:
        self.timeout = timeout
        self.stats = stats
        self.close = started.generator.aclose

    async def run(self, step: Awaitable[Any]) -> Any:
        """Return the next item."""
        started = self.timeout.now()
        try:
            return await step
        finally:
            self.timeout.judge(self.stats, self.timeout.idle, started)


class ShadowRetry:
    """Tells which attempts of one function a retry policy would have followed by another.

    Args:
        retry: decides about failures and delays.
    """

    def __init__(self, retry: RetryExecutor) -> None:
        self.retry = retry
        self.rejects = retry.policy.retry_if_result

    def tell(self, call: Call, error: Exception) -> None:
        """Tell of a failed attempt, if there would have been another."""
        retry = self.retry
        if isinstance(error, AllFailedError):  # of several values of a fallback argument
            error = error.errors[-1]
        if call.turned_away or isinstance(error, RejectedError):
            would = isinstance(error, retry.named_rejections)
        else:
            would = retry.is_retryable(error, call.answers)
        if not would or not retry.policy.retries or (not retry.policy.idempotent and not is_unsent(error)):
            return
        delay, is_asked = retry.backoff.after(error, Progress())
        if is_asked and delay > retry.policy.max_delay:
            return
        if call.deadline is None or delay < call.time_left(retry.clock.monotonic()):
            call.stats.count_shadow("retry", "retry", delay, message=describe(error), error=error)

    def wrap(self, layer: Layer) -> Layer:
        """Return the layer that looks at attempts."""
        rejects = self.rejects

        def told(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                result = layer(call, args, kwargs)
            except Exception as error:
                self.tell(call, error)
                raise
            if rejects is not None:
                try:
                    if rejects(result):
                        self._tell_of(call, result)
                except Exception as error:  # noqa: BLE001  # a user's function may raise anything, and harms no call
                    self._report(error)
            return result

        return told

    def wrap_async(self, layer: Layer) -> Layer:
        """Return the layer that looks at attempts of an async function."""
        rejects, awaits = self.rejects, self.retry.awaits_judgement

        async def told(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                self.tell(call, error)
                raise
            if rejects is not None:
                try:
                    answer = rejects(result)
                    if await answer if awaits else answer:
                        self._tell_of(call, result)
                except Exception as error:  # noqa: BLE001  # as above
                    self._report(error)
            return result

        return told

    def _tell_of(self, call: Call, result: Any) -> None:
        rejection = self.retry.rejected(result).error
        assert rejection is not None
        self.tell(call, rejection)

    def _report(self, error: Exception) -> None:
        name = self.retry.name
        log(
            "condition_failed",
            "%s: retry_if_result, in shadow, raised %s",
            name,
            describe(error),
            function=name,
            error=error,
        )
