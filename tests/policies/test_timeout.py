from __future__ import annotations

import datetime
from typing import Any

import pytest

from opero import Policy, TimeoutPolicy
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("shadow", "yes", True),
    ("total", "10s", 10.0),
    ("total", datetime.timedelta(minutes=1), 60.0),
    ("attempt", 0.5, 0.5),
    ("attempt", "1500ms", 1.5),
    ("idle", "2h", 7200.0),
    ("enforce", "wait", "wait"),
    ("enforce", "interrupt", "interrupt"),
]
BAD: Bad = [
    ("shadow", "perhaps", "'perhaps' is not a boolean"),
    ("total", 0, "0 is invalid: use a value > 0"),
    ("total", "-5s", "is not a duration"),
    ("total", "1s", "attempt .2s. is longer than total .1s."),
    ("attempt", -1, "-1 is invalid: use a value > 0"),
    ("attempt", "5h", "attempt .5h. is longer than total .1h., so it has no effect"),
    ("idle", 0, "0 is invalid: use a value > 0"),
    ("idle", "soon", "is not a duration"),
    ("enforce", "waits", "'waits' is not one of 'interrupt', 'wait', 'none'; did you mean 'wait'"),
    ("enforce", True, "is not one of"),
    ("enforce", "none", "attempt has no effect with enforce: none, .* remove attempt, or use enforce: wait"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(TimeoutPolicy, field, written, held, total="1h", attempt="0.5s")


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(TimeoutPolicy, field, wrong, told, total="1h", attempt="2s")


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(TimeoutPolicy, GOOD, BAD)


def test_one_of_the_times_is_required() -> None:
    for nothing in ({}, {"enforce": "wait"}):
        with pytest.raises(ValueError, match="no timeout is set; set total, attempt or idle"):
            TimeoutPolicy(**nothing)  # type: ignore[arg-type]
    assert TimeoutPolicy(attempt=1).total is None
    assert TimeoutPolicy(idle=1).attempt is None


def test_without_enforcement_only_the_total_timeout_has_a_meaning() -> None:
    assert TimeoutPolicy(total=1, enforce="none").enforce == "none"
    for field in ("attempt", "idle"):
        with pytest.raises(ValueError, match=f"{field} has no effect with enforce: none"):
            TimeoutPolicy(total=10, enforce="none", **{field: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("same", [5, "5s", "5000ms", {"total": 5}, datetime.timedelta(seconds=5)])
def test_it_is_equal_however_it_is_written(same: Any) -> None:
    assert Policy(timeout=same) == Policy.from_options(timeout=TimeoutPolicy(total=5))
