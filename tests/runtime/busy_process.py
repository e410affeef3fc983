"""A busy process that forks: `python busy_process.py FORKS`.

Three threads call functions under all policies, in threads and in an event loop, alone and in maps, beside a watch. The
main thread forks children meanwhile. Each child uses every function and checks its limits; the parent checks at the end
that it has lost nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # registers fork hooks, which must not happen during a fork
import contextlib
import faulthandler
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opero import CircuitOpenError, Policy, Registry
from opero.parallel.workers import process as processes
from opero.runtime import forking

SECONDS = 60
"""A child that takes longer hangs."""
SLOTS = 4
RATE = 200.0

folder = Path(tempfile.mkdtemp(prefix="opero-busy-"))
policies = folder / "policies"
policies.mkdir()
(policies / "base.yaml").write_text("policies: {api: {retry: {retries: 3, min_delay: 0}, bulkhead: 50}}")
registry = Registry.load(policies, environ={})


def made(**policy: Any) -> Callable[[Callable[..., Any]], Any]:
    return Policy.model_validate(policy).apply


attempts = itertools.count()
LIMITS: dict[str, Any] = {
    "retry": {"retries": 9, "min_delay": 0, "backoff_factor": 1},
    "timeout": {"attempt": 30, "total": 50},
    "rate_limit": 1e7,
    "circuit_breaker": {"failure_rate": 0.9, "window": 100, "min_calls": 50},
    "bulkhead": {"max_concurrent": SLOTS, "max_wait": 30},
    "fallback": {"arg": "key"},
}


def flaky(number: int) -> int:
    if not next(attempts) % 3:
        raise ConnectionError
    return number


def keyed(number: int, key: str = "") -> int:
    return number


retried = made(retry={"retries": 9, "min_delay": 0})(flaky)
in_memory = made(cache={"ttl": 0.01, "stale_ttl": 0.05, "max_size": 20, "tags": ["all"]})(keyed)
on_disk = made(cache={"backend": "disk", "cache_dir": folder / "cache", "ttl": 0.5})(keyed)
metered = made(rate_limit={"rate": RATE, "burst": 1})(keyed)
timed = made(timeout={"attempt": 30})(keyed)
fallen_back = made(fallback={"default": -1})(keyed)
profiled = registry.bind(keyed, "api")
together = made(**LIMITS, cache={"ttl": 0.01, "max_size": 20})(keyed)
in_files = made(**LIMITS, parallel={"mode": "process", "workers": 1, "progress": False})(keyed)
mapped = made(**LIMITS, parallel={"mode": "thread", "workers": 2, "progress": False})(keyed)


@made(circuit_breaker={"consecutive_failures": 1, "open_for": 0.002})
def breaks(number: int) -> int:
    if number < 0:
        raise ConnectionError
    return number


@made(bulkhead={"max_concurrent": SLOTS, "max_wait": 30})
def occupies(number: int) -> int:
    time.sleep(0.0005)
    return number


async def keyed_async(number: int, key: str = "") -> int:
    await asyncio.sleep(0)
    return number


async_functions = [
    made(**LIMITS, cache={"ttl": 0.01, "max_size": 20})(keyed_async),
    made(cache={"backend": "disk", "cache_dir": folder / "cache", "ttl": 0.5})(keyed_async),
    made(rate_limit={"rate": RATE, "burst": 1})(keyed_async),
    made(bulkhead={"max_concurrent": 1, "max_wait": 30})(keyed_async),
]
version = 0


def versioned(number: int) -> int:
    found = version
    time.sleep(0.0003)
    return found


current = [
    made(cache={"ttl": 600, "max_size": 100})(versioned),
    made(cache={"ttl": 600, "backend": "disk", "cache_dir": folder / "current"})(versioned),
]
"""Caches that are cleared when the version changes: nobody may see an older one afterwards."""
functions = [retried, in_memory, on_disk, metered, timed, fallen_back, profiled, together, in_files, occupies]


# The threads


class Hammer(threading.Thread):
    """Repeats something until it is stopped, or that many times."""

    def __init__(self, work: Callable[[int], object], most: int = sys.maxsize) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.most = most
        self.rounds = 0
        self.problem = ""
        self.is_stopped = False

    def run(self) -> None:
        try:
            while not self.is_stopped and self.rounds < self.most:
                self.work(self.rounds)
                self.rounds += 1
        except BaseException:
            self.problem = traceback.format_exc()


def call_each(number: int) -> None:
    for each in functions:
        assert each(number % 30) == number % 30
    with contextlib.suppress(ConnectionError, CircuitOpenError):
        breaks(number % 3 - 1)
    if number % 50 == 0:
        in_memory.cache_clear(tags="all")
    for each in current:
        assert each(number % 3) <= version


def call_each_in_a_loop(number: int) -> None:
    async def main() -> None:
        calls = [each(number % 30) for each in async_functions for _ in range(3)]
        assert set(await asyncio.gather(*calls)) == {number % 30}

    asyncio.run(main())


def map_each(number: int) -> None:
    items = list(range(40))
    assert mapped.map(items) == items
    journal = folder / f"journal-{number}"
    assert list(in_files.stream(items, journal=journal)) == items
    assert len(journal.read_text().splitlines()) == len(items) + 1, "only this process writes its journal"
    journal.unlink()
    changed = folder / "changed.yaml"
    changed.write_text(f"policies: {{api: {{retry: {number % 5 + 3}, bulkhead: {number % 3 + 50}}}}}")
    changed.replace(policies / "base.yaml")


# A child


def bulkhead_of(bound: Any) -> Any:
    return bound.binding.resolved().executors["bulkhead"]


def check_slots(bound: Any, slots: int) -> None:
    bulkhead = bulkhead_of(bound)
    assert bulkhead.running == 0
    assert [bulkhead.take() for _ in range(slots + 1)] == [True] * slots + [False]
    for _ in range(slots):
        bulkhead.leave()
    assert bulkhead.running == 0


def check_permits(bound: Any) -> None:
    """No call waits for a permit, so the next one is due soon. Calls that were about to wait may have left some."""
    limiter = bound.binding.resolved().executors["rate_limit"].limiter
    assert limiter.wait_at(time.monotonic(), 1.0) <= 4 / RATE
    assert limiter.queued == 0


def check_probes() -> None:
    until = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(CircuitOpenError):
            assert breaks(7) == 7
            return
        assert time.monotonic() < until
        time.sleep(0.001)


def check_locks() -> None:
    """No lock belongs to a thread that does not exist here."""
    for reference, name in forking._renewed.copy().items():
        owner = reference()
        lock = None if owner is None else forking._lock_of(owner, name)
        if lock is not None:
            assert lock.acquire(blocking=False), f"a lock of {owner!r} is held"
            lock.release()


def check_all(number: int) -> None:
    """What each child does."""
    check_locks()
    for each in current:
        for key in range(3):
            assert each(key) == version, "a value from before the cache was cleared"
    for bound in (occupies, together, mapped):
        check_slots(bound, SLOTS)
    check_slots(async_functions[3], 1)
    for bound in (metered, async_functions[2]):
        check_permits(bound)
    check_probes()
    call_each(number)
    thread = Hammer(call_each, most=1)
    thread.start()
    thread.join()
    assert not thread.problem, thread.problem
    call_each_in_a_loop(number)
    assert mapped.map([1, 2, 3]) == [1, 2, 3]
    watch.stop()
    assert registry.reload() is not None
    if number % 100 == 2:  # its processes take half a second to start
        assert in_files.map(range(10)) == list(range(10))
        processes.end_all()


def guarded_check(number: int) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(SECONDS)
    try:
        check_all(number)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1
    return 0


def exit_checked(number: int, sequence: int) -> None:
    """For a child of multiprocessing."""
    os.write(sequence, f"{draw()}\n".encode())
    sys.exit(guarded_check(number))


def draw() -> float:
    clock: Any = retried.binding.clock
    return float(clock.random.random())


def forked(number: int, sequence: int) -> int:
    """The exit code of a child, negative if it hung or was killed."""
    if number % 4 == 3:
        started: Any = multiprocessing.get_context("fork").Process(target=exit_checked, args=(number, sequence))
        started.start()
        started.join()
        return int(started.exitcode)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(sequence, f"{draw()}\n".encode())
    code = guarded_check(number)
    if number % 10 or threading.main_thread().name != "MainThread":
        os._exit(code)  # which a thread that forks has to call: its end is not that of the process
    sys.exit(code)  # with exit handlers and finalizers


def main(forks: int) -> int:
    global version, watch
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
    sys.setswitchinterval(0.0005)
    watch = registry.watch()
    map_each(0)
    workers = {each.pid for each in (*processes._idle, *processes._busy)}
    hammers = [Hammer(each) for each in (call_each, call_each_in_a_loop, map_each)]
    for each in hammers:
        each.start()
    sequence = folder / "sequence"
    descriptor = os.open(sequence, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    codes: list[int] = []
    for number in range(forks):
        version += 1
        for each in current:
            each.cache_clear()
        if number % 5 == 4:  # a thread forks
            thread = threading.Thread(target=lambda number=number: codes.append(forked(number, descriptor)))
            thread.start()
            thread.join()
        else:
            codes.append(forked(number, descriptor))
    os.close(descriptor)
    for each in hammers:
        each.is_stopped = True
    for each in hammers:
        each.join(SECONDS)
    hangs = codes.count(-signal.SIGALRM)
    lost = [each.problem or "a thread hangs" for each in hammers if each.problem or each.is_alive()]
    if len(codes) != forks or set(codes) - {0, -signal.SIGALRM}:
        lost.append(f"the children's exit codes: {codes}")
    if retried.stats.calls != hammers[0].rounds:
        lost.append(f"{hammers[0].rounds} calls, of which {retried.stats.calls} are counted")
    if any(bulkhead_of(bound).running for bound in (*functions[7:], async_functions[3])):
        lost.append("slots of a bulkhead")
    if {each.pid for each in (*processes._idle, *processes._busy)} != workers:
        lost.append("workers")
    drawn = sequence.read_text().split()
    if len(set(drawn)) != forks:
        lost.append(f"the children's random numbers: {forks} children drew {len(set(drawn))}")
    watch.stop()
    shutil.rmtree(folder)
    print(*lost, sep="\n", file=sys.stderr, end="\n" if lost else "")
    print(f"{forks} forks of a busy process: {hangs} hangs, {len(lost)} lost")
    return 1 if hangs or lost else 0


watch: Any = None

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
