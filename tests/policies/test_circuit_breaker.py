from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from opero import CircuitBreakerPolicy, Policy
from opero.errors import ConfigError
from opero.failures import Kind
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("consecutive_failures", 1, 1),
    ("consecutive_failures", None, None),
    ("failure_rate", 1, 1.0),
    ("failure_rate", "50%", 0.5),
    ("failure_rate", "2.5 %", 0.025),
    ("window", 20, 20),
    ("window", "20", 20),
    ("window", "30s", 30.0),
    ("window", 30.0, 30.0),
    ("min_calls", 5, 5),
    ("slow_call", "2s", 2.0),
    ("slow_rate", 0.5, 0.5),
    ("open_for", "5m", 300.0),
    ("open_for_max", "1h", 3600.0),
    ("half_open_calls", 3, 3),
    ("half_open_rate", "25%", 0.25),
    ("trip_on", ["transient", "KeyError"], (Kind.TRANSIENT, KeyError)),
    ("ignore", KeyError, (KeyError,)),
    ("ignore", ["KeyError", "json.JSONDecodeError?"], (KeyError, __import__("json").JSONDecodeError)),
    ("scope", "function", "function"),
    ("share", "machine", "machine"),
    ("share", "redis", "redis"),
    ("share_as", " openai ", "openai"),
    ("url", "redis://h", SecretStr("redis://h")),
    ("store_timeout", "50ms", 0.05),
]
BAD: Bad = [
    ("shadow", "perhaps", "'perhaps' is not a boolean"),
    ("consecutive_failures", 0, "greater than or equal to 1"),
    ("consecutive_failures", True, "True is not a number"),
    ("failure_rate", 0, "greater than 0"),
    ("failure_rate", 50, "less than or equal to 1"),
    ("failure_rate", "0%", "'0%' is invalid: use a number > 0 and <= 1, such as 0.5, or a percentage"),
    ("failure_rate", "101%", "'101%' is invalid"),
    ("window", 0, "a window of 0 calls is invalid: use an integer >= 1"),
    ("window", True, "True is not a duration"),
    ("window", "0s", "a window of 0 s is invalid: use a value > 0"),
    ("window", "ten calls", "'ten calls' is not a duration"),
    ("min_calls", 0, "greater than or equal to 1"),
    ("slow_call", 0, "0 is invalid: use a value > 0"),
    ("slow_rate", 1.1, "less than or equal to 1"),
    ("open_for", 0, "0 is invalid: use a value > 0"),
    ("open_for_max", "59s", "open_for_max .59s. is less than open_for .1m."),
    ("half_open_calls", 0, "greater than or equal to 1"),
    (
        "half_open_rate",
        0.24,
        "half_open_rate .0.24. has no effect: of 4 half_open_calls every probe would have to succeed",
    ),
    ("half_open_rate", 1, "half_open_rate .1. has no effect: of 4 half_open_calls every probe might fail"),
    ("trip_on", "control", "'control' is not a failure"),
    ("ignore", "KeyEror", "did you mean 'KeyError'"),
    ("scope", "global", "'global' is not one of 'auto', 'profile', 'function' and {by: …}"),
    ("scope", {"of": "profile"}, "by is missing: use {by: …}"),
    ("scope", {"by": "no parameter"}, "'no parameter' is invalid: use the name of a parameter"),
    ("scope", {"by": "policies.named:cots"}, "did you mean 'cost'"),
    ("scope", {"by": "tenant", "max_keys": 0}, "greater than or equal to 1"),
    ("scope", {"by": "tenant", "of": "profil"}, "'profil' is not one of 'profile', 'function'; did you mean 'profile'"),
    ("scope", {"for": "tenant"}, "unknown field 'for'"),
    ("share", "x", "'x' is not one of 'process', 'machine', 'redis'"),
    ("share_as", 5, "5 is not the name of a shared state"),
    ("url", 5, "a secret must be text, not int"),
    ("store_timeout", 0, "use a value > 0"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    others: Any = {"failure_rate": 0.5, "slow_call": 1, "half_open_calls": 4, "share": "redis"}
    accepts(CircuitBreakerPolicy, field, written, held, **others)


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(CircuitBreakerPolicy, field, wrong, told, failure_rate=0.5, slow_call=1, half_open_calls=4)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(CircuitBreakerPolicy, GOOD, BAD)


def test_a_count_of_failures_replaces_the_default_rate() -> None:
    default = CircuitBreakerPolicy()
    assert (default.failure_rate, default.least_calls, default.window) == (0.5, 10, 60.0)
    assert default.consecutive_failures is None
    assert CircuitBreakerPolicy(consecutive_failures=5).failure_rate is None
    assert CircuitBreakerPolicy(slow_call="1s").failure_rate == 0.5
    assert CircuitBreakerPolicy(failure_rate=0.1, consecutive_failures=5).failure_rate == 0.1
    assert CircuitBreakerPolicy(failure_rate=None, slow_call="1s").failure_rate is None


@pytest.mark.parametrize(("calls", "rate", "tolerated"), [(1, None, 0), (10, 0.5, 5), (100, 0.29, 29), (3, 0.5, 1)])
def test_a_share_of_the_probes_may_fail(calls: int, rate: float | None, tolerated: int) -> None:
    assert CircuitBreakerPolicy(half_open_calls=calls, half_open_rate=rate).tolerated_probes == tolerated


def test_an_open_circuit_stays_open_for_ten_times_as_long_at_most_or_as_it_says() -> None:
    assert CircuitBreakerPolicy(open_for=5).longest_open == 50
    assert CircuitBreakerPolicy(open_for=5, open_for_max="30s").longest_open == 30


def test_the_least_calls_of_a_rate_follow_from_the_window() -> None:
    assert CircuitBreakerPolicy(failure_rate=0.5).least_calls == 10
    assert CircuitBreakerPolicy(failure_rate=0.5, window=4).least_calls == 4
    assert CircuitBreakerPolicy(failure_rate=0.5, window="30s").least_calls == 10
    assert CircuitBreakerPolicy(failure_rate=0.5, window=50, min_calls=20).least_calls == 20


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"slow_rate": 0.5}, "slow_rate has no effect without slow_call"),
        ({"failure_rate": None}, "the circuit never opens"),
        ({"consecutive_failures": 5, "window": 50}, "window would have no effect without failure_rate or slow_call"),
        ({"consecutive_failures": 5, "min_calls": 5, "window": "30s"}, "min_calls and window would have no effect"),
        ({"failure_rate": 0.5, "window": 5, "min_calls": 6}, "min_calls .6. is greater than the window of 5"),
    ],
)
def test_conditions_that_cannot_work_together_are_rejected(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CircuitBreakerPolicy(**fields)


@pytest.mark.parametrize("same", [True, {}, {"failure_rate": "50%"}, {"open_for": "1m"}, {"window": "60s"}])
def test_it_is_equal_however_it_is_written(same: Any) -> None:
    assert Policy(circuit_breaker=same) == Policy.from_options(circuit_breaker=CircuitBreakerPolicy())


@pytest.mark.parametrize(
    "same", [5, "5", {"consecutive_failures": 5}, {"consecutive_failures": 5, "failure_rate": None}]
)
def test_the_short_form_is_a_number_of_failures(same: Any) -> None:
    assert Policy(circuit_breaker=same) == Policy(circuit_breaker=CircuitBreakerPolicy(consecutive_failures=5))


def test_replacing_the_condition_keeps_the_rest() -> None:
    policy = CircuitBreakerPolicy(failure_rate=0.5, window="30s", open_for=5)
    assert policy.replace(failure_rate=0.1) == CircuitBreakerPolicy(failure_rate=0.1, window="30s", open_for=5)


def test_a_window_of_calls_is_not_equal_to_one_of_as_many_seconds() -> None:
    calls, seconds = (CircuitBreakerPolicy(failure_rate=0.5, window=window) for window in (100, "100s"))
    assert calls != seconds
    assert seconds != calls
    assert seconds == CircuitBreakerPolicy(window="100s")
    assert hash(seconds) == hash(CircuitBreakerPolicy(failure_rate=0.5, window="100s"))
    assert calls != 5
    with pytest.raises(ConfigError, match="window would have no effect"):
        CircuitBreakerPolicy(consecutive_failures=5, window=60)
