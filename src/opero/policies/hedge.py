"""The hedge policy: a second attempt while the first one is slow, of which the first answer counts."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator

from opero.policies.base import BasePolicy
from opero.policies.quantities import (
    POSITIVE_DURATION_TEXT,
    POSITIVE_SECONDS,
    SPACE,
    PositiveCount,
    Share,
    fits,
    named_schema,
    parse_duration,
    quoted,
)

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike

PERCENTILE_TEXT = rf"^{SPACE}[pP][5-9][0-9](\.[0-9]{{1,2}})?{SPACE}$"


def _delay(value: object) -> float | str:
    if isinstance(value, str):
        if fits(PERCENTILE_TEXT, value):
            return value.strip().lower()
        if value.strip()[:1] in ("p", "P") and not value.strip().upper().startswith("PT"):
            raise ValueError(f'{quoted(value)} is no percentile: use "p50" to "p99.99", or a duration ("200ms")')
    given: Any = value
    seconds = parse_duration(given)
    if seconds <= 0:
        raise ValueError(f'{seconds:g} is invalid: use a value > 0, or a percentile ("p95")')
    return seconds


HedgeDelay = Annotated[
    float | str,
    BeforeValidator(_delay),
    named_schema(
        "HedgeDelay",
        [
            POSITIVE_SECONDS,
            {"type": "string", "pattern": POSITIVE_DURATION_TEXT},
            {"type": "string", "pattern": PERCENTILE_TEXT},
        ],
        "p95",
        "200ms",
    ),
]


class HedgePolicy(BasePolicy):
    """While an attempt takes long, make a second one beside it: the first result counts, and the other is cancelled.

    Only for functions that may be called twice, as both attempts may take effect. An async function is cancelled; a
    sync function runs in a helper thread, and one that is no longer needed ends there by itself. A hedge asks the
    circuit breaker and takes a permit and a slot of its own; it is not made if it would have to wait for one, nor while
    the circuit is not closed. An attempt that fails is answered by the other if that succeeds; if both fail,
    the exception is that of the first.

    A short form: `hedge: 200ms` means `hedge: {after: 200ms}`.

    Attributes:
        after: how long an attempt runs before it is hedged: seconds, text such as "200ms", or a percentile of the
            latest 500 to 1000 attempts of the function, "p50" to "p99.99"; there is no hedge before the first 30.
            Default "p95".
        max: the most hedges of an attempt, each `after` the one before. Default 1.
        budget: the share of the calls of the function by which hedges may add to them, at most 20 at once; from 0 to 1,
            or "5%". Default 5%.
    """

    short: ClassVar[str | None] = "after"
    kind: ClassVar[str] = "hedge"
    no_shadow: ClassVar[str] = "a hedge changes no result; begin with a small budget instead"

    after: HedgeDelay = "p95"
    max: PositiveCount = 1
    budget: Share = 0.05

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            after: DurationLike = "p95",
            max: int = 1,  # noqa: A002  # the name of the field
            budget: float | str = 0.05,
        ) -> None: ...
