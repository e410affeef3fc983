from __future__ import annotations

from typing import Any

import pytest

from opero import ConfigError, Policy, ThrottlePolicy
from opero.failures import Kind
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("ratio", 1.1, 1.1),
    ("ratio", "2", 2.0),
    ("window", "1m", 60.0),
    ("trip_on", "throttled", (Kind.THROTTLED,)),
    ("trip_on", [Kind.UNKNOWN, OSError], (Kind.UNKNOWN, OSError)),
    ("scope", "function", "function"),
]
BAD: Bad = [
    ("shadow", "perhaps", "'perhaps' is not a boolean"),
    ("ratio", 0.5, "greater than or equal to 1"),
    ("ratio", "twice", "'twice' is invalid: use a number >= 1"),
    ("window", 0, "0 is invalid: use a value > 0"),
    ("trip_on", "thrott", "'thrott' is neither a builtin exception"),
    ("scope", "process", "'process' is not one of 'profile', 'function'"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(ThrottlePolicy, field, written, held)


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(ThrottlePolicy, field, wrong, told)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(ThrottlePolicy, GOOD, BAD)


def test_a_ratio_with_which_nothing_could_recover_is_refused() -> None:
    with pytest.raises(ConfigError, match="use a ratio above 1, such as 1.1 or 2"):
        ThrottlePolicy(ratio=1)


def test_it_may_be_written_short() -> None:
    assert Policy(throttle=3) == Policy(throttle={"ratio": "3"}) == Policy.from_options(throttle=3.0)
    assert Policy(throttle=True).throttle == ThrottlePolicy()
