"""Cancelling an async call at each turn of its event loop: whatever it held is free again afterwards."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from opero import ConfigError, OperoError, Policy
from opero.runtime.exclusive_file import LockedFile
from opero.testing import VirtualClock
from opero.testing.clock import _VirtualLoop

MOST = 200
"""No call takes more turns; one that does would never end."""
POLICIES: dict[str, dict[str, Any]] = {
    "retry": {"retry": {"retries": 3, "min_delay": 0.1}},
    "memory": {"cache": {"ttl": 60}},
    "disk": {"cache": {"ttl": 60, "backend": "disk"}},
    "rate_limit": {"rate_limit": {"rate": 2, "burst": 1}},
    "timeout": {"timeout": {"total": 30, "attempt": 5}},
    "breaker": {"circuit_breaker": {"consecutive_failures": 1, "open_for": 0.05}},
    "bulkhead": {"bulkhead": {"max_concurrent": 1, "max_wait": 50}},
    "hedge": {"hedge": {"after": 0.01, "budget": 1}, "bulkhead": {"max_concurrent": 3}},
    "fallback": {"fallback": {"arg": "model", "values": ["a", "b"]}},
}
ALL = {name: policy for each in POLICIES.values() for name, policy in each.items()}
POLICIES["all, disk"] = ALL | POLICIES["disk"]
POLICIES["all, memory"] = ALL | POLICIES["memory"]


class Loop(_VirtualLoop):
    """An event loop that does something at the beginning of certain turns."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.turns: int | None = None
        self.actions: dict[int, Callable[[], object]] = {}

    def _run_once(self) -> None:
        if self.turns is not None:
            action = self.actions.pop(self.turns, None)
            self.turns += 1
            if action is not None:
                action()
        super()._run_once()


def eventually(is_so: Callable[[], object]) -> None:
    """Wait for threads that end what a cancelled call has begun."""
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


class Calls:
    """A bound function of which three callers want the same at once, and fails at first."""

    def __init__(self, policy: dict[str, Any], folder: Path) -> None:
        if policy.get("cache", {}).get("backend") == "disk":
            policy = policy | {"cache": policy["cache"] | {"cache_dir": folder}}
        self.clock = VirtualClock()
        self.attempts = 0

        async def fetch(key: str, model: str = "a") -> str:
            self.attempts += 1
            if self.attempts == 1:
                raise ConnectionError
            await asyncio.sleep(0)
            await asyncio.sleep(0.1)
            return key

        self.bound = Policy(**policy).apply(fetch, clock=self.clock)

    async def one(self) -> str:
        try:
            return await self.bound("k")
        except Exception:  # the first failure, or an open circuit
            await asyncio.sleep(0.06)
            return await self.bound("k")

    def check(self) -> None:
        """Nothing is held any more, and the next call gets what it wants."""
        executors = self.bound.binding.pipeline.executors
        cache, bulkhead, limit = (executors.get(each) for each in ("cache", "bulkhead", "rate_limit"))
        limit = getattr(limit, "limiter", None)
        if cache is not None:
            eventually(lambda: cache.single_flight.running == {})
            if cache.is_shared:
                key = cache.key(("k",), {})
                eventually(lambda: not cache.store.mutex(key).locked())
        if bulkhead is not None:
            eventually(lambda: bulkhead.running == 0)
            assert not bulkhead.home.queue
        if limit is not None:
            assert limit.queued == 0
            assert limit._waiting == {}
            assert limit.next_permit() <= 2 * 0.5 + 1e-6  # a permit stays reserved if others have reserved after it

        async def again() -> str:
            for _ in range(5):  # while a slow disk is waited for, virtual time may pass
                try:
                    return await self.one()
                except OperoError:
                    await asyncio.sleep(1)
            return await self.one()

        self.clock.advance(1)
        assert run(self.clock, again()) == "k"


def run(clock: VirtualClock, main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=lambda: Loop(clock)) as runner:
        return runner.run(main)


async def cancelled_at(turns: Collection[int], *, everything: bool, coroutines: list[Any]) -> list[Any]:
    """Run coroutines; cancel the first at some turns, or all tasks, such as those that opero has made."""
    loop: Any = asyncio.get_running_loop()
    me = asyncio.current_task()
    tasks = [loop.create_task(each) for each in coroutines]

    def cancel() -> None:
        for each in [task for task in asyncio.all_tasks(loop) if task is not me] if everything else tasks[:1]:
            each.cancel()

    loop.turns = 0
    loop.actions = dict.fromkeys(turns, cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    loop.turns = None
    return results


def at_each_turn(attempt: Callable[[int], list[Any]], most: int = MOST) -> None:
    """Try every turn until none is cancelled any more."""
    for turn in range(most):
        if not any(isinstance(each, asyncio.CancelledError) for each in attempt(turn)):
            assert turn > 0
            return
    raise AssertionError("the call never came to its end")


HOW = [("one", 0), ("one", 1), ("one", 2), ("all", 0), ("all", 1)]
"""What is cancelled; and how many turns later once more."""


@pytest.mark.parametrize(("what", "later"), HOW)
@pytest.mark.parametrize("name", POLICIES)
def test_a_call_that_is_cancelled_at_any_turn_leaves_nothing_taken(
    name: str, what: str, later: int, tmp_path: Path
) -> None:
    def attempt(turn: int) -> list[Any]:
        calls = Calls(POLICIES[name], tmp_path / str(turn))
        two = cancelled_at({turn, turn + later}, everything=what == "all", coroutines=[calls.one(), calls.one()])
        results: list[Any] = run(calls.clock, two)
        if what == "one":
            assert results[1] == "k" or isinstance(results[1], OperoError)
        calls.check()
        return results

    at_each_turn(attempt)


@pytest.mark.parametrize(("what", "later"), HOW)
def test_a_stream_that_is_cancelled_at_any_turn_leaves_nothing_taken(what: str, later: int) -> None:
    def attempt(turn: int) -> list[Any]:
        clock, failures = VirtualClock(), [ConnectionError()]

        async def items() -> AsyncIterator[int]:
            await asyncio.sleep(0)
            if failures:
                raise failures.pop()
            for each in range(3):
                yield each
                await asyncio.sleep(0.1)

        stream: Any = Policy(
            retry={"min_delay": 0.1},
            bulkhead={"max_concurrent": 1, "max_wait": 50},
            rate_limit="100/s",
            timeout={"attempt": 5, "idle": 5, "total": 50},
            circuit_breaker={"consecutive_failures": 1, "open_for": 0.05},
        ).apply(items, clock=clock)

        async def read() -> list[int]:
            return [each async for each in stream()]

        both = cancelled_at({turn, turn + later}, everything=what == "all", coroutines=[read(), read()])
        results: list[Any] = run(clock, both)
        assert stream.binding.pipeline.executors["bulkhead"].running == 0
        clock.advance(1)
        assert run(clock, read()) == [0, 1, 2]
        assert stream.binding.circuit_breaker.state == "closed"
        return results

    at_each_turn(attempt)


@pytest.mark.parametrize(("what", "later"), HOW)
def test_a_map_that_is_cancelled_at_any_turn_gives_back_its_journal_and_slots(
    what: str, later: int, tmp_path: Path
) -> None:
    def attempt(turn: int) -> list[Any]:
        clock = VirtualClock()

        async def double(number: int) -> int:
            await asyncio.sleep(0.1)
            return 2 * number

        policy = Policy(bulkhead={"max_concurrent": 2, "max_wait": 50}, cache=True, parallel={"workers": 3})
        bound: Any = policy.apply(double, clock=clock)
        journal = tmp_path / f"{turn}.journal"

        def mapped() -> Any:
            return bound.map(range(4), journal=journal)

        one = cancelled_at({turn, turn + later}, everything=what == "all", coroutines=[mapped()])
        results: list[Any] = run(clock, one)
        assert bound.binding.pipeline.executors["bulkhead"].running == 0
        assert bound.binding.pipeline.executors["cache"].single_flight.running == {}
        eventually(lambda: is_free(journal))  # one that is cancelled twice does not wait until it is
        assert run(clock, mapped()) == [0, 2, 4, 6]
        return results

    at_each_turn(attempt)


def is_free(journal: Path) -> bool:
    try:
        LockedFile(journal, "journal").close()
    except ConfigError:
        return False
    return True


# Event loops that end


@pytest.mark.parametrize("backend", ["memory", "disk"])
def test_a_loop_that_is_closed_with_tasks_pending_keeps_no_computation(backend: str, tmp_path: Path) -> None:
    attempts = 0

    async def fetch(key: str) -> str:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(1000 if attempts == 1 else 0)
        return key

    cache: dict[str, Any] = {"ttl": 60} | ({"backend": "disk", "cache_dir": tmp_path} if backend == "disk" else {})
    bound = Policy(cache=cache, bulkhead=1).apply(fetch)

    async def begun() -> None:
        while not attempts:
            await asyncio.sleep(0.001)

    loop = asyncio.new_event_loop()
    pending = loop.create_task(bound("k"))  # which is not destroyed
    loop.run_until_complete(begun())
    results: list[str] = []
    other = threading.Thread(target=lambda: results.append(asyncio.run(limited(bound("k")))))
    other.start()
    (computation,) = bound.binding.pipeline.executors["cache"].single_flight.running.values()
    eventually(partial(len, computation.waiters))
    loop.close()
    other.join()
    assert results == ["k"]
    assert asyncio.run(limited(bound("k"))) == "k"
    assert attempts == 2
    del pending, computation
    gc.collect()
    eventually(lambda: bound.binding.pipeline.executors["bulkhead"].running == 0)


async def limited(coroutine: Coroutine[Any, Any, str]) -> str:
    async with asyncio.timeout(30):
        return await coroutine


@pytest.mark.parametrize("backend", ["memory", "disk"])
def test_a_refresh_that_the_end_of_its_loop_interrupts_or_never_begins_is_made_again(
    backend: str, tmp_path: Path
) -> None:
    """As in a synchronous web server whose views run `asyncio.run`."""
    clock, computed = VirtualClock(), 0

    async def fetch(key: str) -> int:
        nonlocal computed
        await asyncio.sleep(0)
        computed += 1
        return computed

    cache: dict[str, Any] = {"ttl": 10, "stale_ttl": 1000, "backend": backend}
    bound = Policy(cache=cache | ({"cache_dir": tmp_path} if backend == "disk" else {})).apply(fetch, clock=clock)
    executor = bound.binding.pipeline.executors["cache"]
    assert asyncio.run(bound("k")) == 1
    for turns in range(4):
        clock.advance(100)

        async def view(turns: int = turns) -> int:
            value = await bound("k")
            for _ in range(turns):
                await asyncio.sleep(0)
            return value

        for _ in range(5):  # its refresh is under way when the loop ends, or has not begun
            asyncio.run(view())
            eventually(lambda: executor.single_flight.running == {})
    clock.advance(10_000)
    assert asyncio.run(bound("k")) == computed


def test_a_stream_that_is_dropped_after_its_loop_has_ended_gives_back_its_slot() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        yield 2

    stream: Any = Policy(bulkhead=1).apply(items)
    loop = asyncio.new_event_loop()
    reader = stream()
    assert loop.run_until_complete(anext(reader)) == 1
    slots = stream.binding.pipeline.executors["bulkhead"]
    assert slots.running == 1
    loop.close()
    del reader
    gc.collect()
    assert slots.running == 0
