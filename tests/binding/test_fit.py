"""What does not fit a function is refused when it is bound, with the reason."""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

import pytest

from opero import ConfigError, Policy, Registry, opero


async def async_function(*args: Any, **kwargs: Any) -> int:
    return 1


class AsyncObject:
    async def __call__(self, *args: Any, **kwargs: Any) -> int:
        return 1


def generator(*args: Any, **kwargs: Any) -> Any:
    yield 1


def sync(number: int = 1) -> int:
    return number


async def asynchronous(number: int = 1) -> int:
    return number


FIELDS = (
    *("retry.retry_if_result", "retry.retry_on", "cache.cache_if", "cache.key", "cache.ttl", "rate_limit.cost"),
    *("circuit_breaker.trip_on", "circuit_breaker.ignore", "fallback.on"),
)


REQUIRED: dict[str, dict[str, Any]] = {"rate_limit": {"rate": 10}, "fallback": {"default": 1}}


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize(
    "function",
    [async_function, AsyncObject(), functools.partial(async_function, 1), generator],
    ids=["async", "object", "partial", "generator"],
)
@pytest.mark.parametrize("target", [sync, asynchronous])
def test_functions_that_are_not_awaited_must_be_sync(path: str, function: Any, target: Any) -> None:
    kind, field = path.split(".")
    fields: dict[str, Any] = {field: function, **REQUIRED.get(kind, {})}
    if target is asynchronous and function is not generator:
        Policy.model_validate({kind: fields}).apply(target)  # it is awaited
        return
    with pytest.raises(ConfigError, match=rf"{target.__name__}: {re.escape(path)} is .*; use a sync function"):
        Policy.model_validate({kind: fields}).apply(target)


def test_a_registry_refuses_them_as_well() -> None:
    registry = Registry({"api": Policy(retry={"retry_if_result": async_function})})
    bound = opero(policy="api", registry=registry)(sync)
    with pytest.raises(ConfigError, match="retry_if_result is .*async_function"):
        registry.check()
    with pytest.raises(ConfigError, match="retry_if_result is .*async_function"):
        bound()


def test_a_policy_that_is_switched_off_may_have_them() -> None:
    assert Policy(retry={"retry_if_result": async_function, "enabled": False}).apply(sync)() == 1


def test_a_default_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ConfigError, match="each call gets a copy of fallback.default, and a lock cannot be copied"):
        Policy(fallback={"default": threading.Lock()}).apply(sync)
    assert Policy(fallback={"default": [1]}).apply(sync)() == 1


def test_exceptions_in_place_of_a_function_are_refused_with_the_option_for_them() -> None:
    with pytest.raises(ConfigError, match=r"use @opero\(retry_on=\[ConnectionError\]\)"):
        opero(ConnectionError)
