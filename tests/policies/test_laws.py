"""Laws that hold for every policy."""

from __future__ import annotations

import concurrent.futures.thread
import json
import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import policies.named
from opero import AdaptiveTTL, CachePolicy, KeyedScope, Limit, Policy
from opero.policies.policy import KINDS, merge
from policies.statements import statements
from policies.strategies import any_policy, kinds, whole_policies

if TYPE_CHECKING:
    from opero.policies.base import BasePolicy, StrictModel

settings.register_profile(
    "laws", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
laws = settings.get_profile("laws")


@pytest.fixture(params=sorted(kinds))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_kind_has_a_strategy() -> None:
    assert set(kinds) == set(KINDS) == set(Policy.model_fields)


@laws
@given(any_policy | whole_policies)
def test_json_brings_back_an_equal_policy(policy: StrictModel) -> None:
    copy = type(policy).model_validate_json(policy.model_dump_json())
    assert copy == policy
    assert hash(copy) == hash(policy)


@laws
@given(any_policy | whole_policies)
def test_pickle_brings_back_an_equal_policy(policy: StrictModel) -> None:
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    assert hash(copy) == hash(policy)


@laws
@given(any_policy | whole_policies)
def test_its_python_dump_validates_to_an_equal_policy(policy: StrictModel) -> None:
    assert type(policy).model_validate(policy.model_dump()) == policy


@laws
@given(any_policy)
def test_replacing_nothing_gives_an_equal_policy(policy: BasePolicy) -> None:
    assert policy.replace() == policy


@laws
@given(whole_policies)
def test_replacing_nothing_of_a_whole_policy_gives_an_equal_policy(policy: Policy) -> None:
    assert policy.replace() == policy
    assert Policy.model_validate(policy.fields()) == policy


@laws
@given(any_policy)
def test_switching_off_and_on_again_keeps_all_values(policy: BasePolicy) -> None:
    on = policy.replace(enabled=True)
    assert on.replace(enabled=False).replace(enabled=True) == on


@laws
@given(any_policy)
def test_a_whole_policy_holds_what_it_is_given(policy: BasePolicy) -> None:
    assert getattr(Policy.model_validate({policy.kind: policy}), policy.kind) == policy


@laws
@given(whole_policies)
def test_merging_nothing_changes_nothing(policy: Policy) -> None:
    fields = policy.fields()
    assert Policy.model_validate(merge(fields, {})) == policy
    assert Policy.model_validate(merge({}, fields)) == policy


@laws
@given(whole_policies)
def test_merging_is_idempotent(policy: Policy) -> None:
    fields = policy.fields()
    assert Policy.model_validate(merge(fields, fields)) == policy


@laws
@given(st.data())
def test_merging_statements_is_associative(kind: str, data: st.DataObject) -> None:
    one, two, three = ({kind: data.draw(statements(kind, objects=True))} for _ in range(3))
    left, right = merge(merge(one, two), three), merge(one, merge(two, three))
    assert left == right
    assert type(left[kind]) is type(right[kind])


@laws
@given(whole_policies, whole_policies)
def test_the_last_merged_value_has_precedence(lower: Policy, upper: Policy) -> None:
    merged = merge(lower.fields(), upper.fields())
    for kind, value in upper.fields().items():
        if value is None:
            assert merged[kind] is None
        else:
            assert {name: merged[kind][name] for name in value} == value
    for kind, value in lower.fields().items():
        if kind not in upper.model_fields_set:
            assert merged[kind] == value


@laws
@given(any_policy)
def test_it_is_frozen(policy: BasePolicy) -> None:
    with pytest.raises(ValueError, match="frozen"):
        policy.enabled = False  # type: ignore[misc]


@laws
@given(any_policy | whole_policies)
def test_its_repr_evaluates_back(policy: StrictModel) -> None:
    names = {each.__name__: each for each in (Policy, AdaptiveTTL, KeyedScope, Limit, *KINDS.values())}
    assert eval(repr(policy), {**names, "concurrent": concurrent, "json": json, "policies": policies}) == policy


def test_unknown_fields_are_rejected_with_the_nearest_name(kind: str) -> None:
    model = KINDS[kind]
    for name in model.model_fields:
        with pytest.raises(ValueError, match=f"unknown field '{name}x' of {model.__name__}; did you mean '{name}'"):
            model.model_validate({f"{name}x": 1})


def test_enabled_takes_only_truth_values(kind: str) -> None:
    with pytest.raises(ValueError, match="enabled"):
        KINDS[kind].model_validate({"enabled": "perhaps", "arg": "x"} if kind == "fallback" else {"enabled": "perhaps"})


def test_a_secret_shows_nowhere() -> None:
    policy = Policy(cache=CachePolicy(secret="s3cret", backend="redis", ttl="1h"))
    assert policy.cache is not None
    assert policy.cache.secret is not None
    assert policy.cache.secret.get_secret_value() == "s3cret"
    shown = [
        repr(policy),
        str(policy),
        f"{policy}",
        repr(policy.cache),
        policy.model_dump_json(),
        repr(policy.fields()),
    ]
    for wrong in ({"max_size": 0}, {"backend": 3}, {"sekret": "s3cret"}, {"secret": ["s3cret"]}):
        with pytest.raises(ValueError, match="cache") as caught:
            Policy.model_validate({"cache": {"secret": "s3cret", **wrong}})
        shown += [str(caught.value), repr(caught.value)]
    with pytest.raises(ValueError, match="frozen") as caught:
        policy.cache.secret = "s3cret"  # type: ignore[misc, assignment]
    shown += [str(caught.value), repr(caught.value)]
    assert [each for each in shown if "s3cret" in each] == []
