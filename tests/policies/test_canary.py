from __future__ import annotations

from typing import Any

import pytest

from opero import CanaryPolicy, ConfigError, Policy
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("share", 0, 0.0),
    ("share", "0%", 0.0),
    ("share", "0.0", 0.0),
    ("share", "5%", 0.05),
    ("share", 1, 1.0),
    ("share", "100%", 1.0),
    ("policy", "next", "next"),
    ("by", "user", "user"),
    ("by", None, None),
]
BAD: Bad = [
    ("share", "101%", "is invalid: use a number"),
    ("share", 1.5, "less than or equal to 1"),
    ("share", -0.1, "greater than or equal to 0"),
    ("share", False, "False is invalid"),
    ("share", None, "None is invalid: use a number from 0 to 1"),
    ("policy", "", "at least 1 character"),
    ("policy", None, "valid string"),
    ("by", 3, "valid string"),
]
NEEDED: Any = {"share": 0.5, "policy": "other"}


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(CanaryPolicy, field, written, held, **NEEDED)


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(CanaryPolicy, field, wrong, told, **NEEDED)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(CanaryPolicy, GOOD, BAD)


def test_share_and_policy_are_required() -> None:
    for field in NEEDED:
        with pytest.raises(ConfigError, match=rf"^canary\.{field}: Field required$"):
            Policy(canary={name: each for name, each in NEEDED.items() if name != field})
