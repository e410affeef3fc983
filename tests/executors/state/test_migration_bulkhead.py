"""What a bulkhead keeps when its policy is replaced: the slots of running calls, and the queue for them."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opero import BulkheadFullError, BulkheadPolicy, CallTimeoutError, Policy
from opero.executors.bulkhead import BulkheadExecutor
from opero.runtime.clock import SYSTEM
from opero.testing import VirtualClock

WAIT = 30
"""Seconds after which a test has hung."""


def policy(most: int, max_wait: float | None = 0.0) -> Policy:
    return Policy(bulkhead=BulkheadPolicy(max_concurrent=most, max_wait=max_wait))


def bulkhead_of(bound: Any) -> BulkheadExecutor:
    found: BulkheadExecutor = bound.binding.pipeline.executors["bulkhead"]
    return found


def make(most: int) -> BulkheadExecutor:
    return BulkheadExecutor(BulkheadPolicy(max_concurrent=most), SYSTEM, "f")


def test_running_calls_keep_their_slots_whatever_changes(bind: Any) -> None:
    seen: list[Any] = []

    def function(inner: Any = None) -> None:
        if inner:
            inner()

    bind(policy(2), function)

    def reload() -> None:
        for most, max_wait in [(2, 1), (1, 0), (5, None), (2, 0)]:
            bind.bound.binding.swap(policy(most, max_wait))
            seen.append(bulkhead_of(bind.bound).running)

    (bind.bound if bind.kind == "sync" else lambda do: bind.clock.run(bind.bound(do)))(reload)
    assert seen == [1, 1, 1, 1]
    assert bulkhead_of(bind.bound).running == 0


def test_with_fewer_slots_no_call_enters_until_enough_have_left() -> None:
    old, new = make(3), make(1)
    assert [old.take() for _ in range(3)] == [True] * 3
    new.migrate_from(old)
    for left in (2, 1):
        old.leave()
        assert (new.running, new.take(), old.take()) == (left, False, False)
    old.leave()
    assert (new.take(), old.take()) == (True, False)
    old.leave()
    assert new.running == 0


def test_a_refused_call_is_told_the_newest_limit(bind: Any) -> None:
    def function(inner: Any = None) -> None:
        if inner:
            inner()

    call = bind(policy(1), function)
    bind.bound.binding.swap(policy(3))
    bulkhead = bulkhead_of(bind.bound)
    while bulkhead.take():
        pass
    with pytest.raises(BulkheadFullError, match="bulkhead full: 3 of 3 slots in use"):
        call()


def test_with_more_slots_waiting_calls_enter_at_once_in_their_order() -> None:
    clock, order = VirtualClock(), []

    async def function(name: int) -> None:
        order.append(name)
        await asyncio.sleep(10)

    bound: Any = policy(1, None).apply(function, clock=clock)

    async def main() -> None:
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(bound(number)))
            await asyncio.sleep(0.01)
        assert order == [0]
        bound.binding.swap(policy(3, None))
        tasks.append(asyncio.create_task(bound(5)))
        await asyncio.sleep(0.01)
        assert order == [0, 1, 2]
        bound.binding.swap(policy(2, None))
        await asyncio.sleep(10.01)
        assert order == [0, 1, 2, 3, 4]
        await asyncio.gather(*tasks)

    clock.run(main())
    assert order == [0, 1, 2, 3, 4, 5]


def test_waiting_calls_keep_their_max_wait_and_new_calls_have_the_new_one() -> None:
    clock, ends = VirtualClock(), []

    async def function() -> None:
        await asyncio.sleep(100)

    bound: Any = policy(1, 20).apply(function, clock=clock)

    async def caller(name: str) -> None:
        began = clock.now
        with pytest.raises(BulkheadFullError):
            await bound()
        ends.append((name, clock.now - began))

    async def main() -> None:
        holder = asyncio.create_task(bound())
        await asyncio.sleep(0)
        patient = asyncio.create_task(caller("patient"))
        await asyncio.sleep(1)
        bound.binding.swap(policy(1, 5))
        await caller("hasty")
        bound.binding.swap(policy(1, 0))
        await caller("at once")
        await asyncio.gather(holder, patient)

    clock.run(main())
    assert ends == [("hasty", 5), ("at once", 0), ("patient", 20)]


def test_a_waiting_call_that_gives_up_after_a_reload_leaves_the_queue() -> None:
    clock = VirtualClock()

    async def function(seconds: float) -> None:
        await asyncio.sleep(seconds)

    bound: Any = Policy(bulkhead={"max_concurrent": 1, "max_wait": None}, timeout=3).apply(function, clock=clock)

    async def main() -> None:
        holder = asyncio.create_task(bound(2.9))
        await asyncio.sleep(0)
        cancelled = asyncio.create_task(bound(1))
        timed_out = asyncio.create_task(bound(2))
        await asyncio.sleep(1)
        bound.binding.swap(policy(1, None))
        cancelled.cancel()
        await asyncio.gather(cancelled, holder, return_exceptions=True)
        with pytest.raises(CallTimeoutError):
            await timed_out
        assert len(bulkhead_of(bound).home.successor.queue) == 0
        assert bulkhead_of(bound).running == 0
        await bound(0)

    clock.run(main())


def test_slots_that_the_new_executor_has_given_out_already_are_counted_too() -> None:
    old, new = make(2), make(2)
    assert old.take()
    assert new.take()
    left, stays = old.home, new.home
    new.migrate_from(old)
    assert (new.running, old.take()) == (2, False)
    # What a caller does at the home that it looked up just before:
    assert (left.leave(), left.take()) == (False, False)
    assert stays.leave()
    assert (new.running, stays.take(), old.running) == (1, True, 2)
    new.leave(), old.leave()
    assert (old.running, new.running, stays.running()) == (0, 0, 0)


def test_calls_that_wait_at_the_new_executor_already_get_slots_of_calls_of_the_old_one() -> None:
    clock = VirtualClock()

    async def hold(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def main() -> None:
        old: Any = policy(1, None).apply(hold, clock=clock)
        new: Any = policy(1, 50).apply(hold, clock=clock)
        tasks = [asyncio.create_task(each(seconds)) for each, seconds in [(old, 2), (new, 1), (new, 5), (old, 6)]]
        await asyncio.sleep(0.5)
        bulkhead_of(new).migrate_from(bulkhead_of(old))
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)
        assert clock.now - 1000 == pytest.approx(13)
        assert bulkhead_of(new).running == bulkhead_of(old).running == 0

    clock.run(main())


@pytest.mark.parametrize("ends", ["cancelled", "out of time"])
def test_a_call_that_gives_up_after_the_queues_were_merged_leaves_the_queue(ends: str) -> None:
    clock = VirtualClock()

    async def hold(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def main() -> None:
        old: Any = policy(1, None).apply(hold, clock=clock)
        new: Any = policy(1, 3).apply(hold, clock=clock)
        tasks = [asyncio.create_task(each(seconds)) for each, seconds in [(old, 9), (new, 9), (new, 1)]]
        await asyncio.sleep(1)
        bulkhead_of(new).migrate_from(bulkhead_of(old))
        assert len(bulkhead_of(old).home.successor.queue) == 1
        if ends == "cancelled":
            tasks[2].cancel()
        ended = await asyncio.gather(tasks[2], return_exceptions=True)
        assert type(ended[0]) is (asyncio.CancelledError if ends == "cancelled" else BulkheadFullError)
        assert len(bulkhead_of(old).home.successor.queue) == 0
        await asyncio.gather(*tasks[:2])
        assert bulkhead_of(new).running == bulkhead_of(old).running == 0

    clock.run(main())


def test_an_executor_that_is_put_in_force_again_lets_waiting_calls_in_at_once() -> None:
    clock, order = VirtualClock(), []

    async def function(name: int) -> None:
        order.append(name)
        await asyncio.sleep(10)

    bound: Any = policy(2, None).apply(function, clock=clock)
    again = bound.binding.prepare(Policy(bulkhead=policy(2, None).bulkhead, retry=1))  # holds the executor of now

    async def main() -> None:
        bound.binding.swap(policy(1, None))
        tasks = [asyncio.create_task(bound(number)) for number in range(2)]
        await asyncio.sleep(1)
        assert order == [0]
        bound.binding.enforce(again)
        await asyncio.sleep(1)
        assert order == [0, 1]
        await asyncio.gather(*tasks)

    clock.run(main())
    assert bulkhead_of(bound).running == 0


def test_a_bulkhead_that_is_removed_loses_its_state_and_an_equal_one_is_the_same(bind: Any) -> None:
    call = bind(policy(1), lambda: None)
    first = bulkhead_of(bind.bound)
    assert first.take()
    bind.bound.binding.swap(Policy(bulkhead=policy(1).bulkhead, retry=1))
    assert bulkhead_of(bind.bound) is first
    bind.bound.binding.swap(Policy())
    bind.bound.binding.swap(policy(1))
    call()
    assert (first.running, bulkhead_of(bind.bound).running) == (1, 0)


def test_a_started_generator_gives_its_slot_back_after_a_reload() -> None:
    def function() -> Any:
        yield 1
        yield 2

    bound: Any = policy(1).apply(function)
    items = bound()
    assert next(items) == 1
    bound.binding.swap(policy(1, 1))
    assert bulkhead_of(bound).running == 1
    assert list(items) == [2]
    assert bulkhead_of(bound).running == 0


def test_after_many_reloads_old_executors_are_gone() -> None:
    bound: Any = policy(1).apply(lambda do: do())
    gone: list[weakref.ref[Any]] = []

    def reload() -> None:
        for number in range(300):
            gone.append(weakref.ref(bulkhead_of(bound)))
            bound.binding.swap(policy(2 + number))

    bound(reload)
    gc.collect()
    assert [each for each in gone if each() is not None] == []
    assert bulkhead_of(bound).running == 0


@given(
    calls=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 4))),
        min_size=1,
        max_size=20,
    ),
    reloads=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 4), st.one_of(st.none(), st.integers(0, 3))),
        max_size=6,
        unique_by=lambda reload: reload[0],
    ),
)
@example(  # a call gives its slot to a waiting one, and in the same moment the limit is lowered before that one starts
    calls=[(0, 2, None), (1, 0, None), (1, 0, None), (1, 2, None), (3, 1, None), (1, 3, None), (4, 0, None)],
    reloads=[(0, 1, None), (3, 2, None), (5, 1, None)],
)
@settings(max_examples=80, deadline=None)
def test_slots_in_use_are_those_of_running_calls_and_no_call_gets_one_beyond_the_newest_limit(
    calls: list[Any], reloads: list[tuple[int, int, int | None]]
) -> None:
    clock = VirtualClock()
    most, running = 2, 0
    changed, starting = 0.0, 0  # when the limit was last changed, and calls that had a slot then and did not run yet

    async def function(seconds: int) -> None:
        nonlocal running, starting
        running += 1
        if running > most:
            starting -= 1
            assert (starting >= 0, clock.now) == (True, changed)
        assert bulkhead_of(bound).running >= running
        try:
            await asyncio.sleep(seconds)
        finally:
            running -= 1

    bound: Any = policy(2, None).apply(function, clock=clock)

    async def caller(at: int, seconds: int, cancelled: int | None) -> None:
        await asyncio.sleep(at)
        task = asyncio.create_task(bound(seconds))
        if cancelled is not None:
            asyncio.get_running_loop().call_later(cancelled, task.cancel)
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, BulkheadFullError | asyncio.CancelledError | None)

    async def reloader(at: int, number: int, max_wait: int | None) -> None:
        nonlocal most, changed, starting
        await asyncio.sleep(at + 0.5)
        most, changed = number, clock.now
        starting = bulkhead_of(bound).running - running
        bound.binding.swap(policy(number, max_wait))

    async def main() -> None:
        async with asyncio.timeout(500):
            await asyncio.gather(*(caller(*each) for each in calls), *(reloader(*each) for each in reloads))
            bulkhead = bulkhead_of(bound)
            assert (bulkhead.running, len(bulkhead.home.successor.queue)) == (0, 0)
            await asyncio.gather(*(bound(1) for _ in range(most)))  # all slots are free again

    clock.run(main())


def test_under_threads_no_slot_is_lost_and_no_call_hangs_while_policies_are_replaced() -> None:
    running: list[int] = []
    most: list[int] = []
    refused: list[int] = []

    def function() -> None:
        running.append(1)
        most.append(len(running))
        running.pop()

    bound: Any = policy(2, None).apply(function)

    def hammer() -> None:
        for _ in range(500):
            try:
                bound()
            except BulkheadFullError:
                refused.append(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        number = 0
        while any(thread.is_alive() for thread in threads):
            number += 1
            bound.binding.swap(policy(1 + number % 4, [None, 30.0, 0.0][number % 3]))
        for thread in threads:
            thread.join(WAIT)
    finally:
        sys.setswitchinterval(interval)
    assert max(most) <= 4
    assert len(most) + len(refused) == 3000
    bulkhead = bulkhead_of(bound)
    assert (bulkhead.running, len(bulkhead.home.successor.queue)) == (0, 0)


@pytest.mark.parametrize("_", range(3))
def test_under_threads_no_slot_is_lost_at_old_and_new_executors_during_a_reload(_: int) -> None:
    executors = [make(2)]
    stop = threading.Event()
    wrong: list[Any] = []

    def hammer() -> None:
        while not stop.is_set():
            bulkhead = executors[-1]
            if bulkhead.take():
                bulkhead.leave()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(150):
            old, new = executors[-1], make(2)
            executors.append(new)  # in use before it takes over
            new.migrate_from(old)
            if new.running > 4:
                wrong.append(new.running)
        stop.set()
        for thread in threads:
            thread.join(WAIT)
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert {each.running for each in executors} == {0}
