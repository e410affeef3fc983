from __future__ import annotations

from typing import Any

import pytest

from opero import FailurePolicy
from opero.failures import Kind
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("transient", 404, (404,)),
    ("transient", "404", (404,)),
    ("throttled", ["4xx", "4XX", 429], ("4xx", 429)),
    ("denied", "PermissionError", (PermissionError,)),
    ("denied", ["not_installed.Error?", KeyError], (KeyError,)),
    ("permanent", ["policies.named:QuotaError", 410], (named.QuotaError, 410)),
    ("control", StopIteration, (StopIteration,)),
    ("unknown", None, ()),
    ("unknown", [], ()),
    ("classify", named.is_none, named.is_none),
    ("classify", "policies.named:is_none", named.is_none),
    ("responses", "no", False),
]
BAD: Bad = [
    ("transient", 600, "600 is not an HTTP status: use 100 to 599"),
    ("throttled", ["ConnectionEror"], "did you mean 'ConnectionError'"),
    ("denied", "permanent", "is not an exception class or an HTTP status"),
    ("permanent", named.is_none, "a function is not an exception class or an HTTP status"),
    ("control", 404, "control takes exception classes, and 404 is a status; use another kind"),
    ("unknown", "9xx", "'9xx' is neither a builtin exception"),
    ("classify", 3, "3 is not callable"),
    ("responses", "x", "is not a boolean"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(FailurePolicy, field, written, held)


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(FailurePolicy, field, wrong, told)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(FailurePolicy, GOOD, BAD)


def test_nothing_is_of_two_kinds() -> None:
    with pytest.raises(ValueError, match="410 is both transient and permanent; remove it from one"):
        FailurePolicy(permanent=[410], transient=[404, "410"])
    with pytest.raises(ValueError, match="KeyError is both denied and unknown"):
        FailurePolicy(denied="KeyError", unknown=KeyError)


def test_it_lists_what_is_stated_by_kind() -> None:
    policy = FailurePolicy(permanent=[410, KeyError], transient="5xx")
    assert policy.stated() == {410: Kind.PERMANENT, KeyError: Kind.PERMANENT, "5xx": Kind.TRANSIENT}
