"""The retry policy: when and how to try again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from opero.policies.base import BasePolicy
from opero.policies.types import Count, Duration, ExceptionTypes, Factor, Flag, Function, StatusCodes, format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from opero.policies.types import DurationLike, ExceptionsLike

__all__ = ["RetryPolicy"]


class RetryPolicy(BasePolicy):
    """Retry failed attempts with exponential backoff and jitter.

    The delay before retry n is `min_delay * backoff_factor ** (n - 1)`, at most `max_delay`. With `jitter` it is drawn
    uniformly from an interval half as long as that delay: above it if `max_delay` leaves room, else below it.

    A short form: `retry: 5` means `retry: {retries: 5}`.

    Attributes:
        retries: attempts after the first, >= 0. 3 means up to 4 attempts. Default 3.
        backoff_factor: the factor between consecutive delays, >= 1. Default 1.5.
        min_delay: the first and shortest delay; seconds or text such as "250ms". Default 0.1.
        max_delay: the longest delay; it also limits Retry-After. Default 30.
        jitter: randomize the delays, so that callers that failed together do not retry together. Default true.
        retry_on: exception classes to retry; in YAML their names (`ConnectionError`, `requests.HTTPError`; with a
            trailing "?" a name whose package may be missing). Any other exception propagates unchanged. Default
            `Exception`. opero's own rejections (open circuit, rate limit exceeded, bulkhead full) are retried only
            if they are listed here. `KeyboardInterrupt`, `SystemExit` and cancellation are never retried.
        retry_on_status: HTTP statuses to retry: `[429, "5xx"]`. If set, it alone decides for exceptions that have a
            status (those of requests, httpx, aiohttp, urllib, botocore and others); `retry_on` decides for all others.
        retry_if_result: a function of the result; if it returns true, the attempt counts as failed.
        retry_after: wait as long as a Retry-After header says, up to `max_delay`. Default true.
        reraise: when all attempts have failed, raise the last exception instead of `AllFailedError`. Default false.
    """

    short: ClassVar[str | None] = "retries"
    kind: ClassVar[str] = "retry"

    retries: Count = 3
    backoff_factor: Factor = 1.5
    min_delay: Duration = 0.1
    max_delay: Duration = 30.0
    jitter: Flag = True
    retry_on: ExceptionTypes = (Exception,)
    retry_on_status: StatusCodes | None = None
    retry_if_result: Function | None = None
    retry_after: Flag = True
    reraise: Flag = False

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            retries: int = 3,
            backoff_factor: float = 1.5,
            min_delay: DurationLike = 0.1,
            max_delay: DurationLike = 30.0,
            jitter: bool = True,
            retry_on: ExceptionsLike | None = Exception,
            retry_on_status: int | str | Collection[int | str] | None = None,
            retry_if_result: Callable[[Any], Any] | str | None = None,
            retry_after: bool = True,
            reraise: bool = False,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_delays(self) -> Self:
        if self.min_delay > self.max_delay:
            raise ValueError(
                f"min_delay ({format_duration(self.min_delay)}) is greater than max_delay "
                f"({format_duration(self.max_delay)}); lower min_delay or raise max_delay"
            )
        return self
