"""`virtual_clock`: functions bound before and within its block, sync, async and in threads, run in virtual time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from opero import CallTimeoutError, CircuitOpenError, OperoError, Policy, Registry, opero
from opero.runtime.clock import SYSTEM
from opero.testing import VirtualClock, faults, virtual_clock

REAL = 20.0
"""Far more real seconds than anything here takes, and far fewer than would pass without a virtual clock."""

RETRIED = {"retry": {"retries": 3, "min_delay": 30, "jitter": False}}


@opero(retries=3, min_delay=30, jitter=False)
def fetch() -> None:
    raise ConnectionError


@opero(retries=3, min_delay=30, jitter=False)
async def fetch_async() -> None:
    raise ConnectionError


def flaky() -> None:
    raise ConnectionError


def fail(function: Any) -> None:
    with pytest.raises((ConnectionError, OperoError)):
        function()


def test_delays_of_a_function_bound_before_take_no_real_time() -> None:
    began = time.monotonic()
    with virtual_clock() as clock:
        started = clock.monotonic()
        fail(fetch)
        assert clock.slept == [30, 30, 30]
        assert clock.monotonic() - started == pytest.approx(90)
    assert time.monotonic() - began < REAL
    assert fetch.binding.clock is SYSTEM


@pytest.mark.parametrize("bound_by", ["registry", "apply"])
def test_functions_of_any_registry_and_of_none_are_covered(bound_by: str) -> None:
    policy = Policy(**RETRIED)
    bound: Any = Registry({"api": policy}).bind(flaky, "api") if bound_by == "registry" else policy.apply(flaky)
    with virtual_clock() as clock:
        fail(bound)
    assert clock.slept == [30, 30, 30]
    assert bound.binding.clock is SYSTEM


def test_a_function_bound_within_the_block_is_covered_and_runs_on_the_system_clock_after_it() -> None:
    with virtual_clock() as clock:
        bound: Any = Policy(**RETRIED).apply(flaky)
        fail(bound)
    assert clock.slept == [30, 30, 30]
    assert bound.binding.clock is SYSTEM


def test_a_function_with_a_clock_of_its_own_keeps_it() -> None:
    own = VirtualClock()
    bound = Policy(**RETRIED).apply(flaky, clock=own)
    with virtual_clock() as clock:
        fail(bound)
    assert (own.slept, clock.slept) == ([30, 30, 30], [])


def test_an_event_loop_that_has_begun_before_moves_the_clock() -> None:
    async def main() -> tuple[float, list[str]]:
        order: list[str] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.sleep(0)
        with virtual_clock() as clock:
            started = clock.monotonic()
            task = asyncio.gather(sleeper("60", 60), sleeper("45", 45), return_exceptions=True)
            with pytest.raises(OperoError):
                await fetch_async()
            await task
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1000):
                    await asyncio.Event().wait()
            return clock.monotonic() - started, order

    began = time.monotonic()
    passed, order = asyncio.run(main())
    assert passed == pytest.approx(1090)
    assert order == ["45", "60"]
    assert time.monotonic() - began < REAL


def test_a_loop_runs_in_real_time_after_the_block() -> None:
    async def main() -> None:
        with virtual_clock():
            await asyncio.sleep(3600)
        loop, before = asyncio.get_running_loop(), time.monotonic()
        assert abs(loop.time() - before) < 60
        await asyncio.sleep(0.02)
        assert time.monotonic() - before >= 0.019

    asyncio.run(main())


def test_a_virtual_hour_passes_while_a_real_server_answers() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main() -> bytes:
        with virtual_clock():
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                async with asyncio.timeout(3600):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"hello\n")
                    line = await reader.readline()
                    writer.close()
                    await writer.wait_closed()
        return line

    assert asyncio.run(main()) == b"hello\n"


def test_threads_wake_in_the_order_of_their_moments() -> None:
    """Each is at its own moment when it wakes: time does not pass while another thread still works."""
    woken: list[tuple[int, float]] = []
    with virtual_clock() as clock, ThreadPoolExecutor(5) as pool:
        started, all_there = clock.monotonic(), threading.Barrier(5)

        def wait(seconds: int) -> None:
            all_there.wait()
            clock.sleep(seconds)
            woken.append((seconds, clock.monotonic() - started))

        list(pool.map(wait, [50, 10, 40, 20, 30]))
    assert [seconds for seconds, _ in woken] == [10, 20, 30, 40, 50]
    assert [moment for _, moment in woken] == pytest.approx([10, 20, 30, 40, 50])


def test_a_rate_limit_spaces_the_calls_of_threads() -> None:
    moments: list[float] = []
    with virtual_clock() as clock:
        limited = Policy(rate_limit={"rate": "1/s", "burst": 1}).apply(lambda: moments.append(clock.monotonic()))
        with ThreadPoolExecutor(4) as pool:
            for call in [pool.submit(limited) for _ in range(4)]:
                call.result()
    assert max(moments) - min(moments) == pytest.approx(3)


def test_a_thread_of_an_event_loop_ends_before_the_time_limit_does() -> None:
    async def main() -> int:
        with virtual_clock():
            return await asyncio.wait_for(asyncio.to_thread(sum, range(200_000)), 5)

    assert asyncio.run(main()) == sum(range(200_000))


def test_timeouts_end_functions_that_wait_on_the_clock() -> None:
    with virtual_clock() as clock:
        with pytest.raises(CallTimeoutError):
            Policy(timeout="1s").apply(lambda: clock.sleep(5))()

        async def slow() -> None:
            await asyncio.sleep(5)

        with pytest.raises(CallTimeoutError):
            asyncio.run(Policy(timeout="1s").apply(slow)())


def test_state_begins_anew_with_the_block_and_after_it() -> None:
    registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 1})})
    bound: Any = registry.bind(flaky, "api")

    def states() -> str:
        with pytest.raises((ConnectionError, CircuitOpenError)):
            bound()
        return str(bound.binding.circuit_breaker.state)

    assert states() == "open"
    with virtual_clock():
        assert bound.binding.circuit_breaker.state == "closed"
        assert states() == "open"
    assert bound.binding.circuit_breaker.state == "closed"


def test_blocks_nest() -> None:
    with virtual_clock() as outer:
        with virtual_clock() as inner:
            fail(fetch)
        assert (outer.slept, inner.slept) == ([], [30, 30, 30])
        fail(fetch)
        assert outer.slept == [30, 30, 30]


def test_blocks_nest_in_an_event_loop() -> None:
    async def passed(clock: VirtualClock) -> float:
        before = clock.monotonic()
        await asyncio.sleep(100)
        return clock.monotonic() - before

    async def main() -> list[float]:
        with virtual_clock() as outer:
            before = await passed(outer)
            with virtual_clock() as inner:
                within = await passed(inner)
            return [before, within, await passed(outer)]

    assert asyncio.run(main()) == pytest.approx([100, 100, 100])


def test_a_map_in_threads_is_covered() -> None:
    bound: Any = Policy(**RETRIED, parallel={"mode": "thread", "workers": 3}).apply(lambda item: 2 * item)
    with virtual_clock() as clock, faults(bound, [ConnectionError] * 4):
        assert bound.map(range(10)) == [2 * item for item in range(10)]
        assert clock.slept == [30] * 4


def test_equal_seeds_give_equal_jitter() -> None:
    jittered = Policy(retry={"retries": 3}).apply(flaky)

    def slept(seed: int) -> list[float]:
        with virtual_clock(seed) as clock:
            fail(jittered)
        return clock.slept

    assert slept(1) == slept(1) != slept(2)
