"""Times and rates that no clock can hold are refused when a policy is made, in every field that takes one."""

from __future__ import annotations

import asyncio
import math
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import AdaptiveTTL, Policy, RateLimitExceededError
from opero.config.schema import json_schema
from opero.errors import ConfigError
from opero.policies.policy import KINDS
from opero.policies.quantities import LONGEST
from opero.runtime.clock import Clock
from opero.runtime.interruption import Expired
from opero.runtime.time_limits import run_within
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from pydantic import BaseModel

MODELS: dict[str, type[BaseModel]] = {**{each.__name__: each for each in KINDS.values()}, "AdaptiveTTL": AdaptiveTTL}
TIMES = ("Duration", "PositiveDuration", "Rate", "Window")


def _fields_of_time() -> list[tuple[str, str]]:
    """Every field whose schema refers to a time or a rate, directly or as one of several forms."""
    definitions = json_schema()["$defs"]
    return [
        (name, field)
        for name in MODELS
        for field, schema in definitions[name]["properties"].items()
        if any(f'"#/$defs/{each}"' in str(schema).replace("'", '"') for each in TIMES)
    ]


FIELDS = _fields_of_time()
NUMBERS = st.one_of(
    st.floats(),
    st.floats(min_value=1e6),
    st.integers(min_value=10**6),
    st.sampled_from([LONGEST, LONGEST * 2, 1e18, 1e300, 10**400, math.inf, -math.inf, math.nan]),
)
WRITTEN = st.one_of(
    NUMBERS,
    st.timedeltas(),
    st.from_regex(r"[1-9][0-9]{0,19}(e[0-9]{1,2})?(us|ms|s|m|h|d)?", fullmatch=True),
    st.from_regex(r"[1-9][0-9]{0,19}(e-?[0-9]{1,2})?/([1-9][0-9]{0,9}(e[0-9]{1,2})?(s|d)|day)", fullmatch=True),
    st.sampled_from(["1e400", "inf", "Infinity", "nan", "9" * 400]),
)


def test_the_fields_are_found() -> None:
    assert {("TimeoutPolicy", "total"), ("RateLimitPolicy", "rate"), ("CachePolicy", "ttl")} <= set(FIELDS)
    assert {("CircuitBreakerPolicy", "window"), ("AdaptiveTTL", "cold")} <= set(FIELDS)
    assert len(FIELDS) >= 20


@pytest.mark.parametrize(("name", "field"), FIELDS)
@given(value=WRITTEN)
def test_a_time_is_at_most_100_years_or_is_refused(name: str, field: str, value: Any) -> None:
    model = MODELS[name]
    required = {"RateLimitPolicy": {"rate": 1e9}, "BulkheadPolicy": {"max_concurrent": 1}}.get(name, {})
    try:
        policy = model(**{**required, field: value})
    except ConfigError as error:
        assert field in str(error)
        return
    time = getattr(policy, field)
    if field == "rate":
        assert 1 / LONGEST <= time < math.inf
    elif isinstance(time, float):  # a window may be a number of calls
        assert 0 <= time <= LONGEST
    else:
        assert isinstance(time, int)
        assert field == "window"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (1e300, "1e[+]300 is longer than 100 years: use at most .36500d."),
        ("1e9d", "'1e9d' is longer than 100 years"),
        (timedelta.max, "is longer than 100 years"),
        (math.inf, "inf is not a duration"),
        (math.nan, "nan is not a duration"),
        ("1e400", "'1e400' is not a duration"),
    ],
)
def test_the_message_says_what_is_wrong(wrong: Any, told: str) -> None:
    for policy in ({"timeout": wrong}, {"retry": {"max_delay": wrong}}, {"circuit_breaker": {"open_for": wrong}}):
        with pytest.raises(ValueError, match=told):
            Policy(**policy)


def test_a_rate_has_a_permit_within_100_years() -> None:
    for wrong in ("1/1e9d", 1e-300, "1e-9/day"):
        with pytest.raises(ValueError, match="must be a permit within 100 years|'1e9d' is longer than 100 years"):
            Policy(rate_limit=wrong)
    for field in ("burst", "cost"):
        with pytest.raises(ValueError, match=f"{field} .* is more than the permits of 100 years at 1/s"):
            Policy(rate_limit={"rate": 1, field: 10**400 if field == "burst" else 1e300})


def test_a_wait_for_a_permit_is_never_longer_than_a_clock_can_measure(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": "1/36500d"}), lambda: 1)
    assert call() == 1
    if bind.kind == "sync":
        assert call() == 1
        assert bind.slept == [LONGEST]
    bound = bind(Policy(rate_limit={"rate": 1, "cost": "tokens"}), lambda tokens: tokens)
    assert bound(1e12) == 1e12
    with pytest.raises(ValueError, match="must be a number from 0 to 1e18"):
        bound(1e300)
    with pytest.raises(RateLimitExceededError):
        bound(1)


@pytest.mark.alone
def test_the_systems_clock_can_hold_the_longest_time() -> None:
    clock = Clock()
    event = threading.Event()
    event.set()
    assert clock.wait(event, LONGEST)
    assert run_within(LONGEST, divmod, 7, 2) == (3, 1)
    with pytest.raises(Expired):
        run_within(0.05, clock.sleep, LONGEST)

    async def main() -> None:
        for start in (clock.async_sleep, lambda seconds: asyncio.wait_for(asyncio.Event().wait(), seconds)):
            task: asyncio.Future[Any] = asyncio.ensure_future(start(LONGEST))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_a_policy_with_the_longest_times_works(bind: Any) -> None:
    times = {
        "timeout": {"total": LONGEST, "attempt": LONGEST},
        "circuit_breaker": {"open_for": LONGEST, "slow_call": LONGEST, "window": LONGEST},
        "retry": {"min_delay": 1, "max_delay": LONGEST},
        "bulkhead": {"max_concurrent": 1, "max_wait": LONGEST},
        "rate_limit": {"rate": 1, "max_wait": LONGEST},
        "cache": {"ttl": LONGEST, "stale_ttl": LONGEST, "lock_timeout": LONGEST},
    }
    assert bind(Policy(**times), lambda: 1)() == 1  # type: ignore[arg-type]
    assert VirtualClock().now < bind.clock.now + LONGEST
