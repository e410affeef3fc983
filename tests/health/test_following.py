"""An error tracker follows the calls of bound functions without a wrapper."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from opero import ErrorTracker, OperoError, Policy, Registry, opero, opmap
from opero.events import CallFailed, CallSucceeded

HERE = __name__


@pytest.fixture
def tracker() -> Iterator[ErrorTracker]:
    tracker = ErrorTracker()
    off = tracker.follow(function=f"{HERE}:*")
    yield tracker
    off()


@opero(retries=0)
def divide(number: int) -> float:
    if number == 0:
        raise ConnectionError("refused")
    return 1 / number


@opero(retries=0)
async def divide_async(number: int) -> float:
    if number == 0:
        raise ConnectionError("refused")
    return 1 / number


@opmap(mode="process", workers=2, max_failures=16, retries=0)
def halve(number: int) -> float:
    if number % 4 == 0:
        raise ConnectionError("refused")
    return number / 2


def test_calls_of_sync_and_async_functions_are_counted(tracker: ErrorTracker) -> None:
    for number in (0, 1, 2, 0):
        with suppress(OperoError, ConnectionError):
            divide(number)
        with suppress(OperoError, ConnectionError):
            asyncio.run(divide_async(number))
    for name in ("divide", "divide_async"):
        assert tracker.get_error_rate(f"{HERE}:{name}") == 0.5
        assert tracker.get_error_count(f"{HERE}:{name}") == 2
    assert {each["context"]["kind"] for each in tracker.error_history} == {"transient"}


def test_a_call_that_recovers_is_a_success(tracker: ErrorTracker) -> None:
    failures = [ConnectionError("reset")] * 2

    @opero(retries=3, min_delay="1ms")
    def flaky() -> str:
        if failures:
            raise failures.pop()
        return "fine"

    assert flaky() == "fine"
    assert not failures
    assert tracker.get_error_rate(f"{HERE}:{flaky.__qualname__}") == 0
    assert not tracker.error_history


def test_items_of_worker_processes_are_counted(tracker: ErrorTracker) -> None:
    with suppress(OperoError):
        halve(list(range(16)))
    assert tracker.get_error_count(f"{HERE}:halve") == 4
    assert tracker.get_error_rate(f"{HERE}:halve") == 0.25


def test_only_what_is_asked_for_is_followed_until_it_ends() -> None:
    registry = Registry({"api": Policy(retry={"retries": 0}), "mail": Policy(retry={"retries": 0})})
    one, other = registry.bind(divide.__wrapped__, "api"), registry.bind(halve.__wrapped__, "mail")
    tracker = ErrorTracker()
    off = tracker.follow(policy="a*")
    for function in (one, other):
        with suppress(OperoError, ConnectionError):
            function(0)
    assert [each["function"] for each in tracker.error_history] == [f"{HERE}:divide"]
    assert tracker.error_history[0]["context"]["policy"] == "api"
    off()
    with suppress(OperoError, ConnectionError):
        one(0)
    assert tracker.get_error_count(f"{HERE}:divide") == 1
    assert not CallFailed.handlers
    assert not CallSucceeded.handlers
