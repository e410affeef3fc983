"""How often to call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PlainSerializer

from opero.policies.base import BasePolicy
from opero.policies.quantities import POSITIVE_NUMBER_TEXT, fits, named_schema, parse_number, said
from opero.policies.types import (
    IMPORT_TEXT,
    PARAMETER_TEXT,
    Duration,
    PositiveCount,
    Rate,
    Scope,
    import_path,
    one_of,
    resolve,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.policies.types import DurationLike

__all__ = ["RateLimitPolicy"]


def _cost(value: Any) -> Any:
    if fits(IMPORT_TEXT, value):
        value = resolve(value.strip())
    if callable(value):
        return value
    if fits(PARAMETER_TEXT, value):
        return value.strip()
    amount = parse_number(value)
    if amount is None or amount <= 0:
        raise ValueError(f"{said(value)} is not a cost: use a number > 0, the name of a parameter, or a function")
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


Store = Literal["local", "redis"]


class RateLimitPolicy(BasePolicy):
    """Call no more often than the service allows; wait for a permit where there is none.

    Permits are spaced evenly: `rate: 10` with the default burst lets a call through every 0.1 s, so five calls take at
    least 0.4 s. One budget serves all who share it: threads, event loops, sync and async callers alike.

    A short form: `rate_limit: 50/s` means `rate_limit: {rate: 50/s}`.

    Attributes:
        rate: permits a second; a number, or text such as "50/s", "1000/min", "100/30s". Required.
        burst: how many permits may be saved up and used at once. Default 1.
        max_wait: the longest wait for a permit; a call that would wait longer raises `RateLimitExceededError` at
            once. Default None: as long as it takes.
        cost: permits that a call takes: a number, the name of the argument that holds it, or a function of the
            call's arguments (in YAML "module:function"). A call that costs more than `burst` waits for a full
            budget and leaves it in debt. Default 1.
        scope: "profile": all functions bound to one named profile share its budget; "function": each has its own.
        backend: "local" or "redis" (several machines share one budget).
    """

    short: ClassVar[str | None] = "rate"
    kind: ClassVar[str] = "rate_limit"

    rate: Rate
    burst: PositiveCount = 1
    max_wait: Duration | None = None
    cost: Cost = 1.0
    scope: Scope = "profile"
    backend: Annotated[Store, one_of(Store)] = "local"

    if TYPE_CHECKING:  # what code may write is wider than what the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            rate: float | str,
            burst: int = 1,
            max_wait: DurationLike | None = None,
            cost: float | str | Callable[..., float] = 1.0,
            scope: Literal["profile", "function"] = "profile",
            backend: Store = "local",
        ) -> None: ...
