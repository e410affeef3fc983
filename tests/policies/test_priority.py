from __future__ import annotations

from typing import Any

import pytest

from opero import Policy, PriorityPolicy
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [("level", each, each) for each in ("critical", "normal", "background")]
BAD: Bad = [
    ("level", "low", "'low' is not one of 'critical', 'normal', 'background'"),
    ("level", 1, "1 is not one of"),
    ("level", None, "is not one of"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(PriorityPolicy, field, written, held, level="normal")


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(PriorityPolicy, field, wrong, told, level="normal")


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(PriorityPolicy, GOOD, BAD)


def test_it_may_be_written_short_and_has_no_shadow() -> None:
    assert Policy(priority="background") == Policy(priority={"level": "background"})
    with pytest.raises(ValueError, match="it is in the queue that calls have another order"):
        PriorityPolicy.model_validate({"level": "background", "shadow": True})
