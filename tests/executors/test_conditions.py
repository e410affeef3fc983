"""Conditions of failures: kinds, classes and functions of the user's, which may fail themselves."""

from __future__ import annotations

import logging
import unittest
from typing import Any

import celery.exceptions
import pytest

from opero import ConfigError, Policy
from opero.executors.conditions import Matcher
from opero.failures import Kind
from opero.testing import VirtualClock


def broken(error: Exception) -> bool:
    raise ZeroDivisionError


async def asynchronous(error: Exception) -> bool:
    return False


def fails() -> None:
    raise ConnectionError("down")


@pytest.mark.parametrize(
    ("conditions", "error", "meant"),
    [
        ((), ConnectionError(), False),
        ((Kind.TRANSIENT,), ConnectionError(), True),
        ((Kind.TRANSIENT,), KeyError(), False),
        ((Kind.DENIED, LookupError), KeyError(), True),
        ((lambda error: "busy" in str(error),), ValueError("busy"), True),
        ((lambda error: "busy" in str(error),), ValueError("wrong"), False),
        ((Kind.PERMANENT, lambda error: True), ValueError(), True),
        ((Exception, lambda error: True), unittest.SkipTest(), False),  # what steers a program is no failure
    ],
)
def test_one_condition_that_holds_is_enough(conditions: Any, error: Exception, meant: bool) -> None:
    assert Matcher.of(conditions)(error) is meant


def test_a_success_classifies_nothing(bind: Any) -> None:
    classified: list[Exception] = []

    def counted(error: Exception) -> None:  # leaves the kind to the shape
        classified.append(error)

    fallback = {"default": None, "on": ["transient", "unknown"]}
    layers = {"retry": {"min_delay": 0}, "circuit_breaker": 5, "fallback": fallback, "timeout": 5}
    outcomes: list[Any] = [1, 2, ConnectionError("down"), 3]
    policy = Policy.model_validate({**layers, "failures": {"classify": counted}})
    call = bind(policy, lambda: raised(outcomes.pop(0)))
    assert (call(), call(), classified) == (1, 2, [])
    assert call() == 3
    assert {type(error) for error in classified} == {ConnectionError}


def raised(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def test_a_function_that_raises_means_no_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "opero"):
        assert Matcher.of((broken,))(ConnectionError()) is False
    [record] = caplog.records
    assert record.getMessage().startswith("executors.test_conditions.broken, which decides about failures, raised Zero")


def test_the_functions_exception_comes_out_and_not_that_of_the_condition(bind: Any) -> None:
    with pytest.raises(ConnectionError, match="down"):
        bind(Policy(retry={"retry_on": broken, "retries": 3}), fails)()
    assert bind.bound.stats.attempts == 1


def test_what_a_framework_raises_to_steer_passes_through_all_policies(bind: Any) -> None:
    def steers() -> None:
        raise celery.exceptions.Ignore

    everything = {"retry": {"retry_on": Exception, "retries": 3}, "fallback": {"default": 1, "on": Exception}}
    call = bind(Policy.model_validate({**everything, "circuit_breaker": {"consecutive_failures": 1}}), steers)
    for _ in range(2):
        with pytest.raises(celery.exceptions.Ignore):
            call()
    assert (bind.bound.stats.attempts, bind.bound.stats.rejections, bind.bound.stats.fallbacks) == (2, 0, 0)


@pytest.mark.parametrize("field", ["trip_on", "ignore"])
def test_a_probe_is_given_back_though_the_condition_raises(bind: Any, field: str) -> None:
    is_broken = False

    def decides(error: Exception) -> bool:
        if is_broken:
            raise ZeroDivisionError
        return field == "trip_on"

    breaker = {"consecutive_failures": 1, field: decides}
    call = bind(Policy(circuit_breaker=breaker), fails)
    with pytest.raises(ConnectionError):
        call()
    is_broken = True
    for _ in range(3):
        bind.clock.advance(1000)
        with pytest.raises(ConnectionError):  # and not CircuitOpenError
            call()


@pytest.mark.parametrize(
    "fields",
    [
        {"retry": {"retry_on": asynchronous}},
        {"retry": {"retry_on": [ConnectionError, asynchronous]}},
        {"circuit_breaker": {"trip_on": ["transient", asynchronous]}},
        {"circuit_breaker": {"ignore": asynchronous}},
        {"fallback": {"default": 1, "on": asynchronous}},
    ],
)
def test_an_async_function_is_refused_when_it_is_bound(fields: Any) -> None:
    with pytest.raises(ConfigError, match=r"fails: .* is .*asynchronous, which is async: .*; use a sync function"):
        Policy.model_validate(fields).apply(fails, clock=VirtualClock())
