"""The throttle policy: reject calls by the share that the service does not accept."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from opero.failures.kinds import Kind
from opero.policies.base import ShadowPolicy
from opero.policies.names import Conditions
from opero.policies.quantities import Factor, PositiveDuration
from opero.policies.scope import Owner
from opero.policies.types import one_of

if TYPE_CHECKING:
    from opero.policies.names import ConditionsLike
    from opero.policies.quantities import DurationLike


class ThrottlePolicy(ShadowPolicy):
    """Send an overloaded service only some more calls than it accepts; reject the others with `ThrottledError`.

    An attempt is rejected with the probability `(requests - ratio * accepts) / (requests + 1)`, at most 95%. Requests
    are the attempts of the last time, with those that were rejected here; accepts are those that the service answered.
    So nothing is rejected while it accepts at least one of `ratio` attempts, nor before five attempts. As calls go on
    to be tried, it ends by itself soon after the service has recovered. A circuit breaker stops all calls instead, and
    is for a service that is down; a throttle is for one that has less capacity than it is asked for.

    Calls of priority "background" are rejected sooner, and "critical" ones later: a quarter and four times of what
    `ratio` is above 1.

    A short form: `throttle: 2` means `throttle: {ratio: 2}`.

    Attributes:
        ratio: how many attempts are sent for each that the service accepts; a number above 1. Default 2.
        window: for how long an attempt counts, fading out; and no longer than for the next 30. Default "30s".
        trip_on: which failures mean that the service did not accept an attempt: kinds (see `opero.failures`), exception
            classes, and functions that receive the exception; in YAML their names. Any other is an answer. Default
            `transient`, `throttled` and `unknown`.
        scope: "profile": all functions bound to one named profile share the counts; "function": each has its own.
    """

    short: ClassVar[str | None] = "ratio"
    kind: ClassVar[str] = "throttle"

    ratio: Factor = 2.0
    window: PositiveDuration = 30.0
    trip_on: Conditions = (Kind.TRANSIENT, Kind.THROTTLED, Kind.UNKNOWN)
    scope: Annotated[Owner, one_of(Owner)] = "profile"

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            ratio: float = 2.0,
            window: DurationLike = 30.0,
            trip_on: ConditionsLike | None = (Kind.TRANSIENT, Kind.THROTTLED, Kind.UNKNOWN),
            scope: Literal["profile", "function"] = "profile",
        ) -> None: ...

    @model_validator(mode="after")
    def _check_ratio(self) -> Self:
        if self.ratio <= 1:
            raise ValueError(
                "with a ratio of 1 a service that has recovered would get no more calls than before; use a ratio "
                "above 1, such as 1.1 or 2"
            )
        return self
