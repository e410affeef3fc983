"""Statistics of bound functions."""

from __future__ import annotations

from time import perf_counter
from types import CellType
from typing import TYPE_CHECKING, Any, Protocol

from opero.events import (
    AttemptFailed,
    CacheHit,
    CacheMiss,
    CacheStale,
    CallFailed,
    CallSucceeded,
    Rejected,
    Shadowed,
    TimedOut,
    watched,
)
from opero.observe.counts import COUNTS, TABLES, Tables, count, count_shadow, flat_shadow, shadow_as_dict
from opero.observe.latency import WINDOWS, Histogram, Samples
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from typing import TypeVar

    from opero.errors import CallTimeoutError, RejectedError
    from opero.events import Event
    from opero.failures.kinds import Failure
    from opero.observe.hooks import Hooks

    R = TypeVar("R", bound=RejectedError)

    class Configured(Protocol):
        @property
        def configuration(self) -> Any: ...

    class Timed(Protocol):
        started: float
        tried: float
        waited: float

    class Classifier(Protocol):
        def failure_of(self, error: BaseException) -> Failure: ...


class Stats:
    """Counts of one bound function, over all its callers.

    Attributes:
        calls: calls of the bound function.
        failures: calls that raised an exception.
        retries: rounds of attempts after the first.
        retries_saved: rounds that the policy still allowed when a failure showed that none would help.
        recoveries: calls that succeeded after a failed attempt.
        hedges: attempts that were made beside one that took long.
        hedge_wins: hedges whose result was the first.
        fallbacks: attempts with another value of the fallback argument, and calls answered by a fallback result.
        cache_hits: calls that the cache answered.
        cache_misses: calls that the cache could not answer.
        waits: waits for a rate-limit permit or a bulkhead slot.
        waited: seconds of these waits in total.
        rejections: attempts rejected by an open circuit, the rate limit or a full bulkhead.
        timeouts: attempts and calls ended by a timeout.
        function: the name of the function, "module:qualname", for events.
        added: the calls among them that were made in other processes, such as the workers of maps.
        ordinary: the type of its last result that can be no response, which the next one mostly is, too.
        policy: the name of its profile, or "".
        hooks: those of its policy, if it has any.
        registry: the registry that has resolved its policy; None if there is none.
        countdown: a cell with the calls left before the one that is timed next; negative when that is due. The bound
            function has it as a variable of its own, which counts a call in less time than an attribute would.
    """

    # `+= 1` on an attribute is atomic under CPython's global lock: there is no call and no backward jump between its
    # read and its write, where another thread could run. So a success is counted without a lock. The same holds for a
    # cell, and for the statements that read or change it together with `_sample_at`.
    __slots__ = (
        *[name for name in COUNTS if name != "calls"],
        *("__weakref__", "_bare_since", "_sample_at", "_samples", "_tables", "added"),
        *("countdown", "executed", "function", "hooks", "ordinary", "policy", "registry"),
    )

    def __init__(self, function: str = "", policy: str = "", registry: Configured | None = None) -> None:
        self.function = function
        self.policy = policy
        self.hooks: Hooks | None = None
        self.registry = registry
        self.ordinary: type | None = None
        self.countdown = CellType(-1)
        self._sample_at = 0
        self._reset()

    def _reset(self) -> None:
        self.added = 0
        self.failures = 0
        self.retries = 0
        self.retries_saved = 0
        self.recoveries = 0
        self.hedges = 0
        self.hedge_wins = 0
        self.fallbacks = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.waits = 0
        self.waited = 0.0
        self.rejections = 0
        self.timeouts = 0
        # Attempts counted by layers. Without layers every call is an attempt, so calls after `_bare_since` are added.
        self.executed = 0
        self._bare_since: int | None = None
        # Both are made when there is something to count: most functions of a program are bound and never called.
        self._samples: Samples | None = None
        self._tables: Tables | None = None

    @property
    def calls(self) -> int:
        return self._sample_at - 1 - self.countdown.cell_contents  # type: ignore[no-any-return]

    @calls.setter
    def calls(self, calls: int) -> None:
        self.countdown.cell_contents = self._sample_at - 1 - calls

    def count_calls(self, number: int) -> None:
        """Add to `calls`. Unlike `+=` on that, it is atomic."""
        self.countdown.cell_contents -= number

    @property
    def sample_at(self) -> int:
        """The number of the call that is timed next; 0 times all."""
        return self._sample_at

    @sample_at.setter
    def sample_at(self, number: int) -> None:
        self.countdown.cell_contents += number - self._sample_at
        self._sample_at = number

    @property
    def own_calls(self) -> int:
        """The calls in this process, without those that `add` has added."""
        return self.calls - self.added

    @property
    def attempts(self) -> int:
        """The number of executions of the function."""
        return self.executed + (0 if self._bare_since is None else self.calls - self._bare_since)

    @property
    def in_flight(self) -> int:
        """Calls under way. While calls are sampled it is an estimate."""
        return 0 if self._samples is None else max(0, self._samples.in_flight)

    @property
    def errors(self) -> dict[str, int]:
        """Exception type's name → failed attempts with it."""
        return self._table().errors

    @property
    def kinds(self) -> dict[str, int]:
        """Kind of failure → failed attempts of it."""
        return {kind: number for kind, number in self._table().kinds.items() if number}

    @property
    def statuses(self) -> dict[str, int]:
        """HTTP status, as text → failed attempts with it."""
        return self._table().statuses

    @property
    def rejected_by(self) -> dict[str, int]:
        """ "circuit_breaker", "throttle", "rate_limit", "bulkhead", "fallback" or "retry_budget" → attempts that it
        rejected."""
        return self._table().rejected_by

    @property
    def waited_for(self) -> dict[str, float]:
        """ "rate_limit", "bulkhead" or "fallback" → seconds that attempts waited for it."""
        return self._table().waited_for

    def _table(self) -> Tables:
        tables = self._tables
        if tables is None:
            with _making:
                if self._tables is None:
                    self._tables = Tables()
                tables = self._tables
        return tables

    @property
    def samples(self) -> Samples:
        """The calls that were timed, and the rates of all."""
        samples = self._samples
        if samples is None:
            with _making:
                if self._samples is None:
                    self._samples = Samples(self.calls)
                samples = self._samples
        return samples

    @property
    def exact(self) -> bool:
        """Whether every call is timed, which costs a call as much again as all else. Default: a sample is."""
        return self._samples is not None and self._samples.exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        self.samples.exact = exact
        self.sample_at = 0

    def begin_sample(self, now: float) -> int:
        """Begin to time a call: return how many calls it stands for.

        Args:
            now: the moment, by `time.perf_counter`.
        """
        samples, calls = self._samples or self.samples, self.calls
        times_all = watched.calls or samples.exact
        if times_all:
            weight = samples.skip(calls, now)
            self.sample_at, samples.stride = 0, 1
        else:
            weight = samples.begin(calls, now)
            self.sample_at = calls + samples.stride
        if watched.calls:  # read after the write: it may have become true meanwhile
            self.sample_at = 0
        samples.in_flight += weight
        if now > samples.due:
            samples.tick(calls, self.failures, now)
        return weight

    def end_sample(self, seconds: float, weight: int) -> None:
        """Add a call that was timed, however it ended."""
        samples = self._samples or self.samples
        samples.in_flight -= weight
        samples.histogram.add(seconds, weight)

    def hand_over(self, call: Any, other: Stats) -> None:
        """Count a call, which has just begun here, in other statistics."""
        self.count_calls(-1)
        other.count_calls(1)
        if call.weight:
            self.samples.in_flight -= call.weight
            call.weight = other.begin_sample(call.began)
        if call.receipt is not None:
            call.receipt.policy = other.policy
        call.stats = other

    def forget_calls(self) -> None:
        """Forget the calls under way, which are those of the process that forked this one."""
        if self._samples is not None:
            self._samples.in_flight = 0

    def count_bare(self, bare: bool) -> None:  # the positional argument is unambiguous here
        """Count every call as an attempt from now on; if not `bare`, layers count the attempts."""
        self.executed = self.attempts
        self._bare_since = self.calls if bare else None

    def count_error(
        self, error: BaseException, classifier: Classifier | None = None, call: Timed | None = None
    ) -> Failure:
        """Count a failed attempt under the type of its exception, its kind and its status; return what it is.

        Args:
            error: the exception.
            classifier: says of which kind it is. Default: its shape does.
            call: the call, which knows when the attempt began if it is timed.
        """
        tables = self._tables or self._table()
        failure = _failure_of(error, classifier) if classifier is None else classifier.failure_of(error)
        name = type(error).__name__
        if name in tables.errors:
            tables.errors[name] += 1
        else:
            count(tables.errors, name)
        tables.kinds[failure.kind._value_] += 1
        if failure.status is not None:
            count(tables.statuses, str(failure.status))
        if AttemptFailed.handlers:
            values = {"kind": failure.kind, "status": failure.status, "reason": failure.reason}
            seconds = max(0.0, perf_counter() - call.tried - call.waited) if call is not None and call.tried else None
            self.emit(AttemptFailed, error=error, retry_in=failure.retry_in, seconds=seconds, **values)
        return failure

    def count_failure(
        self, error: BaseException, call: Timed | None = None, classifier: Classifier | None = None
    ) -> None:
        """Count a failed call.

        Args:
            error: the exception that it raised, or that stands for the failed response that it returned.
            call: the call, if it has been timed; it is not any more afterwards.
            classifier: says of which kind the failure is. Default: its shape does.
        """
        self.failures += 1
        seconds = None
        if call is not None and call.started:
            seconds, call.started = perf_counter() - call.started, 0.0
        if CallFailed.handlers:
            self.emit(CallFailed, error=error, kind=_failure_of(error, classifier).kind, seconds=seconds)

    def emit(self, event: type[Event], **values: Any) -> None:
        """Deliver an event of this function to its handlers, if there are any."""
        if event.handlers:
            hooks = () if self.hooks is None else (self.hooks,)
            watched.deliver(event(function=self.function, policy=self.policy, **values), hooks)

    def count_hit(self, *, is_stale: bool = False) -> None:
        """Count a call that the cache answered."""
        self.cache_hits += 1
        self.emit(CacheStale if is_stale else CacheHit)

    def count_hits(self, hits: int) -> None:
        """Count items of a map that its cache answered, each as a call."""
        self.count_calls(hits)
        self.cache_hits += hits
        if watched.hits or watched.calls:
            for _ in range(hits):
                self.emit(CacheHit)
                self.emit(CallSucceeded, seconds=0.0)

    def count_miss(self) -> None:
        """Count a call that the cache could not answer."""
        self.cache_misses += 1
        self.emit(CacheMiss)

    def count_rejection(self, by: str, error: R, limit: str = "") -> R:
        """Count an attempt that a policy rejected, and return its exception."""
        self.rejections += 1
        count(self._table().rejected_by, by)
        self.emit(Rejected, by=by, retry_in=error.retry_in, error=error, limit=limit)
        return error

    def count_spent(self, error: BaseException) -> None:
        """Count a retry that the retry budget did not allow."""
        self.rejections += 1
        count(self._table().rejected_by, "retry_budget")
        self.emit(Rejected, by="retry_budget", retry_in=None, error=error)

    def count_wait(self, what: str, seconds: float, waits: int = 1) -> None:
        """Count time that an attempt waits: for a permit, for a slot, or for a value of a fallback argument.

        Args:
            what: "rate_limit", "bulkhead" or "fallback".
            seconds: how long.
            waits: 0 if it is part of a wait that is counted elsewhere.
        """
        self.waits += waits
        self.waited += seconds
        count(self._table().waited_for, what, seconds)

    def count_timeout(self, error: CallTimeoutError) -> CallTimeoutError:
        """Count an attempt or call that a timeout ended, and return its exception."""
        self.timeouts += 1
        self.emit(TimedOut, scope=error.scope, error=error)
        return error

    def count_shadow(self, by: str, would: str, seconds: float | None = None, **values: Any) -> None:
        """Count what a policy in shadow would have done, with the fields of a `Shadowed` event."""
        count_shadow(self._table().shadow, by, would, seconds)
        self.emit(Shadowed, by=by, would=would, seconds=seconds, **values)

    # As data

    def as_dict(self) -> dict[str, Any]:
        """Return all counts as plain data, in `shadow` those of policies in shadow, if there are any."""
        tables = self._tables
        found: dict[str, Any] = {"attempts": self.attempts, **{name: getattr(self, name) for name in COUNTS}}
        for name in TABLES:
            table = {} if tables is None else getattr(tables, name)
            found[name] = {each: number for each, number in table.items() if number}
        if tables is not None and tables.shadow:
            found["shadow"] = shadow_as_dict(tables.shadow)
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return all that is known of the calls as plain data that JSON can represent.

        Beside the counts of `as_dict`:

        - `in_flight`: calls under way. While calls are sampled it is an estimate.
        - `latency`: `count` of the calls that were timed, `one_in` how many calls (1: every call), `sum`, `mean`,
          `p50`, `p90`, `p95`, `p99` and `max` in seconds, and `buckets`: upper bound in seconds, calls. A timed call
          counts for all calls since the last one that was. None before the first call.
        - `rates`: calls and failures a second, as moving averages over a second, a minute and an hour.
        - `age`: seconds since the first call.
        """
        now, samples = perf_counter(), self._samples
        found = self.as_dict() | {"in_flight": 0, "latency": None, "rates": no_rates(), "age": 0.0}
        if samples is not None:
            samples.tick(found["calls"], found["failures"], now)
            latency = samples.histogram.summary()
            found["in_flight"] = max(0, samples.in_flight)
            found["latency"] = latency and {**latency, "one_in": 1 if self.exact else samples.stride}
            found["rates"] = samples.rates(now)
            found["age"] = now - samples.since
            self.sample_at = 0  # the next call shows whether calls are as frequent as before
        return found

    def as_counts(self) -> dict[str, Any]:
        """Return all that can be added to the counts of another process, for `add` and `difference`."""
        histogram = Histogram() if self._samples is None else self._samples.histogram
        return self.as_dict() | {"latency": histogram.as_counts()}

    def __reduce__(self) -> Any:
        # Times are of this process, and so are calls under way.
        return _restore, (self.function, self.policy, self._bare_since is not None, self.as_counts())

    def drain(self) -> dict[str, Any]:
        """Return all counts as plain data, and reset them. Not thread-safe."""
        counts = self.as_counts()
        bare, exact = self._bare_since is not None, self.exact
        self.sample_at = self.calls = 0
        self._reset()
        self.count_bare(bare)
        if exact:
            self.exact = True
        return counts

    def add(self, counts: dict[str, Any]) -> None:
        """Add counts that `as_counts` returned elsewhere, such as in a worker process."""
        for name, value in counts.items():
            if name == "calls":
                self.added += value
                self.count_calls(value)
            elif name == "attempts":
                # If calls count as attempts here, the calls that are added include as many of these attempts.
                self.executed += value - (counts["calls"] if self._bare_since is not None else 0)
            elif name == "latency":
                if value["samples"]:
                    self.samples.histogram.merge(value)
            elif name == "shadow":
                for each, number in flat_shadow(value):
                    count(self._table().shadow, each, number)
            elif name in TABLES:
                for each, number in value.items():
                    count(getattr(self._table(), name), each, number)
            else:
                setattr(self, name, getattr(self, name) + value)

    def include(self, other: Stats) -> None:
        """Add the counts of another function."""
        for name in COUNTS:
            number = getattr(other, name)
            if number:
                setattr(self, name, getattr(self, name) + number)
        self.executed += other.attempts
        if other._samples is not None:
            self.samples.histogram.include(other._samples.histogram)
        if other._tables is not None:
            for name in (*TABLES, "shadow"):
                table = getattr(self._table(), name)
                for each, number in getattr(other._tables, name).copy().items():
                    count(table, each, number)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.as_dict().items() if value}
        return f"Stats({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _restore(function: str, policy: str, bare: bool, counts: dict[str, Any]) -> Stats:
    stats = Stats(function, policy)
    stats.count_bare(bare)
    stats.add(counts)
    return stats


def no_rates() -> dict[str, dict[str, float]]:
    """Return the rates of a function that has not been called."""
    return {"calls": dict.fromkeys(WINDOWS, 0.0), "failures": dict.fromkeys(WINDOWS, 0.0)}


def _failure_of(error: BaseException, classifier: Classifier | None) -> Failure:
    if classifier is not None:
        return classifier.failure_of(error)
    from opero.failures import failure_of

    return failure_of(error)


_making = RenewedLock()
"""Held while a function gets tables or samples, which is once each."""
