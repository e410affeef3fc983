"""What a map costs beside the function itself, in threads, processes and event loops; its memory, and how it starts."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import joblib
import numpy
import psutil
from tests.benchmarks.harness import Row

from opero import Policy, opmap

if TYPE_CHECKING:
    from collections.abc import Callable

ITEMS = 100_000
STREAMED = 1_000_000
CORES = 2
THREADS = 8
TASKS = 100
ROWS, BAD = 20_000, 20
LARGE, READS = 200_000_000, 40
SLEEP, SLEEPERS, SLEEPS = 0.01, 50, 5000
SPIN, SPINS = 0.001, 2000


def trivial(number: int) -> int:
    return number + 1


async def trivial_async(number: int) -> int:
    return number + 1


def spin(_: int) -> None:
    """A millisecond of computing, by this process's own time: waiting for a processor does not count."""
    until = time.thread_time() + SPIN
    while time.thread_time() < until:
        pass


def nap(_: int) -> None:
    time.sleep(SLEEP)


def mapped(function: Any, mode: str, workers: int) -> Any:
    return Policy(parallel={"mode": mode, "workers": workers, "progress": False}).apply(function)


def paired(
    name: str, ours: Callable[[], object], peer: str, theirs: Callable[[], object], rounds: int, target: float | None
) -> Row:
    """Whole runs in turn, and the median of the pairs' ratios."""
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        pair = {}
        for which, run in (("ours", ours), ("theirs", theirs)) if turn % 2 else (("theirs", theirs), ("ours", ours)):
            gc.collect()
            started = time.perf_counter()
            run()
            pair[which] = time.perf_counter() - started
        if turn:  # the first is to warm up
            times.append((pair["ours"], pair["theirs"]))
    a, b = (statistics.median(each) for each in zip(*times, strict=True))
    return Row(name, a * 1e9, peer, b * 1e9, statistics.median(one / other for one, other in times), target)


def checked(results: Any) -> None:
    assert results[-1] == ITEMS
    assert len(results) == ITEMS


def in_threads(rounds: int) -> Row:
    ours = mapped(trivial, "thread", THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        return paired(
            f"{ITEMS:,} trivial items, {THREADS} threads", lambda: checked(ours.map(range(ITEMS))),
            "ThreadPoolExecutor.map", lambda: checked(list(pool.map(trivial, range(ITEMS)))), rounds, 0.15,
        )  # fmt: skip


def in_processes(rounds: int) -> list[Row]:
    ours = mapped(trivial, "process", CORES)
    name = f"{ITEMS:,} trivial items, {CORES} processes, warm"
    with ProcessPoolExecutor(CORES) as pool, joblib.Parallel(CORES) as parallel:
        return [
            paired(
                name, lambda: checked(ours.map(range(ITEMS))), "ProcessPoolExecutor, by 100",
                lambda: checked(list(pool.map(trivial, range(ITEMS), chunksize=100))), rounds, 0.4,
            ),
            paired(
                name, lambda: checked(ours.map(range(ITEMS))), "joblib's loky, batch auto",
                lambda: checked(parallel(joblib.delayed(trivial)(item) for item in range(ITEMS))), rounds, 0.3,
            ),
        ]  # fmt: skip


def in_tasks(rounds: int) -> list[Row]:
    ours, elsewhere = mapped(trivial_async, "async", TASKS), mapped(trivial_async, "async_process", CORES)

    async def gathered() -> list[int]:
        semaphore = asyncio.Semaphore(TASKS)

        async def one(item: int) -> int:
            async with semaphore:
                return await trivial_async(item)

        return await asyncio.gather(*map(one, range(ITEMS)))

    with asyncio.Runner() as runner:
        peer = "gather with a semaphore"

        def theirs() -> None:
            checked(runner.run(gathered()))

        return [
            paired(
                f"{ITEMS:,} trivial items, {TASKS} tasks", lambda: checked(runner.run(ours.map(range(ITEMS)))),
                peer, theirs, rounds, 0.25,
            ),
            paired(
                f"{ITEMS:,} trivial items, {CORES} loops in processes",
                lambda: checked(runner.run(elsewhere.map(range(ITEMS)))), peer, theirs, rounds, None,
            ),
        ]  # fmt: skip


def computing(rounds: int) -> Row:
    ours = mapped(spin, "process", CORES)
    with joblib.Parallel(CORES) as parallel:
        return paired(
            f"{SPINS} items of 1 ms computing, {CORES} processes", lambda: ours.map(range(SPINS)), "joblib's loky",
            lambda: parallel(joblib.delayed(spin)(item) for item in range(SPINS)), rounds, 1.03,
        )  # fmt: skip


def parse(row: str) -> int:
    """Parse a row; it is some 10 µs of work, as with a small JSON document."""
    return sum(map(int, row.split(",")))


def bad_rows(rounds: int) -> Row:
    """What failed items cost under the defaults of `opmap`: one attempt each."""
    good = [",".join(map(str, range(number, number + 100))) for number in range(ROWS)]
    bad = good.copy()
    for at in range(0, ROWS, ROWS // BAD):
        bad[at] = "1,2,x"
    ours = opmap(mode="process", workers=CORES, on_error="return", progress=False)(parse)

    def read(rows: list[str], failed: int) -> None:
        assert sum(isinstance(each, ValueError) for each in ours.map(rows)) == failed

    return paired(
        f"{ROWS:,} rows of which {BAD} are bad, {CORES} processes", lambda: read(bad, BAD), "the same rows, all good",
        lambda: read(good, 0), rounds, 1.2,
    )  # fmt: skip


def read_at(place: int, numbers: Any) -> float:
    return float(numbers[place])


def large_argument(rounds: int) -> Row:
    """An array that every item reads from."""
    numbers = numpy.ones(LARGE // 8)
    ours = mapped(read_at, "process", CORES)
    with joblib.Parallel(CORES) as parallel:

        def theirs() -> object:
            new = numbers[:]  # else joblib takes the file of the last run, without a look whether the array has changed
            return parallel(joblib.delayed(read_at)(place, new) for place in range(READS))

        return paired(
            f"a further argument of {LARGE // 10**6} MB, {READS} items, {CORES} processes",
            lambda: ours.map(range(READS), numbers), "joblib's loky, memmapped", theirs, rounds, 1.3,
        )  # fmt: skip


def sleeping(rounds: int) -> Row:
    ours = mapped(nap, "thread", SLEEPERS)
    ours.map(range(SLEEPERS))
    ideal = SLEEPS * SLEEP / SLEEPERS
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        ours.map(range(SLEEPS))
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times)
    return Row(f"{SLEEPS} sleeps of 10 ms, {SLEEPERS} threads", seconds * 1e9, "the ideal", ideal * 1e9,
               seconds / ideal, 1 / 0.95)  # fmt: skip


def streaming() -> list[Row]:
    """A million items, read one by one: time, and how much more memory is in use at any time than before."""
    process = psutil.Process(os.getpid())
    rows = []
    for mode, workers in (("thread", THREADS), ("process", CORES), ("async", TASKS)):
        function = mapped(trivial_async if mode == "async" else trivial, mode, workers)
        started, most, before = 0.0, 0, 0

        def look(number: int, process: psutil.Process = process) -> None:
            nonlocal started, most, before
            if number == STREAMED // 10:  # when all that is kept between maps is there
                gc.collect()
                before = process.memory_info().rss
            if number % 10_000 == 0 and before:
                most = max(most, process.memory_info().rss)

        async def read_async(function: Any = function, look: Any = look) -> None:
            number = 0
            async for _ in function.stream(iter(range(STREAMED))):
                number += 1
                look(number)
            assert number == STREAMED

        started = time.perf_counter()
        if mode == "async":
            asyncio.run(read_async())
        else:
            number = 0
            for number, _ in enumerate(function.stream(iter(range(STREAMED))), 1):
                look(number)
            assert number == STREAMED
        seconds = time.perf_counter() - started
        grown = most - before
        name = f"{STREAMED:,} items streamed, mode {mode}"
        rows.append(Row(name, seconds * 1e9, "the limit", 3e9, seconds / 3, 1.0 if mode == "thread" else None))
        note = f"grew by {grown / 1e6:.2f} MB"
        rows.append(Row(f"{name}: memory / 5 MB", 0, "the limit", 0, grown / 5e6, 1.0, note))
    return rows


def starting(rounds: int) -> list[Row]:
    """What a map costs when its workers are there already."""
    rows = []
    for mode, workers, limit in (("process", CORES, 0.02), ("thread", THREADS, None)):
        ours = mapped(trivial, mode, workers)
        ours.map(range(100))
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            assert ours.map([1, 2]) == [2, 3]
            times.append(time.perf_counter() - started)
        seconds = statistics.median(times)
        rows.append(
            Row(f"a map of two items, mode {mode}, warm", seconds * 1e9, "the limit", (limit or 0) * 1e9,
                seconds / limit if limit else 0.0, 1.0 if limit else None)
        )  # fmt: skip
    return rows


def run(rounds: int) -> list[Row]:
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    few = max(3, rounds // 20)
    assert list(itertools.islice(mapped(trivial, "thread", 2).stream(itertools.count()), 2)) == [1, 2]
    return [
        in_threads(few), *in_processes(few), *in_tasks(few), computing(few), bad_rows(few), large_argument(few),
        sleeping(3), *streaming(), *starting(max(20, rounds // 4)),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit("run it by: python -m tests.benchmarks parallel")
