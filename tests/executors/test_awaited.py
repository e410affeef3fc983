"""Async functions of a user's that decide about an async function's failures, results and costs are awaited."""

from __future__ import annotations

import asyncio
import functools
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

from opero import AllFailedError, CircuitOpenError, ConfigError, Policy, opmap
from opero.testing import VirtualClock

AT_ONCE = {"min_delay": 0, "max_delay": 0}


class BusyError(Exception):
    pass


class Fails:
    """An async function that fails a few times; the exceptions come one after the other, the last again and again."""

    def __init__(self, *errors: Exception, times: int = 1000) -> None:
        self.errors = errors
        self.times = times
        self.calls = 0

    async def __call__(self, *args: Any) -> str:
        self.calls += 1
        if self.calls > self.times:
            return "ok"
        raise self.errors[min(self.calls, len(self.errors)) - 1]


class Asked:
    """An async condition; it remembers what it was asked about."""

    def __init__(self, *classes: type[Exception], waits: float = 1.0) -> None:
        self.classes = classes
        self.waits = waits
        self.asked: list[Exception] = []

    async def __call__(self, error: Exception) -> bool:
        await asyncio.sleep(self.waits)
        self.asked.append(error)
        return isinstance(error, self.classes)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that was never awaited would warn
        yield


def run(policy: Policy, function: Any, *args: Any, calls: int = 1) -> list[Any]:
    """The results of calls, one after the other; an exception stands for itself."""
    clock = VirtualClock()
    bound = policy.apply(function, clock=clock)

    async def main() -> list[Any]:
        found: list[Any] = []
        for _ in range(calls):
            try:
                found.append(await bound(*args))
            except Exception as error:
                found.append(error)
        return found

    return clock.run(main())


@pytest.mark.parametrize("others", [{}, {"timeout": 500}, {"bulkhead": 1}, {"cache": "1h"}, {"circuit_breaker": 50}])
def test_retry_on_decides_which_failures_are_retried(others: dict[str, Any]) -> None:
    is_busy, function = Asked(BusyError), Fails(BusyError(), times=2)
    policy = Policy(retry={"retries": 5, "retry_on": is_busy, **AT_ONCE}, **others)
    assert run(policy, function) == ["ok"]
    assert function.calls == 3
    assert len(is_busy.asked) == 2
    function = Fails(ValueError("wrong"))
    (error,) = run(policy, function)
    assert isinstance(error, ValueError)
    assert function.calls == 1


def test_an_answer_is_for_its_own_attempt_only() -> None:
    function = Fails(BusyError(), ValueError("wrong"))
    (error,) = run(Policy(retry={"retries": 5, "retry_on": Asked(BusyError), **AT_ONCE}), function)
    assert isinstance(error, ValueError)
    assert function.calls == 2


def test_conditions_are_combined_with_kinds_and_classes() -> None:
    conditions = ["transient", KeyError, Asked(BusyError)]
    policy = Policy(retry={"retries": 5, "retry_on": conditions, "reraise": True, **AT_ONCE})
    function = Fails(ConnectionError(), KeyError(), BusyError(), ZeroDivisionError())
    (error,) = run(policy, function)
    assert isinstance(error, ZeroDivisionError)
    assert function.calls == 4


def test_one_function_in_several_places_is_asked_once_for_a_failure() -> None:
    is_busy = Asked(BusyError)
    policy = Policy(
        retry={"retries": 1, "retry_on": is_busy, **AT_ONCE},
        circuit_breaker={"consecutive_failures": 5, "trip_on": is_busy},
        fallback={"default": "other", "on": is_busy},
    )
    assert run(policy, Fails(BusyError())) == ["other"]
    assert len(is_busy.asked) == 2


def test_trip_on_and_ignore_decide_what_opens_a_circuit() -> None:
    policy = Policy(circuit_breaker={"consecutive_failures": 2, "trip_on": Asked(BusyError)})
    assert [type(each) for each in run(policy, Fails(BusyError()), calls=3)] == [BusyError] * 2 + [CircuitOpenError]
    assert [type(each) for each in run(policy, Fails(OSError()), calls=3)] == [OSError] * 3
    policy = Policy(circuit_breaker={"consecutive_failures": 2, "trip_on": Exception, "ignore": Asked(BusyError)})
    assert [type(each) for each in run(policy, Fails(BusyError()), calls=3)] == [BusyError] * 3
    assert [type(each) for each in run(policy, Fails(OSError()), calls=3)] == [OSError] * 2 + [CircuitOpenError]


@pytest.mark.parametrize("fallback", [{"default": "other"}, {"function": lambda *args: "other"}])
@pytest.mark.parametrize("retry", [None, {"retries": 2, **AT_ONCE}])
def test_on_decides_when_a_fallback_answers(fallback: dict[str, Any], retry: Any) -> None:
    policy = Policy(fallback={**fallback, "on": Asked(BusyError)}, retry=retry)
    assert run(policy, Fails(BusyError())) == ["other"]
    (error,) = run(policy, Fails(OSError()))
    assert isinstance(error, AllFailedError if retry else OSError)


def test_on_decides_whether_the_next_value_is_tried() -> None:
    async def get(key: str) -> str:
        if key == "good":
            return key
        raise BusyError if key == "busy" else ValueError(key)

    policy = Policy(fallback={"arg": "key", "on": Asked(BusyError)}, retry={"retries": 0, "retry_on": []})
    assert run(policy, get, ["busy", "good"]) == ["good"]
    (error,) = run(policy, get, ["bad", "good"])
    assert isinstance(error, ValueError)


def test_what_opero_rejects_and_what_steers_a_program_is_not_asked_about() -> None:
    asked = Asked(Exception)

    class SkipTest(Exception):  # noqa: N818
        pass

    SkipTest.__module__ = "unittest.case"
    policy = Policy(retry={"retries": 3, "retry_on": asked, **AT_ONCE}, rate_limit={"rate": "1/h", "max_wait": 0})
    results = run(policy, Fails(SkipTest()), calls=2)
    assert [type(each).__name__ for each in results] == ["SkipTest", "RateLimitExceededError"]
    assert asked.asked == []


def test_a_condition_that_fails_means_no_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(error: Exception) -> bool:
        raise ZeroDivisionError

    with caplog.at_level(logging.WARNING, "opero"):
        (error,) = run(Policy(retry={"retries": 3, "retry_on": broken}), Fails(BusyError()))
    assert isinstance(error, BusyError)
    (record,) = caplog.records
    assert "broken, which decides about failures, raised ZeroDivisionError" in record.getMessage()


def test_a_condition_has_until_the_total_timeout() -> None:
    clock, function = VirtualClock(), Fails(BusyError())
    policy = Policy(retry={"retries": 3, "retry_on": Asked(BusyError, waits=60)}, timeout=5)
    bound: Any = policy.apply(function, clock=clock)

    async def main() -> float:
        started = clock.monotonic()
        with pytest.raises(BusyError):
            await bound()
        return clock.monotonic() - started

    assert clock.run(main()) == pytest.approx(5)
    assert function.calls == 1


def test_a_cancelled_condition_leaves_the_circuit_as_it_was() -> None:
    breaker = {"consecutive_failures": 1, "trip_on": Asked(BusyError, waits=60), "open_for": 1}
    bound: Any = Policy(circuit_breaker=breaker).apply(Fails(BusyError(), times=1))

    async def main() -> str:
        task = asyncio.create_task(bound())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return str(await bound())

    assert asyncio.run(main()) == "ok"


def test_generators_ask_as_well() -> None:
    runs: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        runs.append(1)
        if len(runs) < 3:
            raise BusyError
        yield 1

    bound: Any = Policy(retry={"retries": 5, "retry_on": Asked(BusyError, waits=0), **AT_ONCE}).apply(numbers)

    async def main() -> list[int]:
        return [each async for each in bound()]

    assert asyncio.run(main()) == [1]


def test_retry_if_result_is_awaited() -> None:
    results = iter([None, None, "done"])

    async def poll() -> Any:
        return next(results)

    async def is_missing(result: Any) -> bool:
        await asyncio.sleep(1)
        return result is None

    assert run(Policy(retry={"retries": 5, "retry_if_result": is_missing, **AT_ONCE}), poll) == ["done"]


def test_cache_if_is_awaited() -> None:
    found = [None, None, 5, 6]

    async def get() -> Any:
        return found.pop(0)

    async def is_something(result: Any) -> bool:
        await asyncio.sleep(1)
        return result is not None

    assert run(Policy(cache={"ttl": "1h", "cache_if": is_something}), get, calls=4) == [None, None, 5, 5]


def test_a_cache_if_that_fails_keeps_nothing_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(result: Any) -> bool:
        raise ZeroDivisionError

    numbers = iter(range(9))

    async def get() -> int:
        return next(numbers)

    with caplog.at_level(logging.WARNING, "opero"):
        assert run(Policy(cache={"ttl": "1h", "cache_if": broken}), get, calls=2) == [0, 1]
    assert "result not cached: the cache_if function raised ZeroDivisionError" in caplog.records[0].getMessage()


async def is_even(result: int) -> bool:
    await asyncio.sleep(0)
    return result % 2 == 0


async def same(number: int) -> int:
    return number


def test_a_map_asks_cache_if_or_is_refused() -> None:
    bound: Any = opmap(cache_ttl="1h", cache_if=is_even, retries=0)(same)

    async def main(call: Any) -> list[int]:
        return list(await call([1, 2, 3, 4]))

    assert asyncio.run(main(bound)) == [1, 2, 3, 4]
    assert [bound.cache_get(number) for number in (1, 2, 3, 4)] == [None, 2, None, 4]
    with pytest.raises(ConfigError, match=r"cache_if is async, and is awaited in this process only; use mode='async'"):
        asyncio.run(main(opmap(mode="async_process", cache_ttl="1h", cache_if=is_even)(same)))


def test_a_cost_is_awaited() -> None:
    async def cost(tokens: int) -> int:
        await asyncio.sleep(0)
        return tokens

    clock = VirtualClock()

    async def send(tokens: int) -> float:
        return clock.monotonic()

    bound: Any = Policy(rate_limit={"rate": 1, "burst": 5, "cost": cost}).apply(send, clock=clock)

    async def main() -> list[float]:
        started = clock.monotonic()
        return [await bound(5) - started, await bound(tokens=5) - started, await bound(1) - started]

    assert clock.run(main()) == pytest.approx([0, 5, 6])


class Response:
    """The shape that clients' responses share."""

    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}


def test_failed_responses_are_asked_about_and_judged_too() -> None:
    async def is_unavailable(error: Exception) -> bool:
        return error.result.status_code == 503  # type: ignore[attr-defined, no-any-return]

    responses = [Response(503), Response(503), Response(200)]

    async def get() -> Response:
        return responses.pop(0)

    policy = Policy(retry={"retries": 5, "retry_on": is_unavailable, **AT_ONCE})
    assert run(policy, get)[0].status_code == 200

    responses = [Response(404), Response(200)]

    async def is_missing(response: Response) -> bool:
        return response.status_code == 404

    policy = Policy(retry={"retries": 5, "retry_on": [], "retry_if_result": is_missing, **AT_ONCE})
    assert run(policy, get)[0].status_code == 200


def test_they_are_awaited_under_trio_too() -> None:
    async def is_busy(error: Exception) -> bool:
        await trio.sleep(0)
        return isinstance(error, BusyError)

    async def cost(*args: Any) -> int:
        await trio.sleep(0)
        return 1

    function = Fails(BusyError(), times=2)
    for timeout in (None, "1m"):
        function.calls = 0
        policy = Policy(
            retry={"retries": 5, "retry_on": is_busy, **AT_ONCE},
            rate_limit={"rate": 1e6, "cost": cost},
            timeout=timeout,
        )
        assert trio.run(policy.apply(function)) == "ok"
        assert function.calls == 3


# A cache's key and time to live


def in_event_loop(test: Any) -> Any:
    @functools.wraps(test)
    def run_test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run_test


@in_event_loop
async def test_an_async_key_decides_which_calls_share_a_result() -> None:
    asked: list[Any] = []

    async def key(word: str) -> str:
        await asyncio.sleep(0)
        asked.append(word)
        return word.lower()

    calls: list[str] = []

    async def look_up(word: str) -> str:
        calls.append(word)
        await asyncio.sleep(0)
        return word

    bound: Any = Policy(cache={"ttl": 60, "key": key}).apply(look_up)
    assert await bound("A") == "A"
    assert await bound("a") == "A"
    assert await asyncio.gather(bound("B"), bound("b")) == ["B", "B"]
    assert (calls, asked) == (["A", "B"], ["A", "a", "B", "b"])
    assert bound.stats.cache_hits == 2
    for use in (bound.cache_get, bound.cache_delete, lambda word: bound.cache_set("x", word)):
        with pytest.raises(ConfigError, match=r"async function .*key.*only calls of the function await it"):
            use("a")
    bound.cache_clear()
    assert await bound("a") == "a"


@in_event_loop
async def test_what_an_async_key_raises_is_raised_and_the_function_is_not_called() -> None:
    async def key(word: str) -> str:
        raise ValueError(word)

    bound: Any = Policy(cache={"ttl": 60, "key": key}).apply(Fails(times=0))
    with pytest.raises(ValueError, match="w"):
        await bound("w")
    assert bound.stats.attempts == 0


@in_event_loop
@pytest.mark.parametrize("field", ["key", "ttl"])
async def test_a_map_refuses_an_async_key_and_ttl_of_its_cache(field: str) -> None:
    async def function(item: int) -> int:
        return item

    async def ttl() -> int:
        return 60

    bound = opmap(mode="async", cache={"ttl": 60} | {field: {"key": function, "ttl": ttl}[field]})(function)
    with pytest.raises(ConfigError, match=f"cannot be mapped: .* does not await the async cache.{field}"):
        await bound([1, 2])


def test_an_async_ttl_says_how_long_each_result_is_kept() -> None:
    times = iter([10, "20s", 0])

    async def ttl() -> Any:
        await asyncio.sleep(0)
        return next(times)

    clock, calls = VirtualClock(), 0

    async def function() -> int:
        nonlocal calls
        calls += 1
        return calls

    bound: Any = Policy(cache={"ttl": ttl}).apply(function, clock=clock)

    async def main() -> list[int]:
        found = []
        for seconds in (0, 9, 2, 15, 6, 0):
            await asyncio.sleep(seconds)
            found.append(await bound())
        return found

    assert clock.run(main()) == [1, 1, 2, 2, 3, 4]


@in_event_loop
async def test_an_async_ttl_counts_for_exceptions_without_a_time_of_their_own() -> None:
    asked = 0

    async def ttl() -> float:
        nonlocal asked
        asked += 1
        return 60

    function = Fails(BusyError())
    bound: Any = Policy(cache={"ttl": ttl, "errors": [BusyError]}).apply(function)
    for _ in range(2):
        with pytest.raises(BusyError):
            await bound()
    assert (function.calls, asked) == (1, 1)
    own: Any = Policy(cache={"ttl": ttl, "errors": [BusyError], "error_ttl": 5}).apply(Fails(BusyError()))
    with pytest.raises(BusyError):
        await own()
    assert asked == 1


@in_event_loop
@pytest.mark.parametrize("answer", [-1, "soon", RuntimeError("no")])
async def test_a_result_is_returned_and_not_kept_if_an_async_ttl_fails(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def ttl() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    function = Fails(times=0)
    bound: Any = Policy(cache={"ttl": ttl}).apply(function)
    with caplog.at_level(logging.WARNING, "opero"):
        assert [await bound(), await bound()] == ["ok", "ok"]
    assert function.calls == 2
    assert "result not cached: the cache_ttl function raised" in caplog.text


@in_event_loop
async def test_cache_set_keeps_nothing_where_the_ttl_is_async() -> None:
    async def ttl() -> float:
        return 60

    bound: Any = Policy(cache={"ttl": ttl}).apply(Fails(times=0))
    assert bound.cache_set("x") is False
