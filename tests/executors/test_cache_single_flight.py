"""Single-flight: which callers wait for a computation, and invalidation while it runs."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import Policy
from opero.testing import VirtualClock

CALLERS = st.lists(
    st.tuples(st.floats(0, 5), st.sampled_from("ab"), st.one_of(st.none(), st.none(), st.floats(0, 2))),
    min_size=1,
    max_size=20,
)


@given(callers=CALLERS, fails=st.lists(st.booleans(), max_size=10), ttl=st.one_of(st.none(), st.floats(0.5, 3)))
@settings(max_examples=60, deadline=None)
def test_every_caller_gets_an_answer_and_no_key_is_computed_twice_at_once(
    callers: list[Any], fails: list[bool], ttl: float | None
) -> None:
    clock = VirtualClock()
    running: list[str] = []
    twice: list[str] = []
    runs = 0

    async def function(key: str) -> str:
        nonlocal runs
        number, runs = runs, runs + 1
        twice.extend(key for each in running if each == key)
        running.append(key)
        try:
            await asyncio.sleep(1)
        finally:
            running.remove(key)
        if number < len(fails) and fails[number]:
            raise ConnectionError
        return key.upper()

    bound = Policy(cache={"ttl": ttl}).apply(function, clock=clock)

    async def caller(at: float, key: str, patience: float | None) -> Any:
        await asyncio.sleep(at)
        try:
            async with asyncio.timeout(patience):
                assert await bound(key) == key.upper()
        except TimeoutError:
            assert patience is not None
            return None
        except ConnectionError:
            return None
        return clock.monotonic()

    async def main() -> None:
        async with asyncio.timeout(100):
            await asyncio.gather(*(caller(*each) for each in callers))

    clock.run(main())
    if not any(fails[:runs]):
        assert twice == []
    assert bound.binding.cache is not None
    assert bound.binding.cache.single_flight.running == {}
    stats = bound.stats
    assert (stats.calls, stats.attempts, stats.cache_misses) == (len(callers), runs, runs)
    assert stats.cache_hits + stats.cache_misses <= stats.calls


@pytest.mark.parametrize("through", [asyncio.gather, lambda call: asyncio.wait_for(call, 5)])
def test_a_function_that_calls_itself_with_the_same_key_in_another_task_does_not_deadlock(through: Any) -> None:
    clock, depth = VirtualClock(), 0

    async def function() -> int:
        nonlocal depth
        depth += 1
        if depth == 3:
            return 0
        result = await through(bound())
        return (result[0] if isinstance(result, list) else result) + 1

    bound: Any = Policy(cache=True).apply(function, clock=clock)

    async def main() -> int:
        async with asyncio.timeout(10):
            return int(await bound())

    assert clock.run(main()) == 2


def test_a_function_that_calls_itself_with_the_same_key_under_a_timeout_in_a_thread_does_not_deadlock() -> None:
    depth = 0
    results: list[int] = []

    def function() -> int:
        nonlocal depth
        depth += 1
        return bound() + 1 if depth < 3 else 0

    bound: Any = Policy(cache=True, timeout={"attempt": 2}).apply(function)
    thread = threading.Thread(
        target=lambda: results.append(bound())
    )  # outside the main thread, a timeout runs the attempt in a helper thread
    thread.start()
    thread.join(60)
    assert results == [2]


def test_a_task_started_within_a_computation_waits_for_other_computations() -> None:
    clock = VirtualClock()
    runs: list[str] = []

    async def function(key: str) -> str:
        runs.append(key)
        if key == "outer":
            tasks = [asyncio.create_task(bound("inner")) for _ in range(5)]
            await asyncio.gather(*tasks)
        await asyncio.sleep(1)
        return key

    bound: Any = Policy(cache=True).apply(function, clock=clock)
    assert clock.run(bound("outer")) == "outer"
    assert runs == ["outer", "inner"]


def test_a_result_that_is_evicted_at_once_still_reaches_all_waiting_callers() -> None:
    clock, runs = VirtualClock(), []

    async def function(key: str) -> str:
        runs.append(key)
        await asyncio.sleep(1)
        return key

    bound = Policy(cache={"max_size": 1}).apply(function, clock=clock)

    async def main() -> list[str]:
        return await asyncio.gather(*(bound(key) for _ in range(10) for key in "abc"))

    assert clock.run(main()) == [*"abc"] * 10
    assert sorted(runs) == [*"abc"]
    assert (bound.stats.cache_hits, bound.stats.cache_misses) == (27, 3)


@pytest.mark.parametrize("forget", ["delete", "clear"])
def test_a_result_whose_key_is_deleted_meanwhile_is_not_cached_nor_given_to_later_callers(forget: str) -> None:
    clock, truth = VirtualClock(), "old"

    async def function(key: int) -> str:
        seen = truth
        await asyncio.sleep(1)
        return seen

    bound = Policy(cache=True).apply(function, clock=clock)

    async def main() -> None:
        nonlocal truth
        early = asyncio.create_task(bound(1))
        await asyncio.sleep(0.5)
        truth = "new"
        if forget == "delete":
            bound.cache_delete(1)
        else:
            bound.cache_clear()
        late = asyncio.create_task(bound(1))
        assert await early == "old"  # it called before the deletion
        assert await late == "new"
        assert await bound(1) == "new"
        assert bound.cache_get(1) == "new"

    clock.run(main())
    assert bound.stats.attempts == 2


def test_deleting_one_key_does_not_affect_the_computation_of_another() -> None:
    clock = VirtualClock()

    async def function(key: int) -> int:
        await asyncio.sleep(1)
        return key

    bound = Policy(cache=True).apply(function, clock=clock)

    async def main() -> None:
        task = asyncio.create_task(bound(1))
        await asyncio.sleep(0.5)
        bound.cache_delete(2)
        await task
        assert bound.cache_get(1) == 1

    clock.run(main())


def test_many_threads_compute_each_key_once_and_every_call_is_a_hit_or_a_miss() -> None:
    runs: list[int] = []
    bound = Policy(cache=True).apply(lambda key: runs.append(key) or key)
    wrong: list[int] = []

    def hammer() -> None:
        wrong.extend(key for _ in range(20) for key in range(40) if bound(key) != key)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (sorted(runs), wrong) == (list(range(40)), [])
    assert (bound.stats.cache_misses, bound.stats.cache_hits) == (40, 8 * 20 * 40 - 40)


def test_a_lookup_that_finds_an_expired_result_does_not_delete_a_concurrent_new_one() -> None:
    clock = VirtualClock()
    bound = Policy(cache={"ttl": 5}).apply(lambda: "old", clock=clock)
    bound()
    clock.advance(6)
    cache: Any = bound.binding.cache
    read = clock.monotonic

    def read_late() -> float:
        clock.monotonic = read
        cache.set("new")  # as another thread might, between the lookup and the reading of the clock
        return read()

    clock.monotonic = read_late
    cache.store.now = clock.monotonic
    cache.store.read(cache.key((), {}))
    assert bound.cache_get() == "new"
