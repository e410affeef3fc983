"""Slots of a bulkhead: never exceeded, never lost, and first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import BulkheadFullError, Policy, Registry
from opero.testing import VirtualClock


@given(
    places=st.integers(1, 4),
    max_wait=st.one_of(st.none(), st.floats(0, 2)),
    calls=st.lists(
        st.tuples(st.floats(0, 3), st.floats(0, 2), st.one_of(st.none(), st.floats(0, 2)), st.booleans()),
        min_size=1,
        max_size=25,
    ),
)
def test_slots_are_never_exceeded_nor_lost(places: int, max_wait: float | None, calls: list[Any]) -> None:
    clock = VirtualClock()
    running = most = 0
    came: list[int] = []
    served: list[int] = []

    async def function(number: int, seconds: float, fails: bool) -> None:
        nonlocal running, most
        served.append(number)
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(seconds)
            if fails:
                raise ConnectionError
        finally:
            running -= 1

    bound = Policy(bulkhead={"max_concurrent": places, "max_wait": max_wait}).apply(function, clock=clock)

    async def caller(number: int, at: float, seconds: float, patience: float | None, fails: bool) -> None:
        await asyncio.sleep(at)
        came.append(number)
        with contextlib.suppress(TimeoutError, ConnectionError, BulkheadFullError):
            async with asyncio.timeout(patience):
                await bound(number, seconds, fails)

    async def main() -> None:
        await asyncio.gather(*(caller(number, *call) for number, call in enumerate(calls)))

    clock.run(main())
    bulkhead = bound.binding.pipeline.executors["bulkhead"]
    assert most <= places
    assert (bulkhead.running, len(bulkhead.home.queue), running) == (0, 0, 0)
    assert served == [number for number in came if number in served]  # none has overtaken another
    if max_wait is None:
        assert {number for number, call in enumerate(calls) if call[2] is None} <= set(served)


def test_a_full_bulkhead_rejects_at_once_by_default(bind: Any) -> None:
    def outer() -> str:
        with pytest.raises(BulkheadFullError, match="bulkhead full: 1 of 1 slots in use$"):
            inner()
        return "done"

    registry = Registry({"api": Policy(bulkhead=1)})
    inner = registry.bind(lambda: 1, "api", clock=bind.clock)
    bound = registry.bind(outer, "api", clock=bind.clock)
    assert bound() == "done"
    assert inner() == 1
    assert inner.stats.rejections == 1


def test_after_max_wait_in_the_queue_it_rejects() -> None:
    clock = VirtualClock()
    bound = Policy(bulkhead={"max_concurrent": 1, "max_wait": 2}).apply(asyncio.sleep, clock=clock)

    async def main() -> None:
        first = asyncio.create_task(bound(5))
        await asyncio.sleep(1)
        with pytest.raises(BulkheadFullError, match="after 2s in the queue"):
            await bound(5)
        assert clock.monotonic() == pytest.approx(1003)
        await first
        await bound(0)

    clock.run(main())
    assert bound.stats.waits == 1


def test_a_slot_is_given_back_however_the_call_ends(bind: Any, script: Any) -> None:
    call = bind(Policy(bulkhead=1), script(ValueError(), KeyboardInterrupt(), asyncio.CancelledError(), 1))
    for error in (ValueError, KeyboardInterrupt, asyncio.CancelledError):
        with pytest.raises(error):
            call()
    assert call() == 1


def test_a_cancelled_call_leaves_the_queue_or_passes_on_a_slot_it_has_just_got() -> None:
    clock = VirtualClock()
    bound = Policy(bulkhead={"max_concurrent": 1, "max_wait": None}).apply(asyncio.sleep, clock=clock)

    async def main() -> None:
        first = asyncio.create_task(bound(1))
        waiters = [asyncio.create_task(bound(0)) for _ in range(3)]
        await asyncio.sleep(0.5)
        waiters[0].cancel()
        await first
        waiters[1].cancel()  # it has just been granted a slot
        await asyncio.wait_for(waiters[2], 1)
        await asyncio.wait_for(bound(0), 1)

    clock.run(main())


def test_threads_and_event_loops_share_the_slots() -> None:
    running = most = 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    def function() -> None:
        enter()
        time.sleep(0.001)
        leave()

    async def function_async() -> None:
        enter()
        await asyncio.sleep(0.001)
        leave()

    registry = Registry({"api": Policy(bulkhead={"max_concurrent": 3, "max_wait": None})})
    sync, asynchronous = registry.bind(function, "api"), registry.bind(function_async, "api")

    async def tasks() -> None:
        await asyncio.gather(*(asynchronous() for _ in range(20)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: asyncio.run(tasks())) for _ in range(2)]
        threads += [threading.Thread(target=lambda: [sync() for _ in range(20)]) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert 1 <= most <= 3
    assert sync.binding.pipeline.executors["bulkhead"].running == 0
    assert (sync.stats.calls, asynchronous.stats.calls) == (120, 40)


def test_a_generator_keeps_its_slot_until_it_ends() -> None:
    def function() -> Any:
        yield 1
        yield 2

    bound = Policy(bulkhead=1).apply(function)
    first = bound()
    assert next(first) == 1
    with pytest.raises(BulkheadFullError):
        next(bound())
    assert list(first) == [2]
    second = bound()
    next(second)
    second.close()
    assert list(bound()) == [1, 2]
