"""The rate limit policy: how often to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

from opero.policies.names import IMPORT_TEXT, PARAMETER_TEXT, import_path, resolve
from opero.policies.quantities import (
    LONGEST,
    POSITIVE_NUMBER_TEXT,
    Count,
    Duration,
    PositiveCount,
    Rate,
    fits,
    named_schema,
    parse_number,
    quoted,
)
from opero.policies.scope import Scope
from opero.policies.sharing import StoredLimitPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from pydantic import SecretStr

    from opero.policies.quantities import DurationLike
    from opero.policies.scope import KeyedScope


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


class RateLimitPolicy(StoredLimitPolicy):
    """Limit the rate of calls; wait for a permit if none is available.

    Permits are evenly spaced: `rate: 10` with the default burst allows a call every 0.1 s, so five calls take at
    least 0.4 s. All callers share one budget: threads, event loops, sync and async callers; with `share: redis` those
    of all processes and machines.

    A short form: `rate_limit: 50/s` means `rate_limit: {rate: 50/s}`.

    Attributes:
        rate: permits per second; a number, or text such as "50/s", "1000/min", "100/30s". Required.
        burst: how many unused permits may accumulate. Default 1.
        max_wait: the longest wait for a permit; a call that would wait longer raises `RateLimitExceededError`
            immediately. Default None: no limit.
        cost: permits that a call takes: a number, the name of the parameter that holds it, or a function of the
            call's arguments (in YAML "module:function"). A call that costs more than `burst` waits until the budget
            is full and overdraws it. Default 1.
        scope: "profile": all functions bound to one named profile share its budget; "function": each has its own;
            `{by: tenant}`, a `KeyedScope`: one for each value of an argument. Default "auto": "profile"; under an HTTP
            client `{by: host}`.
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
    """

    short: ClassVar[str | None] = "rate"
    kind: ClassVar[str] = "rate_limit"

    rate: Rate
    burst: PositiveCount = 1
    max_wait: Duration | None = None
    cost: Cost = 1.0
    scope: Scope = "auto"
    reserve: Count = 0

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
            scope: Literal["auto", "profile", "function"] | KeyedScope | Mapping[str, Any] = "auto",
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            on_store_error: Literal["local", "open", "closed"] = "local",
            store_timeout: DurationLike = 0.25,
            reserve: int = 0,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        for name in ("burst", "cost"):
            permits = getattr(self, name)
            if isinstance(permits, int | float) and permits > self.rate * LONGEST:
                raise ValueError(
                    f"{name} ({permits}) is more than the permits of 100 years at {self.rate:g}/s; lower {name} "
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
