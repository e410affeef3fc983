"""Contradictions between policies: rejected in configuration, with numbers and advice; allowed in code."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import RetryCallState, wait_exponential

from opero import CallTimeoutError, Policy, RetryPolicy
from opero.executors.retry import backoff
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
        {"retry": {"retries": 3, "min_delay": 10}, "timeout": 10},
        ("retry.retries", "retry.min_delay", "timeout.total"),
        "so none of them is made; lower retry.retries to 0, or retry.min_delay, or raise timeout.total",
    ),
    (
        {"retry": {"retries": 10**400}, "timeout": 10},
        ("retry.retries", "timeout.total"),
        "so at most 9 of them are made",
    ),
    (
        {"retry": {"retries": 3, "min_delay": 8, "jitter": False}, "timeout": 10},
        ("retry.retries", "retry.min_delay", "timeout.total"),
        "so at most 1 of them is made; lower retry.retries to 1",
    ),
    (
        {"retry": {"retries": 9, "min_delay": 60, "max_delay": 60}, "parallel": {"deadline": "5m"}},
        ("retry.retries", "parallel.deadline"),
        "9 retries wait at least 9m, and parallel.deadline (5m) ends the map before that, so at most 4 of them are",
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
        {"timeout": {"attempt": 2, "total": 60}, "circuit_breaker": {"slow_call": 5}},
        ("circuit_breaker.slow_call", "timeout.attempt"),
        "slow_call (5s) is longer than timeout.attempt (2s), which ends a call before it counts as slow; lower",
    ),
    (
        {"timeout": 2, "circuit_breaker": {"slow_call": 5}},
        ("circuit_breaker.slow_call", "timeout.total"),
        "slow_call (5s) is longer than timeout.total (2s)",
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
        {"timeout": {"attempt": 5}, "circuit_breaker": {"slow_call": 5}},
        {"rate_limit": {"rate": 1, "max_wait": 60}, "timeout": 5},
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


EXTREMES = st.sampled_from([0.0, 1e-99, 1e-3, 0.1, 1.0, 30.0, 1e6, 1e300])


@settings(max_examples=100, deadline=None)
@given(EXTREMES, EXTREMES, st.sampled_from([1, 1 + 1e-12, 1.5, 2, 1e300]), st.booleans(), st.integers(0, 10**12))
def test_no_number_is_too_large_or_small_for_the_sum(
    one: float, other: float, factor: float, jitter: bool, retries: int
) -> None:
    retry = RetryPolicy(min_delay=min(one, other), max_delay=max(one, other), backoff_factor=factor, jitter=jitter)
    waits = least_waits(retry, retries)
    assert 0 <= least_waits(retry, max(0, retries - 1)) <= waits <= 1e15
    assert len(contradictions(Policy(retry=retry.replace(retries=retries), timeout=1e-3))) == (waits >= 1e-3)


class Lowest(random.Random):
    """Chance falls as low as it can."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.001, 10), st.floats(1, 5), st.sampled_from([1.0, 1.1, 1.5, 2.0, 7.0]), st.booleans(), st.integers(0, 30)
)
def test_the_least_waits_are_never_more_than_the_real_ones_and_not_much_less(
    first: float, room: float, factor: float, jitter: bool, retries: int
) -> None:
    """The real ones are tenacity's, and the executor's jitter where chance falls lowest."""
    retry = RetryPolicy(min_delay=first, max_delay=first * room**3, backoff_factor=factor, jitter=jitter)
    wait = wait_exponential(first, exp_base=factor, min=first, max=retry.max_delay)
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    real = 0.0
    for _ in range(retries):
        real += backoff(wait(state), retry, Lowest())
        state.prepare_for_next_attempt()
    least = least_waits(retry, retries)
    assert least <= real * (1 + 1e-9)
    assert least >= real * 0.74


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
