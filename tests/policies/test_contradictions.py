"""Contradictions between policies: rejected in configuration, with numbers and advice; allowed in code."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import AllFailedError, BulkheadFullError, CallTimeoutError, CircuitOpenError, Policy, RetryPolicy
from opero.executors.backoff import Backoff, Progress
from opero.policies.contradictions import contradictions, least_waits
from opero.testing import VirtualClock
from policies.strategies import whole_policies

FOUND: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    (
        {"retry": {"retries": 10, "jitter": False}, "timeout": 5},
        ("retry.retries", "timeout.total"),
        "10 retries wait at least 11.3s, and timeout.total (5s) ends the call before that, so at most 8 of them are",
    ),
    (
        {"retry": {"retries": 3, "min_delay": 10, "jitter": False}, "timeout": 10},
        ("retry.retries", "retry.min_delay", "timeout.total"),
        "so none of them is made; lower retry.retries to 0, or retry.min_delay, or raise timeout.total",
    ),
    (
        {"retry": {"retries": 10**400}, "timeout": 10},
        ("retry.retries", "timeout.total"),
        "on average, and timeout.total (10s) ends the call before that, so usually at most 10 of them are",
    ),
    (
        {"retry": {"retries": 3, "min_delay": 8, "jitter": False}, "timeout": 10},
        ("retry.retries", "retry.min_delay", "timeout.total"),
        "so at most 1 of them is made; lower retry.retries to 1",
    ),
    (
        {"retry": {"retries": 9, "min_delay": 60, "max_delay": 60, "jitter": "equal"}, "parallel": {"deadline": "4m"}},
        ("retry.retries", "parallel.deadline"),
        "9 retries wait at least 270s, and parallel.deadline (4m) ends the map before that, so at most 8 of them are",
    ),
    (
        {"rate_limit": "1/s", "circuit_breaker": {"failure_rate": 0.5, "window": "10s", "min_calls": 20}},
        ("circuit_breaker.window", "circuit_breaker.min_calls", "rate_limit.rate", "rate_limit.burst"),
        "rate_limit allows at most 11 calls within circuit_breaker.window (10s), fewer than min_calls (20)",
    ),
    (
        {"rate_limit": {"rate": 1, "cost": 3}, "circuit_breaker": {"slow_call": 1, "window": "2s"}},
        ("circuit_breaker.window", "rate_limit.cost"),
        "rate_limit allows at most 1 call within circuit_breaker.window (2s), fewer than min_calls (10)",
    ),
    (
        {"rate_limit": "1/min", "circuit_breaker": {}},
        ("circuit_breaker.window", "circuit_breaker.min_calls", "rate_limit.rate"),
        "rate_limit allows at most 2 calls within circuit_breaker.window (1m), fewer than min_calls (10)",
    ),
    (
        {"retry": {"retries": 5, "retry_on": ["transient"]}, "circuit_breaker": 1},
        ("circuit_breaker.consecutive_failures", "retry.retries"),
        "the first failed attempt of a call opens the circuit (consecutive_failures is 1), which rejects all its 5 ret",
    ),
    (
        {"bulkhead": 2, "circuit_breaker": {"slow_call": "20s", "min_calls": 9}},
        ("circuit_breaker.slow_call", "circuit_breaker.min_calls", "bulkhead.max_concurrent"),
        "bulkhead runs at most 2 at once, so at most 8 slow calls (20s) end within circuit_breaker.window (1m), too f",
    ),
    (
        {"timeout": {"attempt": 2, "total": 60}, "circuit_breaker": {"slow_call": 5}},
        ("circuit_breaker.slow_call", "timeout.attempt"),
        "slow_call (5s) is longer than timeout.attempt (2s), which ends a call before it counts as slow; lower",
    ),
    (
        {"timeout": 2, "circuit_breaker": {"slow_call": 5}},
        ("circuit_breaker.slow_call", "timeout.total"),
        "slow_call (5s) is longer than timeout.total (2s)",
    ),
    (
        {"rate_limit": {"rate": 1, "max_wait": "1m"}, "timeout": 5},
        ("rate_limit.max_wait", "timeout.total"),
        "rate_limit.max_wait (1m) is longer than timeout.total (5s), which ends a call before that; lower",
    ),
    (
        {"bulkhead": {"max_concurrent": 9, "max_wait": "1m"}, "timeout": 5},
        ("bulkhead.max_wait", "timeout.total"),
        "bulkhead.max_wait (1m) is longer than timeout.total (5s)",
    ),
    (
        {"rate_limit": "6/min", "timeout": 25, "retry": 5},
        ("retry.retries", "timeout.total", "rate_limit.rate", "rate_limit.burst"),
        (
            "5 retries take a permit each, and rate_limit (0.1/s) does not give a call as many before timeout.total "
            "(25s) ends it, so at most 2 of them are made; lower retry.retries to 2"
        ),
    ),
    (
        {"rate_limit": {"rate": "1/s", "burst": 2, "cost": 10}, "timeout": 9, "retry": 1},
        ("retry.retries", "rate_limit.cost"),
        "so none is made; lower retry.retries to 0, or raise rate_limit or timeout.total",
    ),
    (
        {"retry": {"idempotent": False}, "fallback": {"arg": "key", "values": ["a"]}},
        ("retry.idempotent", "fallback.arg"),
        "fallback.arg (key) makes further attempts with other values, and with retry.idempotent: false a call is made",
    ),
    (
        {"bulkhead": "adaptive", "parallel": {"workers": "auto"}},
        ("parallel.workers", "bulkhead.max_concurrent", "bulkhead.max_wait"),
        "a map runs several items at once (parallel.workers), and bulkhead admits as many as it has found and rej",
    ),
    (
        {"bulkhead": 5, "parallel": {"workers": 20}},
        ("parallel.workers", "bulkhead.max_concurrent", "bulkhead.max_wait"),
        "a map runs up to 20 items at once (parallel.workers), and bulkhead admits 5 and rejects the others im",
    ),
    (
        {"circuit_breaker": {"trip_on": ["transient", ConnectionError], "ignore": [OSError, "transient"]}},
        ("circuit_breaker.trip_on", "circuit_breaker.ignore"),
        "no failure counts for the circuit, as ignore has all of trip_on, so it never opens; name",
    ),
    (
        {"circuit_breaker": {"consecutive_failures": 3, "trip_on": []}},
        ("circuit_breaker.trip_on",),
        "no failure counts for the circuit, as trip_on is empty, so it never opens",
    ),
    (
        {
            "retry": {"retries": 5, "retry_on": ["transient"]},
            "circuit_breaker": {"window": 2, "min_calls": 1, "failure_rate": 0.5},
        },
        ("circuit_breaker.min_calls", "retry.retries"),
        "opens the circuit (min_calls is 1, and failure_rate 50%), which rejects all its 5 retries",
    ),
]


@pytest.mark.parametrize(("fields", "places", "told"), FOUND, ids=range(len(FOUND)))
def test_it_is_reported_with_the_numbers_and_advice(fields: dict[str, Any], places: tuple[str, ...], told: str) -> None:
    (found,) = contradictions(Policy(**fields))
    assert told in found.text
    assert set(places) <= set(found.fields)
    kinds = {kind for kind, _, _ in (field.partition(".") for field in found.fields)}
    for kind in kinds:  # each part alone is good, and so is one that is switched off
        assert contradictions(Policy(**{**fields, kind: None})) == []
        off = Policy(**fields).replace(**{kind: False})
        assert contradictions(off) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"retry": {"retries": 10, "min_delay": 0}, "timeout": "1ms"},
        {"retry": 0, "timeout": "1ms"},
        {"retry": {"retries": 8}, "timeout": 5},
        {"retry": 9, "timeout": {"attempt": "1ms"}},
        {"retry": 5, "parallel": {"deadline": 10}},
        {"rate_limit": "1/s", "circuit_breaker": {"failure_rate": 0.5, "window": 10, "min_calls": 10}},
        {"rate_limit": "1/s", "circuit_breaker": {"failure_rate": 0.5, "window": "10s", "min_calls": 11}},
        {
            "rate_limit": {"rate": 1, "burst": 10},
            "circuit_breaker": {"failure_rate": 0.5, "window": "10s", "min_calls": 20},
        },
        {"rate_limit": {"rate": 1, "cost": "tokens"}, "circuit_breaker": {"failure_rate": 0.5, "window": "1s"}},
        {"rate_limit": {"rate": 1, "scope": "function"}, "circuit_breaker": {"failure_rate": 0.5, "window": "1s"}},
        {"rate_limit": "1/s", "circuit_breaker": 5},
        {"rate_limit": "1/s", "circuit_breaker": {}},
        {"retry": 0, "circuit_breaker": 1},
        {"retry": 5, "circuit_breaker": 2},
        {"retry": 5, "circuit_breaker": 1},  # what is throttled is retried, and does not open the circuit
        {"retry": {"retries": 5, "retry_on": ["transient", CircuitOpenError]}, "circuit_breaker": 1},
        {"retry": {"retries": 5, "retry_on": ["transient"], "retry_on_status": [429]}, "circuit_breaker": 1},
        {
            "retry": {"retries": 5, "retry_on": ["transient"]},
            "circuit_breaker": {"consecutive_failures": 1, "ignore": KeyError},
        },
        {"bulkhead": 2, "circuit_breaker": {"slow_call": "20s", "min_calls": 8}},
        {"bulkhead": 2, "circuit_breaker": {"slow_call": "20s", "min_calls": 16, "slow_rate": 0.5}},
        {"bulkhead": 2, "circuit_breaker": {"slow_call": "20s", "window": 9, "min_calls": 9}},
        {"bulkhead": {"max_concurrent": 2, "scope": "function"}, "circuit_breaker": {"slow_call": "20s"}},
        {"bulkhead": 2, "circuit_breaker": {"half_open_calls": 10}},
        {"timeout": {"attempt": 5}, "circuit_breaker": {"slow_call": 5}},
        {"rate_limit": {"rate": 1, "max_wait": 5}, "timeout": 5},
        {"rate_limit": {"rate": 1, "max_wait": 60}, "timeout": {"attempt": 5}},
        {"bulkhead": {"max_concurrent": 1, "max_wait": None}, "timeout": 5},
        {"rate_limit": "6/min", "timeout": 50, "retry": 5},
        {"rate_limit": {"rate": "6/min", "burst": 6}, "timeout": 1, "retry": 5},
        {"rate_limit": {"rate": "6/min", "cost": "tokens"}, "timeout": 25, "retry": 5},
        {"bulkhead": 5, "parallel": {"workers": 5}},
        {"bulkhead": 5, "parallel": {"workers": "auto"}},
        {"bulkhead": "adaptive", "parallel": {"workers": 1}},
        {"bulkhead": {"max_concurrent": "adaptive", "max_wait": 1}, "parallel": {"workers": 20}},
        {"bulkhead": {"max_concurrent": 5, "max_wait": 1}, "parallel": {"workers": 20}},
        {"bulkhead": 5, "parallel": {"workers": 20}, "fallback": {"default": None}},
        {"bulkhead": 5, "parallel": {"workers": 20}, "retry": {"retry_on": [BulkheadFullError]}},
        {"circuit_breaker": {"trip_on": ["transient", OSError], "ignore": [ConnectionError, "transient"]}},
        {"circuit_breaker": {"trip_on": [], "slow_call": "5s"}},
        {"circuit_breaker": {"trip_on": []}, "retry": {"retry_if_result": "policies.named:is_none"}},
        {
            "retry": {"retries": 5, "retry_on": ["transient"]},
            "circuit_breaker": {"window": 3, "min_calls": 1, "failure_rate": 0.5},
        },
        {
            "retry": {"retries": 5, "retry_on": ["transient"]},
            "circuit_breaker": {"window": "2s", "min_calls": 1, "failure_rate": 0.5},
        },
        {"timeout": {"attempt": 2, "enforce": "wait"}, "circuit_breaker": {"slow_call": 5}},
        {"timeout": {"idle": 2}, "circuit_breaker": {"slow_call": 5}},
    ],
)
def test_values_that_only_seem_contradictory_are_accepted(fields: dict[str, Any]) -> None:
    assert contradictions(Policy(**fields)) == []


@settings(max_examples=60, deadline=None)
@given(whole_policies)
def test_any_policy_can_be_asked(policy: Policy) -> None:
    for found in contradictions(policy):
        assert len(found.fields) > 1
        assert found.text


EXTREMES = st.sampled_from([0.0, 1e-99, 1e-3, 0.1, 1.0, 30.0, 1e6, 1e9])


@settings(max_examples=100, deadline=None)
@given(
    EXTREMES,
    EXTREMES,
    st.sampled_from([1, 1 + 1e-12, 1.5, 2, 1e300]),
    st.sampled_from(["full", "equal", "none"]),
    st.integers(0, 10**12),
)
def test_no_number_is_too_large_or_small_for_the_sum(
    one: float, other: float, factor: float, jitter: Any, retries: int
) -> None:
    retry = RetryPolicy(min_delay=min(one, other), max_delay=max(one, other), backoff_factor=factor, jitter=jitter)
    waits = least_waits(retry, retries)
    assert 0 <= least_waits(retry, max(0, retries - 1)) <= waits <= 1e15
    assert len(contradictions(Policy(retry=retry.replace(retries=retries), timeout=1e-3))) == (waits >= 1e-3)


class Lowest(random.Random):
    """Chance falls as low as it can."""

    def random(self) -> float:
        return 0.0


class Average(random.Random):
    def random(self) -> float:
        return 0.5


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.001, 10),
    st.floats(1, 5),
    st.sampled_from([1.0, 1.1, 1.5, 2.0, 7.0]),
    st.sampled_from(["full", "equal", "none"]),
    st.integers(0, 30),
)
def test_the_least_waits_are_the_real_ones(first: float, room: float, factor: float, jitter: Any, retries: int) -> None:
    """The real ones are the executor's, where chance falls lowest; with full jitter, which may be 0, on average."""
    retry = RetryPolicy(min_delay=first, max_delay=first * room**3, backoff_factor=factor, jitter=jitter)
    clock = VirtualClock()
    clock.random = Average() if jitter == "full" else Lowest()
    backoff, progress = Backoff(retry, clock), Progress()
    real = 0.0
    for progress.attempt_number in range(1, retries + 1):
        real += backoff.after(OSError(), progress)[0]
    assert least_waits(retry, retries) == pytest.approx(real)


def test_code_may_ask_for_as_many_retries_as_fit() -> None:
    clock = VirtualClock()
    tried: list[float] = []

    def fail() -> None:
        tried.append(clock.monotonic())
        raise ConnectionError

    policy = Policy(retry={"retries": 100, "jitter": False}, timeout=5)
    (found,) = contradictions(policy)
    with pytest.raises(CallTimeoutError):
        policy.apply(fail, clock=clock)()
    assert f"at most {len(tried) - 1} of them" in found.text


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 20),
    st.floats(0.05, 5),
    st.integers(1, 6),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.floats(0.1, 30),
)
def test_what_too_few_permits_forbid_does_not_happen(
    retries: int, rate: float, burst: int, cost: float, total: float
) -> None:
    """A call alone, whose attempts and delays take no time, makes as many retries as told at most, and all if none."""
    clock = VirtualClock()
    fields = {"rate_limit": {"rate": rate, "burst": burst, "cost": cost}, "timeout": total}
    policy = Policy(**fields, retry={"retries": retries, "min_delay": 0, "max_delay": 0})
    made = 0

    def fail() -> None:
        nonlocal made
        made += 1
        raise ConnectionError

    with pytest.raises((AllFailedError, CallTimeoutError)):
        policy.apply(fail, clock=clock)()
    found = contradictions(policy)
    if made - 1 == retries:
        assert found == []
    else:
        possible = (max(burst, cost) + rate * total) / cost
        assert len(found) == 1 or possible == pytest.approx(round(possible))
    assert contradictions(policy.replace(retries=max(0, made - 1))) == []
