"""A program that uses everything for as long as it is given, and does not grow: memory, threads, files, locks.

Threads, tasks, maps in processes, a disk cache, streams, timeouts, and a configuration that changes each second. After
a while of warming up, its memory grows by less than 1%; at the end no thread, file or slot is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import itertools
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tests.chaos.harness import Chaos, begin

from opero import OperoError, Policy, Registry
from opero.parallel.workers import process as processes
from opero.parallel.workers import threads as map_threads
from opero.runtime import helper_threads
from opero.runtime.private_folder import private_folder

MOST_GROWTH = 0.01
"""Of the memory after warming up."""
LEAST = 1 << 20
"""Bytes that count as no growth in runs of less than ten minutes, in which some arenas are not full yet."""
WARM = 100.0
"""Seconds below which a run is too short to warm up: its growth is printed, and is no loss."""
KEYS = 500
PATIENCE = 30.0
"""Seconds in which everything has to come to its end."""

YAML = """
defaults:
  retry: {{retries: {retries}, min_delay: 0.0001, max_delay: 0.0002}}
policies:
  api:
    timeout: {{total: {timeout}s}}
    bulkhead: {{max_concurrent: {slots}, max_wait: 4s}}
    rate_limit: {{rate: {rate}, burst: 50}}
    circuit_breaker: {{failure_rate: 0.9, min_calls: 50, open_for: 10ms}}
    cache: {{ttl: 20ms, stale_ttl: 20ms, max_size: {size}}}
  disk:
    cache: {{backend: disk, cache_dir: {folder}, ttl: 50ms, max_size: 200, tags: all}}
  batch:
    parallel: {{workers: 2, progress: false, on_error: return}}
    rate_limit: 100000
  processes:
    extends: batch
    parallel: {{mode: process}}
"""


def work(number: int) -> int:
    if number % 97 == 0:
        raise ValueError(number)
    return number * 2


class Soak:
    """The program, and what it looks at."""

    def __init__(self, chaos: Chaos, folder: Path) -> None:
        self.chaos = chaos
        self.policies = folder / "policies"
        self.policies.mkdir()
        self.cache = folder / "cache"
        self.cache.mkdir(mode=0o700)
        self.is_over = threading.Event()
        self.numbers = itertools.count()
        self.write()
        self.registry = Registry.load(self.policies, environ={})

        def fetch(key: int, model: str = "a") -> str:
            if next(self.numbers) % 11 == 0:
                raise ConnectionError(f"no answer for {key}")
            return f"{key} of {model}"

        async def fetch_async(key: int) -> str:
            await asyncio.sleep(0)
            if next(self.numbers) % 11 == 0:
                raise ConnectionError(f"no answer for {key}")
            return str(key)

        async def numbers_of(count: int) -> Any:
            for number in range(count):
                await asyncio.sleep(0)
                yield number

        def on_disk(key: int) -> str:
            return f"{key}" * (key % 30)

        bind = self.registry.bind
        self.fetch: Any = bind(fetch, "api")
        self.fetch_async: Any = bind(fetch_async, "api")
        self.on_disk: Any = bind(on_disk, "disk")
        self.batch: Any = bind(work, "batch")
        self.batch_in_processes: Any = bind(work, "processes")
        self.stream: Any = Policy(bulkhead=4, timeout={"idle": 5}).apply(numbers_of)

    def write(self) -> None:
        number = next(self.numbers)
        text = YAML.format(
            retries=2 + number % 3,
            timeout=5 + number % 5,
            slots=3 + number % 4,
            rate=20_000 + number % 1000,
            size=50 + number % 100,
            folder=self.cache,
        )
        (self.policies / "base.new").write_text(text)
        os.replace(self.policies / "base.new", self.policies / "base.yaml")

    # What runs

    def repeat(self, action: Callable[[int], None], pause: float = 0.001) -> None:
        for number in itertools.count():
            if self.is_over.is_set():
                return
            try:
                with contextlib.suppress(OperoError, ConnectionError, ValueError):
                    action(number)
            except Exception as error:
                self.chaos.lose(f"{action.__name__}: {error!r:.500}")
                time.sleep(1)
            self.chaos.count("actions")
            self.is_over.wait(pause)

    def call(self, number: int) -> None:
        self.fetch(number % KEYS)

    def call_disk(self, number: int) -> None:
        assert self.on_disk(number % KEYS) == f"{number % KEYS}" * (number % KEYS % 30)
        if number % 500 == 0:
            self.on_disk.cache_clear()

    def call_tasks(self, number: int) -> None:
        async def some() -> None:
            tasks = [asyncio.ensure_future(self.fetch_async((number + each) % KEYS)) for each in range(8)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            read = [each async for each in self.stream(5)]
            assert read == list(range(5))
            async for _ in self.stream(5):
                break

        asyncio.run(some())

    def map_processes(self, number: int) -> None:
        size = 50 + number % 20
        items = range(1, size)
        results = (self.batch_in_processes if number % 3 else self.batch).map(items)
        assert [each for each in results if not isinstance(each, Exception)] == [
            2 * each for each in items if each % 97
        ]
        for _ in self.batch.stream(items):
            break

    def reload(self, number: int) -> None:
        self.write()
        self.registry.reload()
        self.chaos.count("reloads")

    def threads(self) -> list[threading.Thread]:
        jobs: list[tuple[Callable[[int], None], float]] = [
            (self.call, 0.002),
            (self.call, 0.002),
            (self.call_disk, 0.002),
            (self.call_tasks, 0.02),
            (self.map_processes, 0.2),
            (self.reload, 1.0),
        ]
        return [threading.Thread(target=self.repeat, args=job, name=f"soak {job[0].__name__}") for job in jobs]


def memory() -> int:
    """Bytes that this process has for itself, after everything that can be freed is."""
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def open_files() -> list[str]:
    found = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{each}"))
    return sorted(each for each in found if not each.startswith(("/dev/", "pipe:", "/proc")))


def locks() -> list[str]:
    """The locks on files that this process holds."""
    mine = str(os.getpid())
    lines = Path("/proc/locks").read_text().splitlines() if Path("/proc/locks").exists() else []
    return [line for line in lines if line.split()[4:5] == [mine]]


def sampled(chaos: Chaos, until: float) -> Iterator[int]:
    while time.monotonic() < until and chaos.goes_on():
        yield memory()
        time.sleep(min(2.0, chaos.seconds / 40))


def main() -> int:
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    chaos = begin(__file__, __doc__)
    with tempfile.TemporaryDirectory(prefix="opero-soak-") as folder:
        soak = Soak(chaos, Path(folder))
        before = {each.name for each in threading.enumerate()}
        private_folder()  # which a process that maps has open and locked until it ends
        files_before, locks_before = open_files(), locks()
        threads = soak.threads()
        for each in threads:
            each.start()
        start = chaos.began
        warm = start + chaos.seconds * 0.4
        list(sampled(chaos, warm))
        middle = start + chaos.seconds * 0.7
        first = list(sampled(chaos, middle)) or [memory()]
        second = list(sampled(chaos, start + chaos.seconds)) or [memory()]
        soak.is_over.set()
        for each in threads:
            each.join(60)
            chaos.check(not each.is_alive(), f"{each.name} hangs")
        threads.clear()
        # The least of each part is what stays; the rest is what was under way.
        base, grown = min(first), min(second) - min(first)
        chaos.count("KiB of memory", base // 1024)
        chaos.count("KiB of growth", grown // 1024)
        most = max(MOST_GROWTH * base, LEAST if chaos.seconds < 600 else 0)
        chaos.check(grown <= most or chaos.seconds < WARM, f"memory has grown by {grown / base:.2%} of {base:,} bytes")
        check_rest(chaos, soak, before, files_before, locks_before)
    return chaos.end()


def wait_for_calls(chaos: Chaos, soak: Soak) -> None:
    def executor(name: str, kind: str) -> Any:
        return getattr(soak, name).binding.pipeline.executors[kind]

    for name in ("fetch", "fetch_async", "stream"):
        is_free = partial(lambda name: executor(name, "bulkhead").running == 0, name)
        chaos.within(PATIENCE, is_free, f"the slots of {name} are given back")
    for name in ("fetch", "fetch_async", "on_disk"):
        has_ended = partial(lambda name: executor(name, "cache").single_flight.running == {}, name)
        chaos.within(PATIENCE, has_ended, f"the computations of {name} end")


def check_rest(chaos: Chaos, soak: Soak, before: set[str], files_before: list[str], locks_before: list[str]) -> None:
    wait_for_calls(chaos, soak)
    soak.on_disk.binding.pipeline.executors["cache"].store.backend.close()
    processes.end_all()
    chaos.within(PATIENCE, lambda: not psutil.Process().children(), "worker processes end")
    soak.__dict__.clear()  # the functions, which keep the files of their limits open
    gc.collect()

    def others() -> list[str]:
        """Threads that do something: idle ones are kept for the next call, a bounded number of them."""
        idle = {*helper_threads.idle_threads(), *map_threads.idle_threads()}
        return sorted(each.name for each in threading.enumerate() if each.name not in before and each.ident not in idle)

    def files() -> list[str]:
        """Open files, but for the locks of a disk cache, which a process opens once and never closes."""
        return [each for each in open_files() if each not in files_before and not each.endswith("/opero.locks")]

    def locks_left() -> int:
        return len(locks()) - len(locks_before)

    chaos.within(PATIENCE, lambda: not others(), f"threads end: {others()}")
    chaos.within(PATIENCE, lambda: not files(), f"files are closed: {files()}")
    chaos.within(PATIENCE, lambda: locks_left() == 0, f"locks on files are given back: {locks()}")
    chaos.count("threads left", len(others()))
    chaos.count("files left", len(files()))
    chaos.count("locks left", locks_left())


if __name__ == "__main__":
    sys.exit(main())
