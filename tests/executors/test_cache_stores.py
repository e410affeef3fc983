"""Shared stores: outages do not fail calls, and processes compute each key once."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache import register_backend
from dogpile.cache.api import NO_VALUE, CacheBackend

from opero import Event, Policy, on
from opero.cache import open_shared
from opero.events import CacheFailed
from redis_server import RedisServer

WATCHED = ("cache_failed", "cache_restored")


@pytest.fixture
def events() -> Iterator[list[Event]]:
    seen: list[Event] = []
    offs = [on(name, seen.append) for name in WATCHED]
    yield seen
    for off in offs:
        off()


@pytest.fixture(params=["disk", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "redis":
        return {"backend": "redis", "ttl": None, "url": request.getfixturevalue("redis_url")}
    return {"backend": "disk", "ttl": None, "cache_dir": str(tmp_path)}


@pytest.fixture(autouse=True)
def _reset_breakers() -> None:
    """Reset the breakers, so that a store that another test stopped is used again at once."""
    open_shared._breakers.clear()


def names(events: list[Event]) -> list[str]:
    return [event.what if isinstance(event, CacheFailed) else event.name for event in events]


# Outages, slow stores, full disks, garbage


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_outage_fails_no_call_and_logs_two_lines(
    redis_server: RedisServer, events: list[Event], caplog: Any, kind: str
) -> None:
    runs: list[int] = []

    def function(x: int) -> int:
        runs.append(x)
        return x

    async def function_async(x: int) -> int:
        return function(x)

    cache = {"backend": "redis", "url": redis_server.url, "ttl": 60, "namespace": kind}
    bound: Any = Policy(cache=cache).apply(function if kind == "sync" else function_async)
    loop = asyncio.new_event_loop()

    def call(x: int) -> Any:
        return bound(x) if kind == "sync" else loop.run_until_complete(bound(x))

    caplog.set_level("INFO")
    assert (call(1), call(1), runs) == (1, 1, [1])
    redis_server.kill()
    try:
        started = time.monotonic()
        assert [call(1) for _ in range(50)] == [1] * 50
        assert time.monotonic() - started < 0.5  # not 50 connection attempts
        assert bound.cache_get(1) is None
        assert bound.cache_set(5, 1) is False
        bound.cache_delete(1)
        bound.cache_clear()
        assert bound.cache_info().size is None
        assert names(events) == ["unavailable"]
    finally:
        redis_server.start()
    time.sleep(1.05)  # until the first probe
    assert (call(2), call(2), runs[-1], runs.count(2)) == (2, 2, 2, 1)
    assert names(events) == ["unavailable", "cache_restored"]
    lines = [record for record in caplog.records if "redis at 127.0.0.1" in record.getMessage()]
    assert [record.levelname for record in lines] == ["WARNING", "INFO"]
    bound.binding.cache.store.backend.close()
    loop.close()


@pytest.mark.alone
def test_a_server_that_does_not_reply_costs_one_timeout(redis_server: RedisServer, events: list[Event]) -> None:
    bound = Policy(cache={"backend": "redis", "ttl": 9, "url": redis_server.url, "store_timeout": 0.1}).apply(
        lambda x: x
    )
    bound(1)
    redis_server.freeze()
    try:
        started = time.monotonic()
        assert [bound(x) for x in range(20)] == list(range(20))
        assert 0.09 < time.monotonic() - started < 0.4
    finally:
        redis_server.thaw()
    assert names(events) == ["unavailable"]
    assert isinstance(events[0].error, Exception)


class SlowBackend(CacheBackend):
    """A third-party backend without a timeout of its own."""

    def __init__(self, arguments: Any) -> None:
        self.values: dict[str, Any] = {}
        self.delay: float = arguments["delay"]

    def get(self, key: str) -> Any:
        time.sleep(self.delay)
        return self.values.get(key, NO_VALUE)

    def get_multi(self, keys: Any) -> Any:
        time.sleep(self.delay)
        return [self.values.get(key, NO_VALUE) for key in keys]

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


register_backend("tests.slow", __name__, "SlowBackend")  # type: ignore[no-untyped-call]


@pytest.mark.alone
@pytest.mark.parametrize("delay", [0, 0.5])
def test_a_backend_without_a_timeout_of_its_own_is_given_one(events: list[Event], delay: float) -> None:
    cache = {"backend": "tests.slow", "ttl": 60, "arguments": {"delay": delay}, "store_timeout": 0.1}
    bound = Policy(cache=cache).apply(lambda x: x)
    started = time.monotonic()
    assert [bound(1) for _ in range(5)] == [1] * 5
    assert time.monotonic() - started < 0.4
    assert names(events) == (["unavailable"] if delay else [])
    assert bound.stats.attempts == (5 if delay else 1)
    if delay:
        assert "no answer within 100ms" in events[0].message or "0.1s" in events[0].message


def test_garbage_in_a_store_is_a_miss_reported_once_and_overwritten(redis_url: str, events: list[Event]) -> None:
    def function(x: int) -> list[int]:
        return [x]

    bound = Policy(cache={"backend": "redis", "ttl": None, "url": redis_url}).apply(function)
    bound(1)
    client = bound.binding.cache.store.backend.client  # type: ignore[union-attr]
    for garbage in (b"garbage", b"op2j", b"", os.urandom(500), b"op2j" + bytes(34) + b"{not json"):
        for key in client.keys("opero:*"):
            client.set(key, garbage)
        assert bound(1) == [1]
        assert bound(1) == [1]
    assert bound.stats.attempts == 6
    assert names(events) == ["unreadable"]


class Bomb:
    exploded = 0

    def __reduce__(self) -> Any:
        return Bomb.explode, ()

    @staticmethod
    def explode() -> None:
        Bomb.exploded += 1


def test_pickles_that_others_put_into_a_network_store_are_not_loaded(redis_url: str, events: list[Event]) -> None:
    def function() -> int:
        return 1

    bound = Policy(cache={"backend": "redis", "ttl": None, "url": redis_url, "secret": "key"}).apply(function)
    bound()
    client = bound.binding.cache.store.backend.client  # type: ignore[union-attr]
    (key,) = client.keys("opero:*")
    whole = client.get(key)
    for planted in (
        pickle.dumps(Bomb()),
        whole[:38] + pickle.dumps(Bomb()),
        b"op2p" + whole[4:38] + pickle.dumps(Bomb()),
    ):
        client.set(key, planted)
        assert bound() == 1
    assert Bomb.exploded == 0
    assert names(events) == ["unreadable"]


def test_a_result_that_cannot_be_serialized_is_still_returned(where: dict[str, Any], events: list[Event]) -> None:
    bound = Policy(cache={**where, "serializer": "json"}).apply(lambda: {1, 2})
    assert [bound() for _ in range(3)] == [{1, 2}] * 3
    assert names(events) == ["not_stored"]
    assert "JSON cannot represent the result of type set" in events[0].message


def test_a_full_disk_fails_no_call(tmp_path: Path) -> None:
    code = """
import resource, sys
from opero import Policy, on
seen = []
on("cache_failed", seen.append)
bound = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": sys.argv[1]}).apply(lambda x: str(x) * 100_000)
bound(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
assert [len(bound(x)) for x in range(1, 10)] == [100_000] * 9
assert bound.cache_get(1) is None or len(bound.cache_get(1)) == 100_000
print([event.what for event in seen])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("['read_only']\n", 0), done.stderr


# The event loop


def longest_stall(work: Callable[[], Any], disturb: Callable[[], Any]) -> float:
    """Return the longest time for which an event loop did not run a ready task during the work."""

    async def main() -> float:
        longest, last, done = 0.0, time.perf_counter(), False

        async def tick() -> None:
            nonlocal longest, last
            while not done:
                await asyncio.sleep(0)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now

        await work()  # excludes imports at first use from the measurement
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        last = time.perf_counter()
        disturb()
        last = time.perf_counter()
        longest = 0.0
        await work()
        done = True
        await ticking
        return longest

    return asyncio.run(main())


@pytest.mark.alone
def test_a_frozen_server_does_not_block_the_event_loop(redis_server: RedisServer) -> None:
    async def function(x: int) -> int:
        return x

    cache = {"backend": "redis", "ttl": None, "url": redis_server.url, "store_timeout": 0.4}
    bound = Policy(cache=cache).apply(function)

    async def work() -> None:
        started = time.monotonic()
        assert await asyncio.gather(*(bound(x) for x in range(50))) == list(range(50))
        waited.append(time.monotonic() - started)

    waited: list[float] = []
    try:
        assert longest_stall(work, redis_server.freeze) < 0.2
    finally:
        redis_server.thaw()
    assert waited[1] > 0.35  # the work itself waited


@pytest.mark.alone
def test_a_locked_file_does_not_block_the_event_loop(tmp_path: Path) -> None:
    import sqlite3

    async def function(x: int) -> int:
        return x

    bound = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path, "store_timeout": 0.4}).apply(function)
    other = sqlite3.connect(tmp_path / "opero.sqlite3", isolation_level=None)

    async def once() -> None:
        assert await bound(1000 + len(turns)) >= 1000
        turns.append(time.monotonic())

    turns: list[float] = []
    started = time.monotonic()
    assert longest_stall(once, lambda: other.execute("BEGIN IMMEDIATE")) < 0.2
    assert turns[1] - started > 0.35
    other.close()


def test_a_map_of_an_async_function_uses_the_store_outside_the_event_loop_thread(where: dict[str, Any]) -> None:
    main_thread = threading.get_ident()
    seen: list[int] = []

    async def function(x: int) -> int:
        return x

    bound = Policy(cache=where).apply(function)
    breaker = bound.binding.cache.store.breaker  # type: ignore[union-attr]
    breaker.limit = lambda operation, *args: seen.append(threading.get_ident()) or operation(*args)
    try:
        assert asyncio.run(bound.map(range(50))) == list(range(50))  # type: ignore[arg-type]
        assert asyncio.run(bound.map(range(50))) == list(range(50))  # type: ignore[arg-type]
    finally:
        breaker.limit = None
    assert bound.stats.attempts == 50
    assert seen
    assert main_thread not in seen


def test_the_workers_of_an_async_map_write_concurrently(where: dict[str, Any]) -> None:
    async def function(x: int) -> int:
        return x

    bound = Policy(cache=where, parallel={"workers": 30}).apply(function)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert asyncio.run(bound.map(range(300))) == list(range(300))  # type: ignore[arg-type]
    finally:
        sys.setswitchinterval(interval)
    assert bound.cache_info().size == 300


# One computation across processes

FUNCTION = """
import os, sys, time
from opero import Policy
cache = eval(sys.argv[1])
def count():
    with open(sys.argv[2], "a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\\n")
def compute(key):
    count()
    exec(sys.argv[3], globals())
    return [key, os.getpid()]
bound = Policy(cache=cache).apply(compute)
print("ready", flush=True)
sys.stdin.readline()
try:
    print(bound("k"), flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
"""


def start(cache: dict[str, Any], counter: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FUNCTION, repr(cache), str(counter), code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(*processes: subprocess.Popen[str]) -> None:
    """Let the processes call the function once all of them are ready."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def counted(counter: Path) -> list[str]:
    return counter.read_text().splitlines() if counter.exists() else []


def wait_for(counter: Path) -> None:
    """Wait until a computation has begun."""
    until = time.monotonic() + 60
    while not counted(counter):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_processes_compute_a_key_once(where: dict[str, Any], tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    processes = [start(where, counter, "time.sleep(0.4)") for _ in range(3)]
    go(*processes)
    answers = {process.communicate()[0] for process in processes}
    assert len(answers) == len(counted(counter)) == 1


def test_if_the_computation_of_another_process_fails_the_next_one_tries_and_no_two_at_once(
    where: dict[str, Any], tmp_path: Path
) -> None:
    counter = tmp_path / "counter"
    processes = [start(where, counter, "time.sleep(0.4); raise ValueError") for _ in range(3)]
    go(*processes)
    assert [process.communicate()[0] for process in processes] == ["ValueError\n"] * 3
    began = sorted(float(line.split()[1]) for line in counted(counter))
    assert len(began) == 3
    assert all(later - earlier >= 0.4 for earlier, later in itertools.pairwise(began))


@pytest.mark.alone
def test_if_another_process_does_not_cache_its_result_all_that_wait_compute_at_once(
    where: dict[str, Any], tmp_path: Path
) -> None:
    counter = tmp_path / "counter"
    cache = {**where, "cache_if": "operator:not_"}
    processes = [start(cache, counter, "time.sleep(1)") for _ in range(3)]
    go(*processes)
    assert all(process.communicate()[0].startswith("['k', ") for process in processes)
    first, *others = sorted(float(line.split()[1]) for line in counted(counter))
    assert others[-1] - others[0] < 1 <= others[0] - first


@pytest.mark.alone
def test_a_process_killed_during_a_computation_does_not_delay_others(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    cache = {"backend": "disk", "ttl": None, "cache_dir": str(tmp_path)}
    killed, other = start(cache, counter, "time.sleep(600)"), start(cache, counter, "pass")
    go(killed)
    wait_for(counter)
    go(other)
    time.sleep(0.1)
    assert len(counted(counter)) == 1  # the other process waits
    killed.kill()
    killed.communicate()
    started = time.monotonic()
    assert other.communicate()[0].startswith("['k', ")
    assert time.monotonic() - started < 2


def test_a_caller_waits_for_another_process_no_longer_than_lock_timeout(redis_url: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    cache = {"backend": "redis", "ttl": None, "url": redis_url, "lock_timeout": 0.3}
    slow, other = start(cache, counter, "time.sleep(600)"), start(cache, counter, "pass")
    go(slow)
    wait_for(counter)
    go(other)
    assert other.communicate()[0].startswith("['k', ")
    slow.kill()
    slow.communicate()


def test_processes_refresh_a_stale_result_once(where: dict[str, Any]) -> None:
    go_on, runs = threading.Event(), []

    def function() -> int:
        runs.append(1)
        if len(runs) > 1:
            go_on.wait(60)
        return len(runs)

    # Two bindings share only the store, as two processes do.
    here, there = (Policy(cache={**where, "ttl": 0.01, "stale_ttl": 60}).apply(function) for _ in range(2))
    assert here() == 1
    time.sleep(0.02)
    assert [here(), there()] == [1, 1]
    running = [each.binding.cache.single_flight.running for each in (here, there)]  # type: ignore[union-attr]
    until = time.monotonic() + 60
    while (len(runs) < 2 or all(running)) and time.monotonic() < until:
        time.sleep(0.002)
    assert len(runs) == 2  # whichever binding was first
    go_on.set()
    while here.cache_get() == 1 and time.monotonic() < until:
        time.sleep(0.002)
    assert here.cache_get() == there.cache_get() == 2


def test_a_result_whose_key_another_process_deletes_meanwhile_is_not_cached(where: dict[str, Any]) -> None:
    computing, go_on = threading.Event(), threading.Event()
    runs: list[str] = []

    def function(key: str) -> str:
        runs.append(key)
        computing.set()
        go_on.wait(60)
        return key

    # Two bindings learn of each other's deletions through the store only, as two processes do.
    here, there = (Policy(cache={**where, "tags": "t"}).apply(function) for _ in range(2))
    go_on.set()
    assert [here("kept"), there("kept"), runs] == ["kept", "kept", ["kept"]]
    for forget in (lambda: there.cache_delete("k"), there.cache_clear, lambda: there.cache_clear(tags="t")):
        computing.clear()
        go_on.clear()
        thread = threading.Thread(target=here, args=("k",))
        thread.start()
        assert computing.wait(60)
        forget()
        go_on.set()
        thread.join()
        assert here.cache_get("k") is there.cache_get("k") is None


def test_a_caller_cancelled_while_it_acquires_the_lock_does_not_delay_others(tmp_path: Path, monkeypatch: Any) -> None:
    from opero.runtime.byte_locks import Locks

    async def function(key: int) -> int:
        return key

    bound = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path}).apply(function)
    acquiring, acquire = threading.Event(), Locks.acquire

    def acquire_slowly(self: Locks, mutex: Any) -> bool:
        acquiring.set()
        time.sleep(0.1)
        return acquire(self, mutex)

    async def main() -> None:
        monkeypatch.setattr(Locks, "acquire", acquire_slowly)
        task = asyncio.create_task(bound(1))
        await asyncio.to_thread(acquiring.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.setattr(Locks, "acquire", acquire)
        async with asyncio.timeout(2):
            assert await bound(1) == 1

    asyncio.run(main())
    assert bound.stats.attempts == 1
