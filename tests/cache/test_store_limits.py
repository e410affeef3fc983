"""One request, one process, one dependency or one damaged byte does not take the store from all others."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache import register_backend
from dogpile.cache.api import BytesBackend

from opero import ConfigError, Policy
from opero.cache import database, open_shared
from opero.cache.database import Database
from opero.cache.leases import LEASE
from opero.cache.open_shared import check_shared
from opero.cache.outage import StoreBreaker
from opero.events import CacheFailed
from opero.policies import CachePolicy
from opero.testing import VirtualClock

SURROGATE = "\ud800"


@pytest.fixture(autouse=True)
def _reset_breakers() -> None:
    open_shared._breakers.clear()


@pytest.fixture(params=["disk", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "redis":
        return {"backend": "redis", "ttl": 60, "url": request.getfixturevalue("redis_url")}
    return {"backend": "disk", "ttl": 60, "cache_dir": str(tmp_path)}


def failures(heard: list[Any]) -> list[str]:
    return [each.what for each in heard if isinstance(each, CacheFailed)]


# What one request brings


@pytest.mark.parametrize("text", [SURROGATE, "x" * 100_000, "\0", "*?[", "nul\0" * 100, "é" * 300], ids=ascii)
def test_any_text_is_a_key_a_tag_and_a_result(store: dict[str, Any], text: str, heard: list[Any]) -> None:
    bound: Any = Policy(cache={**store, "tags": "t:{x}"}).apply(lambda x: [len(x)])
    assert bound(text) == bound(text) == [len(text)]
    assert bound.stats.attempts == 1
    bound.cache_clear(tags=f"t:{text}")
    assert bound.cache_get(text) is None
    assert failures(heard) == []


def test_tags_that_begin_alike_are_different(store: dict[str, Any]) -> None:
    bound: Any = Policy(cache={**store, "tags": "t:{x}"}).apply(lambda x: x)
    for each in ("x" * 500, "x" * 501, "\ud800", "\\ud800"):
        bound.cache_set(1, each)
    bound.cache_clear(tags="t:" + "x" * 500)
    assert bound.cache_get("x" * 500) is None
    assert (bound.cache_get("x" * 501), bound.cache_get("\ud800"), bound.cache_get("\\ud800")) == (1, 1, 1)
    bound.cache_clear(tags="t:\\ud800")
    assert (bound.cache_get("\ud800"), bound.cache_get("\\ud800")) == (1, None)


@pytest.fixture
def small(request: pytest.FixtureRequest, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store that refuses values of more than a mebibyte."""
    if store["backend"] == "disk":
        connect = Database._connect

        def limited(self: Database) -> sqlite3.Connection:
            connection = connect(self)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 20)
            return connection

        monkeypatch.setattr(Database, "_connect", limited)
        yield store
        return
    import redis

    client = redis.Redis.from_url(store["url"])
    before = client.config_get("proto-max-bulk-len")
    client.config_set("proto-max-bulk-len", 1 << 20)
    yield store
    client.config_set("proto-max-bulk-len", before["proto-max-bulk-len"])
    client.close()


def test_a_value_beyond_the_limit_of_the_store_is_that_calls_failure_only(small: Any, heard: list[Any]) -> None:
    bound: Any = Policy(cache={**small, "store_timeout": 10}).apply(lambda x: "x" * x)
    assert bound(1) == "x"
    for _ in range(3):
        assert len(bound(3 << 20)) == 3 << 20
        assert bound(1) == "x"
    assert bound.stats.attempts == 4
    assert bound(2) == bound(2) == "xx"
    assert bound.stats.attempts == 5
    assert failures(heard) == ["refused"]
    assert bound.binding.cache.store.breaker.trouble == ""


def test_a_wrong_password_of_one_function_leaves_the_others_their_cache(redis_url: str, heard: list[Any]) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    client.acl_setuser("worker", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    try:
        address = redis_url.partition("://")[2]
        wrong, right = (
            Policy(cache={"backend": "redis", "ttl": 60, "url": f"redis://worker:{each}@{address}"}).apply(
                lambda x: [x]
            )
            for each in ("wrong", "right")
        )
        for number in (1, 1, 2, 2, 3, 3):
            assert wrong(number) == right(number) == [number]
        assert (wrong.stats.attempts, right.stats.attempts) == (6, 3)
        assert failures(heard) == ["unavailable"]
    finally:
        client.acl_deluser("worker")
        client.close()


class OddBackend(BytesBackend):
    """A store whose replies have any shape."""

    def __init__(self, arguments: Any) -> None:
        self.reply: Callable[[Any], Any] = arguments["reply"]

    def get_serialized(self, key: str) -> Any:
        return self.reply([key])

    def get_serialized_multi(self, keys: Any) -> Any:
        return self.reply(list(keys))

    def set_serialized(self, key: str, value: bytes) -> Any:
        return self.reply([key])

    def delete(self, key: str) -> Any:
        return self.reply([key])

    def clear_prefix(self, prefix: str) -> Any:
        return self.reply([prefix])

    count_prefix = clear_prefix


register_backend("tests.odd", __name__, "OddBackend")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "reply",
    [
        lambda keys: None,
        lambda keys: [],
        lambda keys: [b"1"] * (len(keys) + 1),
        lambda keys: b"OK",
        lambda keys: 7,
        lambda keys: {"a": 1},
        lambda keys: [object()] * len(keys),
        lambda keys: [[b"x"]] * len(keys),
        lambda keys: ["text"] * len(keys),
        lambda keys: [b"\x80\x04."] * len(keys),
        lambda keys: keys,
        lambda keys: {}[0],
    ],
)
@pytest.mark.parametrize("tags", [(), "t:{x}"])
def test_a_reply_of_another_shape_never_reaches_the_caller(reply: Callable[[Any], Any], tags: Any) -> None:
    cache = {"backend": "tests.odd", "ttl": 60, "arguments": {"reply": reply}, "serializer": "json", "tags": tags}
    bound: Any = Policy(cache=cache, parallel={"mode": "thread"}).apply(lambda x: [x])
    for number in (1, 1, 2):
        assert bound(number) == [number]
    assert bound.map([1, 2, 3]) == [[1], [2], [3]]
    assert bound.cache_get(1) is None
    assert bound.cache_set([1], 1) in (True, False)
    bound.cache_delete(1)
    bound.cache_clear()
    size = bound.cache_info().size
    assert size is None or isinstance(size, int)


def test_an_operation_that_fails_while_the_store_answers_is_left_out(heard: list[Any]) -> None:
    clock = VirtualClock()
    breaker = StoreBreaker("store", clock)

    class Answering:
        def ask(self) -> None:
            pass

        ask_to_write = ask

    breaker.users.add(user := Answering())

    def refused() -> str:
        raise ValueError("too large")

    def locked() -> str:
        raise sqlite3.OperationalError("database is locked")

    assert [breaker("default", refused) for _ in range(3)] == ["default"] * 3
    assert (breaker("", str, 1), breaker.trouble) == ("1", "")
    assert failures(heard) == ["refused"]
    assert breaker("default", locked) == "default"
    assert failures(heard) == ["refused", "unavailable"]
    assert breaker("skipped", str, 1) == "skipped"
    clock.advance(2)
    assert breaker("default", refused) == "default"  # the probe, which the store has answered
    assert breaker("", str, 1) == "1"
    del user  # where nobody can ask, it counts as an outage
    assert breaker("default", refused) == "default"
    assert failures(heard) == ["refused", "unavailable", "unavailable"]


# Damage, and clocks


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_bytes_flipped_at_random_are_misses_and_never_wrong_values(tmp_path: Path, serializer: str) -> None:
    bound: Any = Policy(
        cache={"backend": "disk", "ttl": 60, "cache_dir": tmp_path, "serializer": serializer, "tags": "all"}
    ).apply(lambda x: {"x": x, "text": f"result {x}", "list": [x, x + 1]})
    chance, file, wrong = random.Random(5), sqlite3.connect(tmp_path / "opero.sqlite3", timeout=30), 0
    for number in range(100):
        bound(number)
    for _ in range(1500):
        number = chance.randrange(100)
        rows = file.execute("SELECT id, value FROM entries").fetchall()
        at, value = rows[chance.randrange(len(rows))]
        changed = bytearray(value)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        with file:
            file.execute("UPDATE entries SET value = ? WHERE id = ?", (bytes(changed), at))
        wrong += bound(number) != {"x": number, "text": f"result {number}", "list": [number, number + 1]}
    file.close()
    assert wrong == 0


def test_entries_that_were_swapped_are_misses(tmp_path: Path) -> None:
    bound: Any = Policy(cache={"backend": "disk", "ttl": 60, "cache_dir": tmp_path}).apply(lambda x: x)
    assert (bound(1), bound(2)) == (1, 2)
    with closing(sqlite3.connect(tmp_path / "opero.sqlite3", timeout=30)) as file, file:
        (one, first), (other, second) = file.execute("SELECT id, value FROM entries").fetchall()
        file.executemany("UPDATE entries SET value = ? WHERE id = ?", [(second, one), (first, other)])
    assert (bound(1), bound(2)) == (1, 2)


@pytest.mark.parametrize("back", [180, 86_400, 365 * 86_400])
def test_a_clock_that_is_set_back_does_not_serve_what_had_expired(tmp_path: Path, back: float) -> None:
    clock = VirtualClock()
    runs: list[int] = []
    cache = {"backend": "disk", "ttl": 60, "cache_dir": tmp_path}
    bound: Any = Policy(cache=cache).apply(lambda: runs.append(1) or len(runs), clock=clock)
    real, offset = clock.time, 0.0
    bound.binding.cache.store.now = lambda: real() + offset
    assert (bound(), bound()) == (1, 1)
    offset = 61
    offset -= back
    assert bound() == 2
    assert bound() == 2  # what is written now is served


@pytest.mark.parametrize("back", [1, 30, 59])
def test_a_clock_that_is_set_back_by_less_than_a_minute_serves_what_had_expired_for_no_longer_than_that(
    tmp_path: Path, back: float
) -> None:
    """The clocks of machines that share a store may differ by as much, so entries of the near future are read."""
    clock = VirtualClock()
    runs: list[int] = []
    bound: Any = Policy(cache={"backend": "disk", "ttl": 60, "cache_dir": tmp_path}).apply(
        lambda: runs.append(1) or len(runs), clock=clock
    )
    real, passed = clock.time, 0.0
    bound.binding.cache.store.now = lambda: real() + passed
    assert bound() == 1
    passed = 60.5 - back  # it has expired half a second before
    assert bound() == 1
    passed += back  # as much later
    assert bound() == 2


# The write-ahead log


@pytest.mark.parametrize("size", [20_000, 200_000])
def test_the_log_of_a_disk_cache_is_bounded_while_others_read_all_the_time(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MOST_LOG", 4 << 20)
    bound: Any = Policy(cache={"backend": "disk", "ttl": 600, "cache_dir": tmp_path, "store_timeout": 20}).apply(
        lambda x: os.urandom(size)
    )
    bound(0)
    log, largest, done = tmp_path / "opero.sqlite3-wal", 0, threading.Event()

    def read() -> None:
        connection = sqlite3.connect(tmp_path / "opero.sqlite3", timeout=30)
        while not done.is_set():
            connection.execute("SELECT sum(length(value)) FROM entries").fetchone()
        connection.close()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    try:
        for number in range(1, 30_000_000 // size):
            bound(number % 50)
            bound.cache_delete(number % 50)
            largest = max(largest, log.stat().st_size)
    finally:
        done.set()
        for each in readers:
            each.join()
    assert largest < 12 << 20
    assert bound.stats.attempts > 100


# Leases


@pytest.mark.alone
def test_a_process_that_is_killed_while_it_computes_delays_others_by_its_lease_at_most(
    store: dict[str, Any], tmp_path: Path
) -> None:
    script = tmp_path / "held.py"
    script.write_text(
        "import sys, time\nfrom opero import Policy\n"
        "def compute(key, seconds=0):\n    print('computing', flush=True)\n    time.sleep(seconds)\n    return [key]\n"
        "bound = Policy(cache={**eval(sys.argv[1]), 'key': lambda key, seconds=0: key}).apply(compute)\n"
        "started = time.monotonic()\n"
        "bound('k', float(sys.argv[2]))\nprint(time.monotonic() - started, flush=True)\n"
    )

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), repr(store), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    first = start(600)
    assert first.stdout is not None
    assert first.stdout.readline() == "computing\n"
    other = start(0)
    if store["backend"] == "redis":
        import redis

        # By the server's clock, whose seconds a loaded machine does not make longer.
        with redis.Redis.from_url(store["url"]) as server:
            (name,) = server.scan_iter("*lock*")
            begun, left = server.time(), [server.pttl(name)]
            while server.time()[0] <= begun[0] + LEASE + 1:
                left.append(server.pttl(name))
                time.sleep(0.02)
            assert other.poll() is None
            first.kill()
            first.wait()
            left.append(server.pttl(name))
        assert max(left) <= 1000 * LEASE
        assert any(later > earlier for earlier, later in pairwise(left))  # it has been renewed
    else:
        first.kill()
        first.wait()
    first.stdout.close()
    assert other.communicate(timeout=60)[0].startswith("computing\n")


# Refreshes in the background


def test_refreshes_of_async_functions_in_the_background_are_limited() -> None:
    from opero.runtime.hosts import MAX_IN_BACKGROUND

    clock = VirtualClock()
    running = most = 0

    async def function(key: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(5)
        running -= 1
        return key

    bound: Any = Policy(cache={"ttl": 10, "stale_ttl": 1000}).apply(function, clock=clock)

    async def main() -> None:
        for number in range(200):
            bound.cache_set(number, number)
        clock.advance(20)
        for _ in range(3):
            assert [await bound(number) for number in range(200)] == list(range(200))  # stale, without waiting
            await asyncio.sleep(1)
        await asyncio.sleep(100)

    clock.run(main())
    assert most == MAX_IN_BACKGROUND
    assert running == 0


# Threads


@pytest.mark.alone
def test_a_dependency_that_hangs_leaves_the_threads_of_timeouts_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from opero.errors import CallTimeoutError, RejectedError
    from opero.runtime import helper_threads
    from opero.runtime.helper_threads import abandoned

    monkeypatch.setattr(helper_threads, "MAX_OF_ONE", 5)
    gate = threading.Event()
    hanging: Any = Policy(timeout={"attempt": 0.01}).apply(lambda: gate.wait(60))
    other: Any = Policy(timeout={"attempt": 60}).apply(lambda: "well")
    seen: list[Any] = []

    def work() -> None:
        for _ in range(12):
            try:
                hanging()
            except (CallTimeoutError, RejectedError) as error:
                seen.append(type(error))
        seen.append(other())

    before = abandoned()
    thread = threading.Thread(target=work)  # outside the main thread, where timeouts need threads
    thread.start()
    thread.join(60)
    gate.set()
    assert seen == [*[CallTimeoutError] * 5, *[RejectedError] * 7, "well"]
    until = time.monotonic() + 60
    while abandoned() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert helper_threads._helpers.abandoned_of == {}


@pytest.mark.parametrize("text", ["a\0b", "x" * 300, "~nobody-has-this/\0"], ids=ascii)
def test_a_directory_that_is_no_path_is_a_configuration_error(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    cache = CachePolicy(backend="disk", ttl=5, cache_dir=text)
    with pytest.raises(ConfigError, match="cannot be used"):
        check_shared(cache, "f")
    with pytest.raises(ConfigError, match="cannot be used"):
        Policy(cache=cache).apply(lambda: 1)()
    assert list(tmp_path.iterdir()) == []
