"""The queue for a bulkhead's slots: threads and tasks in one order, and slots that are granted just too late."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import BulkheadFullError, BulkheadPolicy, CallTimeoutError, Policy, Registry
from opero.executors.bulkhead import BulkheadExecutor
from opero.executors.call import Call
from opero.observe.stats import Stats
from opero.runtime.hosts import AsyncHost
from opero.testing import VirtualClock


def until(holds: Callable[[], bool]) -> None:
    """Wait for another thread to get that far."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.0005)


class Hold:
    """A function that keeps its slot until it is told to go on."""

    def __init__(self, max_wait: float | None) -> None:
        self.order: list[Any] = []
        self.go_on = threading.Event()
        registry = Registry({"api": Policy(bulkhead={"max_concurrent": 1, "max_wait": max_wait})})
        self.sync = registry.bind(self.run, "api")
        self.asynchronous = registry.bind(self.run_async, "api")
        self.bulkhead: BulkheadExecutor = self.sync.binding.resolved().executors["bulkhead"]  # type: ignore[attr-defined]

    def run(self, name: Any) -> None:
        self.order.append(name)
        if name == "first":
            self.go_on.wait(60)

    async def run_async(self, name: Any) -> None:
        self.order.append(name)

    def start(self, target: Callable[[], Any], queued: int) -> threading.Thread:
        """Run it in a thread, and wait until as many calls are in the queue as `queued` says."""
        thread = threading.Thread(target=target)
        thread.start()
        until(lambda: len(self.bulkhead.home.queue) == queued and len(self.order) == 1)
        return thread


def test_threads_and_tasks_wait_in_one_queue_in_the_order_in_which_they_came() -> None:
    hold = Hold(max_wait=None)
    threads = [hold.start(lambda: hold.sync("first"), 0)]
    for number in range(1, 9):
        if number % 2:
            threads.append(hold.start(lambda number=number: hold.sync(number), number))  # type: ignore[misc]
        else:
            threads.append(
                hold.start(lambda number=number: asyncio.run(hold.asynchronous(number)), number)  # type: ignore[misc]
            )
    hold.go_on.set()
    for thread in threads:
        thread.join(60)
    assert hold.order == ["first", *range(1, 9)]
    assert hold.bulkhead.running == 0


def test_a_thread_that_has_waited_for_max_wait_is_refused_and_leaves_the_queue() -> None:
    hold = Hold(max_wait=0.02)
    first = hold.start(lambda: hold.sync("first"), 0)
    with pytest.raises(BulkheadFullError, match="after 20ms in the queue"):
        hold.sync("second")
    assert len(hold.bulkhead.home.queue) == 0
    hold.go_on.set()
    first.join(60)
    hold.sync("third")
    assert hold.order == ["first", "third"]
    assert (hold.sync.stats.waits, hold.sync.stats.rejections) == (1, 1)


def test_tasks_whose_event_loop_is_closed_are_skipped() -> None:
    hold = Hold(max_wait=None)
    first = hold.start(lambda: hold.sync("first"), 0)
    loop = asyncio.new_event_loop()
    task = loop.create_task(hold.asynchronous("abandoned"))
    loop.run_until_complete(asyncio.sleep(0))
    until(lambda: len(hold.bulkhead.home.queue) == 1)
    loop.close()  # with the task still in the queue
    second = hold.start(lambda: hold.sync("second"), 2)
    hold.go_on.set()
    first.join(60)
    second.join(60)
    assert hold.order == ["first", "second"]
    assert hold.bulkhead.running == 0
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task, loop
    gc.collect()  # which ends the task where it stands
    assert hold.bulkhead.running == 0  # and no slot too many is free


def test_a_slot_granted_to_a_task_whose_event_loop_is_closed_is_not_lost() -> None:
    hold = Hold(max_wait=None)
    first = hold.start(lambda: hold.sync("first"), 0)
    loop = asyncio.new_event_loop()
    task = loop.create_task(hold.asynchronous("abandoned"))
    loop.run_until_complete(asyncio.sleep(0))
    hold.go_on.set()
    first.join(60)
    assert hold.bulkhead.running == 1  # the loop has been told, and does not come to it
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task, loop
    gc.collect()
    assert hold.bulkhead.running == 0
    assert hold.order == ["first"]


def test_the_total_timeout_ends_the_wait_for_a_slot(bind: Any) -> None:
    call = bind(Policy(bulkhead={"max_concurrent": 1, "max_wait": None}, timeout={"total": 2}), lambda: 1)
    bulkhead = bind.bound.binding.pipeline.executors["bulkhead"]
    assert bulkhead.take()
    started = bind.clock.monotonic()
    with pytest.raises(CallTimeoutError, match="leaves no time to queue") as caught:
        call()
    assert bind.clock.monotonic() - started == pytest.approx(2)
    assert (caught.value.scope, caught.value.waiting_for, len(bulkhead.home.queue)) == ("total", "bulkhead", 0)
    bulkhead.leave()
    assert call() == 1


class Moment:
    """A bulkhead whose only slot is taken, and one waiting call, which gets it just as it gives up."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.bulkhead = BulkheadExecutor(BulkheadPolicy(max_concurrent=1, max_wait=2), self.clock, "test")
        assert self.bulkhead.take()
        self.call = Call.of(Stats())

    async def queue(self) -> None:
        await self.bulkhead.queue(AsyncHost(self.clock), self.call)


def test_a_slot_granted_as_max_wait_ends_is_either_taken_or_free() -> None:
    moment = Moment()

    async def main() -> None:
        waiting = asyncio.create_task(moment.queue())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(moment.clock.now + 2, moment.bulkhead.leave)
        refused = await asyncio.gather(waiting, return_exceptions=True)
        assert moment.bulkhead.running == (0 if isinstance(refused[0], BulkheadFullError) else 1)
        if moment.bulkhead.running:
            moment.bulkhead.leave()
        assert moment.bulkhead.take()

    moment.clock.run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_call_cancelled_at_any_moment_around_the_grant_loses_no_slot(turns: int) -> None:
    moment = Moment()

    async def main() -> None:
        waiting = asyncio.create_task(moment.queue())
        await asyncio.sleep(1)
        moment.bulkhead.leave()
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        ended = await asyncio.gather(waiting, return_exceptions=True)
        assert moment.bulkhead.running == (0 if isinstance(ended[0], asyncio.CancelledError) else 1)
        assert len(moment.bulkhead.home.queue) == 0

    moment.clock.run(main())


@given(
    calls=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 4))),
        min_size=1,
        max_size=20,
    ),
    places=st.integers(1, 3),
    max_wait=st.one_of(st.none(), st.integers(0, 3)),
)
@settings(max_examples=80, deadline=None)
def test_no_slot_is_lost_where_ends_cancellations_and_timeouts_fall_on_the_same_moment(
    calls: list[Any], places: int, max_wait: int | None
) -> None:
    clock = VirtualClock()
    running = most = 0

    async def function(seconds: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(seconds)
        finally:
            running -= 1

    bound = Policy(bulkhead={"max_concurrent": places, "max_wait": max_wait}).apply(function, clock=clock)

    async def caller(at: int, seconds: int, cancelled: int | None) -> None:
        await asyncio.sleep(at)
        task = asyncio.create_task(bound(seconds))
        if cancelled is not None:
            asyncio.get_running_loop().call_later(cancelled, task.cancel)
        await asyncio.gather(task, return_exceptions=True)

    async def main() -> None:
        await asyncio.gather(*(caller(*call) for call in calls))
        async with asyncio.timeout(10):
            await asyncio.gather(*(bound(1) for _ in range(places)))  # all slots are free again

    clock.run(main())
    assert most <= places
    assert bound.binding.pipeline.executors["bulkhead"].running == 0  # type: ignore[attr-defined]


def test_threads_that_often_give_up_lose_no_slot() -> None:
    policy = Policy(bulkhead={"max_concurrent": 2, "max_wait": 0.0005})
    running: list[int] = []
    most: list[int] = []

    def function() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.0004)
        running.pop()

    bound = policy.apply(function)
    refused: list[int] = []

    def hammer() -> None:
        for _ in range(60):
            try:
                bound()
            except BulkheadFullError:
                refused.append(1)

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
    assert max(most) <= 2
    assert (len(most) + len(refused), bound.stats.rejections) == (480, len(refused))
    bulkhead: Any = bound.binding.pipeline.executors["bulkhead"]  # type: ignore[attr-defined]
    assert (bulkhead.running, len(bulkhead.home.queue)) == (0, 0)
