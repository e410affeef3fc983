"""`assert_attempts` counts executions, and says what they came to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from opero import ConfigError, OperoError, Policy, opero
from opero.testing import assert_attempts, no_waits

POLICY = Policy(retry={"retries": 2, "min_delay": 0})


def flaky() -> None:
    raise ConnectionError


async def flaky_async() -> None:
    raise ConnectionError


class Client:
    @opero(retries=2, min_delay=0)
    def get(self) -> None:
        raise ConnectionError


@pytest.mark.parametrize("function", [POLICY.apply(flaky), POLICY.apply(flaky_async), Client().get])
def test_attempts_of_the_block_are_counted(function: Any) -> None:
    def call() -> None:
        with pytest.raises((ConnectionError, OperoError)):
            asyncio.run(function()) if function.binding.is_async else function()

    call()
    with assert_attempts(function, 3):
        call()
    with assert_attempts(function, 0):
        pass


def test_the_message_says_what_was_expected_and_what_happened() -> None:
    bound = POLICY.apply(flaky)
    with (
        pytest.raises(AssertionError) as caught,
        no_waits(),
        assert_attempts(bound, 1),
        pytest.raises((ConnectionError, OperoError)),
    ):
        bound()
    message = "flaky: expected 1 attempt, made 3 (calls: 1, retries: 2, failures: 1, ConnectionError: 3)"
    assert str(caught.value) == message
    with pytest.raises(AssertionError, match=r"expected 2 attempts, made 0 \(no calls\)"), assert_attempts(bound, 2):
        pass


def test_an_exception_of_the_block_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), assert_attempts(POLICY.apply(flaky), 5):
        raise ZeroDivisionError


@pytest.mark.parametrize(("value", "named"), [(flaky, "flaky"), (3, "a value of type int")])
def test_what_is_not_bound_is_refused(value: Any, named: str) -> None:
    message = rf"assert_attempts\(\) expects a bound function, and .*{named} is not"
    with pytest.raises(ConfigError, match=message), assert_attempts(value, 1):
        pass
