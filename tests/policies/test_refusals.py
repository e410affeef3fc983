"""Invalid options are a `ConfigError`, whichever way they are given, and hints do not mislead."""

from __future__ import annotations

import pickle
from typing import Any

import pydantic
import pytest

from opero import (
    AlertManager,
    ConfigError,
    HooksPolicy,
    ParallelPolicy,
    Policy,
    Registry,
    RetryPolicy,
    TimeoutPolicy,
    opero,
    opmap,
)
from opero.policies.policy import FLAT_OPTIONS, KINDS


def function(x: int) -> int:
    return x


INVALID: dict[str, Any] = {
    "a policy": lambda: RetryPolicy(retries=-1),
    "a whole policy": lambda: Policy(retry={"retries": -1}),
    "a short form": lambda: Policy(retry=-1),
    "flat options": lambda: Policy.from_options(retries=-1),
    "a replacement": lambda: RetryPolicy().replace(retries=-1),
    "a replacement in a whole policy": lambda: Policy().replace(retries=-1),
    "@opero": lambda: opero(retries=-1),
    "@opero with a profile": lambda: opero(policy="api", retries=-1),
    "@opero with a policy": lambda: opero(policy=Policy(), retry={"retries": -1}),
    "@opmap": lambda: opmap(retries=-1),
    "bind": lambda: Registry({"api": Policy()}).bind(function, "api", retries=-1),
    "an override": lambda: Registry({"api": Policy()}).override(api={"retry": -1}).__enter__(),
    "an unknown field": lambda: RetryPolicy(retris=1),  # type: ignore[call-arg]
    "an unknown policy": lambda: Policy(retri=1),  # type: ignore[call-arg]
    "a missing field": lambda: Policy(bulkhead={}).apply(function),
    "fields that contradict each other": lambda: TimeoutPolicy(total=1, attempt=5, idle=-1),
    "an alert": lambda: AlertManager({"a": {"when": {}}}),
}


@pytest.mark.parametrize("way", INVALID)
def test_an_invalid_option_is_a_config_error_whichever_way_it_is_given(way: str) -> None:
    with pytest.raises(ConfigError) as caught:
        INVALID[way]()
    assert caught.value.problems
    assert "validation error" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", sorted(FLAT_OPTIONS))
def test_so_is_any_value_of_any_option(name: str) -> None:
    for value in (object(), -1, "nonsense!", [[]], {"a": object()}, float("nan"), b"x"):
        try:
            opero(**{name: value})
        except ConfigError:
            continue


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [object(), -1, "nonsense!", [[]], {"x": 1}, b"x"])
def test_so_is_any_value_of_any_policy(kind: str, value: Any) -> None:
    for make in (Policy, opero):
        try:
            make(**{kind: value})
        except ConfigError:
            continue


def test_several_invalid_options_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Policy.from_options(retries=-1, min_delay="soon")
    assert str(caught.value).splitlines()[0] == "2 options are invalid:"
    assert [each.text.partition(":")[0] for each in caught.value.problems] == ["retries", "min_delay"]


def test_models_of_others_that_hold_a_policy_raise_what_pydantic_raises() -> None:
    class Settings(pydantic.BaseModel):
        retry: RetryPolicy

    with pytest.raises(pydantic.ValidationError, match=r"retry\.retries"):
        Settings.model_validate({"retry": {"retries": -1}})
    with pytest.raises(pydantic.ValidationError):
        RetryPolicy.model_validate({"retries": -1})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RetryPolicy(on_retry=print), "unknown field 'on_retry' of RetryPolicy; use HooksPolicy"),  # type: ignore[call-arg]
        (lambda: HooksPolicy(retry_on=[OSError]), "of HooksPolicy; use RetryPolicy"),  # type: ignore[call-arg]
        (lambda: ParallelPolicy(chunk_size=5), "use no such option: opero chooses"),  # type: ignore[call-arg]
        (lambda: opmap(chunk_size=5), "unknown option 'chunk_size'; use no such option"),  # type: ignore[call-overload]
        (lambda: opero(max_attempts=5), "'max_attempts'; use retries, the attempts after the first"),  # type: ignore[call-overload]
        (lambda: opero(burst=5), "'burst'; use rate_limit={'burst': …}"),  # type: ignore[call-overload]
        (lambda: opero(open_for=5), "'open_for'; use circuit_breaker={'open_for': …}"),  # type: ignore[call-overload]
        (lambda: opero(max_retries=5), "'max_retries'; did you mean 'retries'?"),  # type: ignore[call-overload]
        (lambda: opero(ttl=5), "'ttl'; use cache={'ttl': …}"),  # type: ignore[call-overload]
        (lambda: Policy(retries=5), "unknown field 'retries' of Policy; use retry={'retries': …}"),  # type: ignore[call-arg]
        (lambda: Policy(rate_limt=5), "did you mean 'rate_limit'?"),  # type: ignore[call-arg]
    ],
)
def test_a_hint_names_what_does_the_same_here(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def test_no_hint_names_an_option_for_another_that_exists() -> None:
    """An option in the wrong place is told where it belongs, never that it is a misspelling of something else."""
    for kind, model in KINDS.items():
        for other, field in {(other, field) for other, each in KINDS.items() for field in each.model_fields}:
            if field not in model.model_fields:
                with pytest.raises(ConfigError) as caught:
                    model(**{field: 1})
                shadow = field == "shadow"
                assert shadow or (f"use {KINDS[other].__name__}" in str(caught.value) or " or " in str(caught.value)), (
                    kind,
                    field,
                )
