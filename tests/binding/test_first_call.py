"""A sync function that returns an awaitable is refused at its first call, with no cost for later ones."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from opero import ConfigError, MapError, Policy, Registry, opero, opmap

POLICIES: list[dict[str, Any]] = [
    {},
    {"retry": 3},
    {"timeout": 5},
    {"cache": True},
    {"retry": 3, "cache": True, "circuit_breaker": 5, "rate_limit": 1000, "bulkhead": 5, "fallback": {"default": None}},
]


async def add(number: int) -> int:
    return number + 1


def returns_a_coroutine(number: int) -> Any:
    return add(number)


class Calling:
    def __call__(self, number: int) -> Any:
        return add(number)

    def method(self, number: int) -> Any:
        return add(number)


class Request:
    """Like what aiohttp's `session.get` returns: awaited, it runs."""

    closed = False

    def __await__(self) -> Iterator[Any]:
        return iter(())

    def close(self) -> None:
        type(self).closed = True


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that was never awaited would warn
        yield


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize(
    "function",
    [returns_a_coroutine, lambda number: add(number=number), Calling(), functools.partial(returns_a_coroutine, 1)],
    ids=["function", "lambda", "object", "partial"],
)
def test_each_call_is_refused_with_the_cure(function: Any, policy: dict[str, Any]) -> None:
    bound: Any = Policy(**policy).apply(function)
    arguments = () if isinstance(function, functools.partial) else (1,)
    for _ in range(2):
        with pytest.raises(ConfigError, match="is a sync function and returned a coroutine.*define the function with"):
            bound(*arguments)


@pytest.mark.parametrize("policy", ["plain", None])
def test_a_function_that_waits_for_its_configuration_is_refused_too(policy: Any) -> None:
    registry = Registry({"plain": Policy(retry=3)})
    bound: Any = opero(policy=policy, registry=registry)(returns_a_coroutine)
    method: Any = opero(policy=policy, registry=registry)(Calling.method)
    for _ in range(2):
        with pytest.raises(ConfigError, match="returns_a_coroutine is a sync function and returned a coroutine"):
            bound(1)
        with pytest.raises(ConfigError, match=r"Calling.method is a sync function"):
            method(Calling(), 1)


@pytest.mark.parametrize("cache", [None, True])
@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_map_is_refused_as_well(mode: Any, cache: Any) -> None:
    bound: Any = opmap(mode=mode, workers=1, cache=cache, retries=0)(returns_a_coroutine)
    with pytest.raises(MapError) as caught:
        bound([1])
    (error,) = [each.exception for each in caught.value.failures]
    assert isinstance(error, ConfigError)
    assert "is a sync function and returned a coroutine" in str(error)


def test_any_awaitable_is_refused_and_closed() -> None:
    bound: Any = Policy().apply(lambda *_: Request())
    with pytest.raises(ConfigError, match="returned a Request, which runs only when it is awaited"):
        bound()
    assert Request.closed


def test_a_task_runs_anyway_so_a_function_may_start_one() -> None:
    async def main() -> int:
        bound: Any = Policy(rate_limit=1000).apply(lambda: asyncio.create_task(add(1)))
        return await bound() + await bound()

    assert asyncio.run(main()) == 4


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_function_that_has_returned_a_value_is_not_checked_again(policy: dict[str, Any]) -> None:
    results: list[Any] = [1]
    bound: Any = Policy(**policy).apply(lambda: results[-1])
    before = bound.binding.pipeline
    assert bound() == 1
    after = bound.binding.pipeline
    assert after is bound.binding.resolved()
    assert after is not before
    assert bound() == 1
    assert bound.binding.pipeline is after
    assert bound.stats.calls == 2
    assert bound.stats.attempts == (1 if "cache" in policy else 2)


def test_a_failed_first_call_leaves_the_check_to_the_next() -> None:
    runs: list[int] = []

    def function() -> Any:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("no")
        return add(1)

    bound: Any = Policy(retry={"retries": 0}).apply(function)
    with pytest.raises(ValueError, match="no"):
        bound()
    with pytest.raises(ConfigError, match="returned a coroutine"):
        bound()
    assert bound.stats.calls == bound.stats.attempts == 2


def test_wrong_arguments_are_refused_at_the_first_call_as_at_later_ones() -> None:
    bound: Any = Policy(retry=3).apply(lambda number: number)
    for _ in range(2):
        with pytest.raises(TypeError):
            bound()
        assert bound.stats.calls == 0
    assert bound(1) == 1


def test_a_failed_response_is_returned_at_the_first_call_as_at_later_ones() -> None:
    class Response:
        status_code = 503
        headers: dict[str, str] = {}

    response = Response()
    bound: Any = Policy(retry={"retries": 1, "min_delay": 0, "max_delay": 0}).apply(lambda: response)
    assert [bound(), bound()] == [response, response]
    assert bound.stats.attempts == 4
    assert bound.stats.failures == 2


def test_the_first_call_counts_as_a_request_for_an_adaptive_ttl() -> None:
    bound: Any = Policy(cache={"ttl": {"cold": "1m", "warm_after": 2, "warm": "1h"}}).apply(lambda number: number)
    bound(1)
    bound(1)
    popularity = bound.binding.cache.retention.popularity
    assert popularity.of(bound.binding.cache.key((1,), {})) == 2
