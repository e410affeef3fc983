"""Spans of OpenTelemetry: one a call, with its failed attempts, delays and waits as events."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from opero.binding.observed import attempt_wrappers, observers
from opero.binding.roster import all_bindings
from opero.errors import FailedResponseError
from opero.events import (
    AttemptFailed,
    CacheHit,
    CacheMiss,
    CacheStale,
    CallFailed,
    FallbackUsed,
    HedgeStarted,
    Rejected,
    RetryScheduled,
    TimedOut,
    Waited,
)
from opero.failures import status_of
from opero.observe.subscriptions import Subscription, attach, detach
from opero.problems import message_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from opero.binding.target import Target
    from opero.events import Event
    from opero.observe.stats import Stats
    from opero.runtime.generators import Started

KEY = context.create_key("opero-call")
LISTENED = (
    AttemptFailed,
    RetryScheduled,
    HedgeStarted,
    FallbackUsed,
    Waited,
    Rejected,
    TimedOut,
    CacheHit,
    CacheMiss,
    CacheStale,
    CallFailed,
)
CACHE = {CacheHit: "hit", CacheMiss: "miss", CacheStale: "stale"}
NOT_TOLD = ("event", "function", "policy", "time", "error", "status", "position")


class CallSpan:
    """A call under way.

    Attributes:
        span: its span.
        function: the name of the function.
        outcome: "succeeded", "failed" or "cancelled".
        retries, attempts: how many there have been; attempts are counted only if they have spans.
        cache: what the cache said: "hit", "miss", "stale" or "".
        stream: a generator that has yielded its first item, with which the span ends.
    """

    __slots__ = ("attempts", "cache", "function", "outcome", "retries", "span", "stream", "token")

    def __init__(self, span: Span, function: str) -> None:
        self.span = span
        self.function = function
        self.outcome = "cancelled"
        self.retries = self.attempts = 0
        self.cache = ""
        self.stream: Started | None = None
        self.token: Any = None

    def failed(self, error: BaseException) -> None:
        """Record why the call has failed."""
        self.outcome = "failed"
        self.span.set_attribute("error.type", error_type(error))
        self.span.set_status(Status(StatusCode.ERROR, message_of(error)))
        self.span.record_exception(error)

    def finish(self) -> None:
        """End the span."""
        self.span.set_attribute("opero.outcome", self.outcome)
        if self.retries:
            self.span.set_attribute("opero.retries", self.retries)
        if self.cache:
            self.span.set_attribute("opero.cache", self.cache)
        self.span.end()


class Spans:
    """Makes a span for each call of a bound function: an observer of calls.

    Args:
        tracer: makes the spans.
        attempts: whether attempts have spans of their own.
    """

    def __init__(self, tracer: Tracer, *, attempts: bool) -> None:
        self._tracer = tracer
        self._attempts = attempts
        self._subscription = Subscription(self._tell, most_seconds=float("inf"))  # another thread has no span

    def open(self) -> None:
        """Begin."""
        observers.append(self)
        attach(self._subscription, LISTENED)
        if self._attempts:
            attempt_wrappers.append(self._wrap)
            _rebuild()

    def close(self) -> None:
        """Make no more spans."""
        observers.remove(self)
        detach(self._subscription)
        if self._attempts:
            attempt_wrappers.remove(self._wrap)
            _rebuild()

    # As an observer of calls

    def begin(self, stats: Stats) -> CallSpan:
        module, _, name = stats.function.partition(":")
        attributes = {"opero.function": stats.function, "code.function.name": f"{module}.{name}"}
        if stats.policy:
            attributes["opero.policy"] = stats.policy
        span = self._tracer.start_span(name or stats.function, kind=SpanKind.INTERNAL, attributes=attributes)
        call = CallSpan(span, stats.function)
        call.token = context.attach(context.set_value(KEY, call, trace.set_span_in_context(span)))
        return call

    def succeed(self, call: CallSpan, stream: Started | None) -> None:
        call.outcome = "succeeded"
        call.stream = stream

    def end(self, call: CallSpan) -> None:
        context.detach(call.token)
        if call.stream is None:
            call.finish()
            return

        def ended(error: BaseException | None) -> None:
            if isinstance(error, Exception):
                call.failed(error)
            elif error is not None:
                call.outcome = "cancelled"
            call.finish()

        call.stream.on_end(ended)

    # Events

    def _tell(self, event: Any) -> None:
        call = context.get_value(KEY)
        if not isinstance(call, CallSpan) or call.function != event.function:
            return  # as of an item in another process
        kind = type(event)
        if kind is CallFailed:
            call.failed(event.error)
            return
        if kind in CACHE:
            call.cache = CACHE[kind]
            return
        if kind is RetryScheduled:
            call.retries += 1
        if call.span.is_recording():
            call.span.add_event(f"opero.{event.name}", _attributes(event), int(event.time * 1e9))

    # Attempts

    def _wrap(self, target: Target, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes a span of each of its calls, which is current meanwhile."""
        name = target.stats.function.rpartition(":")[2]

        def span() -> Any:
            call = context.get_value(KEY)
            attributes: dict[str, Any] = {"opero.function": target.stats.function}
            if isinstance(call, CallSpan) and call.function == target.stats.function:
                call.attempts += 1
                attributes["opero.attempt"] = call.attempts
            return _Attempt(self._tracer.start_span(f"{name} attempt", kind=SpanKind.INTERNAL, attributes=attributes))

        if target.is_async:

            @functools.wraps(function)
            async def attempted_async(*args: Any, **kwargs: Any) -> Any:
                with span():
                    return await function(*args, **kwargs)

            return attempted_async

        @functools.wraps(function)
        def attempted(*args: Any, **kwargs: Any) -> Any:
            with span():
                return function(*args, **kwargs)

        return attempted


class _Attempt:
    """A block in which a span is current, and which ends it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Any = context.attach(trace.set_span_in_context(span))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        context.detach(self._token)
        if isinstance(error, Exception):
            self._span.set_attribute("error.type", error_type(error))
            self._span.set_status(Status(StatusCode.ERROR, message_of(error)))
        self._span.end()


def _rebuild() -> None:
    """Have all bound functions ask `attempt_wrappers` again."""
    for each in all_bindings():
        each.replace_function(each.function)


def error_type(error: BaseException) -> str:
    """Return what the semantic conventions call `error.type`: the status of a response, else the class."""
    if isinstance(error, FailedResponseError):
        status = status_of(error)
        if status is not None:
            return str(status)
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _attributes(event: Event) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, value in event.as_dict().items():
        if name not in NOT_TOLD and isinstance(value, str | int | float) and value != "":
            found[f"opero.{name}"] = value
    error, status = getattr(event, "error", None), getattr(event, "status", None)
    if error is not None:
        found["error.type"] = error_type(error)
    if status is not None:
        found["http.response.status_code"] = status
    return found
