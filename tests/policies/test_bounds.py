"""No call makes more attempts, or takes longer, than `bounds` says: for arbitrary policies and failures."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opero import CircuitOpenError, Policy
from opero.policies.bounds import bounds, longest_delay, longest_delays
from opero.policies.retry import RetryPolicy
from opero.testing import VirtualClock

SLACK = 1e-6


def response_error(status: int, wait: float | None) -> Exception:
    response = requests.Response()
    response.status_code = status
    if wait is not None:
        response.headers["Retry-After"] = str(math.ceil(wait))
    return requests.HTTPError(f"status {status}", response=response)


FAILURES = {
    "success": lambda wait: None,
    "transient": lambda wait: ConnectionError("down"),
    "unknown": lambda wait: LookupError("what"),
    "denied": lambda wait: response_error(401, None),
    "permanent": lambda wait: response_error(404, None),
    "throttled": lambda wait: response_error(429, None),
    "asks": lambda wait: response_error(429, wait),
    "is unavailable": lambda wait: response_error(503, wait),
}
SECONDS = st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0])
STEPS = st.lists(
    st.tuples(st.sampled_from([*FAILURES][1:] * 2 + ["success"]), SECONDS, SECONDS), min_size=1, max_size=12
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    fields: dict[str, Any] = {}
    if draw(st.booleans()) or not fields:
        longest = draw(SECONDS)
        fields["retry"] = {
            "retries": draw(st.integers(0, 4)),
            "max_delay": longest,
            "min_delay": min(longest, draw(SECONDS)),
            "backoff_factor": draw(st.sampled_from([1, 1.5, 2, 10])),
            "jitter": draw(st.sampled_from(["none", "equal", "full"])),
            "retry_after": draw(st.booleans()),
            "retry_on": draw(
                st.sampled_from(
                    [
                        ["transient"],
                        ["transient", "throttled", "unknown"],
                        ["transient", "throttled", "unknown", "denied", "permanent"],
                        [ConnectionError, requests.HTTPError],
                        ["transient", CircuitOpenError],
                    ]
                )
            ),
            "reraise": draw(st.booleans()),
        }
        if draw(st.booleans()):
            fields["retry"]["retry_on_status"] = [429, 401]
    if draw(st.booleans()):
        attempt, total = draw(SECONDS), draw(SECONDS)
        enforce = draw(st.sampled_from(["interrupt", "wait", "none"]))
        limits = {name: value for name, value in (("attempt", min(attempt, total)), ("total", total)) if value}
        if enforce == "none" or draw(st.booleans()):
            limits.pop("attempt", None)
        if limits:
            fields["timeout"] = {**limits, "enforce": enforce}
    if draw(st.booleans()):
        fields["rate_limit"] = {"rate": draw(st.sampled_from([0.1, 1, 10])), "max_wait": draw(SECONDS)}
    if draw(st.booleans()):
        fields["circuit_breaker"] = {"consecutive_failures": draw(st.integers(1, 3)), "open_for": 5}
    if draw(st.booleans()):
        remember, order = draw(st.sampled_from([0, 5, 300])), draw(st.sampled_from(["in_order", "round_robin"]))
        fields["fallback"] = {"arg": "key", "remember": remember, "order": order}
    if draw(st.booleans()):
        fields.setdefault("fallback", {})["default"] = None
    return Policy.model_validate(fields)


@settings(max_examples=150)
@given(policy=policies(), steps=STEPS, values=st.integers(1, 3), seed=st.integers(0, 100), kind=st.sampled_from("sa"))
@example(policy=Policy(retry={"max_delay": 20}), steps=[("asks", 0.1, 20)], values=1, seed=0, kind="s")
@example(policy=Policy(retry={"max_delay": 20}), steps=[("is unavailable", 1.0, 20)], values=1, seed=0, kind="a")
@example(
    policy=Policy(retry={"max_delay": 20}, fallback={"arg": "key"}),
    steps=[("asks", 0.1, 20), ("asks", 0.1, 1.0), ("transient", 0.1, 0)],
    values=3,
    seed=0,
    kind="a",
)
def test_no_call_makes_more_attempts_or_takes_longer_than_said(
    policy: Policy, steps: Any, values: int, seed: int, kind: str
) -> None:
    clock = VirtualClock(seed)
    made: list[float] = []

    def sync(key: str = "") -> None:
        name, duration, wait = steps[len(made) % len(steps)]
        made.append(duration)
        clock.sleep(duration)
        if name != "success":
            raise FAILURES[name](wait)

    async def asynchronous(key: str = "") -> None:
        name, duration, wait = steps[len(made) % len(steps)]
        made.append(duration)
        await clock.async_sleep(duration)
        if name != "success":
            raise FAILURES[name](wait)

    said = bounds(policy, values)
    bound: Any = policy.apply(sync if kind == "s" else asynchronous, clock=clock)
    longest = max(duration for _, duration, _ in steps)
    for _ in range(4):
        made_before, began = len(made), clock.now
        keys = [f"key {number}" for number in range(values)]
        with suppress(Exception):
            bound(keys) if kind == "s" else clock.run(bound(keys))
        assert len(made) - made_before <= said.attempts
        assert clock.now - began <= said.seconds(longest) + SLACK


@pytest.mark.parametrize("throttled", [False, True])
@pytest.mark.parametrize("jitter", ["none", "equal", "full"])
@pytest.mark.parametrize("retries", [0, 1, 7, 20])
def test_what_is_said_of_delays_is_reached(jitter: Any, retries: int, throttled: bool) -> None:
    kind: Any = "throttled" if throttled else "transient"
    policy = RetryPolicy(retries=retries, jitter=jitter, retry_after=False, retry_on=kind)
    clock = VirtualClock()
    clock.random.random = lambda: 1.0  # type: ignore[method-assign]

    def fail() -> None:
        raise FAILURES[kind](None)

    with suppress(Exception):
        policy.apply(fail, clock=clock)()
    numbers = range(1, retries + 1)
    assert clock.slept == pytest.approx([longest_delay(policy, each, throttled=throttled) for each in numbers])
    assert sum(clock.slept) == pytest.approx(longest_delays(policy, retries))


def test_bounds_add_up() -> None:
    policy = Policy(
        retry={"retries": 3, "max_delay": 10},
        rate_limit={"rate": 1, "max_wait": 2},
        bulkhead={"max_concurrent": 1, "max_wait": 3},
        timeout={"attempt": 5},
    )
    said = bounds(policy)
    assert (said.attempts, said.delays, said.queueing, said.attempt) == (4, 30, 20, 5)
    assert said.seconds() == 70
    assert bounds(policy.replace(timeout={"attempt": 5, "total": 60})).seconds() == 60
    lenient = bounds(policy.replace(timeout={"total": 60, "enforce": "wait"}))
    assert lenient.seconds() == math.inf
    assert lenient.seconds(1) == 54
    assert lenient.seconds(20) == 80
    assert bounds(Policy()).seconds(3) == 3
    assert bounds(Policy(rate_limit=1)).seconds(3) == math.inf


def test_what_is_in_shadow_or_switched_off_does_not_count() -> None:
    limit, timeout = {"rate": 1, "shadow": True}, {"total": 1, "enabled": False}
    shadow = Policy(retry={"shadow": True}, rate_limit=limit, timeout=timeout)
    assert bounds(shadow).seconds(3) == 3
    assert bounds(shadow).attempts == 1


def test_the_bounds_of_very_many_retries_are_found_at_once() -> None:
    assert bounds(Policy(retry={"retries": 10**9, "retry_after": False})).delays == pytest.approx(3e10)
