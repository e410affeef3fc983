"""The rate limit policy: how often to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

from opero.policies.names import IMPORT_TEXT, PARAMETER_TEXT, import_path, resolve
from opero.policies.quantities import (
    LONGEST,
    POSITIVE_NUMBER_TEXT,
    SERVICE,
    Count,
    Duration,
    PositiveCount,
    PositiveDuration,
    Rate,
    fastest,
    fits,
    named_schema,
    parse_number,
    quoted,
)
from opero.policies.sharing import StoredPolicy
from opero.policies.types import Flag, Scope

if TYPE_CHECKING:
    from typing import Literal

    from pydantic import SecretStr

    from opero.policies.quantities import DurationLike


UNLIMITED = 1e6
"""Permits a second where no rate is stated: more than a program can use."""


def _cost(value: Any) -> Any:
    if fits(IMPORT_TEXT, value):
        value = resolve(value.strip())
    if callable(value):
        return value
    if fits(PARAMETER_TEXT, value):
        return value.strip()
    amount = parse_number(value)
    if amount is None or amount <= 0:
        raise ValueError(f"{quoted(value)} is not a cost: use a number > 0, the name of a parameter, or a function")
    return amount


Cost = Annotated[
    Any,
    BeforeValidator(_cost),
    named_schema(
        "Cost",
        [
            {"type": "number", "exclusiveMinimum": 0},
            *({"type": "string", "pattern": text} for text in (POSITIVE_NUMBER_TEXT, PARAMETER_TEXT, IMPORT_TEXT)),
        ],
        1,
        "tokens",
        "app.costs:of_call",
    ),
    PlainSerializer(lambda cost: import_path(cost) if callable(cost) else cost, when_used="json"),
]


class RateLimitPolicy(StoredPolicy):
    """Limit the rate of calls; wait for a permit if none is available.

    Permits are evenly spaced: `rate: 10` with the default burst allows a call every 0.1 s, so five calls take at
    least 0.4 s. All callers share one budget: threads, event loops, sync and async callers; with `share: redis` those
    of all processes and machines.

    A short form: `rate_limit: 50/s` means `rate_limit: {rate: 50/s}`.

    Where a service says how much of a quota is left, or how long to wait, all callers heed it (see `feedback`).

    Attributes:
        rate: permits per second; a number, or text such as "50/s", "1000/min", "100/30s"; "adaptive", or "adaptive up
            to 200/s": the rate that a service accepts, found by itself; or "service": nothing but what the service
            says limits the rate. Required.
        burst: how many unused permits may accumulate. Default 1.
        max_wait: the longest wait for a permit; a call that would wait longer raises `RateLimitExceededError`
            immediately. Default None: no limit.
        cost: permits that a call takes: a number, the name of the parameter that holds it, or a function of the
            call's arguments (in YAML "module:function"). A call that costs more than `burst` waits until the budget
            is full and overdraws it. Default 1.
        scope: "profile": all functions bound to one named profile share its budget; "function": each has its own.
        share: whose calls take permits from one budget: "process", those of this process; "machine", those of all
            processes of this user on this machine; "redis", those of all processes that use the same server (requires
            that extra). Default "process".
        share_as: the name of the budget that is shared. Default: the name of the profile; for a function with its own
            budget, its module and name.
        url: the URL of redis, as for a cache. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        on_store_error: what holds while redis cannot be used: "local", each process uses the share of the permits that
            it had before; "open", calls are not limited; "closed", they are rejected. Default "local".
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
        reserve: with `share: redis`, how many permits of the burst may be reserved ahead, so that not each call asks
            redis. Default 0: none.
        feedback: whether calls wait as long as a response or an exception asks (Retry-After), and until a quota of
            which nothing is left is renewed (RateLimit, X-RateLimit-Remaining and their relatives): all calls that
            share the budget. Default true. Where the values of a fallback argument have a quota each, the throttled
            value is set aside instead.
        max_pause: the longest pause that feedback causes; a service that asks for more is asked again after it;
            seconds or text. Default 5 minutes.
    """

    short: ClassVar[str | None] = "rate"
    kind: ClassVar[str] = "rate_limit"

    rate: Rate
    burst: PositiveCount = 1
    max_wait: Duration | None = None
    cost: Cost = 1.0
    scope: Scope = "profile"
    reserve: Count = 0
    feedback: Flag = True
    max_pause: PositiveDuration = 300.0

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            rate: float | str,
            burst: int = 1,
            max_wait: DurationLike | None = None,
            cost: float | str | Callable[..., float] = 1.0,
            scope: Literal["profile", "function"] = "profile",
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            on_store_error: Literal["local", "open", "closed"] = "local",
            store_timeout: DurationLike = 0.25,
            reserve: int = 0,
            feedback: bool = True,
            max_pause: DurationLike = 300.0,
        ) -> None: ...

    @property
    def fastest(self) -> float:
        """Permits per second at most."""
        return fastest(self.rate) or UNLIMITED

    @property
    def is_adaptive(self) -> bool:
        """Whether the rate is found by itself."""
        return isinstance(self.rate, str) and self.rate != SERVICE

    @model_validator(mode="after")
    def _check_found(self) -> Self:
        if isinstance(self.rate, float):
            return self
        if self.rate == SERVICE and not self.feedback:
            raise ValueError("rate: service has no effect with feedback: false, as nothing would limit the rate")
        if self.cost != 1.0:
            raise ValueError(f"cost has no effect with rate: {self.rate}, which counts calls; remove cost")
        if self.rate == SERVICE and self.burst != 1:
            raise ValueError("burst has no effect with rate: service; remove burst")
        if self.is_adaptive and self.share == "redis":
            raise ValueError("a rate that is adaptive is found by one machine; use share: machine, or state the rate")
        return self

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        for name in ("burst", "cost"):
            permits = getattr(self, name)
            if isinstance(permits, int | float) and permits > self.fastest * LONGEST:
                raise ValueError(
                    f"{name} ({permits}) is more than the permits of 100 years at {self.fastest:g}/s; lower {name} "
                    "or raise rate"
                )
        return self

    @model_validator(mode="after")
    def _check_reserve(self) -> Self:
        if not self.reserve:
            return self
        if callable(self.cost) or isinstance(self.cost, str):
            raise ValueError("reserve has no effect where the cost of a call depends on its arguments; remove either")
        if min(self.reserve, self.burst - self.reserve) < 2 * self.cost:
            raise ValueError(
                f"reserve ({self.reserve}) has no effect with a burst of {self.burst}: both reserve and the rest of "
                "burst have to hold the permits of two calls at least"
            )
        return self
