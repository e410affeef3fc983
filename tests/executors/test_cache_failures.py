"""Callers that wait for a computation which fails."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from opero import Policy
from opero.testing import VirtualClock

CALLERS = 50


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {"ttl": 60, "backend": request.param, **({"cache_dir": tmp_path} if request.param == "disk" else {})}


class Service:
    """A function that takes a moment, and fails the first times that it is called.

    Attributes:
        bound: the function under a policy.
        most: the largest number of calls at once.
    """

    def __init__(self, policy: Policy, kind: str, *, failing: int = 10**9, result: Any = "up") -> None:
        self.failing, self.result = failing, result
        self.calls = self.running = self.most = 0
        self.lock, self.gate = threading.Lock(), threading.Event()

        def begin() -> int:
            with self.lock:
                self.calls += 1
                self.running += 1
                self.most = max(self.most, self.running)
                return self.calls

        def end(number: int) -> Any:
            with self.lock:
                self.running -= 1
            if number <= self.failing:
                raise ConnectionError(f"call {number}")
            return self.result

        def function() -> Any:
            number = begin()
            self.gate.wait(60)
            return end(number)

        async def function_async() -> Any:
            number = begin()
            await asyncio.sleep(0.01 if self.gate.is_set() else 0)
            while not self.gate.is_set():
                await asyncio.sleep(0.001)
            return end(number)

        self.kind = kind
        self.bound: Any = policy.apply(function if kind == "sync" else function_async)

    def waiting(self) -> int:
        running = list(self.bound.binding.cache.single_flight.running.values())
        return len(running[0].waiters) if running else 0

    def call_at_once(self) -> list[Any]:
        """What `CALLERS` concurrent callers get: results, or exceptions."""

        def until_all_wait() -> None:
            until = time.monotonic() + 60
            while self.waiting() < CALLERS - 1 and time.monotonic() < until:
                time.sleep(0.001)
            self.gate.set()

        def caught() -> Any:
            try:
                return self.bound()
            except Exception as error:
                return error

        if self.kind == "sync":
            with ThreadPoolExecutor(CALLERS + 1) as threads:
                futures = [threads.submit(caught) for _ in range(CALLERS)]
                threads.submit(until_all_wait)
                return [each.result(60) for each in futures]

        async def main() -> list[Any]:
            calls = [asyncio.ensure_future(self.bound()) for _ in range(CALLERS)]
            await asyncio.to_thread(until_all_wait)
            return await asyncio.gather(*calls, return_exceptions=True)

        return asyncio.run(main())


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
@pytest.mark.parametrize("retries", [0, 2])
def test_all_that_wait_share_the_failure_of_the_call_that_they_waited_for(
    store: dict[str, Any], kind: str, retries: int
) -> None:
    policy = Policy(cache=store, retry={"retries": retries, "min_delay": 0, "max_delay": 0.001, "reraise": True})
    service = Service(policy, kind)
    results = service.call_at_once()
    assert [str(each) for each in results] == [f"call {retries + 1}"] * CALLERS
    assert service.calls == retries + 1
    stats = service.bound.stats
    assert (stats.calls, stats.failures, stats.attempts) == (CALLERS, CALLERS, retries + 1)
    assert (stats.cache_hits, stats.cache_misses) == (0, 1)
    assert len({id(each) for each in results}) == CALLERS  # each has one of its own, whose traceback is its own
    places = [[frame.name for frame in traceback.extract_tb(each.__traceback__)] for each in results]
    assert all("end" in each and len(each) < 12 for each in places)
    assert service.bound.binding.cache.single_flight.running == {}


@both
def test_if_they_do_not_share_it_they_try_one_at_a_time_until_one_succeeds(store: dict[str, Any], kind: str) -> None:
    service = Service(Policy(cache={**store, "share_errors": False}), kind, failing=7)
    results = service.call_at_once()
    assert sorted(str(each) for each in results) == [*(f"call {number}" for number in range(1, 8)), *["up"] * 43]
    assert (service.calls, service.most) == (8, 1)


@both
def test_if_they_do_not_share_it_and_none_succeeds_each_has_tried_once(store: dict[str, Any], kind: str) -> None:
    service = Service(Policy(cache={**store, "share_errors": False}), kind)
    results = service.call_at_once()
    assert sorted(str(each) for each in results) == sorted(f"call {number}" for number in range(1, CALLERS + 1))
    assert (service.calls, service.most) == (CALLERS, 1)


@both
@pytest.mark.parametrize("fallback", [{"default": {"stale": []}}, {"function": "executors.test_cache_failures:down"}])
def test_they_share_a_fallback_result_each_with_a_copy_of_its_own(
    store: dict[str, Any], kind: str, fallback: Any
) -> None:
    service = Service(Policy(cache=store, fallback=fallback), kind)
    results = service.call_at_once()
    assert results == [{"stale": []}] * CALLERS
    assert len({id(each["stale"]) for each in results}) == CALLERS
    assert service.calls == 1
    assert service.bound.cache_get() is None


def down() -> dict[str, Any]:
    return {"stale": []}


def test_a_result_that_is_not_cached_is_computed_by_all_at_once() -> None:
    clock = VirtualClock()

    async def function() -> str:
        await asyncio.sleep(1)
        return "up"

    bound: Any = Policy(cache={"cache_if": "operator:not_"}).apply(function, clock=clock)

    async def main() -> None:
        began = clock.monotonic()
        assert await asyncio.gather(*(bound() for _ in range(CALLERS))) == ["up"] * CALLERS
        assert clock.monotonic() - began == pytest.approx(2)  # the first one, and then all others

    clock.run(main())
    assert bound.stats.attempts == CALLERS


@both
def test_a_cached_failure_is_shared_and_later_callers_get_it_too(store: dict[str, Any], kind: str) -> None:
    service = Service(Policy(cache={**store, "errors": True}), kind)
    results = service.call_at_once()
    assert [str(each) for each in results] == ["call 1"] * CALLERS
    assert len({id(each) for each in results}) == CALLERS
    with pytest.raises(ConnectionError, match="call 1"):
        _ = service.bound() if kind == "sync" else asyncio.run(service.bound())
    assert service.calls == 1


class OddError(Exception):
    """Cannot be copied."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def test_an_exception_that_cannot_be_copied_is_shared_itself() -> None:
    clock = VirtualClock()

    async def function() -> None:
        await asyncio.sleep(1)
        raise OddError(1, 2)

    bound: Any = Policy(cache=True).apply(function, clock=clock)

    async def main() -> list[Any]:
        return await asyncio.gather(*(bound() for _ in range(5)), return_exceptions=True)

    results = clock.run(main())
    assert [type(each) for each in results] == [OddError] * 5
    assert bound.stats.attempts == 1


@pytest.mark.parametrize("end", [asyncio.CancelledError, KeyboardInterrupt])
def test_if_the_computation_ends_without_an_outcome_the_next_one_computes(end: type[BaseException]) -> None:
    gate, runs, results = threading.Event(), [], []

    def function() -> str:
        runs.append(1)
        if len(runs) == 1:
            gate.wait(60)
            raise end
        return "done"

    bound: Any = Policy(cache=True).apply(function)

    def call(keep: Callable[[Any], Any]) -> None:
        try:
            keep(bound())
        except BaseException as error:
            keep(type(error))

    threads = [threading.Thread(target=call, args=(results.append,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    flight = bound.binding.cache.single_flight
    until = time.monotonic() + 60
    while sum(len(each.waiters) for each in list(flight.running.values())) < 7 and time.monotonic() < until:
        time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, results)) == sorted([str(end), *["done"] * 7])
    assert len(runs) == 2


def test_a_failure_keeps_no_frames_alive() -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def function() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise ConnectionError

    bound: Any = Policy(cache=True).apply(function)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                bound()
        alive = [each for each in held if each() is not None]
    finally:
        gc.enable()
    assert alive == []
