"""The circuit breaker policy: when to stop calling a failing service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

from opero.policies.base import BasePolicy
from opero.policies.quantities import POSITIVE_DURATION_TEXT, SPACE, fits, named_schema, parse_number
from opero.policies.types import (
    ExceptionTypes,
    PositiveCount,
    PositiveDuration,
    Scope,
    Share,
    format_duration,
    parse_duration,
)

if TYPE_CHECKING:
    from opero.policies.types import DurationLike, ExceptionsLike

__all__ = ["CircuitBreakerPolicy"]


CALLS_TEXT = rf"^{SPACE}\+?0{{0,20}}[1-9][0-9]{{0,20}}{SPACE}$"
SECONDS_TEXT = rf"^(?!{SPACE}\+?[0-9.]*[eE][0-9+-]+{SPACE}$)(?!{SPACE}\+?[0-9]*{SPACE}$){POSITIVE_DURATION_TEXT[1:]}"
"""A bare power of ten, such as 1e3, is ambiguous (calls or seconds) and therefore rejected."""


def _window(value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"a window of {value} calls is invalid: use an integer >= 1")
        return value
    if isinstance(value, str):
        if fits(CALLS_TEXT, value):
            return int(value)
        if parse_number(value) is not None and not fits(SECONDS_TEXT, value):
            raise ValueError(f'{value!r} is not a window: use a number of calls (100), or a time with a unit ("30s")')
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
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "string", "pattern": CALLS_TEXT},
            {"type": "string", "pattern": SECONDS_TEXT},
        ],
        100,
        "30s",
    ),
    PlainSerializer(lambda window: format_duration(window) if isinstance(window, float) else window, when_used="json"),
]


class CircuitBreakerPolicy(BasePolicy):
    """Stop calling a failing service: reject calls with `CircuitOpenError`, and probe the service after a while.

    It opens after `consecutive_failures`, or when the rate of failures or of slow calls within a window reaches its
    threshold. After `open_for` it allows `half_open_calls` probes: it closes if all succeed, and opens again if one
    fails. Attempts that the rate limit or bulkhead rejected do not count.

    A short form: `circuit_breaker: 5` means `circuit_breaker: {consecutive_failures: 5}`.

    Attributes:
        consecutive_failures: failures in a row that open it. Default 5, or None if a rate is set.
        failure_rate: the share of failures (above 0, up to 1) within `window` that opens it. Default None.
        window: what the rates are computed over: a number of last calls, or a time ("30s"). Default 100 calls.
        min_calls: calls that the window must contain before a rate is judged. Default 10, or the window if that is
            fewer calls.
        slow_call: the duration above which a call is slow. Default None.
        slow_rate: the share of slow calls within `window` that opens it. Default 1 if `slow_call` is set.
        open_for: how long it stays open before it allows probes. Default "60s".
        half_open_calls: the number of probes, and of successes needed to close it. Default 1.
        ignore: exception classes that count as neither failure nor success (in YAML their names). Default none.
        scope: "profile": all functions bound to one named profile share the breaker; "function": each has its own.
    """

    short: ClassVar[str | None] = "consecutive_failures"
    kind: ClassVar[str] = "circuit_breaker"

    consecutive_failures: PositiveCount | None = 5
    failure_rate: Share | None = None
    window: Window = 100
    min_calls: PositiveCount | None = None
    slow_call: PositiveDuration | None = None
    slow_rate: Share | None = None
    open_for: PositiveDuration = 60.0
    half_open_calls: PositiveCount = 1
    ignore: ExceptionTypes = ()
    scope: Scope = "profile"

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            consecutive_failures: int | None = 5,
            failure_rate: float | None = None,
            window: DurationLike = 100,
            min_calls: int | None = None,
            slow_call: DurationLike | None = None,
            slow_rate: float | None = None,
            open_for: DurationLike = 60.0,
            half_open_calls: int = 1,
            ignore: ExceptionsLike | None = (),
            scope: Literal["profile", "function"] = "profile",
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

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if self.by_rate and "consecutive_failures" not in self.model_fields_set:
            object.__setattr__(self, "consecutive_failures", None)
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
        return self

    def _defaulted(self) -> set[str]:
        """Return the fields that were set explicitly to their defaults, as a JSON round trip does."""
        written = {name: (getattr(self, name), type(self).model_fields[name].default) for name in self.model_fields_set}
        return {name for name, (value, default) in written.items() if value == default and type(value) is type(default)}

    def __eq__(self, other: object) -> bool:
        # A window of 10 calls differs from one of 10 seconds, although 10 == 10.0.
        return super().__eq__(other) is True and type(self.window) is type(getattr(other, "window", None))

    __hash__ = BasePolicy.__hash__
