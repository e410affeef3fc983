"""Contradictions between policies of different kinds: values that together can never take effect.

Configuration rejects them, since a number in a file is expected to take effect. Code may use them: "as many retries as
fit into ten seconds" is a common idiom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opero.policies.types import approximate_duration, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.policies.policy import Policy
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.policies.retry import RetryPolicy
    from opero.policies.timeout import TimeoutPolicy

__all__ = ["Contradiction", "contradictions", "least_waits"]

LONG = 1e15
"""An upper bound of all relevant durations, in seconds."""
WAITS = ("retry.retries", "retry.min_delay", "retry.max_delay", "retry.backoff_factor", "retry.jitter")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Values that contradict each other.

    Attributes:
        fields: the fields involved, whether set or not: "retry.retries".
        text: what is wrong, with the numbers, and how to fix it.
    """

    fields: tuple[str, ...]
    text: str


def contradictions(policy: Policy) -> list[Contradiction]:
    """Return the contradictions within a policy; policies that are switched off have none."""
    return list(_found(policy))


def _found(policy: Policy) -> Iterator[Contradiction]:
    retry, timeout, parallel = policy.active("retry"), policy.active("timeout"), policy.active("parallel")
    breaker, rate_limit = policy.active("circuit_breaker"), policy.active("rate_limit")
    if retry is not None and timeout is not None and timeout.total is not None:
        yield from _unreachable_retries(retry, "timeout.total", timeout.total, "ends the call")
    if retry is not None and parallel is not None and parallel.deadline is not None:
        yield from _unreachable_retries(retry, "parallel.deadline", parallel.deadline, "ends the map")
    if breaker is not None and rate_limit is not None:
        yield from _insufficient_window(breaker, rate_limit)
    if breaker is not None and timeout is not None:
        yield from _unreachable_slow_calls(breaker, timeout)


def least_waits(retry: RetryPolicy, retries: int) -> float:
    """Return the minimum total delay of this many retries, whatever jitter draws.

    A delay is at least the exponential one while the interval of jitter fits below `max_delay`, and at least half of
    `max_delay` otherwise.
    """
    first, factor, most = retry.min_delay, retry.backoff_factor, retry.max_delay
    if first == 0 or retries == 0:
        return 0.0
    ceiling = most / 1.5 if retry.jitter else most
    at_the_top = max(most / 2, first) if retry.jitter else most
    if first > ceiling:
        rising = 0
    elif factor == 1:
        rising = retries
    else:
        rising = min(retries, 1 + math.floor((math.log(ceiling) - math.log(first)) / math.log(factor)))
    if rising == 0 or factor == 1:
        risen = first * rising
    else:
        last = math.exp(math.log(first) + (rising - 1) * math.log(factor))
        risen = last + (last - first) / (factor - 1)
    return min(risen + (retries - rising) * at_the_top, LONG)


def _unreachable_retries(retry: RetryPolicy, field: str, limit: float, ends: str) -> Iterator[Contradiction]:
    retries = min(retry.retries, 10**9)
    waits = least_waits(retry, retries)
    if waits < limit:
        return
    possible, too_many = 0, retries
    while too_many - possible > 1:
        middle = (possible + too_many) // 2
        possible, too_many = (middle, too_many) if least_waits(retry, middle) < limit else (possible, middle)
    are = "is" if possible == 1 else "are"
    made, number = (f"at most {possible} of them {are}", f"to {possible}") if possible else ("none of them is", "to 0")
    yield Contradiction(
        (*WAITS, field),
        f"{retries} retries wait at least {approximate_duration(waits)}, and {field} ({format_duration(limit)}) {ends} "
        f"before that, so {made} made; lower retry.retries {number}, or retry.min_delay, or raise {field}",
    )


def _insufficient_window(breaker: CircuitBreakerPolicy, rate_limit: RateLimitPolicy) -> Iterator[Contradiction]:
    by_rate = breaker.failure_rate is not None or breaker.slow_call is not None
    cost = rate_limit.cost
    # Several functions, each with its own budget, may fill a window that they share.
    has_one_budget = rate_limit.scope == "profile" or breaker.scope == "function"
    if not by_rate or not isinstance(breaker.window, float) or not isinstance(cost, float) or not has_one_budget:
        return
    calls = (max(rate_limit.burst, cost) + rate_limit.rate * breaker.window) / cost + 1e-9
    if calls < breaker.least_calls:
        begin = "1 call" if calls < 2 else f"{math.floor(calls)} calls"
        yield Contradiction(
            (
                *("circuit_breaker.window", "circuit_breaker.min_calls"),
                *("rate_limit.rate", "rate_limit.burst", "rate_limit.cost"),
            ),
            f"rate_limit allows at most {begin} within circuit_breaker.window ({format_duration(breaker.window)}), "
            f"fewer than min_calls ({breaker.least_calls}), so the rates are never judged; lower min_calls or widen "
            "the window",
        )


def _unreachable_slow_calls(breaker: CircuitBreakerPolicy, timeout: TimeoutPolicy) -> Iterator[Contradiction]:
    limits = {"timeout.total": timeout.total, "timeout.attempt": timeout.attempt}
    field, limit = min(
        ((field, limit) for field, limit in limits.items() if limit is not None), key=lambda entry: entry[1]
    )
    if breaker.slow_call is not None and breaker.slow_call > limit:
        yield Contradiction(
            ("circuit_breaker.slow_call", field),
            f"slow_call ({format_duration(breaker.slow_call)}) is longer than {field} ({format_duration(limit)}), "
            f"which ends a call before it counts as slow; lower slow_call or raise {field}",
        )
