"""Events: what happens to calls, circuits, caches, maps and the configuration, as values that handlers receive.

    from opero import on
    from opero.events import RetryScheduled

    off = on(RetryScheduled, lambda event: print(event.function, event.delay), policy="api")

Without a handler no event is built: where it would be emitted, one attribute is read, `handlers` of its class.
"""

from __future__ import annotations

import re
import time
from dataclasses import field, fields, is_dataclass
from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

from opero.dataclass import dataclass
from opero.problems import text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.failures.kinds import Kind
    from opero.values import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        function: the function that it happened to, "module:qualname"; "" if it concerns no single one.
        policy: the name of the profile; "" if there is none.
        time: when it happened, in seconds since the epoch.
    """

    name: ClassVar[str]
    """The name by which `opero.on` finds it: "retry_scheduled"."""
    handlers: ClassVar[tuple[Any, ...]] = ()
    """The subscriptions to it."""

    function: str = ""
    policy: str = ""
    time: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """Return the event as plain data that JSON can represent; exceptions as their type and text."""
        return {"event": self.name, **{each.name: plain(getattr(self, each.name)) for each in fields(self)}}


def plain(value: Any) -> Any:
    """Return a value of an event as plain data that JSON can represent; exceptions as their type and text."""
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": text_of(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if isfinite(value) else None  # JSON has no infinity
    if value is None or isinstance(value, str | int):
        return value
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value)


# Calls


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSucceeded(Event):
    """A call returned a result, of whatever origin. For a generator: it has yielded its first item.

    Attributes:
        seconds: how long it took, with all waits; 0 for an item of a map that its cache answered.
    """

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(Event):
    """A call raised an exception, or returned a failed response.

    Attributes:
        error: the exception; for a response a `FailedResponseError`.
        kind: the kind of failure.
        seconds: how long it took, with all waits; None if that is unknown: for a generator that raised an exception
            after its first item, a call that began before anybody listened, an item whose worker process died.
    """

    error: BaseException
    kind: Kind
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """An attempt of a call failed: the function raised an exception, or returned a failed response.

    Attributes:
        error: the exception; for a response a `FailedResponseError`.
        kind: the kind of failure.
        status: its HTTP status; None if it has none.
        reason: why it is of that kind, such as "HTTP 503".
        retry_in: the seconds until another attempt may succeed, as the service says; None if it does not.
        seconds: how long it took, without its waits for permits and slots; None if that is unknown: for the first
            attempt of a call that is not timed (all are while `CallSucceeded` or `CallFailed` have handlers), for a
            generator that raised an exception after its first item.
    """

    error: BaseException
    kind: Kind
    status: int | None = None
    reason: str = ""
    retry_in: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled(Event):
    """Another round of attempts begins after a delay.

    Attributes:
        attempt: the number of the round that comes, from 2.
        delay: the seconds until it begins.
        is_asked: whether the failure asks for that delay, as with Retry-After.
        error: the exception of the last attempt.
    """

    attempt: int
    delay: float
    is_asked: bool
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeStarted(Event):
    """Another attempt begins beside one that takes long; the first result counts.

    Attributes:
        attempt: the number of the attempts of this round that run or have run, with this one: from 2.
        delay: the seconds after which an attempt is hedged.
    """

    attempt: int
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackUsed(Event):
    """A call falls back, on another value of the fallback argument or on a fallback result.

    Attributes:
        what: "value" for another value of the argument, "function" or "default" for where the result is from.
        error: the exception that made it necessary.
    """

    what: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSetAside(Event):
    """A value of a fallback argument is asked last for a while.

    Attributes:
        argument: the name of the argument.
        position: the position of the value, from 0.
        hash: a short hash that tells values apart; it does not reveal them.
        kind: the kind of failure: denied or throttled.
        seconds: for how long.
    """

    argument: str
    position: int
    hash: str
    kind: Kind
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRestored(Event):
    """A value of a fallback argument that was set aside works again.

    Attributes:
        argument: the name of the argument.
        position: the position of the value, from 0.
        hash: a short hash that tells values apart; it does not reveal them.
    """

    argument: str
    position: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited(Event):
    """An attempt waited for a permit, for a slot, or until a value of a fallback argument is no longer throttled.

    Attributes:
        what: "rate_limit", "bulkhead" or "fallback".
        seconds: how long.
        limit: the name of the limit that took longest, of a rate limit that has several; else "".
    """

    what: str
    seconds: float
    limit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(Event):
    """A policy rejected an attempt: the function was not called.

    Attributes:
        by: "circuit_breaker", "throttle", "rate_limit", "bulkhead", "fallback" where all values are throttled for too
            long, or "retry_budget" where an attempt has failed and may not be retried.
        retry_in: the seconds until another call may succeed; None if that is unknown.
        error: the exception.
        limit: the name of the limit whose permits were too far away, of a rate limit that has several; else "".
    """

    by: str
    retry_in: float | None
    error: BaseException
    limit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut(Event):
    """A timeout ended an attempt or a call.

    Attributes:
        scope: "attempt", "total", "idle" or "deadline".
        error: the exception.
    """

    scope: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed(Event):
    """A policy in shadow would have done something. The call went on as if there were no such policy.

    Attributes:
        by: the kind of policy: "retry", "timeout", "rate_limit", "bulkhead", "throttle" or "circuit_breaker".
        would: "reject" or "delay" an attempt, "retry" it, "end" an attempt or a call that took too long; or of a
            circuit "open", "half_open" or "close".
        seconds: how long it would have delayed the attempt or the retry, the limit that was exceeded, or the time until
            another call would have been let through; None if that is unknown, as for a place in a queue.
        message: what it would have said; "" where there is nothing to say.
        error: the exception of the attempt that it would have retried; else None.
    """

    by: str
    would: str
    seconds: float | None = None
    message: str = ""
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChanged(Event):
    """A limit that is found by what calls take has become another one. There is at most one such event a second.

    Attributes:
        what: "bulkhead", or "workers" of a map.
        before, after: how many calls at once: the limit that was told of last, and the one that is best now.
    """

    what: str
    before: int
    after: int


# Rate limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitPaused(Event):
    """The service has asked for a pause, so a rate limit lets no call through for a while.

    Attributes:
        limit: the name of the limit: of its profile, or of its function.
        seconds: how long the pause lasts.
        reason: what the service said, such as "HTTP 429" or "no calls remaining".
    """

    limit: str
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitAdapted(Event):
    """The service has refused a call, so a rate limit with `rate: adaptive` is slower from now on.

    Attributes:
        limit: the name of the limit: of its profile, or of its function.
        before, rate: the rate before and from now on, in permits per second.
    """

    limit: str
    before: float
    rate: float


# Circuits


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitChanged(Event):
    """A circuit breaker changed its state.

    Attributes:
        breaker: the name of the breaker: of its profile, or of its function.
        before, state: the state that it left, and the one that it is in: closed, open, half_open, forced_open or
            forced_closed.
        reason: the last failure, if it has opened; else "".
        failures, calls: of the calls that counted in the state that it left (in the window, in a row, or the probes):
            how many failed, and how many there were.
    """

    breaker: str
    before: str
    state: str
    reason: str = ""
    failures: int = 0
    calls: int = 0


class CircuitOpened(CircuitChanged):
    """A circuit breaker rejects calls, after too many failures."""

    __slots__ = ()


class CircuitHalfOpened(CircuitChanged):
    """A circuit breaker lets probes through."""

    __slots__ = ()


class CircuitClosed(CircuitChanged):
    """A circuit breaker lets all calls through again."""

    __slots__ = ()


class CircuitForced(CircuitChanged):
    """A circuit breaker was opened or closed by `force_open()` or `force_closed()`, which lasts until `reset()`."""

    __slots__ = ()


# Caches


class CacheHit(Event):
    """A cache answered a call with a fresh result."""

    __slots__ = ()


class CacheMiss(Event):
    """A cache had no result for a call."""

    __slots__ = ()


class CacheStale(Event):
    """A cache answered a call with a result that is older than its `ttl`."""

    __slots__ = ()


class CacheRefreshed(Event):
    """A result was refreshed in the background."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFailed(Event):
    """A cache could not do its work. Calls go on without it.

    Attributes:
        cache: the name of the function's cache, or of the store.
        what: "unavailable": the store failed, and functions run without it until a probe succeeds; "read_only": it is
            full or refuses writes for another reason, and results are read from it but not stored; "not_stored": a
            result could not be cached; "unreadable": an entry cannot be read; "refused": the store works but refused an
            operation, such as a value that is too large for it; "refresh": a background refresh failed,
            and the old result is still served.
        message: a description.
        error: the exception; None if there is none.
        since: how many more such failures there were since the last event about them.
    """

    cache: str
    what: str
    message: str
    error: BaseException | None = None
    since: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRestored(Event):
    """A cache store that had failed is available again, or accepts writes again.

    Attributes:
        cache: the name of the store.
        message: a description.
        skipped: the number of operations that were skipped meanwhile.
        what: what has ended: "unavailable" or "read_only", as in `CacheFailed`.
    """

    cache: str
    message: str
    skipped: int
    what: str = "unavailable"


# Servers of shared limits


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed(Event):
    """The server of limits that processes share cannot be used. Each limit does what its `on_store_error` says.

    Attributes:
        store: the server: "redis at host:port".
        message: a description.
        error: the exception.
    """

    store: str
    message: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRestored(Event):
    """The server of shared limits can be used again.

    Attributes:
        store: as in `StoreFailed`.
        message: a description.
        skipped: the number of operations that did not ask the server meanwhile.
    """

    store: str
    message: str
    skipped: int


# The configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationReloaded(Event):
    """A changed configuration is in force, or one that was rejected is as before again.

    Attributes:
        changes: each value that has changed: "api.retry.retries: 4 → 6"; empty if it is as before.
        profiles, functions: the names of the profiles and functions that are affected.
    """

    changes: tuple[str, ...]
    profiles: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRejected(Event):
    """A changed configuration is invalid; the previous one stays in force.

    Attributes:
        error: the exception, with all problems.
    """

    error: BaseException


# Maps


@dataclass(frozen=True, slots=True, kw_only=True)
class MapStarted(Event):
    """A map began.

    Attributes:
        mode: the kind of workers.
        total: the number of items; None if it is unknown.
        map: the number of the map in this process, from 1, which its other events have, too.
    """

    mode: str
    total: int | None
    map: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MapProgressed(Event):
    """The progress of a map, at most ten times a second and at its end.

    Attributes:
        progress: how far it has come.
        map: the number of the map.
    """

    progress: Progress
    map: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MapItemFailed(Event):
    """An item of a map failed for good.

    Attributes:
        index: its position in the input, from 0.
        error: the exception of its last attempt.
    """

    index: int
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class MapWorkerLost(Event):
    """A worker process of a map died.

    Attributes:
        error: the exception that describes it.
    """

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFinished(Event):
    """A map ended, in whichever way.

    Attributes:
        progress: how far it came.
        error: the exception that it raised, which is `GeneratorExit` if its reader stopped early; None if it succeeded.
        map: the number of the map.
    """

    progress: Progress
    error: BaseException | None = None
    map: int = 0


# Alerts


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFired(Event):
    """An alert notifies: its condition holds. `function` and `policy` are set if it concerns a single one.

    Attributes:
        alert: its name.
        message: what holds, for each function concerned.
        text: the description of the alert.
        functions, policies: the names of all functions and profiles concerned.
        seconds: since when it holds.
    """

    alert: str
    message: str
    text: str = ""
    functions: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertResolved(AlertFired):
    """An alert that has notified is over: its condition has not held for its calm time.

    Attributes:
        seconds: how long it held, the calm time not included.
    """


EVENTS: dict[str, type[Event]] = {}
"""Name → the class of every event."""

for _class in (
    *(CallSucceeded, CallFailed, AttemptFailed, RetryScheduled, HedgeStarted, FallbackUsed),
    *(ValueSetAside, ValueRestored),
    *(
        Waited,
        Rejected,
        TimedOut,
        Shadowed,
        LimitChanged,
        RateLimitPaused,
        RateLimitAdapted,
        CircuitOpened,
        CircuitHalfOpened,
        CircuitClosed,
        CircuitForced,
    ),
    *(CacheHit, CacheMiss, CacheStale, CacheRefreshed, CacheFailed, CacheRestored),
    *(StoreFailed, StoreRestored),
    *(ConfigurationReloaded, ConfigurationRejected),
    *(MapStarted, MapProgressed, MapItemFailed, MapWorkerLost, MapFinished),
    *(AlertFired, AlertResolved),
):
    _class.name = re.sub(r"(?<!^)(?=[A-Z])", "_", _class.__name__).lower()
    _class.handlers = ()  # of its own
    EVENTS[_class.name] = _class


class Watched:
    """Whether anybody listens to the events of successful calls, which read this: it is faster than `handlers`.

    Attributes:
        calls: `CallSucceeded` or `CallFailed` have handlers.
        hits: `CacheHit` has handlers.
        deliver: delivers an event to its handlers; set by `opero.observe.subscriptions`.
        on_calls: is called when there is a new listener to the ends of calls.
    """

    __slots__ = ("calls", "deliver", "hits", "on_calls")

    deliver: Callable[..., None]

    def __init__(self) -> None:
        self.calls = self.hits = False
        self.on_calls: Callable[[], object] | None = None

    def update(self) -> None:
        """Read the handlers, which have changed."""
        self.calls = bool(CallSucceeded.handlers or CallFailed.handlers)
        self.hits = bool(CacheHit.handlers)
        if self.calls and self.on_calls is not None:
            self.on_calls()


watched = Watched()
