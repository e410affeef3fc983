"""The retry policy: when and how to try again."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from opero.failures.kinds import Kind
from opero.policies.names import Conditions, FunctionOfResult
from opero.policies.quantities import Count, Duration, Factor, format_duration
from opero.policies.sharing import StoredPolicy
from opero.policies.types import Amplification, Flag, Jitter, RetryShare, StatusCodes

if TYPE_CHECKING:
    from typing import Any

    from pydantic import SecretStr

    from opero.policies.names import ConditionsLike
    from opero.policies.quantities import DurationLike


THROTTLED_DELAY = 1.0
"""The least seconds before the first retry of a throttled attempt whose error does not say how long to wait."""


class RetryPolicy(StoredPolicy):
    """Retry failed attempts with exponential backoff and jitter.

    The exact delay before retry n is `min_delay * backoff_factor ** (n - 1)`, at most `max_delay`; `jitter` draws one
    at random. If the error asks for a time, as with Retry-After, that is the delay. If it asks for longer than
    `max_delay` or than the call has left, the call fails at once, and `.retry_in` of its exception is that time. If a
    server refuses an attempt because it receives too many (429, or 503 with Retry-After) and does not say how long to
    wait, the delay is at least 1 s and grows by `backoff_factor`.

    A short form: `retry: 5` means `retry: {retries: 5}`.

    Attributes:
        retries: attempts after the first, >= 0. 3 means up to 4 attempts. Default 3.
        backoff_factor: the factor between consecutive delays, >= 1. Default 1.5.
        min_delay: the first exact delay, from which the others grow; seconds or text such as "250ms". Default 0.1.
        max_delay: the longest delay, >= `min_delay`. Default 30.
        jitter: randomize the delays, so that callers that failed together do not retry together: "full" draws between 0
            and `min_delay * backoff_factor ** n` (at most `max_delay`), "equal" between half of the exact delay and
            all of it; "none" is the exact delay. True is "full", false is "none". Default "full".
        retry_on: which failures to retry: kinds (see `opero.failures`), exception classes, and functions that receive
            the exception; in YAML their names (`transient`, `requests.HTTPError`, `app.errors:is_busy`; with a trailing
            "?" a name whose package may be missing). Any other exception propagates unchanged. Default `transient`,
            `throttled` and `unknown`, so neither programming errors nor refusals that another attempt will not change.
            opero's own rejections (open circuit, rate limit exceeded, bulkhead full) are retried only if their classes
            are listed here, and an attempt that ended by its own timeout always.
        retry_on_status: HTTP statuses to retry: `[429, "5xx"]`. If set, it alone decides for exceptions that have a
            status (those of requests, httpx, aiohttp, urllib, botocore and others); `retry_on` decides for all others.
        retry_if_result: a function of the result; if it returns true, the attempt counts as failed.
        retry_after: wait exactly as long as a Retry-After header says. Default true.
        reraise: when all attempts have failed, raise the last exception instead of `AllFailedError`. Default false.
        budget: the share of the calls by which retries may add to them, such as "20%", for all functions of a profile
            together: of the calls of the last 10 s; beside that at least 1 retry a second, and 60 at once after a
            minute without. When it is spent, calls fail without a retry. False: there is none; true: 20%. Default: 20%
            for the functions of a named profile, and where the budget is shared; none for others.
        amplification: what happens when an attempt fails as a bound function that it called has given up: "guard": it
            is not retried, as attempts would multiply; "allow": it is retried like others. Default "guard".
        idempotent: whether a call may be made again that the service may have received. False: an attempt is retried
            only if no connection could be made, or if opero itself has rejected it and `retry_on` names that; calls
            around it do not repeat it; there is no `hedge`, and no further value of `fallback.arg` is tried. For
            functions that make one request. Default true.
        share: whose calls share the budget: "process", those of this process and the worker processes of its maps;
            "machine", those of all processes of this user on this machine; "redis", those of all processes that use the
            same server (requires that extra), which is asked when a call is about to be retried. While redis cannot be
            used, each process has a budget of its own. Default "process".
        share_as: the name of the budget that is shared. Default: the name of the profile; for a function with its own,
            its module and name.
        url: the URL of redis, as for a cache. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
    """

    short: ClassVar[str | None] = "retries"
    kind: ClassVar[str] = "retry"

    retries: Count = 3
    backoff_factor: Factor = 1.5
    min_delay: Duration = 0.1
    max_delay: Duration = 30.0
    jitter: Jitter = "full"
    retry_on: Conditions = (Kind.TRANSIENT, Kind.THROTTLED, Kind.UNKNOWN)
    retry_on_status: StatusCodes | None = None
    retry_if_result: FunctionOfResult | None = None
    retry_after: Flag = True
    reraise: Flag = False
    budget: RetryShare | None = None
    amplification: Amplification = "guard"
    idempotent: Flag = True

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            retries: int = 3,
            backoff_factor: float = 1.5,
            min_delay: DurationLike = 0.1,
            max_delay: DurationLike = 30.0,
            jitter: bool | Literal["full", "equal", "none"] = "full",
            retry_on: ConditionsLike | None = (Kind.TRANSIENT, Kind.THROTTLED, Kind.UNKNOWN),
            retry_on_status: int | str | Collection[int | str] | None = None,
            retry_if_result: Callable[[Any], Any] | str | None = None,
            retry_after: bool = True,
            reraise: bool = False,
            budget: float | str | bool | None = None,
            amplification: Literal["guard", "allow"] = "guard",
            idempotent: bool = True,
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            store_timeout: DurationLike = 0.25,
        ) -> None: ...

    def has_budget(self, profile: str | None) -> bool:
        """Return whether the retries of the functions of a profile, or of a function without one, have a budget."""
        if self.budget is None:
            return bool(profile) or self.share != "process"
        return self.budget is not False

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.budget is False and self.share != "process":
            raise ValueError(f"share: {self.share} would have no effect without a budget; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _check_delays(self) -> Self:
        if self.min_delay > self.max_delay:
            raise ValueError(
                f"min_delay ({format_duration(self.min_delay)}) is greater than max_delay "
                f"({format_duration(self.max_delay)}); lower min_delay or raise max_delay"
            )
        return self
