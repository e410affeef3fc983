"""Bound functions under trio: every policy works there as under asyncio, and cancellation is trio's own."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from opero import (
    AllFailedError,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    Policy,
    RateLimitExceededError,
    Registry,
)
from opero.runtime.async_library import in_trio
from opero.testing import VirtualClock

pytestmark = pytest.mark.filterwarnings("error")

SOON = 0.02
LONG = 30.0


def run(main: Callable[..., Any], *, jump: bool = False) -> Any:
    """Run an async function under trio; with `jump`, sleeps of trio take no real time."""
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0) if jump else None)


async def together(function: Callable[[], Any], count: int) -> list[Any]:
    """Call a function in several tasks; return their results and exceptions."""
    outcomes: list[Any] = []

    async def one() -> None:
        try:
            outcomes.append(await function())
        except Exception as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return outcomes


def test_it_knows_where_it_runs() -> None:
    async def main() -> bool:
        return in_trio()

    assert run(main) is True
    assert in_trio() is False


@pytest.mark.parametrize("retry", [{"min_delay": 0.001}, {"min_delay": 0, "jitter": False}], ids=str)
def test_retry(retry: dict[str, Any]) -> None:
    failures = [ConnectionError("one"), ConnectionError("two"), ConnectionError("three")]

    async def flaky() -> str:
        await trio.lowlevel.checkpoint()
        if failures:
            raise failures.pop()
        return "done"

    bound = Policy(retry={"retries": 3, **retry}).apply(flaky)
    assert run(bound) == "done"
    assert bound.stats.recoveries == 1


def test_the_functions_own_exceptions_are_raised() -> None:
    async def fails() -> None:
        await trio.sleep(0)
        raise ConnectionError("down")

    bound: Any = Policy(
        retry={"retries": 1, "min_delay": 0.001},
        timeout=LONG,
        circuit_breaker=9,
        bulkhead={"max_concurrent": 1, "max_wait": None},
        rate_limit=1000,
        cache=True,
    ).apply(fails)
    for outcome in run(lambda: together(bound, 3)):
        assert isinstance(outcome, AllFailedError)
        assert [str(each) for each in outcome.errors] == ["down", "down"]


def test_delays_of_a_virtual_clock_take_no_time() -> None:
    clock = VirtualClock()

    async def fails() -> None:
        raise ConnectionError

    bound = Policy(retry={"retries": 2, "min_delay": 60, "max_delay": 600, "jitter": False}).apply(fails, clock=clock)
    with pytest.raises(AllFailedError):
        run(bound)
    assert clock.slept == [60, 90]


def test_timeout() -> None:
    ended = []

    async def slow(seconds: float) -> str:
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            ended.append("cancelled")
            raise
        return "done"

    bound: Any = Policy(timeout={"attempt": 5}).apply(slow)

    async def main() -> None:
        assert await bound(1) == "done"
        with pytest.raises(CallTimeoutError, match="an attempt of .* took longer than its timeout of 5s"):
            await bound(60)

    run(main, jump=True)
    assert ended == ["cancelled"]
    assert bound.stats.timeouts == 1


def test_an_exception_in_place_of_the_cancellation_is_the_cause() -> None:
    async def converts() -> None:
        try:
            await trio.sleep(LONG)
        except trio.Cancelled as error:
            raise KeyError("converted") from error

    async def late() -> str:
        with trio.move_on_after(LONG), trio.CancelScope(shield=True):
            await trio.sleep(6)
        return "late"

    async def main() -> None:
        for function, cause in ((converts, KeyError), (late, type(None))):
            with pytest.raises(CallTimeoutError) as caught:
                await Policy(timeout=5).apply(function)()  # type: ignore[operator]
            assert type(caught.value.__cause__) is cause

    run(main, jump=True)


def test_the_shorter_of_nested_limits_ends_the_function() -> None:
    async def slow() -> None:
        await trio.sleep(LONG)

    async def scope_inside() -> str:
        with trio.move_on_after(1):
            await trio.sleep(LONG)
        return "moved on"

    bound = Policy(timeout=5).apply(slow)

    async def main() -> None:
        with trio.move_on_after(1) as scope:
            await bound()
        assert scope.cancelled_caught
        with trio.move_on_after(10) as scope:
            with pytest.raises(CallTimeoutError):
                await bound()
        assert not scope.cancelled_caught
        assert await Policy(timeout=5).apply(scope_inside)() == "moved on"

    run(main, jump=True)
    assert bound.stats.timeouts == 1


def test_circuit_breaker() -> None:
    async def fails() -> None:
        raise ConnectionError

    bound: Any = Policy(circuit_breaker=2).apply(fails)

    async def main() -> list[Any]:
        return [type(each) for _ in range(3) for each in await together(bound, 1)]

    assert run(main) == [ConnectionError, ConnectionError, CircuitOpenError]


def test_bulkhead() -> None:
    running, most = 0, 0

    async def work() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return "done"

    queueing: Any = Policy(bulkhead={"max_concurrent": 2, "max_wait": None}).apply(work)
    assert run(lambda: together(queueing, 7), jump=True) == ["done"] * 7
    assert most == 2
    refusing: Any = Policy(bulkhead={"max_concurrent": 1, "max_wait": 0}).apply(work)
    assert sorted(str(type(each).__name__) for each in run(lambda: together(refusing, 3), jump=True)) == [
        "BulkheadFullError",
        "BulkheadFullError",
        "str",
    ]
    impatient: Any = Policy(bulkhead={"max_concurrent": 1, "max_wait": 0.01}).apply(work)
    outcomes = run(lambda: together(impatient, 2), jump=True)
    assert [type(each) for each in outcomes if each != "done"] == [BulkheadFullError]


def test_a_slot_that_a_thread_gives_back_goes_to_a_task_of_trio() -> None:
    go_on, has_slot = threading.Event(), threading.Event()

    def sync() -> None:
        has_slot.set()
        assert go_on.wait(LONG)

    async def asynchronous() -> str:
        return "done"

    registry = Registry({"one": Policy(bulkhead={"max_concurrent": 1, "max_wait": None})})
    first, second = registry.bind(sync, "one"), registry.bind(asynchronous, "one")
    thread = threading.Thread(target=first)
    thread.start()
    assert has_slot.wait(LONG)

    async def main() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: (trio.from_thread.run(trio.sleep, SOON), go_on.set()))
            result: str = await second()
            return result

    assert run(main) == "done"
    thread.join(LONG)


def test_a_cancelled_task_leaves_the_queues_of_a_bulkhead_and_a_rate_limit() -> None:
    async def work() -> str:
        await trio.sleep(1)
        return "done"

    bound: Any = Policy(bulkhead={"max_concurrent": 1, "max_wait": None}).apply(work)
    limited: Any = Policy(rate_limit={"rate": 0.5}).apply(work)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bound)
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.1) as scope:
                await bound()
            assert scope.cancelled_caught
            assert bound.binding.resolved().executors["bulkhead"].running == 1
        assert await bound() == "done"
        assert await limited() == "done"
        with trio.move_on_after(SOON) as scope:
            await limited()
        assert scope.cancelled_caught
        limiter = limited.binding.resolved().executors["rate_limit"].limiter
        assert limiter.queued == 0

    run(main, jump=True)


def test_rate_limit() -> None:
    async def work() -> float:
        return time.monotonic()

    bound: Any = Policy(rate_limit={"rate": 50}).apply(work)
    began = time.monotonic()
    times = sorted(run(lambda: together(bound, 4)))
    # None comes before its permit is due, however late it is.
    assert [number for number, each in enumerate(times) if each - began < number / 50 - 0.001] == []
    impatient: Any = Policy(rate_limit={"rate": 0.1, "max_wait": 1}).apply(work)
    outcomes = run(lambda: together(impatient, 3))
    assert [type(each) for each in outcomes if not isinstance(each, float)] == [RateLimitExceededError] * 2


def test_the_queues_of_ended_runs_are_dropped() -> None:
    async def work() -> None: ...

    bound: Any = Policy(rate_limit=1000).apply(work)
    for _ in range(3):
        run(lambda: together(bound, 3))
    limiter = bound.binding.resolved().executors["rate_limit"].limiter
    assert len(limiter._queues._by_loop) == 1


def test_cache() -> None:
    calls = []

    async def work(key: str) -> str:
        calls.append(key)
        await trio.sleep(1)
        return key

    bound: Any = Policy(cache=True).apply(work)

    async def main() -> list[Any]:
        outcomes = await together(lambda: bound("a"), 5)
        return [*outcomes, await bound("a"), await bound("b")]

    assert run(main, jump=True) == ["a"] * 6 + ["b"]
    assert calls == ["a", "b"]


def test_a_cache_on_disk_is_read_and_written_in_threads(tmp_path: Any) -> None:
    calls = []

    async def work() -> str:
        calls.append(1)
        return "done"

    bound: Any = Policy(cache={"backend": "disk", "ttl": 60, "cache_dir": tmp_path}).apply(work)

    async def main() -> None:
        assert await together(bound, 3) == ["done"] * 3
        assert await bound() == "done"

    run(main)
    assert len(calls) == 1


def test_if_the_computing_task_is_cancelled_another_one_computes() -> None:
    calls = []

    async def work() -> str:
        calls.append(1)
        await trio.sleep(2)
        return "done"

    bound: Any = Policy(cache=True).apply(work)
    outcomes = []

    async def main() -> None:
        async def impatient() -> None:
            with trio.move_on_after(1):
                await bound()

        async def patient() -> None:
            outcomes.append(await bound())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                nursery.start_soon(patient)

    run(main, jump=True)
    assert outcomes == ["done"] * 3
    assert len(calls) == 2


def test_a_stale_result_is_refreshed_in_the_background() -> None:
    clock = VirtualClock()
    results = ["old", "new"]
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def work() -> str:
        seen.append(variable.get())
        await trio.lowlevel.checkpoint()
        return results.pop(0)

    bound: Any = Policy(cache={"ttl": 10, "stale_ttl": 100}).apply(work, clock=clock)

    async def main() -> None:
        assert await bound() == "old"
        clock.advance(20)
        variable.set("set")
        assert await bound() == "old"
        await trio.testing.wait_all_tasks_blocked()
        assert await bound() == "new"

    run(main)
    assert seen == ["unset", "set"]


def test_streams() -> None:
    async def items(*seconds: float) -> AsyncIterator[int]:
        for number, each in enumerate(seconds):
            await trio.sleep(each)
            yield number

    bound: Any = Policy(timeout={"idle": 2}, bulkhead=1, retry=1).apply(items)
    got = []

    async def main() -> None:
        got.extend([item async for item in bound(1, 1)])
        stream = bound(1, 60)
        got.append(await anext(stream))
        with pytest.raises(CallTimeoutError, match="idle timeout of 2s for the next item"):
            await anext(stream)
        async with contextlib.aclosing(bound(1, 60)) as stream:
            got.append(await anext(stream))
        assert bound.binding.resolved().executors["bulkhead"].running == 0

    run(main, jump=True)
    assert got == [0, 1, 0, 0]


def test_a_map_says_that_it_needs_asyncio() -> None:
    async def work(item: int) -> int:
        return item

    bound: Any = Policy(parallel={"progress": False}).apply(work)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="by asyncio only, and this is a task of trio: call the function for"):
            await bound.map([1, 2])

    run(main)


def test_one_function_serves_trio_and_asyncio() -> None:
    import asyncio

    async def work() -> str:
        return "done"

    bound: Any = Policy(
        retry=1, timeout=LONG, bulkhead={"max_concurrent": 1, "max_wait": None}, rate_limit=1000, cache={"ttl": 1e-6}
    ).apply(work)

    async def main() -> list[Any]:
        return list(await asyncio.gather(*[bound() for _ in range(3)]))

    for _ in range(2):
        assert asyncio.run(main()) == ["done"] * 3
        assert run(lambda: together(bound, 3)) == ["done"] * 3
