"""The circuit breaker policy: when to stop calling a failing service."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

from opero.failures.kinds import Kind
from opero.policies.names import Conditions
from opero.policies.quantities import (
    MOST_BITS,
    POSITIVE_DURATION_TEXT,
    POSITIVE_SECONDS,
    SPACE,
    PositiveCount,
    PositiveDuration,
    Share,
    fits,
    format_duration,
    is_usual_duration,
    named_schema,
    parse_duration,
    parse_number,
    quoted,
)
from opero.policies.scope import Scope
from opero.policies.sharing import StoredPolicy

if TYPE_CHECKING:
    from pydantic import SecretStr

    from opero.policies.names import ConditionsLike
    from opero.policies.quantities import DurationLike
    from opero.policies.scope import KeyedScope

CALLS_TEXT = rf"^{SPACE}\+?0{{0,20}}[1-9][0-9]{{0,20}}{SPACE}$"
SECONDS_TEXT = rf"^(?!{SPACE}\+?[0-9.]*[eE][0-9+-]+{SPACE}$)(?!{SPACE}\+?([0-9]+{SPACE})?$){POSITIVE_DURATION_TEXT[1:]}"
"""A bare power of ten, such as 1e3, is ambiguous (calls or seconds) and therefore rejected."""


def _window(value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1 or value.bit_length() > MOST_BITS:
            raise ValueError(f"a window of {quoted(value)} calls is invalid: use an integer >= 1")
        return value
    if isinstance(value, str) and not is_usual_duration(value):
        if fits(CALLS_TEXT, value):
            return int(value)
        if parse_number(value) is not None and not fits(SECONDS_TEXT, value):
            raise ValueError(
                f'{quoted(value)} is not a window: use a number of calls (100), or a time with a unit ("30s")'
            )
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"a window of {seconds:g} s is invalid: use a value > 0")
    return seconds


Window = Annotated[
    int | float,
    BeforeValidator(_window),
    named_schema(
        "Window",
        [
            {"type": "integer", "minimum": 1},
            POSITIVE_SECONDS,
            {"type": "string", "pattern": CALLS_TEXT},
            {"type": "string", "pattern": SECONDS_TEXT},
        ],
        100,
        "30s",
    ),
    PlainSerializer(lambda window: format_duration(window) if isinstance(window, float) else window, when_used="json"),
]


class CircuitBreakerPolicy(StoredPolicy):
    """Stop calling a failing service: reject calls with `CircuitOpenError`, and probe the service after a while.

    It opens when the rate of failures or of slow calls within a window reaches its threshold, or after
    `consecutive_failures`. After `open_for` it allows `half_open_calls` probes, and closes or opens again by their
    results. A call counts once, by its latest attempt, however often it is retried. Attempts that the rate limit or
    bulkhead rejected do not count.

    A short form: `circuit_breaker: 5` means `circuit_breaker: {consecutive_failures: 5}`.

    Attributes:
        consecutive_failures: the number of calls in a row whose failure opens it. Default None.
        failure_rate: the share of failed calls (above 0, up to 1, or "50%") within `window` that opens it. Default 0.5,
            or None if `consecutive_failures` is set.
        window: what the rates are computed over: a time ("30s"), or a number of last calls. Default "60s".
        min_calls: calls that the window must contain before a rate is judged. Default 10, or the window if that is
            fewer calls.
        slow_call: the duration above which a call is slow. Default None.
        slow_rate: the share of slow calls within `window` that opens it. Default 1 if `slow_call` is set.
        open_for: how long it stays open before it allows probes, give or take a tenth at random; twice as long after
            each time that the probes fail. Default "60s".
        open_for_max: the most that doubling makes of `open_for`. Default 10 times `open_for`.
        half_open_calls: the number of calls that it allows as probes. Default 1.
        half_open_rate: the share of the probes that may fail (or be slow) without opening it again. Default None: all
            have to succeed.
        trip_on: which failures count: kinds (see `opero.failures`), exception classes, and functions that receive the
            exception; in YAML their names. Any other counts as neither failure nor success: it says nothing about the
            service. Default `transient` and `unknown`, so neither programming errors, refused credentials nor calls
            that have to slow down open the circuit.
        ignore: which of these do not count all the same. Default none.
        scope: "profile": all functions bound to one named profile share the breaker; "function": each has its own;
            `{by: tenant}`, a `KeyedScope`: one for each value of an argument. Default "auto": "profile"; under an HTTP
            client `{by: host}`.
        share: whose calls share the circuit: "process", those of this process; "machine", those of all processes of
            this user on this machine; "redis", those of all processes that use the same server (requires that extra).
            While redis cannot be used, each process has a circuit of its own. Default "process".
        share_as: the name of the circuit that is shared. Default: the name of the profile; for a function with its
            own, its module and name.
        url: the URL of redis, as for a cache. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
    """

    short: ClassVar[str | None] = "consecutive_failures"
    kind: ClassVar[str] = "circuit_breaker"
    alternatives: ClassVar[Mapping[str, str]] = {"failure_rate": "consecutive_failures"}

    consecutive_failures: PositiveCount | None = None
    failure_rate: Share | None = 0.5
    window: Window = 60.0
    min_calls: PositiveCount | None = None
    slow_call: PositiveDuration | None = None
    slow_rate: Share | None = None
    open_for: PositiveDuration = 60.0
    open_for_max: PositiveDuration | None = None
    half_open_calls: PositiveCount = 1
    half_open_rate: Share | None = None
    trip_on: Conditions = (Kind.TRANSIENT, Kind.UNKNOWN)
    ignore: Conditions = ()
    scope: Scope = "auto"

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            consecutive_failures: int | None = None,
            failure_rate: float | str | None = 0.5,
            window: DurationLike = 60.0,
            min_calls: int | None = None,
            slow_call: DurationLike | None = None,
            slow_rate: float | str | None = None,
            open_for: DurationLike = 60.0,
            open_for_max: DurationLike | None = None,
            half_open_calls: int = 1,
            half_open_rate: float | str | None = None,
            trip_on: ConditionsLike | None = (Kind.TRANSIENT, Kind.UNKNOWN),
            ignore: ConditionsLike | None = (),
            scope: Literal["auto", "profile", "function"] | KeyedScope | Mapping[str, Any] = "auto",
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            store_timeout: DurationLike = 0.25,
        ) -> None: ...

    @property
    def by_rate(self) -> bool:
        """Whether it judges rates within a window."""
        return self.failure_rate is not None or self.slow_call is not None

    @property
    def least_calls(self) -> int:
        """The number of calls that the window must contain before a rate is judged."""
        if self.min_calls is not None:
            return self.min_calls
        return min(10, self.window) if isinstance(self.window, int) else 10

    @property
    def longest_open(self) -> float:
        """The most that doubling makes of `open_for`."""
        return 10 * self.open_for if self.open_for_max is None else self.open_for_max

    @property
    def tolerated_probes(self) -> int:
        """How many probes may fail."""
        # Without the tolerance, 29% of 100 were 28: 0.29 * 100 is a little below 29.
        return 0 if self.half_open_rate is None else int(self.half_open_rate * self.half_open_calls + 1e-9)

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if self.consecutive_failures is not None and "failure_rate" not in self.model_fields_set:
            object.__setattr__(self, "failure_rate", None)
        if self.slow_rate is not None and self.slow_call is None:
            raise ValueError("slow_rate has no effect without slow_call, the time after which a call is slow")
        if not self.by_rate and self.consecutive_failures is None:
            raise ValueError("the circuit never opens; set consecutive_failures, failure_rate or slow_call")
        if not self.by_rate:
            idle = {"window", "min_calls"} & self.model_fields_set - self._defaulted()
            if idle:
                raise ValueError(f"{' and '.join(sorted(idle))} would have no effect without failure_rate or slow_call")
        if isinstance(self.window, int) and self.least_calls > self.window:
            raise ValueError(f"min_calls ({self.min_calls}) is greater than the window of {self.window} calls")
        if self.open_for_max is not None and self.open_for_max < self.open_for:
            raise ValueError(
                f"open_for_max ({format_duration(self.open_for_max)}) is less than open_for "
                f"({format_duration(self.open_for)})"
            )
        if self.half_open_rate is not None and not 0 < self.tolerated_probes < self.half_open_calls:
            effect = "every probe would have to succeed" if self.tolerated_probes == 0 else "every probe might fail"
            raise ValueError(
                f"half_open_rate ({self.half_open_rate:g}) has no effect: of {self.half_open_calls} half_open_calls "
                f"{effect}; it has to allow from 1 to all but 1 of them to fail"
            )
        return self

    def _defaulted(self) -> set[str]:
        """Return the fields that were set explicitly to their defaults, as a JSON round trip does."""
        written = {name: (getattr(self, name), type(self).model_fields[name].default) for name in self.model_fields_set}
        return {name for name, (value, default) in written.items() if value == default and type(value) is type(default)}

    def __eq__(self, other: object) -> bool:
        # A window of 10 calls differs from one of 10 seconds, although 10 == 10.0.
        return super().__eq__(other) is True and type(self.window) is type(getattr(other, "window", None))

    __hash__ = StoredPolicy.__hash__
