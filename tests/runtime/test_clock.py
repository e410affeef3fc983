"""The virtual clock: time passes only by sleeping or advancing, in sync code and in an event loop."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time

import pytest

from opero import Policy
from opero.runtime.clock import SYSTEM, Clock
from opero.runtime.interruption import Expired
from opero.testing import VirtualClock


def test_a_sleep_takes_no_real_time_and_is_recorded() -> None:
    clock, started = VirtualClock(), time.monotonic()
    before = clock.monotonic(), clock.time()
    clock.sleep(3600)
    clock.advance(5)
    assert (clock.monotonic() - before[0], clock.time() - before[1]) == (3605, 3605)
    assert clock.slept == [3600]
    assert time.monotonic() - started < 5


def test_an_event_loop_runs_its_timers_in_order() -> None:
    clock = VirtualClock()
    order: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, clock.monotonic() - 1000))

    async def main() -> str:
        async with asyncio.timeout(100):
            await asyncio.gather(sleeper("c", 30), sleeper("a", 10), sleeper("b", 20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(50), 5)
        return "done"

    assert clock.run(main()) == "done"
    assert order == [("a", 10), ("b", 20), ("c", 30)]
    assert clock.monotonic() == 1035


def test_an_event_loop_still_receives_results_of_threads() -> None:
    clock = VirtualClock()

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(None, lambda: 7)

    assert clock.run(main()) == 7


def test_a_loop_that_polls_the_clock_ends() -> None:
    clock = VirtualClock()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + 1e-12
        while loop.time() < until:
            done = loop.create_future()
            loop.call_at(loop.time() + 1e-16, done.set_result, None)
            await done

    clock.run(main())


def test_run_within_limits_functions_that_sleep_even_if_nested() -> None:
    clock = VirtualClock()
    with pytest.raises(Expired):
        clock.run_within(2, clock.sleep, 3)
    assert clock.monotonic() == 1002
    with pytest.raises(Expired):
        clock.run_within(2, clock.run_within, 9, clock.sleep, 3)
    assert clock.run_within(2, divmod, 7, 2) == (3, 1)
    with pytest.raises(Expired):
        clock.run_within(2, clock.advance, 3)


def test_the_same_seed_gives_the_same_random_numbers() -> None:
    assert VirtualClock(seed=3).random.random() == VirtualClock(seed=3).random.random()


def test_waiting_for_an_event_that_is_never_set_passes_the_time() -> None:
    clock = VirtualClock()
    assert clock.wait(threading.Event(), 60) is False
    assert clock.monotonic() == 1060


def test_the_system_clock_is_the_default_and_unpickles_as_itself() -> None:
    assert Policy().apply(len).binding.clock is SYSTEM
    assert pickle.loads(pickle.dumps(SYSTEM)) is SYSTEM
    assert isinstance(SYSTEM, Clock)
