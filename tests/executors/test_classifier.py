"""The kinds that a policy states: which statement decides, and that every layer goes by it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from opero import CircuitOpenError, ConfigError, Policy
from opero.executors.classifier import Classifier
from opero.failures import Kind
from opero.policies.failures import FailurePolicy


class ApiError(Exception):
    def __init__(self, status: int = 0) -> None:
        self.status_code = status


class BusyError(ApiError):
    pass


def says_busy(error: Exception) -> str | None:
    return "throttled" if "busy" in str(error) else None


def kind(error: BaseException, **stated: Any) -> Kind:
    return Classifier(FailurePolicy(**stated)).kind_of(error)


@pytest.mark.parametrize(
    ("stated", "error", "expected"),
    [
        ({}, ConnectionError(), "transient"),
        ({"permanent": ConnectionError}, ConnectionError(), "permanent"),
        ({"permanent": OSError}, ConnectionResetError(), "permanent"),
        ({"permanent": ConnectionError}, KeyError(), "permanent"),
        ({"unknown": KeyError}, KeyError(), "unknown"),
        ({"transient": ApiError}, BusyError(), "transient"),
        ({"transient": ApiError, "throttled": BusyError}, BusyError(), "throttled"),  # the nearest base class
        ({"transient": ApiError, "throttled": BusyError}, ApiError(404), "transient"),
        ({"transient": [404]}, ApiError(404), "transient"),
        ({"transient": [404]}, ApiError(410), "permanent"),
        ({"transient": [404], "denied": "4xx"}, ApiError(404), "transient"),  # a status before a class of statuses
        ({"transient": [404], "denied": "4xx"}, ApiError(410), "denied"),
        ({"transient": [404], "denied": ApiError}, ApiError(404), "transient"),  # a status before an exception class
        ({"classify": says_busy, "permanent": ValueError}, ValueError("busy"), "throttled"),  # a function before all
        ({"classify": says_busy, "permanent": ValueError}, ValueError("wrong"), "permanent"),
        ({"control": KeyError}, KeyError(), "control"),
    ],
)
def test_the_most_specific_statement_decides(stated: Any, error: Exception, expected: str) -> None:
    assert kind(error, **stated) == expected


def test_statements_apply_to_causes_and_members_of_groups() -> None:
    wrapper = RuntimeError("failed")
    wrapper.__cause__ = BusyError()
    assert kind(wrapper, denied=BusyError) == "denied"
    assert kind(ExceptionGroup("", [ValueError(), BusyError()]), denied=BusyError) == "denied"
    assert kind(wrapper, denied=BusyError, transient=RuntimeError) == "transient"


def test_the_reason_names_the_statement() -> None:
    classifier = Classifier(FailurePolicy(permanent=[KeyError, 503], classify=says_busy))
    reasons = [classifier.failure_of(each).reason for each in (KeyError(), ApiError(503), ValueError("busy"))]
    assert reasons == ["KeyError, stated in failures", "HTTP 503, stated in failures", "says_busy says throttled"]


@pytest.mark.parametrize("answer", [ZeroDivisionError("own"), "trasient", 3])
def test_a_function_without_a_valid_answer_is_reported_and_leaves_the_decision(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def classify(error: Exception) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with caplog.at_level(logging.WARNING, "opero"):
        assert kind(ConnectionError(), classify=classify) == "transient"
    [record] = caplog.records
    assert "classify" in record.getMessage()


async def asynchronous(error: Exception) -> str:
    return "transient"


def test_an_async_function_is_refused_at_binding() -> None:
    with pytest.raises(ConfigError, match=r"failures.classify is .*asynchronous, which is async"):
        Policy(retry=2, failures={"classify": asynchronous}).apply(lambda: None)


# The layers


def failing_with(error: Exception) -> Any:
    def fails() -> None:
        raise error

    return fails


def test_retry_goes_by_it(bind: Any) -> None:
    retry = {"retries": 2, "min_delay": 0}
    for stated, attempts in (({}, 3), ({"permanent": ConnectionError}, 1), ({"control": ConnectionError}, 1)):
        with pytest.raises(Exception):  # noqa: PT011  # its class depends on the number of attempts
            bind(Policy(retry=retry, failures=stated), failing_with(ConnectionError()))()
        assert bind.bound.stats.attempts == attempts
    with pytest.raises(Exception):  # noqa: PT011
        bind(Policy(retry=retry, failures={"transient": KeyError}), failing_with(KeyError()))()
    assert bind.bound.stats.attempts == 3


def test_the_delay_goes_by_it(bind: Any) -> None:
    policy = Policy(
        retry={"retries": 1, "min_delay": 0.1, "jitter": False, "reraise": True},
        failures={"throttled": ConnectionError},
    )
    with pytest.raises(ConnectionError):
        bind(policy, failing_with(ConnectionError()))()
    assert bind.slept == [1.0]


def test_the_circuit_breaker_goes_by_it(bind: Any) -> None:
    call = bind(Policy(circuit_breaker=1, failures={"permanent": ConnectionError}), failing_with(ConnectionError()))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            call()
    call = bind(Policy(circuit_breaker=1, failures={"transient": KeyError}), failing_with(KeyError()))
    with pytest.raises(KeyError):
        call()
    with pytest.raises(CircuitOpenError):
        call()


def test_a_fallback_goes_by_it(bind: Any) -> None:
    policy = Policy(fallback={"default": "spare"}, failures={"transient": KeyError, "permanent": ConnectionError})
    assert bind(policy, failing_with(KeyError()))() == "spare"
    with pytest.raises(ConnectionError):
        bind(policy, failing_with(ConnectionError()))()


def test_fallback_values_go_by_it(bind: Any) -> None:
    def ask(key: str) -> str:
        if key == "first":
            raise KeyError(key)
        return key

    policy = Policy(fallback={"arg": "key"}, failures={"denied": KeyError})
    assert bind(policy, ask)(["first", "second"]) == "second"


def test_the_cache_goes_by_it(bind: Any) -> None:
    policy = Policy(cache={"errors": "permanent"}, failures={"permanent": ConnectionError})
    call = bind(policy, failing_with(ConnectionError()))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            call()
    assert bind.bound.stats.attempts == 1


def test_a_reload_of_the_statements_is_in_force_at_once(bind: Any) -> None:
    retry = {"retries": 2, "min_delay": 0, "reraise": True}
    call = bind(Policy(retry=retry, circuit_breaker=100, cache={"errors": "denied"}), failing_with(ConnectionError()))
    with pytest.raises(ConnectionError):
        call()
    assert bind.bound.stats.attempts == 3
    stated = {"denied": ConnectionError}
    bind.bound.binding.swap(Policy(retry=retry, circuit_breaker=100, cache={"errors": "denied"}, failures=stated))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            call()
    assert bind.bound.stats.attempts == 4  # not retried, and cached


def test_workers_of_a_map_go_by_it() -> None:
    policy = Policy(
        parallel={"mode": "process", "workers": 1, "progress": False, "on_error": "return"},
        retry={"retries": 2, "min_delay": 0},
        failures={"permanent": ConnectionError},
    )
    bound: Any = policy.apply(fails_in_a_worker)
    [failure] = bound.map([1])
    assert type(failure) is ConnectionError
    assert bound.stats.attempts == 1


def fails_in_a_worker(item: int) -> None:
    raise ConnectionError
