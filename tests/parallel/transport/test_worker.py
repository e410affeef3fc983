"""Event loops in worker processes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from opero import AllFailedError, Policy, opmap


@opmap(mode="async_process", workers=2, progress=False)
async def where(number: int) -> tuple[int, int]:
    await asyncio.sleep(0)
    return number, os.getpid()


async def together(number: int) -> int:
    """How many calls run at this moment, in this process."""
    together.running += 1  # type: ignore[attr-defined]
    await asyncio.sleep(0.005)
    running: int = together.running  # type: ignore[attr-defined]
    await asyncio.sleep(0.005)
    together.running -= 1  # type: ignore[attr-defined]
    return running


together.running = 0  # type: ignore[attr-defined]


async def kept_loop(_: int) -> int:
    return id(asyncio.get_running_loop())


async def cancel_some(number: int) -> int:
    if number == 3:
        raise asyncio.CancelledError
    if number == 4:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)
    return number


def bound(function: Any, **options: Any) -> Any:
    policy = {"mode": "async_process", "workers": 2, "progress": False, **options.pop("parallel", {})}
    return Policy(parallel=policy, **options).apply(function)


def test_results_come_from_other_processes_in_the_order_of_their_items() -> None:
    results = asyncio.run(where(range(500)))
    assert [number for number, _ in results] == list(range(500))
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.parametrize("concurrency", [1, 7])
def test_concurrency_limits_the_calls_at_a_time_in_each_process(concurrency: int) -> None:
    results = asyncio.run(bound(together, parallel={"concurrency": concurrency, "workers": 1}).map(range(60)))
    assert max(results) == concurrency


def test_a_worker_keeps_its_loop_between_chunks() -> None:
    function = bound(kept_loop, parallel={"workers": 1})
    assert len(set(asyncio.run(function.map(range(2000))))) == 1


def test_retry_and_timeout_run_in_the_worker() -> None:
    parallel = {"on_error": "return"}
    function = bound(wait_if_long, retry={"retries": 2, "min_delay": 0}, timeout={"attempt": 0.2}, parallel=parallel)
    *results, error = asyncio.run(function.map([1, 2, 60]))
    assert results == [1, 2]
    assert isinstance(error, AllFailedError)
    assert [type(each).__name__ for each in error.errors] == ["CallTimeoutError"] * 3
    assert function.stats.attempts == 5
    assert function.stats.timeouts == 3


async def wait_if_long(seconds: int) -> int:
    await asyncio.sleep(seconds if seconds > 10 else 0)
    return seconds


def test_an_item_that_cancels_itself_fails_like_any_other() -> None:
    results = asyncio.run(bound(cancel_some, parallel={"on_error": "return"}).map(range(6)))
    assert [each for each in results if isinstance(each, int)] == [0, 1, 2, 5]
    assert ["cancelled itself" in str(each) for each in results] == [False, False, False, True, True, False]


def test_async_methods_receive_batches_and_further_arguments() -> None:
    class Service:
        def __init__(self, base: int) -> None:
            self.base = base

        @opmap(mode="async_process", workers=2, batch_size=5, progress=False)
        async def add(self, numbers: list[int], *, times: int = 1) -> list[int]:
            return [(self.base + number) * times for number in numbers]

    assert asyncio.run(Service(1).add(range(12), times=3)) == [(1 + number) * 3 for number in range(12)]
