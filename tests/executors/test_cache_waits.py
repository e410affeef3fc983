"""Waiting: computations that depend on each other, cancelled callers, and background refreshes at shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from opero import Policy
from opero.cache.computation_lock import ComputationLock
from opero.runtime.hosts import MAX_HELPERS, helpers
from opero.testing import VirtualClock


def test_threads_whose_computations_depend_on_each_other_do_not_deadlock() -> None:
    both = threading.Barrier(2, timeout=60)

    def one(depth: int = 0) -> str:
        if depth == 0:
            both.wait()
        return "one" + (cached_other(1) if depth == 0 else "")

    def other(depth: int = 0) -> str:
        if depth == 0:
            both.wait()
        return "other" + (cached_one(1) if depth == 0 else "")

    # The arguments are not part of the key: one() and one(1) have the same.
    policy = Policy(cache={"key": lambda *args: "same"})
    cached_one: Any = policy.apply(one)
    cached_other: Any = policy.apply(other)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda call=call: results.append(call()), daemon=True)
        for call in (cached_one, cached_other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    assert {result[:3] for result in results} == {"one", "oth"}


def test_tasks_whose_computations_depend_on_each_other_in_a_cycle_do_not_deadlock() -> None:
    clock, size = VirtualClock(), 4

    async def function(number: int) -> int:
        await asyncio.sleep(1)  # until all of them are running
        running.append(number)
        return number if len(running) > 2 * size else await bound((number + 1) % size)

    running: list[int] = []
    bound: Any = Policy(cache=True).apply(function, clock=clock)

    async def main() -> None:
        async with asyncio.timeout(100):
            await asyncio.gather(*(bound(number) for number in range(size)))

    clock.run(main())
    assert bound.binding.cache.single_flight.running == {}


def test_when_all_callers_are_cancelled_the_computation_is_cancelled_and_cleans_up() -> None:
    clock = VirtualClock()
    ends: list[str] = []

    async def function() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(1)
            ends.append("tidied")

    bound: Any = Policy(cache=True).apply(function, clock=clock)

    async def main() -> None:
        tasks = [asyncio.create_task(bound()) for _ in range(3)]
        await asyncio.sleep(1)
        tasks[0].cancel()
        await asyncio.sleep(1)
        assert ends == []
        for task in tasks[1:]:
            task.cancel()
        await asyncio.sleep(2)
        assert ends == ["tidied"]
        alone = asyncio.create_task(bound())
        await asyncio.sleep(1)
        alone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await alone
        assert ends == ["tidied"] * 2

    clock.run(main())
    assert bound.binding.cache.single_flight.running == {}


def test_if_a_computation_cancels_itself_the_waiting_callers_try_again() -> None:
    clock = VirtualClock()
    runs: list[int] = []

    async def function() -> str:
        runs.append(1)
        await asyncio.sleep(1)
        if len(runs) == 1:
            raise asyncio.CancelledError
        return "done"

    bound: Any = Policy(cache=True).apply(function, clock=clock)

    async def main() -> list[Any]:
        return await asyncio.gather(*(bound() for _ in range(3)), return_exceptions=True)

    results = clock.run(main())
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["done"] * 2


def test_an_async_function_sees_its_callers_context() -> None:
    user = contextvars.ContextVar("user", default="nobody")

    async def function(key: int) -> str:
        return user.get()

    bound: Any = Policy(cache=True).apply(function)

    async def main() -> list[str]:
        user.set("ada")
        return [await bound(1), await bound(1)]

    assert asyncio.run(main()) == ["ada", "ada"]


def test_a_refresh_is_cancelled_with_its_event_loop() -> None:
    clock = VirtualClock()
    runs: list[int] = []

    async def function() -> int:
        runs.append(1)
        await asyncio.sleep(1)
        return len(runs)

    bound: Any = Policy(cache={"ttl": 10, "stale_ttl": 100}).apply(function, clock=clock)
    assert clock.run(bound()) == 1
    clock.advance(11)
    assert clock.run(bound()) == 1  # the refresh is cancelled with the loop
    assert bound.binding.cache.single_flight.running == {}

    async def wait() -> int:
        assert await bound() == 1
        await asyncio.sleep(2)
        return int(await bound())

    assert clock.run(wait()) == 3


def test_hits_and_misses_create_no_reference_cycles() -> None:
    def function(key: int) -> int:
        if key < 0:
            raise ValueError(key)
        return key

    async def function_async(key: int) -> int:
        return function(key)

    bound: Any = Policy(cache=True).apply(function)
    bound_async: Any = Policy(cache=True).apply(function_async)

    async def main(turns: int) -> None:
        for key in range(-turns, turns):
            for call in (bound, bound_async):
                try:
                    result = call(key)
                    _ = await result if call is bound_async else result
                except ValueError:
                    pass

    asyncio.run(main(3))
    with asyncio.Runner() as runner:
        runner.run(main(3))
        found = []
        for _ in range(3):  # threads of earlier tests may make some meanwhile
            gc.collect()
            gc.disable()
            try:
                runner.run(main(50))
                found.append(gc.collect())
            finally:
                gc.enable()
        assert min(found) < 50


def test_refreshes_beyond_the_limit_are_left_to_the_next_caller(monkeypatch: Any) -> None:
    from opero.runtime import hosts

    monkeypatch.setattr(hosts, "_background_slots", threading.BoundedSemaphore(2))
    clock, gate, runs = VirtualClock(), threading.Event(), []

    def function(key: int) -> int:
        runs.append(key)
        if len(runs) > 5:
            gate.wait(60)
        return len(runs)

    bound: Any = Policy(cache={"ttl": 10, "stale_ttl": 100}).apply(function, clock=clock)
    first = [bound(key) for key in range(5)]
    clock.advance(11)
    assert [bound(key) for key in range(5)] == first
    until = time.monotonic() + 60
    while len(runs) < 7 and time.monotonic() < until:
        time.sleep(0.001)
    assert len(runs) == 7
    assert len(bound.binding.cache.single_flight.running) == 2
    gate.set()
    while bound.binding.cache.single_flight.running and time.monotonic() < until:
        time.sleep(0.001)
    assert [bound(key) for key in range(2)] != first[:2]


def locks_of(bound: Any) -> Any:
    return bound.binding.cache.store.backend.database.locks.holders


def run_until(is_true: Any) -> None:
    end = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_computation_that_is_cancelled_just_before_it_is_locked_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    acquire = ComputationLock.acquire

    def acquire_late(self: ComputationLock) -> bool:
        begun.set()
        assert go_on.wait(60)
        try:
            return acquire(self)
        finally:
            ended.set()

    monkeypatch.setattr(ComputationLock, "acquire", acquire_late)

    async def function() -> int:
        return 1

    bound: Any = Policy.model_validate({"cache": {"backend": "disk", "ttl": 90, "cache_dir": tmp_path}}).apply(function)

    async def main() -> None:
        task = asyncio.create_task(bound())
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    go_on.set()
    assert ended.wait(60)
    assert locks_of(bound) == {}


def test_a_computation_that_is_cancelled_while_it_is_unlocked_leaves_no_lock(tmp_path: Path) -> None:
    go_on = threading.Event()

    async def function() -> int:
        for _ in range(MAX_HELPERS):
            helpers().submit(go_on.wait, 60)  # whatever the cache asks for next has to wait
        return 1

    bound: Any = Policy.model_validate({"cache": {"backend": "disk", "ttl": 90, "cache_dir": tmp_path}}).apply(function)

    async def main() -> None:
        task = asyncio.create_task(bound())
        while not locks_of(bound):
            await asyncio.sleep(0.001)
        for _ in range(3):  # its write, and then what it does at its end
            await asyncio.sleep(0.01)
            for each in asyncio.all_tasks() - {asyncio.current_task()}:
                each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        asyncio.run(main())
    finally:
        go_on.set()
    run_until(lambda: not locks_of(bound))
