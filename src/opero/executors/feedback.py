"""What the outcomes of calls tell a rate limit: how long the service wants everybody to wait, and what it accepts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import FailedResponseError, OperoError
from opero.events import RateLimitAdapted, RateLimitPaused, Shadowed
from opero.executors.classifier import BY_SHAPE
from opero.failures import Kind, failed_status, is_response
from opero.failures.quotas import asked_of_all
from opero.failures.statuses import headers_in, headers_of_error
from opero.observe.subscriptions import emit
from opero.policies.types import approximate_duration
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Call
    from opero.executors.classifier import Classifier
    from opero.executors.rate_limit import RateLimitExecutor
    from opero.failures import Failure
    from opero.runtime.hosts import Host

HEEDED = frozenset({Kind.THROTTLED, Kind.TRANSIENT, Kind.UNKNOWN})
"""Kinds of failures that may say how long to wait."""

Lesson = Callable[[], object]
"""What an outcome tells the limit: to be called, as it may ask a server."""


def feedback_for(
    limiter: RateLimitExecutor, classifier: Classifier | None, statuses: Collection[int], *, pauses: bool
) -> Feedback | None:
    """Return what tells a rate limit of outcomes; None if it needs none. See `Feedback`."""
    policy = limiter.policy
    if policy.is_adaptive or (policy.feedback and pauses):
        return Feedback(limiter, classifier or BY_SHAPE, statuses, pauses=pauses)
    return None


class Feedback:
    """Tells a rate limit of the outcomes of one function's attempts.

    It takes note of an outcome at once, and what there is to do then is left to the caller, as it may block.

    Args:
        limiter: the rate limit.
        classifier: says of which kind failures are.
        statuses: the statuses of responses that are failures besides those from 400 on.
        pauses: whether waits that are asked for concern all callers; not where each value of a fallback argument has a
            quota of its own.
    """

    def __init__(
        self, limiter: RateLimitExecutor, classifier: Classifier, statuses: Collection[int] = (), *, pauses: bool
    ) -> None:
        self.limiter = limiter
        self.classifier = classifier
        self.statuses = statuses
        self.is_adaptive = limiter.policy.is_adaptive
        self.pauses = pauses and limiter.policy.feedback

    def for_call(self, call: Call) -> Feedback:
        """Return the same for the rate limit that a call has passed: with a keyed scope it is one of several."""
        if call.limiter is None:
            return self
        return Feedback(call.limiter, self.classifier, self.statuses, pauses=self.pauses)

    def returned(self, result: Any, sent: float = 0.0) -> Lesson | None:
        """Take note of a result.

        Args:
            result: what the function returned.
            sent: when it was called, where the rate is found.
        """
        cls = type(result)
        if cls is dict and "ResponseMetadata" not in result:
            return self._learn(sent, is_accepted=True) if self.is_adaptive else None
        if cls is not dict and not is_response(result):
            return self._learn(sent, is_accepted=True) if self.is_adaptive else None
        failure, status = None, failed_status(result, self.statuses)
        if status is not None:
            error = FailedResponseError("", result=result, status=status)
            failure = self.classifier.failure_of(error, self.limiter.clock.time())
        return self._heed(failure, headers_in(result), sent)

    def raised(self, error: Exception, sent: float = 0.0) -> Lesson | None:
        """Take note of an exception; see `returned`."""
        if isinstance(error, OperoError):  # it is that of an inner bound function, whose own limit knows
            return None
        failure = self.classifier.failure_of(error, self.limiter.clock.time())
        try:
            return self._heed(failure, headers_of_error(error), sent)
        finally:
            del error

    def _heed(self, failure: Failure | None, headers: Any, sent: float) -> Lesson | None:
        lessons: list[Lesson] = []
        if self.is_adaptive and (failure is None or failure.kind is Kind.THROTTLED):
            lessons.append(self._learn(sent, is_accepted=failure is None))
        if self.pauses:
            seconds, away, reason = 0.0, 0.0, "no calls remaining"
            with suppress(Exception):  # the headers of foreign classes may do anything
                seconds, away = asked_of_all(headers, self.limiter.clock.time())
            if failure is not None and failure.kind in HEEDED and (failure.retry_in or 0.0) > seconds:
                seconds, reason = failure.retry_in or 0.0, failure.reason
            if seconds > 0:
                lessons.append(partial(pause, self.limiter, seconds, reason))
            elif away > 0:
                lessons.append(partial(slow_down, self.limiter, away))
        if len(lessons) > 1:
            return lambda: [each() for each in lessons]
        return lessons[0] if lessons else None

    def _learn(self, sent: float, *, is_accepted: bool) -> Lesson:
        return partial(learn, self.limiter, sent, is_accepted=is_accepted)

    async def take_in(self, host: Host, lesson: Lesson) -> None:
        """Do what an outcome tells, from a coroutine."""
        await self.limiter.run(host, lesson, _nothing)


def _nothing(_: object) -> None:
    """There is nothing to undo."""


def pause(limiter: RateLimitExecutor, seconds: float, reason: str) -> None:
    """Have no call begin for as long as the service asks, but no longer than the policy allows."""
    asked, seconds = seconds, min(seconds, limiter.policy.max_pause)
    now = limiter.clock.monotonic()
    before = limiter.ask(lambda budget: budget.resumes(is_fresh=False)) - now
    if not limiter.ask(lambda budget: budget.pause(now, seconds)) or (before > 0 and seconds < before + 1):
        return  # others have been told the same
    values: dict[str, Any] = {**limiter.origin, "seconds": seconds, "reason": reason}
    text = f"no calls for {approximate_duration(seconds)}, as the service asks ({reason})"
    if asked > seconds:
        text += f"; it asks for {approximate_duration(asked)}, which max_pause does not allow"
    if limiter.policy.shadow:
        shown = {"by": "rate_limit", "would": "delay", "seconds": seconds, "message": f"{limiter.name}: {text}"}
        emit(Shadowed, limiter.hooks, **limiter.origin, **shown)
        return
    values["limit"] = limiter.name
    log("rate_limit_paused", "%s: %s", limiter.name, text, clock=limiter.clock, **values)
    emit(RateLimitPaused, limiter.hooks, **values)


def slow_down(limiter: RateLimitExecutor, seconds: float) -> None:
    """Have the next call begin later, so that what is left of a quota lasts."""
    now, seconds = limiter.clock.monotonic(), min(seconds, limiter.policy.max_pause)
    limiter.ask(lambda budget: budget.slow_down(now, seconds))


def learn(limiter: RateLimitExecutor, sent: float, *, is_accepted: bool) -> None:
    """Find the rate that the service accepts."""
    now = limiter.clock.monotonic()
    before, rate = limiter.ask(lambda budget: budget.learn(sent, now, is_accepted=is_accepted))
    if rate < before:
        emit(RateLimitAdapted, limiter.hooks, limit=limiter.name, before=before, rate=rate, **limiter.origin)
