"""A time to live that depends on how often a key is requested."""

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from opero.policies.base import StrictModel
from opero.policies.quantities import PositiveCount, PositiveDuration, format_duration

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike


class AdaptiveTTL(StrictModel):
    """Keep frequently requested keys longer: `cache: {ttl: {cold: 5m, warm: 15m, hot: 1h}}`.

    `ttl: adaptive` uses the defaults. Each process counts the requests of up to `max_size` keys of its own; a count is
    halved after every `window`, so that a key that is no longer requested cools down.

    Attributes:
        cold: the ttl of a key that is rarely requested; seconds or text. Default 5 minutes.
        warm: the ttl of a key that has been requested more than `warm_after` times; seconds or text. Default 15
            minutes.
        hot: the ttl of a key that has been requested more than `hot_after` times; seconds or text. Default 1 hour.
        warm_after: requests after which a key is warm. Default 20.
        hot_after: requests after which a key is hot. Default 100.
        window: the time after which a count of requests is halved; seconds or text. Default 1 hour.

    Raises:
        ConfigError: the times or the counts do not increase from cold to hot.
    """

    cold: PositiveDuration = 300.0
    warm: PositiveDuration = 900.0
    hot: PositiveDuration = 3600.0
    warm_after: PositiveCount = 20
    hot_after: PositiveCount = 100
    window: PositiveDuration = 3600.0

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            cold: DurationLike = 300.0,
            warm: DurationLike = 900.0,
            hot: DurationLike = 3600.0,
            warm_after: int = 20,
            hot_after: int = 100,
            window: DurationLike = 3600.0,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.cold <= self.warm <= self.hot:
            times = ", ".join(f"{name}={format_duration(getattr(self, name))}" for name in ("cold", "warm", "hot"))
            raise ValueError(f"expected cold <= warm <= hot, not {times}")
        if self.warm_after > self.hot_after:
            raise ValueError(f"warm_after={self.warm_after} is greater than hot_after={self.hot_after}")
        return self

    def seconds(self, requests: float) -> float:
        """Return the time to live of a key with this number of requests."""
        if requests > self.hot_after:
            return self.hot
        return self.warm if requests > self.warm_after else self.cold
