"""Contradictions between policies of different kinds: values that together can never take effect.

Configuration rejects them, since a number in a file is expected to take effect. Code may use them: "as many retries as
fit into ten seconds" is a common idiom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from opero.dataclass import dataclass
from opero.errors import BulkheadFullError
from opero.policies.quantities import approximate_duration, format_duration
from opero.policies.scope import owner_of, scope_by

if TYPE_CHECKING:
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.policies.hedge import HedgePolicy
    from opero.policies.parallel import ParallelPolicy
    from opero.policies.policy import Policy
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.policies.retry import RetryPolicy
    from opero.policies.timeout import TimeoutPolicy

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
    bulkhead = policy.active("bulkhead")
    if retry is not None and timeout is not None and timeout.total is not None:
        too_long = list(_unreachable_retries(retry, "timeout.total", timeout.total, "ends the call"))
        yield from too_long
        if rate_limit is not None and not too_long:
            yield from _insufficient_permits(retry, timeout.total, rate_limit)
    fallback = policy.active("fallback")
    if fallback is not None and fallback.arg is not None and retry is not None and not retry.idempotent:
        yield Contradiction(
            ("retry.idempotent", "fallback.arg"),
            f"fallback.arg ({fallback.arg}) makes further attempts with other values, and with retry.idempotent: false "
            "a call is made once; remove one of the two",
        )
    if retry is not None and parallel is not None and parallel.deadline is not None:
        yield from _unreachable_retries(retry, "parallel.deadline", parallel.deadline, "ends the map")
    if timeout is not None and timeout.total is not None:
        for limit in (each for each in (rate_limit, bulkhead) if each is not None):
            yield from _unreachable_max_wait(limit, timeout.total)
    if bulkhead is not None and parallel is not None:
        yield from _rejected_workers(bulkhead, parallel, policy)
    if breaker is not None and (retry is None or retry.retry_if_result is None):  # what that rejects counts always
        yield from _ignored_failures(breaker)
    if breaker is not None and retry is not None:
        yield from _rejected_retries(breaker, retry)
    if breaker is not None and rate_limit is not None:
        yield from _insufficient_window(breaker, rate_limit)
    if breaker is not None and bulkhead is not None:
        yield from _insufficient_slots(breaker, bulkhead)
    if breaker is not None and timeout is not None:
        yield from _unreachable_slow_calls(breaker, timeout)
    if (hedge := policy.active("hedge")) is not None and timeout is not None:
        yield from _unreachable_hedges(hedge, timeout)


def least_waits(retry: RetryPolicy, retries: int) -> float:
    """Return the minimum total delay of this many retries, or with full jitter, which has none, the average.

    Equal jitter draws at least half of the exact delay. Full jitter draws on average half of what is the next exact
    delay.
    """
    first, factor, most = retry.min_delay, retry.backoff_factor, retry.max_delay
    if retry.jitter == "full":
        first = min(first * factor, most)
    if first == 0 or retries == 0:
        return 0.0
    if factor == 1:
        rising = retries
    else:
        rising = min(retries, 1 + math.floor((math.log(most) - math.log(first)) / math.log(factor)))
    if rising == 0 or factor == 1:
        risen = first * rising
    else:
        last = math.exp(math.log(first) + (rising - 1) * math.log(factor))
        risen = last + (last - first) / (factor - 1)
    exact = risen + (retries - rising) * most
    return min(exact if retry.jitter == "none" else exact / 2, LONG)


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
    about = approximate_duration(waits)
    wait, usually = (
        (f"wait {about} on average", "usually ") if retry.jitter == "full" else (f"wait at least {about}", "")
    )
    made, number = (f"at most {possible} of them {are}", f"to {possible}") if possible else ("none of them is", "to 0")
    yield Contradiction(
        (*WAITS, field),
        f"{retries} retries {wait}, and {field} ({format_duration(limit)}) {ends} "
        f"before that, so {usually}{made} made; lower retry.retries {number}, or retry.min_delay, or raise {field}",
    )


def _rejected_retries(breaker: CircuitBreakerPolicy, retry: RetryPolicy) -> Iterator[Contradiction]:
    if breaker.consecutive_failures == 1:
        field, value, cure = "consecutive_failures", "1", "raise circuit_breaker.consecutive_failures"
    elif _opens_at_each_failure(breaker):
        rate = f"{100 * (breaker.failure_rate or 0):g}%"
        field, value, cure = "min_calls", f"1, and failure_rate {rate}", "raise circuit_breaker.min_calls"
    else:
        return
    # What is retried and does not count has its retries. The same goes for an open circuit, if it is named: it does not
    # count either.
    counts = not breaker.ignore and retry.retry_on_status is None and set(retry.retry_on) <= set(breaker.trip_on)
    if counts and retry.retries > 0:
        yield Contradiction(
            (f"circuit_breaker.{field}", "circuit_breaker.trip_on", "retry.retries", "retry.retry_on"),
            f"the first failed attempt of a call opens the circuit ({field} is {value}), which rejects all its "
            f"{retry.retries} retries, as trip_on has all of retry_on; {cure}, or set retry.retries to 0",
        )


def _opens_at_each_failure(breaker: CircuitBreakerPolicy) -> bool:
    """Return whether a failure opens the circuit however many of the other calls in the window have succeeded."""
    if breaker.failure_rate is None or not isinstance(breaker.window, int):
        return False
    return breaker.least_calls == 1 and 1 / breaker.window >= breaker.failure_rate


def _ignored_failures(breaker: CircuitBreakerPolicy) -> Iterator[Contradiction]:
    classes = tuple(each for each in breaker.ignore if isinstance(each, type))
    is_ignored = [
        each in breaker.ignore or (isinstance(each, type) and issubclass(each, classes)) for each in breaker.trip_on
    ]
    if breaker.slow_call is None and all(is_ignored):
        why = "ignore has all of trip_on" if breaker.trip_on else "trip_on is empty"
        yield Contradiction(
            ("circuit_breaker.trip_on", "circuit_breaker.ignore"),
            f"no failure counts for the circuit, as {why}, so it never opens; name in trip_on what should open it",
        )


def _insufficient_permits(retry: RetryPolicy, total: float, rate_limit: RateLimitPolicy) -> Iterator[Contradiction]:
    known = [each for each in rate_limit.each if isinstance(each.cost, float) and each.cost_from_result is None]
    if not known:
        return
    # A call has the whole budget at best, and its first attempt takes a permit as well.
    possible, rate = min(
        (math.floor(min((max(each.burst, each.cost) + each.rate * total) / each.cost, LONG) + 1e-9) - 1, each.rate)
        for each in known
    )
    if possible < retry.retries:
        are = "is" if possible == 1 else "are"
        made, number = (f"at most {possible} of them {are}", f"to {possible}") if possible else ("none is", "to 0")
        yield Contradiction(
            ("retry.retries", "timeout.total", *_fields_of(rate_limit)),
            f"{retry.retries} retries take a permit each, and rate_limit ({rate:g}/s) does not give a call "
            f"as many before timeout.total ({format_duration(total)}) ends it, so {made} made; lower "
            f"retry.retries {number}, or raise rate_limit or timeout.total",
        )


def _fields_of(rate_limit: RateLimitPolicy) -> tuple[str, ...]:
    """Return the fields that say how many calls a rate limit lets through."""
    return ("rate_limit.limits",) if rate_limit.limits else ("rate_limit.rate", "rate_limit.burst", "rate_limit.cost")


def _unreachable_max_wait(limit: RateLimitPolicy | BulkheadPolicy, total: float) -> Iterator[Contradiction]:
    if limit.max_wait is not None and limit.max_wait > total:
        field = f"{limit.kind}.max_wait"
        yield Contradiction(
            (field, "timeout.total"),
            f"{field} ({format_duration(limit.max_wait)}) is longer than timeout.total ({format_duration(total)}), "
            f"which ends a call before that; lower {field} or raise timeout.total",
        )


def _rejected_workers(bulkhead: BulkheadPolicy, parallel: ParallelPolicy, policy: Policy) -> Iterator[Contradiction]:
    fallback, retry, workers = policy.active("fallback"), policy.active("retry"), parallel.workers
    if bulkhead.max_wait != 0 or workers == 1:
        return
    if bulkhead.is_adaptive and not bulkhead.shadow:
        admitted, many, cure = "as many as it has found", "several", "workers: adaptive without a bulkhead"
    elif isinstance(workers, int) and workers > bulkhead.most_concurrent:
        admitted = str(bulkhead.most_concurrent)
        many, cure = f"up to {workers}", f"lower parallel.workers to {admitted}"
    else:  # "auto": a map has no more than the bulkhead admits
        return
    rejections = (each for each in (retry.retry_on if retry is not None else ()) if isinstance(each, type))
    is_retried = any(issubclass(BulkheadFullError, each) for each in rejections)
    if not is_retried and not (fallback is not None and fallback.has_result):
        yield Contradiction(
            ("parallel.workers", "bulkhead.max_concurrent", "bulkhead.max_wait"),
            f"a map runs {many} items at once (parallel.workers), and bulkhead admits {admitted} and rejects the "
            f"others immediately, as max_wait is 0; set bulkhead.max_wait, or {cure}",
        )


def _is_narrower(breaker: CircuitBreakerPolicy, limit: BulkheadPolicy | RateLimitPolicy) -> bool:
    """Return whether all calls that a breaker counts share one state of a limit."""
    own, other = scope_by(breaker), scope_by(limit)
    if other is not None and (own is None or own.by != other.by):
        return False
    return owner_of(limit) == "profile" or owner_of(breaker) == "function"


def _insufficient_slots(breaker: CircuitBreakerPolicy, bulkhead: BulkheadPolicy) -> Iterator[Contradiction]:
    # Several functions, each with its own slots, may fill a window that they share.
    has_its_slots = _is_narrower(breaker, bulkhead)
    if breaker.slow_call is None or not isinstance(breaker.window, float) or not has_its_slots:
        return
    slow_calls = bulkhead.most_concurrent * (math.floor(breaker.window / breaker.slow_call) + 1)
    if slow_calls < (breaker.slow_rate or 1) * breaker.least_calls:
        yield Contradiction(
            (
                *("circuit_breaker.slow_call", "circuit_breaker.slow_rate"),
                *("circuit_breaker.window", "circuit_breaker.min_calls", "bulkhead.max_concurrent"),
            ),
            f"bulkhead runs at most {bulkhead.most_concurrent} at once, so at most {slow_calls} slow calls "
            f"({format_duration(breaker.slow_call)}) end within circuit_breaker.window "
            f"({format_duration(breaker.window)}), too few for slow_rate of min_calls ({breaker.least_calls}), so they "
            "never open the circuit; lower min_calls or widen the window",
        )


def _insufficient_window(breaker: CircuitBreakerPolicy, rate_limit: RateLimitPolicy) -> Iterator[Contradiction]:
    by_rate = breaker.failure_rate is not None or breaker.slow_call is not None
    known = [each for each in rate_limit.each if isinstance(each.cost, float) and each.cost_from_result is None]
    # Several functions, each with its own budget, may fill a window that they share.
    has_one_budget = _is_narrower(breaker, rate_limit)
    if not by_rate or not isinstance(breaker.window, float) or not known or not has_one_budget:
        return
    calls = min((max(each.burst, each.cost) + each.rate * breaker.window) / each.cost for each in known) + 1e-9
    if calls < breaker.least_calls:
        begin = "1 call" if calls < 2 else f"{math.floor(calls)} calls"
        yield Contradiction(
            (
                *("circuit_breaker.window", "circuit_breaker.min_calls"),
                *_fields_of(rate_limit),
            ),
            f"rate_limit allows at most {begin} within circuit_breaker.window ({format_duration(breaker.window)}), "
            f"fewer than min_calls ({breaker.least_calls}), so the rates are never judged; lower min_calls or widen "
            "the window",
        )


def _shortest(timeout: TimeoutPolicy) -> tuple[str, float]:
    """Return the field that ends an attempt first, and its value."""
    limits = {"timeout.total": timeout.total, "timeout.attempt": timeout.attempt}
    return min(
        ((field, limit) for field, limit in limits.items() if limit is not None),
        key=lambda entry: entry[1],
        default=("", LONG),
    )


def _unreachable_hedges(hedge: HedgePolicy, timeout: TimeoutPolicy) -> Iterator[Contradiction]:
    field, limit = _shortest(timeout)
    if isinstance(hedge.after, float) and hedge.after >= limit and timeout.enforce == "interrupt":
        yield Contradiction(
            ("hedge.after", field),
            f"an attempt is hedged after hedge.after ({format_duration(hedge.after)}), and {field} "
            f"({format_duration(limit)}) ends it before that; lower hedge.after or raise {field}",
        )


def _unreachable_slow_calls(breaker: CircuitBreakerPolicy, timeout: TimeoutPolicy) -> Iterator[Contradiction]:
    field, limit = _shortest(timeout)
    if breaker.slow_call is not None and breaker.slow_call > limit and timeout.enforce == "interrupt":
        yield Contradiction(
            ("circuit_breaker.slow_call", field),
            f"slow_call ({format_duration(breaker.slow_call)}) is longer than {field} ({format_duration(limit)}), "
            f"which ends a call before it counts as slow; lower slow_call or raise {field}",
        )
