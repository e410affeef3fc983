"""The memory cache: keys, time to live, eviction and single-flight."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from opero import Policy
from opero.testing import VirtualClock


class Counting:
    """Returns its argument and records the call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return args, kwargs


def test_the_cache_answers_the_second_call(bind: Any) -> None:
    counting = Counting()

    def function(x: int, y: int = 2, *, z: int = 3) -> Any:
        return counting(x, y, z)

    call = bind(Policy(cache=True), function)
    assert call(1) == call(x=1) == call(1, 2) == call(y=2, x=1) == call(1, z=3)
    assert len(counting.calls) == 1
    assert (bind.bound.stats.cache_hits, bind.bound.stats.cache_misses, bind.bound.stats.attempts) == (4, 1, 1)


@pytest.mark.parametrize("result", [None, 0, "", [], False])
def test_none_and_falsy_results_are_cached(bind: Any, script: Any, result: Any) -> None:
    function = script(result, "other")
    call = bind(Policy(cache=True), function)
    assert call() == call() == result


def test_errors_are_not_cached(bind: Any, script: Any) -> None:
    call = bind(Policy(cache=True), script(ConnectionError(), 1))
    with pytest.raises(ConnectionError):
        call()
    assert call() == 1


@pytest.mark.parametrize("ttl", [10, "10s", lambda: 10, lambda: "10s"])
def test_a_result_is_served_until_its_ttl_ends(bind: Any, ttl: Any, script: Any) -> None:
    function = script(1, 2)
    call = bind(Policy(cache={"ttl": ttl}), function)
    assert call() == 1
    bind.clock.advance(9.9)
    assert call() == 1
    bind.clock.advance(0.2)
    assert call() == 2


def test_a_ttl_function_is_called_at_each_write_and_its_failure_does_not_fail_the_call(bind: Any, script: Any) -> None:
    times: list[Any] = [5, "soon", 7]
    call = bind(Policy(cache={"ttl": lambda: times.pop(0)}), script(1, 2, 3, 4))
    assert call() == 1
    bind.clock.advance(6)
    assert call() == 2  # "soon" is not a duration, so the result is not cached
    assert call() == 3
    assert call() == 3
    assert times == []


def test_the_key_function_receives_the_arguments_of_the_call(bind: Any) -> None:
    seen = []

    def key(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return "same"

    def function(a: int, b: int = 2) -> int:
        return a

    call = bind(Policy(cache={"key": key}), function)
    assert call(1) == call(5, b=3) == 1
    assert seen == [((1,), {}), ((5,), {"b": 3})]


def test_the_least_recently_used_result_is_evicted_first(bind: Any) -> None:
    counting = Counting()
    call = bind(Policy(cache={"max_size": 2}), counting)
    for x in (1, 2, 1, 3, 1, 2):
        call(x)
    assert [args[0] for args, _ in counting.calls] == [1, 2, 3, 2]


def test_cached_results_survive_a_change_of_other_policies(script: Any) -> None:
    function = script(1, 2)
    bound = Policy(cache=60).apply(function)
    assert bound() == 1
    bound.binding.swap(Policy(cache=60, retry=5))
    assert bound() == 1


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str) -> str:
        return self.base + path


class Keyed(Client):
    def __opero_key__(self) -> str:
        return self.base


def test_instances_share_entries_only_if_they_define_opero_key() -> None:
    bound = Policy(cache=True).apply(Client.get).__func__  # type: ignore[attr-defined]
    assert [bound(Client(base), "x") for base in ("a", "b", "a")] == ["ax", "bx", "ax"]
    assert bound.stats.cache_hits == 0
    assert [bound(Keyed(base), "x") for base in ("a", "b", "a")] == ["ax", "bx", "ax"]
    assert bound.stats.cache_hits == 1


def test_threads_compute_a_key_once() -> None:
    counting, gate = Counting(), threading.Event()

    def function(x: int) -> int:
        counting(x)
        gate.wait(60)
        return x

    bound = Policy(cache=True).apply(function)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(bound(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while bound.stats.calls < 8 and time.monotonic() < until:
        time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join()
    assert results == [1] * 8
    assert len(counting.calls) == 1


def test_tasks_compute_a_key_once_and_share_the_result() -> None:
    clock, counting = VirtualClock(), Counting()

    async def function(x: int) -> list[int]:
        counting(x)
        await asyncio.sleep(1)
        return [x]

    bound = Policy(cache=True).apply(function, clock=clock)

    async def main() -> list[Any]:
        return await asyncio.gather(*(bound(1) for _ in range(50)))

    results = clock.run(main())
    assert results == [[1]] * 50
    assert len(counting.calls) == 1
    assert (bound.stats.cache_hits, bound.stats.cache_misses) == (49, 1)


def test_cancelling_the_first_caller_does_not_cancel_the_computation_for_others() -> None:
    clock, counting = VirtualClock(), Counting()

    async def function() -> str:
        counting()
        await asyncio.sleep(1)
        return "done"

    bound = Policy(cache=True).apply(function, clock=clock)

    async def main() -> None:
        tasks = [asyncio.create_task(bound()) for _ in range(5)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == ["done"] * 4

    clock.run(main())
    assert len(counting.calls) == 1  # the computation continued for the others


def test_cancelling_a_waiting_caller_does_not_cancel_the_computation() -> None:
    clock = VirtualClock()

    async def function() -> str:
        await asyncio.sleep(1)
        return "done"

    bound = Policy(cache=True).apply(function, clock=clock)

    async def main() -> None:
        tasks = [asyncio.create_task(bound()) for _ in range(3)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [results[0], results[2]] == ["done", "done"]

    clock.run(main())
    assert bound.stats.attempts == 1


def test_a_function_that_calls_itself_with_the_same_key_does_not_deadlock(bind: Any) -> None:
    depth = 0

    def function() -> int:
        nonlocal depth
        depth += 1
        return bound() + 1 if depth < 3 else 0

    bound: Any = Policy(cache=True).apply(function)
    assert bound() == 2


def test_the_region_is_named_after_namespace_and_function() -> None:
    bound = Policy(cache={"namespace": "mine"}).apply(Client.get)
    assert bound.binding.cache.name == f"mine:{__name__}.Client.get"  # type: ignore[union-attr]


def test_a_hit_takes_no_rate_limit_permit(bind: Any) -> None:
    call = bind(Policy(cache=True, rate_limit=0.001), lambda: 1)
    before = bind.clock.monotonic()
    for _ in range(5):
        call()
    assert bind.clock.monotonic() == before
