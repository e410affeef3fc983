"""Scripted and random faults pass all policies as real attempts do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from opero import AllFailedError, CallTimeoutError, CircuitOpenError, ConfigError, Policy, Registry, opero
from opero.failures import Kind, failure_of
from opero.testing import VirtualClock, assert_attempts, faults, ok, slow, status, virtual_clock
from opero.testing.faults import StatusError

QUICK = Policy(retry={"retries": 5, "min_delay": 0, "jitter": False})


def real(item: int, *, factor: int = 2) -> Any:
    return item * factor


async def real_async(item: int, *, factor: int = 2) -> Any:
    return item * factor


def real_generator(item: int, *, factor: int = 2) -> Iterator[Any]:
    sent = yield item * factor
    yield sent


async def real_async_generator(item: int, *, factor: int = 2) -> AsyncGenerator[Any, Any]:
    sent = yield item * factor
    yield sent


class Client:
    @opero(retries=5, min_delay=0)
    def get(self, item: int, *, factor: int = 2) -> Any:
        return item * factor

    @classmethod
    @opero(retries=5, min_delay=0)
    def make(cls, item: int, *, factor: int = 2) -> Any:
        return item * factor


def first(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function of any kind: its result, or its first item."""

    async def main() -> Any:
        result = function(*args, **kwargs)
        return await (anext(result) if hasattr(result, "asend") else result)

    if function.binding.is_async:
        return asyncio.run(main())
    result = function(*args, **kwargs)
    return next(result) if inspect.isgenerator(result) else result


KINDS: list[Any] = [
    QUICK.apply(real),
    QUICK.apply(real_async),
    QUICK.apply(real_generator),
    QUICK.apply(real_async_generator),
    Client().get,
    Client.make,
    Registry({"api": QUICK}).bind(real, "api"),
]


@pytest.mark.parametrize("function", KINDS)
def test_attempts_do_what_the_script_says_and_then_call_the_real_function(function: Any) -> None:
    with faults(function, [ConnectionError, TimeoutError("slow"), ok]) as script, assert_attempts(function, 3):
        assert first(function, 21) == 42
    assert (script.attempts, script.remaining) == (3, [])
    with faults(function, [ConnectionError]), assert_attempts(function, 2):
        assert first(function, 2, factor=5) == 10
    with assert_attempts(function, 1):
        assert first(function, 21) == 42


@pytest.mark.parametrize("function", KINDS)
def test_anything_else_is_returned_and_generators_yield_its_items(function: Any) -> None:
    values = [7, 8]
    with faults(function, [values]):
        assert first(function, 1) == (7 if function.binding.target.is_stream else values)


@pytest.mark.parametrize("function", [Policy(retry=3).apply(real), Policy(retry=3).apply(real_async)])
def test_a_slow_attempt_takes_its_time_on_the_clock(function: Any) -> None:
    with virtual_clock() as clock, faults(function, [slow("2s")]):
        before = clock.monotonic()
        assert first(function, 1) == 2
        assert clock.monotonic() - before == pytest.approx(2)


@pytest.mark.parametrize("kind", [real, real_async])
def test_a_slow_attempt_runs_into_a_timeout_and_the_next_one_succeeds(kind: Any) -> None:
    function = Policy(retry=1, timeout={"attempt": 1}).apply(kind)
    with virtual_clock(), faults(function, [slow("2s")]) as script:
        assert first(function, 1) == 2
        assert script.attempts == 2
        with faults(function, [slow(2)] * 2), pytest.raises((AllFailedError, CallTimeoutError)):
            first(function, 1)


def test_responses_are_retried_by_their_status_and_wait_for_retry_after() -> None:
    function = Policy(retry=3).apply(real)
    with virtual_clock() as clock, faults(function, [status(503, retry_after=7), status(429, retry_after=9), ok]):
        assert function(1) == 2
    assert clock.slept == [7, 9]


def test_a_response_that_is_the_last_attempt_is_returned() -> None:
    function = Policy(retry=1).apply(real)
    with virtual_clock(), faults(function, [status(503), status(503)]):
        response = function(1)
    assert (response.status_code, response.ok, response.text) == (503, False, "Service Unavailable")
    with pytest.raises(Exception, match="HTTP 503"):
        response.raise_for_status()


def test_faults_open_the_circuit_and_it_stays_open_after_the_block() -> None:
    function = Policy(circuit_breaker=2).apply(real)
    with faults(function, [ConnectionError] * 2):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                function(1)
    with pytest.raises(CircuitOpenError):
        function(1)


def test_a_circuit_that_functions_of_a_profile_share_sees_faults_of_one() -> None:
    registry = Registry({"api": Policy(circuit_breaker=2)})
    one, other = registry.bind(real, "api"), registry.bind(real, "api")
    assert other(1) == 2
    with faults(one, [ConnectionError] * 2):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                one(1)
        with pytest.raises(CircuitOpenError):
            other(1)


def test_a_result_in_the_cache_needs_no_attempt() -> None:
    function = Policy(cache=True).apply(real)
    assert function(1) == 2
    with faults(function, [ConnectionError]) as script:
        assert function(1) == 2
        assert script.attempts == 0
        with pytest.raises(ConnectionError):
            function(2)


def test_fallback_values_are_tried_in_turn() -> None:
    function: Any = Policy(fallback={"arg": "item"}).apply(real)
    with faults(function, [ConnectionError, ok]), assert_attempts(function, 2):
        assert function([1, 2]) == 4


def test_blocks_nest_and_the_inner_one_calls_what_the_outer_says() -> None:
    function = QUICK.apply(real)
    with faults(function, ["outer"]), faults(function, [ConnectionError]) as inner:
        assert function(1) == "outer"
    assert inner.attempts == 2
    assert function(1) == 2


def test_a_reload_within_the_block_keeps_the_faults() -> None:
    registry = Registry({"api": QUICK})
    function: Any = registry.bind(real, "api")
    with faults(function, [ConnectionError] * 3):
        with registry.override(api={"retry": {"retries": 0}}), pytest.raises(ConnectionError):
            function(1)
        with assert_attempts(function, 3):
            assert function(1) == 2


def test_methods_have_the_faults_for_all_instances() -> None:
    with faults(Client.get, [ConnectionError] * 2) as script:
        assert (Client().get(1), Client().get(2)) == (2, 4)
    assert script.attempts == 4


def test_items_sent_into_a_generator_reach_the_real_one() -> None:
    generator, generator_async = QUICK.apply(real_generator), QUICK.apply(real_async_generator)

    async def main() -> list[Any]:
        items = generator_async(1)
        return [await anext(items), await items.asend("sent")]

    with faults(generator, [ConnectionError]), faults(generator_async, [ConnectionError]):
        items: Any = generator(1)
        assert [next(items), items.send("sent")] == [2, "sent"]
        assert asyncio.run(main()) == [2, "sent"]


def test_an_exception_thrown_into_a_generator_reaches_the_real_one() -> None:
    async def catching() -> AsyncGenerator[Any, Any]:
        try:
            yield 1
        except KeyError:
            yield "caught"

    function = QUICK.apply(catching)

    async def main() -> Any:
        items = function()
        await anext(items)
        return await items.athrow(KeyError())

    with faults(function, [ok]):
        assert asyncio.run(main()) == "caught"


def random_outcomes(seed: int, rate: float = 0.2) -> list[bool]:
    function = Policy(retry={"retries": 0}).apply(real)
    outcomes = []
    with faults(function, rate=rate, seed=seed, errors=[ConnectionError, TimeoutError("late")]):
        for number in range(500):
            try:
                function(number)
            except (ConnectionError, TimeoutError):
                outcomes.append(False)
            else:
                outcomes.append(True)
    return outcomes


def test_random_faults_have_the_rate_and_are_the_same_for_a_seed() -> None:
    assert random_outcomes(1) == random_outcomes(1) != random_outcomes(2)
    assert 0.12 < random_outcomes(1).count(False) / 500 < 0.28
    assert all(random_outcomes(1, 0))
    assert not any(random_outcomes(1, 1))


def test_threads_take_each_step_once() -> None:
    function = Policy(retry={"retries": 50, "min_delay": 0}).apply(real)
    with faults(function, [ConnectionError] * 50) as script, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(function, range(100)))
    assert results == [2 * item for item in range(100)]
    assert script.attempts == 150


def test_a_map_in_processes_is_refused() -> None:
    function: Any = Policy(retry=1, parallel={"mode": "process", "workers": 1}).apply(real)
    with faults(function, [ConnectionError]), pytest.raises(Exception, match="faults.. do not reach other processes"):
        list(function.map([1, 2]))


def test_a_function_that_was_never_called_and_one_with_a_clock_of_its_own() -> None:
    clock = VirtualClock()
    function = opero(retries=2, min_delay=5, jitter=False, clock=clock)(real)
    with faults(function, [ConnectionError, slow(1)]):
        assert function(1) == 2
    assert clock.slept == [5, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [ok], "rate": 0.5}, "expected either steps or rate, got both"),
        ({"rate": 1.5}, "rate must be a number between 0 and 1, got 1.5"),
        ({"rate": True}, "rate must be a number between 0 and 1, got True"),
        ({"rate": 0.5, "errors": []}, "errors is empty"),
        ({"steps": [UnicodeDecodeError]}, "UnicodeDecodeError cannot be raised without arguments .* pass an instance"),
        ({"steps": [status]}, "status is a function; write status"),
    ],
)
def test_invalid_faults_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message), faults(QUICK.apply(real), **arguments):
        pass


def test_invalid_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="real is not bound"), faults(real, [ok]):
        pass
    generator = QUICK.apply(real_generator)
    with pytest.raises(ConfigError, match="is a generator, and 3 has no items"), faults(generator, [3]):
        pass
    with pytest.raises(ConfigError, match=r"slow\('soon'\)"):
        slow("soon")
    with pytest.raises(ConfigError, match=r"status\(42\): expected an HTTP status between 100 and 599"):
        status(42)


def test_an_exception_for_a_status_is_of_its_kind() -> None:
    with pytest.raises(StatusError) as caught:
        status(503, retry_after=2).raise_for_status()
    failure = failure_of(caught.value)
    assert (failure.kind, failure.status, failure.retry_in) == (Kind.THROTTLED, 503, 2.0)
