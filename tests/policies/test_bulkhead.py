from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from opero import BulkheadPolicy, ConfigError, Policy
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("max_concurrent", 1, 1),
    ("max_concurrent", "20", 20),
    ("max_concurrent", 1e1, 10),
    ("min_limit", 1, 1),
    ("max_limit", "200", 200),
    ("initial_limit", None, None),
    ("max_wait", None, None),
    ("max_wait", "250ms", 0.25),
    ("scope", "function", "function"),
    ("share", "machine", "machine"),
    ("share", "redis", "redis"),
    ("share_as", " openai ", "openai"),
    ("url", "redis://h", SecretStr("redis://h")),
    ("store_timeout", "50ms", 0.05),
    ("on_store_error", "closed", "closed"),
]
BAD: Bad = [
    ("shadow", "perhaps", "'perhaps' is not a boolean"),
    ("max_concurrent", 0, '0 is invalid: use an integer >= 1, or "adaptive"'),
    ("max_concurrent", False, "False is invalid"),
    ("max_concurrent", None, "None is invalid"),
    ("max_concurrent", "auto", "'auto' is invalid: use an integer >= 1, or \"adaptive\""),
    ("min_limit", 0, "greater than or equal to 1"),
    ("max_limit", "many", "use an integer >= 1"),
    ("initial_limit", 0, "greater than or equal to 1"),
    ("max_wait", -1, "-1 is negative"),
    ("scope", "process", "'process' is not one of 'auto', 'profile', 'function' and {by: …}"),
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
    ("on_store_error", "lokal", "did you mean 'local'?"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(BulkheadPolicy, field, written, held, max_concurrent=3, share="redis")


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(BulkheadPolicy, field, wrong, told, max_concurrent=3)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(BulkheadPolicy, GOOD, BAD)


def test_its_size_is_required_and_calls_do_not_wait_by_default() -> None:
    with pytest.raises(ValueError, match="max_concurrent\n  Field required"):
        BulkheadPolicy.model_validate({})
    assert BulkheadPolicy(max_concurrent=3).max_wait == 0.0


def test_it_may_be_written_short() -> None:
    assert Policy(bulkhead=20) == Policy(bulkhead={"max_concurrent": "20"}) == Policy.from_options(bulkhead=20)
    assert BulkheadPolicy(max_concurrent="adaptive") == Policy(bulkhead=" ADAPTIVE ").bulkhead


@pytest.mark.parametrize(
    ("fields", "first", "most"),
    [
        ({"max_concurrent": 7}, 7, 7),
        ({"max_concurrent": "adaptive"}, 4, 200),
        ({"max_concurrent": "adaptive", "min_limit": 6}, 6, 200),
        ({"max_concurrent": "adaptive", "max_limit": 3}, 3, 3),
        ({"max_concurrent": "adaptive", "initial_limit": 20, "max_limit": 30}, 20, 30),
    ],
)
def test_an_adaptive_limit_begins_low_and_within_its_bounds(fields: Any, first: int, most: int) -> None:
    policy = BulkheadPolicy(**fields)
    assert (policy.first_limit, policy.most_concurrent) == (first, most)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_concurrent": 5, "max_limit": 9}, "max_limit would have no effect without max_concurrent: adaptive"),
        ({"max_concurrent": 5, "min_limit": 2, "initial_limit": 3}, "min_limit and initial_limit would have no effect"),
        (
            {"max_concurrent": "adaptive", "min_limit": 9, "max_limit": 8},
            r"min_limit \(9\) is greater than max_limit \(8\)",
        ),
        ({"max_concurrent": "adaptive", "initial_limit": 300}, r"initial_limit \(300\) is not between min_limit \(1\)"),
        ({"max_concurrent": "adaptive", "share": "machine"}, "no effect on a limit that processes share"),
        ({"max_concurrent": "adaptive", "shadow": True}, "adaptive finds nothing in shadow"),
    ],
)
def test_what_an_adaptive_limit_cannot_be_is_refused(fields: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BulkheadPolicy(**fields)
