"""Maps stay below `max_memory`, and end with all results so far if they cannot."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from leftovers import workers
from opero import MapError, MemoryLimitError, Policy, opmap
from opero.parallel.engine.memory_limit import give_back
from opero.parallel.workers.pool import Task
from opero.runtime.machine import forget_peak, peak, resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MB = 1 << 20
STEP = 160 * MB
"""Bytes that a few processes may allocate between two measurements."""


def own() -> int:
    """Bytes that this process holds, without free memory that earlier tests have left."""
    give_back()
    return resident(os.getpid())


def block(size: int) -> bytearray:
    """That many bytes, all of them in resident memory."""
    held = bytearray(size)
    held[::4096] = b"x" * len(range(0, size, 4096))
    return held


class Sampler(threading.Thread):
    """Measures the most memory that this process and its workers hold together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            total = resident(os.getpid())
            for each in workers():
                total += resident(each.pid)
            self.most = max(self.most, total)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def bind(function: Callable[..., Any], mode: Any, max_memory: int | str, **options: Any) -> Any:
    return Policy(parallel={"mode": mode, "max_memory": max_memory, **options}).apply(function)


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500 MiB", 500 << 20), ("1.5gib", 3 << 29), (123456, 123456), ("4096", 4096)],
)
def test_a_size_may_be_text(text: Any, size: int) -> None:
    policy = Policy(parallel={"max_memory": text}).parallel
    assert policy is not None
    assert policy.max_memory == size


@pytest.mark.parametrize("wrong", ["2 lots", "GB", 0, -1, "0MB", 1.5, True, "-5MB", "nan", "1e9999"])
def test_a_wrong_size_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"max_memory") as caught:
        opmap(max_memory=wrong)
    text = str(caught.value)
    assert 'is not a size: use bytes or "512MB", "2GiB"' in text or "is invalid: use a value > 0" in text


# The machine


def test_the_peak_memory_of_a_process_is_measured_and_can_be_reset() -> None:
    block(120 * MB)
    most = peak(os.getpid())
    assert most >= own() + 90 * MB
    forget_peak(os.getpid())
    assert peak(os.getpid()) <= most - 90 * MB
    assert peak(2**22 + 1) == 0
    forget_peak(2**22 + 1)


# Processes


def hold(size: int) -> Callable[[int], int]:
    def held(item: int) -> int:
        import time

        data = bytearray(size)
        data[::4096] = b"x" * len(range(0, size, 4096))
        time.sleep(0.05)
        return len(data) + item

    return held


def test_fewer_items_run_at_a_time_if_not_all_fit() -> None:
    limit = own() + 380 * MB
    bound = bind(hold(80 * MB), "process", limit, workers=4)
    with Sampler() as sampler:
        assert bound.map(range(10)) == [80 * MB + item for item in range(10)]
    assert sampler.most <= limit + STEP
    assert bound.stats.failures == 0


def test_items_of_very_different_sizes_all_arrive() -> None:
    def held(item: int) -> int:
        import time

        size = (150 if item % 5 == 4 else 1) << 20
        data = bytearray(size)
        data[::4096] = b"x" * len(range(0, size, 4096))
        time.sleep(0.03)
        return item

    limit = own() + 380 * MB
    with Sampler() as sampler:
        assert bind(held, "process", limit, workers=3).map(range(20)) == list(range(20))
    assert sampler.most <= limit + STEP


def test_small_items_are_sent_in_chunks() -> None:
    sent = next(Task.numbers)
    assert bind(abs, "process", own() + 500 * MB, workers=2).map(range(50_000)) == list(range(50_000))
    assert next(Task.numbers) - sent < 500


def test_an_item_that_does_not_fit_even_alone_fails_and_no_other_does() -> None:
    def held(item: int) -> int:
        import time

        size = (2000 if item == 3 else 1) << 20
        data = bytearray(size)
        for start in range(0, size, 4 << 20):  # slowly enough to be measured
            data[start : start + (4 << 20) : 4096] = b"x" * len(range(start, min(start + (4 << 20), size), 4096))
            time.sleep(0.002 if item == 3 else 0)
        return item

    limit = own() + 400 * MB
    with Sampler() as sampler, pytest.raises(MemoryLimitError) as caught:
        bind(held, "process", limit, workers=2, max_failures=20).map(range(8))
    assert sampler.most <= limit + STEP
    assert caught.value.results == {item: item for item in range(8) if item != 3}
    (failure,) = caught.value.failures
    assert (failure.index, failure.item) == (3, 3)
    with pytest.raises(MemoryError, match=r"item 3 of .*held needs more memory than max_memory leaves, even alone"):
        raise failure.exception
    results = bind(held, "process", own() + 400 * MB, workers=2, on_error="return").map(range(8))
    assert isinstance(results[3], MemoryError)
    assert [each for each in results if isinstance(each, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert callable(caught.value.retry_failed)


def test_results_that_do_not_fit_end_the_map_with_all_results_so_far() -> None:
    def make(item: int) -> bytes:
        return bytes([item]) * (30 << 20)

    bound = bind(make, "process", own() + 420 * MB, workers=2)
    with pytest.raises(MemoryLimitError, match=r"max_memory=.* does not suffice: .* by this process") as caught:
        bound.map(range(60))
    results = caught.value.results
    assert 2 <= len(results) < 30
    assert all(value == bytes([index]) * (30 << 20) for index, value in results.items())
    assert "0 of 60 items failed" in str(caught.value)
    assert "were not " in str(caught.value)


def test_a_map_ends_if_no_worker_fits_beside_this_process() -> None:
    code = """
        import os
        from opero import MemoryLimitError, Policy
        from opero.runtime.machine import resident
        Policy(parallel="process").apply(abs)  # so that all imports are done
        limit = resident(os.getpid()) + (30 << 20)
        bound = Policy(parallel={"mode": "process", "workers": 2, "max_memory": limit, "on_error": "return"}).apply(abs)
        try:
            bound.map(range(1000))
        except MemoryLimitError as error:
            print(len(error.results), error)
    """
    text = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    assert re.match(r"\d{1,3} abs: .*does not suffice: .* are in use", text.stdout), text


# This process alone


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_a_limit_below_the_memory_in_use_is_an_error_before_any_item_runs(mode: Any) -> None:
    called = []

    def call(item: int) -> int:
        called.append(item)
        return item

    before = {each.pid for each in workers()}
    with pytest.raises(MemoryLimitError, match=r"max_memory=5 MB does not suffice: .* are in use") as caught:
        bind(call, mode, "5MB").map([1, 2, 3])
    assert called == []
    assert caught.value.results == {}
    assert {each.pid for each in workers()} <= before
    with pytest.raises(MemoryLimitError, match="does not suffice"):
        list(bind(call, mode, "5MB").stream([1, 2, 3]))
    assert called == []


def test_a_limit_below_the_memory_in_use_is_an_error_before_any_item_of_an_async_function_runs() -> None:
    async def call(item: int) -> int:
        raise AssertionError(item)

    with pytest.raises(MemoryLimitError, match="does not suffice"):
        asyncio.run(bind(call, "async", "5MB").map([1, 2, 3]))


def test_fewer_threads_run_if_not_all_items_fit() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def held(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        data = block(60 * MB)
        time.sleep(0.15)  # several measurements
        with lock:
            running -= 1
        return len(data) + item

    limit = own() + 220 * MB
    with Sampler() as sampler:
        assert bind(held, "thread", limit, workers=16).map(range(16)) == [60 * MB + item for item in range(16)]
    assert most * 60 * MB <= limit - own() + STEP
    assert sampler.most <= limit + STEP


def test_results_of_threads_that_do_not_fit_end_the_map_with_all_results_so_far() -> None:
    bound = bind(lambda item: block((20 + item) * MB), "thread", own() + 300 * MB, workers=4)
    with pytest.raises(MemoryLimitError, match="does not suffice") as caught:
        bound.map(range(10, 60))
    results = caught.value.results
    assert 2 <= len(results) < 40
    assert all(len(value) == (30 + index) * MB for index, value in results.items())


def test_an_async_map_runs_fewer_items_at_a_time_if_not_all_fit() -> None:
    running, most = 0, 0

    async def held(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        data = block(50 * MB)
        await asyncio.sleep(0.1)
        running -= 1
        return len(data) + item

    limit = own() + 300 * MB
    with Sampler() as sampler:
        bound = bind(held, "async", limit, workers=30)
        assert asyncio.run(bound.map(range(30))) == [50 * MB + item for item in range(30)]
    assert most * 50 * MB <= limit - own() + STEP
    assert sampler.most <= limit + STEP


# Streams


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_of_large_results_waits_for_a_slow_reader(ordered: bool) -> None:
    limit = own() + 200 * MB
    bound = bind(lambda item: block((20 + item % 7) * MB), "thread", limit, workers=8, ordered=ordered)
    sizes = []
    with Sampler() as sampler:
        for result in bound.stream(range(30)):
            sizes.append(len(result))
            del result
            time.sleep(0.01)
    assert sorted(sizes) == sorted((20 + item % 7) * MB for item in range(30))
    assert sampler.most <= limit + STEP


@pytest.mark.parametrize("keeps", [True, False])
def test_no_more_large_items_are_read_than_fit(keeps: bool) -> None:
    """The items themselves are large, and their results are small."""
    alive, most = 0, 0

    class Large:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            self.data = block(20 * MB)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def items() -> Iterator[Large]:
        for _ in range(60):
            yield Large()

    def size(item: Large) -> int:
        time.sleep(0.01)
        return len(item.data)

    limit = own() + 200 * MB
    bound = bind(size, "thread", limit, workers=32)
    results = bound.map(items()) if keeps else list(bound.stream(items()))
    assert results == [20 * MB] * 60
    assert most * 20 * MB <= limit - own() + STEP


def test_no_more_large_items_of_an_async_source_are_read_than_fit() -> None:
    alive, most = 0, 0

    class Large:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            self.data = block(20 * MB)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    async def items() -> Any:
        for _ in range(40):
            yield Large()

    async def size(item: Large) -> int:
        await asyncio.sleep(0.01)
        return len(item.data)

    limit = own() + 250 * MB
    bound = bind(size, "async", limit, workers=50)
    assert asyncio.run(bound.map(items())) == [20 * MB] * 40
    assert most * 20 * MB <= limit - own() + STEP


def test_a_map_far_below_its_limit_uses_all_its_workers() -> None:
    barrier = threading.Barrier(6)

    def meet(item: int) -> int:
        if item >= 40:  # by then all may run
            barrier.wait(30)
        return item

    assert bind(meet, "thread", own() + 8000 * MB, workers=6).map(range(46)) == list(range(46))


def test_a_failure_of_the_function_is_no_memory_limit_error() -> None:
    def fail(item: int) -> int:
        raise ValueError(item)

    with pytest.raises(MapError) as caught:
        bind(fail, "thread", "100GB").map([1])
    assert not isinstance(caught.value, MemoryLimitError)


def test_the_resident_memory_of_a_process_is_measured() -> None:
    assert psutil.Process().memory_info().rss == pytest.approx(resident(os.getpid()), rel=0.2)
