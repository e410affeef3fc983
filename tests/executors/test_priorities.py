"""Priorities: who goes first in the queue of a bulkhead, and where a priority reaches."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import opero
from opero import ConfigError, Policy, Registry, opmap, priority
from opero.executors.state.slots import QueuedCall, line_up
from opero.runtime.priorities import current
from opero.testing import VirtualClock

LEVELS = ("critical", "normal", "background")


def seen() -> str | None:
    return current.get()


def seen_for(_: int) -> str | None:
    return current.get()


# In a queue


def served(levels: list[Any], gaps: float = 0.0, slots: int = 1) -> list[int]:
    """Queue calls of these priorities one after another; return their numbers in the order in which they run."""
    clock, order = VirtualClock(), list[int]()

    async def function(number: int) -> None:
        order.append(number)
        await asyncio.sleep(100_000)

    bound = Policy(bulkhead={"max_concurrent": slots, "max_wait": None}).apply(function, clock=clock)

    async def caller(number: int, level: Any) -> None:
        if level is None:
            await bound(number)
        else:
            async with priority(level):
                await bound(number)

    async def main() -> None:
        tasks = [asyncio.ensure_future(caller(-1, None)) for _ in range(slots)]
        await asyncio.sleep(1)
        for number, level in enumerate(levels):
            tasks.append(asyncio.ensure_future(caller(number, level)))
            await asyncio.sleep(gaps)
        await asyncio.gather(*tasks)

    clock.run(main())
    return [each for each in order if each >= 0]


def test_the_important_go_first_and_equals_in_their_order() -> None:
    levels = ["background", "normal", "critical", None, "background", "critical", "normal"]
    assert served(levels) == [2, 5, 1, 3, 6, 0, 4]


@given(st.lists(st.sampled_from([*LEVELS, None]), max_size=12))
def test_calls_are_served_by_priority_and_then_in_fifo_order(levels: list[Any]) -> None:
    def rank(number: int) -> tuple[int, int]:
        return LEVELS.index(levels[number] or "normal"), number

    assert served(levels) == sorted(range(len(levels)), key=rank)


def test_none_waits_for_ever() -> None:
    levels = ["background", "normal", "critical", "normal", "normal"]
    assert served(levels, gaps=1900) == [2, 1, 0, 3, 4]  # the last come more than an hour after the first


@given(st.lists(st.integers(0, 20), max_size=30))
def test_a_queue_is_in_order_and_fifo_among_equals(arrivals: list[int]) -> None:
    from collections import deque

    queue: deque[QueuedCall] = deque()
    calls = [QueuedCall(None, float(each)) for each in arrivals]  # type: ignore[arg-type]
    for call in calls:
        line_up(queue, call)
    assert list(queue) == sorted(calls, key=lambda call: call.arrived)  # which is stable


def test_threads_and_tasks_wait_in_one_order() -> None:
    order: list[str] = []
    go_on = threading.Event()

    def function(name: str) -> None:
        order.append(name)
        if name == "first":
            go_on.wait(60)

    async def function_async(name: str) -> None:
        order.append(name)

    registry = Registry({"api": Policy(bulkhead={"max_concurrent": 1, "max_wait": None})})
    sync, asynchronous = registry.bind(function, "api"), registry.bind(function_async, "api")
    queue = sync.binding.resolved().executors["bulkhead"].home.queue

    def run(name: str, level: Any) -> None:
        with priority(level):
            if level == "critical":
                asyncio.run(asynchronous(name))
            else:
                sync(name)

    threads = []
    for number, (name, level) in enumerate(
        [("first", "normal"), ("b", "background"), ("n", "normal"), ("c", "critical"), ("c2", "critical")]
    ):
        threads.append(threading.Thread(target=run, args=(name, level)))
        threads[-1].start()
        while len(queue) < number or not order:
            threading.Event().wait(0.001)
    go_on.set()
    for each in threads:
        each.join(60)
    assert order == ["first", "c", "c2", "n", "b"]


def test_a_call_that_leaves_the_queue_is_missed_by_none() -> None:
    clock, order = VirtualClock(), list[str]()

    async def function(name: str) -> None:
        order.append(name)
        await asyncio.sleep(10)

    bound = Policy(bulkhead={"max_concurrent": 1, "max_wait": None}).apply(function, clock=clock)

    async def caller(name: str, level: Any, patience: float | None = None) -> None:
        with priority(level):
            async with asyncio.timeout(patience):
                await bound(name)

    async def main() -> None:
        tasks = [asyncio.ensure_future(caller("first", "normal"))]
        await asyncio.sleep(1)
        tasks += [
            asyncio.ensure_future(caller(*each))
            for each in (("b", "background"), ("gone", "critical", 2), ("c", "critical"))
        ]
        await asyncio.gather(*tasks, return_exceptions=True)

    clock.run(main())
    assert order == ["first", "c", "b"]


def test_processes_of_a_machine_have_one_order(tmp_path: Any) -> None:
    """The head of each process's queue counts, by when it came as priorities have it."""
    from opero.executors.state.shared_slots import Table, try_take

    me, other = (1, 1.0), (2, 2.0)
    background, critical = 100.0 + 3600, 101.0 - 3600
    assert try_take(Table({}, {other: background}), 1, me, critical, None) is not None
    assert try_take(Table({}, {other: critical}), 1, me, background, None) is None


# Where it reaches


def test_a_policy_says_the_priority_of_its_calls(bind: Any) -> None:
    call = bind(Policy(priority="background"), seen)
    assert (call(), current.get()) == ("background", None)


def test_a_block_goes_before_a_policy_and_an_inner_block_before_an_outer_one(bind: Any) -> None:
    call = bind(Policy(priority="background"), seen)
    with priority("critical"):
        assert call() == "critical"
        with priority("normal"):
            assert call() == "normal"
        assert call() == "critical"
    assert call() == "background"


def test_what_a_function_calls_has_its_priority(bind: Any) -> None:
    inner = Policy(priority="critical", retry=1).apply(seen)
    call = bind(Policy(priority="background", retry=1), lambda: (seen(), inner()))
    assert call() == ("background", "background")
    assert inner() == "critical"


def test_it_goes_with_every_layer(bind: Any) -> None:
    policy = Policy(
        priority="background",
        retry=2,
        timeout=5,
        circuit_breaker=5,
        throttle=2,
        bulkhead=2,
        rate_limit=100,
        cache="5m",
    )
    call = bind(policy, seen)
    assert [call(), call()] == ["background", "background"]
    assert current.get() is None


def test_it_is_undone_when_the_call_fails(bind: Any, script: Any) -> None:
    call = bind(Policy(priority="background"), script(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        call()
    assert current.get() is None


def test_generators_have_it_up_to_their_first_item() -> None:
    def function() -> Iterator[Any]:
        yield seen()
        yield seen()

    async def function_async() -> AsyncIterator[Any]:
        yield seen()
        yield seen()

    async def listed() -> list[Any]:
        return [each async for each in Policy(priority="background").apply(function_async)()]

    assert list(Policy(priority="background").apply(function)()) == ["background", None]
    assert asyncio.run(listed()) == ["background", None]


def test_tasks_and_threads_of_maps_inherit_it() -> None:
    async def seen_async(_: int) -> str | None:
        return current.get()

    with priority("critical"):
        assert opmap(mode="thread", progress=False)(seen_for)([1, 2, 3]) == ["critical"] * 3
        assert asyncio.run(opmap(progress=False)(seen_async)([1, 2])) == ["critical"] * 2
        assert contextvars.copy_context().run(seen) == "critical"


def test_worker_processes_inherit_it_and_have_that_of_the_policy() -> None:
    with priority("critical"):
        assert opmap(mode="process", workers=1, progress=False)(seen_for)([1, 2]) == ["critical"] * 2
    assert opmap(mode="process", workers=1, priority="background", progress=False)(seen_for)([1]) == ["background"]


def test_no_attempt_begins_after_a_deadline(bind: Any) -> None:
    call = bind(Policy(priority="background"), seen)
    with opero.deadline(0), pytest.raises(opero.CallTimeoutError):
        call()


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'backgrund' is none of 'critical', 'normal', 'background'.*background"):
        priority("backgrund")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 is none of"):
        priority(1)  # type: ignore[arg-type]


def test_a_block_may_begin_once() -> None:
    block = priority("normal")
    with block, pytest.raises(RuntimeError, match="has begun already"):
        block.__enter__()
    assert current.get() is None
