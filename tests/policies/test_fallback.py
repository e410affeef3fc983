from __future__ import annotations

import array
import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from opero import FallbackPolicy, KeyedScope, Policy
from opero.failures import Kind
from opero.policies.types import UNSET
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("arg", "api_key", "api_key"),
    ("values", ["a", SecretStr("b")], (SecretStr("a"), SecretStr("b"))),
    ("remember", True, 300.0),
    ("remember", "false", 0.0),
    ("remember", False, 0.0),
    ("remember", "10m", 600.0),
    ("remember", 0, 0.0),
    ("order", "round_robin", "round_robin"),
    ("order", "least_loaded", "least_loaded"),
    ("weights", [3, "1.5"], (3.0, 1.5)),
    ("default", None, None),
    ("default", {"a": [1]}, {"a": [1]}),
    ("default", "text", "text"),
    ("scope", {"by": "tenant"}, KeyedScope(by="tenant")),
    ("function", named.cost, named.cost),
    ("function", "policies.named:cost", named.cost),
]
BAD: Bad = [
    ("arg", 3, "valid string"),
    ("values", "a", "values must be a list"),
    ("values", ["a", 3], "value 2 must be text, not int"),
    ("values", ["a", "a"], "value 2 is the same as an earlier one"),
    ("values", ["secret:not/a/name"], "must be followed by a name"),
    ("remember", -1, "-1 is invalid: use a duration >= 0, or false"),
    ("remember", "long", "'long' is not a duration"),
    ("order", "round-robin", "did you mean 'round_robin'"),
    ("weights", 3, "3 is not a list of weights"),
    ("weights", [3, 0], "0 is not a weight: use a number > 0"),
    ("weights", ["x"], "'x' is not a weight"),
    ("scope", "all", "'all' is not one of 'auto', 'profile', 'function' and {by: …}"),
    ("default", UNSET, "no fallback is set; set arg, default or function"),
    ("function", 3, "3 is not callable"),
    ("function", "policies.named:cots", "did you mean 'cost'"),
]
NEEDED: dict[str, dict[str, Any]] = {
    "values": {"arg": "key"},
    "remember": {"arg": "key"},
    "order": {"arg": "key"},
    "scope": {"arg": "key"},
    "weights": {"arg": "key", "order": "weighted", "weights": [1]},
}
"""What a field needs beside it."""


class Array:
    """As numpy's: it cannot be hashed, and comparing gives no truth value."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *values: int) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"Array{self.values}"

    def __eq__(self, other: object) -> Any:
        others = other.values if isinstance(other, Array) else [other] * len(self.values)
        return Array(*(mine == theirs for mine, theirs in zip(self.values, others, strict=True)))

    def __bool__(self) -> bool:
        raise ValueError("The truth value of an array with more than one element is ambiguous")


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(FallbackPolicy, field, written, held, **NEEDED.get(field, {}))


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(FallbackPolicy, field, wrong, told)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(FallbackPolicy, [*GOOD, ("on",)], [*BAD, ("on",)])


def test_the_failures_that_it_covers_are_named_or_given() -> None:
    written, held = ["denied", "KeyError", "policies.named:cost"], (Kind.DENIED, KeyError, named.cost)
    accepts(FallbackPolicy, "on", written, held, arg="key")
    refuses(FallbackPolicy, "on", "transiant", "did you mean 'transient'", arg="key")


def test_none_is_an_answer_and_unset_is_none() -> None:
    assert FallbackPolicy(default=None).has_result
    assert FallbackPolicy(function=named.cost).has_result
    assert not FallbackPolicy(arg="key").has_result
    assert FallbackPolicy(default=None) != FallbackPolicy(default=None, arg="key")
    assert "default" not in FallbackPolicy(arg="key").model_dump()
    assert FallbackPolicy(default=None).model_dump()["default"] is None


def test_only_one_result_can_be_given() -> None:
    with pytest.raises(ValueError, match="default and function are mutually exclusive"):
        FallbackPolicy(default=1, function=named.cost)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"default": 1, "remember": "10m"}, "remember is about an argument; set arg as well"),
        ({"default": 1, "order": "round_robin"}, "order is about an argument"),
        ({"function": named.cost, "weights": [1]}, "weights is about an argument"),
        ({"arg": "key", "weights": [1, 2]}, "weights have no effect with order in_order; use order weighted"),
        ({"default": 1, "values": ["a"]}, "values is about an argument; set arg as well"),
        (
            {"arg": "key", "values": ["a", "b"], "order": "weighted", "weights": [1]},
            "there are 2 values and 1 weights; use one weight for each value",
        ),
        ({"arg": "key", "order": "weighted"}, "order weighted needs weights; add one for each value"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FallbackPolicy(**fields)


def test_it_has_no_short_form() -> None:
    for bare in ("api_key", 3, ["a"]):
        with pytest.raises(ValueError, match="FallbackPolicy has no short form; use a mapping"):
            Policy.model_validate({"fallback": bare})
    assert Policy.model_validate({"fallback": False}).fallback is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, [2]], [1, [2]]),
        ({"a": {"b": [1]}}, {"a": {"b": [1]}}),
        ({1, 2}, {2, 1}),
        (bytearray(b"x"), bytearray(b"x")),
        (array.array("i", [1]), array.array("i", [1])),
        (Array(1, 2), Array(1, 2)),
        ([Array(1, 2)], [Array(1, 2)]),
        ({"a": Array(1)}, {"a": Array(1)}),
    ],
    ids=repr,
)
def test_defaults_that_cannot_be_hashed_leave_it_hashable_and_equal(one: Any, other: Any) -> None:
    first, second = FallbackPolicy(default=one), FallbackPolicy(default=other)
    assert first == second
    assert hash(first) == hash(second)
    assert first == pickle.loads(pickle.dumps(first))
    assert Policy(fallback=first) == Policy(fallback=second)
    assert hash(Policy(fallback=first)) == hash(Policy(fallback=second))
    assert repr(first).startswith("FallbackPolicy(default=")


@pytest.mark.parametrize(
    ("one", "other"), [([1], [2]), ({"a": 1}, {"a": 2}), (Array(1, 2), Array(1, 3)), (Array(1), 3)]
)
def test_policies_with_other_defaults_differ(one: Any, other: Any) -> None:
    assert FallbackPolicy(default=one) != FallbackPolicy(default=other)
