"""What a call may come to at worst under a policy: how many attempts, how much waiting, and how long it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from opero.dataclass import dataclass
from opero.errors import RejectedError
from opero.failures.kinds import Kind
from opero.policies.retry import THROTTLED_DELAY

if TYPE_CHECKING:
    from opero.policies.policy import Policy
    from opero.policies.retry import RetryPolicy

MOST_SUMMED = 10_000
"""The delays that are added up one by one; the others are taken for the longest."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds of a call. Times are seconds; `math.inf` is no bound.

    Attributes:
        attempts: the most times that the function is called.
        delays: the most that all delays before retries take together.
        queueing: the most that all waits for permits and slots take together.
        attempt: the most that an attempt takes, if something limits that.
        total: the total timeout.
        ends_attempts: whether the total timeout also ends an attempt, not only waits.
    """

    attempts: int
    delays: float
    queueing: float
    attempt: float
    total: float
    ends_attempts: bool

    def seconds(self, function: float = math.inf) -> float:
        """Return the most that a call takes, without the function of a fallback result and the cache.

        Args:
            function: the most that the function itself takes. Default: unknown.
        """
        attempt = min(self.attempt, function)
        longest = self.attempts * attempt + self.delays + self.queueing
        return min(longest, self.total if self.ends_attempts else self.total + attempt)


def bounds(policy: Policy, values: int = 1) -> Bounds:
    """Return the upper bounds of a call.

    Args:
        policy: the policy.
        values: how many values the fallback argument has, if there is one.
    """
    retry, timeout, fallback = (policy.in_force(kind) for kind in ("retry", "timeout", "fallback"))
    values = max(1, values) if fallback is not None and fallback.arg is not None else 1
    retries = 0 if retry is None else retry.retries
    attempts = (retries + 1) * values
    hedge = policy.active("hedge")
    beside = 0 if hedge is None else hedge.max  # each begins while the one before runs, and waits for nothing
    delays = 0.0 if retry is None else longest_delays(retry, retries)
    if values > 1 and fallback.has_memory:
        # Values that are set aside may have to be waited for, before the first round and until the last.
        delays = 2 * delays + 2 * (30.0 if retry is None else retry.max_delay)
    queueing = 0.0
    for kind in ("rate_limit", "bulkhead"):
        limit = policy.in_force(kind)
        if limit is not None and limit.max_wait != 0:
            queueing += attempts * (math.inf if limit.max_wait is None else limit.max_wait)
    interrupts = timeout is not None and timeout.enforce == "interrupt"
    return Bounds(
        attempts=attempts * (1 + beside),
        delays=delays,
        queueing=queueing,
        attempt=timeout.attempt if interrupts and timeout.attempt is not None else math.inf,
        total=math.inf if timeout is None or timeout.total is None else timeout.total,
        ends_attempts=interrupts,
    )


def may_be_asked(retry: RetryPolicy) -> bool:
    """Return whether a failure may say how long to wait: by a header, or as a rejection that is retried."""
    classes = (each for each in retry.retry_on if isinstance(each, type))
    return retry.retry_after or any(
        issubclass(each, RejectedError) or issubclass(RejectedError, each) for each in classes
    )


def may_be_throttled(retry: RetryPolicy) -> bool:
    """Return whether a throttled attempt may be retried."""
    return retry.retry_on_status is not None or any(
        each is Kind.THROTTLED or not isinstance(each, Kind) for each in retry.retry_on
    )


def longest_delay(retry: RetryPolicy, number: int, *, throttled: bool = False) -> float:
    """Return the most seconds before a retry, if the failure does not say how long to wait.

    Args:
        retry: the policy.
        number: which retry, from 1.
        throttled: whether the failed attempt was throttled.
    """
    first, power = retry.min_delay, number - 1
    if throttled:
        first = max(first, THROTTLED_DELAY) * (1 if retry.jitter == "none" else 2)
    elif retry.jitter == "full":
        power += 1
    if first == 0:
        return 0.0
    if power * math.log(retry.backoff_factor) > math.log(max(retry.max_delay, 1e-300)) - math.log(first):
        return retry.max_delay
    return min(first * retry.backoff_factor**power, retry.max_delay)


def longest_delays(retry: RetryPolicy, retries: int) -> float:
    """Return the most seconds that the delays before this many retries take together."""
    if may_be_asked(retry):
        return retries * retry.max_delay
    kinds = (False, True) if may_be_throttled(retry) else (False,)
    summed = min(retries, MOST_SUMMED)
    found = sum(max(longest_delay(retry, number, throttled=each) for each in kinds) for number in range(1, summed + 1))
    return found + (retries - summed) * retry.max_delay
