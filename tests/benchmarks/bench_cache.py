"""What a hit costs, in memory, on disk and in redis, and what a map and a crowd of keys cost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cachetools
import psutil
import pyresilience
from cashews import Cache
from dogpile.cache import make_region
from tests.benchmarks.harness import Row, compare
from tests.redis_server import RedisServer, find_program

from opero import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

TTL = 300
ITEMS = 100_000
LONG = 200_000
"""Items of a long tuple."""
KEYS, QUICK_KEYS = 10_000_000, 300_000
MAX_SIZE = 10_000


def one(x: int) -> int:
    return x


def three(a: str, *, b: int = 1, c: int = 2) -> str:
    return a


async def one_async(x: int) -> int:
    return x


def with_cachetools(function: Any) -> Any:
    return cachetools.cached(cachetools.TTLCache(1000, TTL), lock=threading.RLock())(function)


def filled(function: Any, call: str) -> Any:
    """The function, once it has been called so, and found to answer from its cache."""
    namespace = {"call": function}
    first = eval(call, namespace)
    assert eval(call, namespace) == first
    return function


def in_memory(rounds: int) -> list[Row]:
    cached = Policy(cache={"ttl": TTL})
    with_dogpile = make_region().configure("dogpile.cache.memory", expiration_time=TTL).cache_on_arguments()
    return [
        compare(
            "memory hit, one int", cached.apply(one), "cachetools TTLCache, RLock", with_cachetools(one), rounds,
            target=0.35, call="call(5)",
        ),
        compare(
            "memory hit, one int", cached.apply(one), "dogpile cache_on_arguments", with_dogpile(one), rounds,
            target=0.06, call="call(5)",
        ),
        compare(
            "memory hit, str and two keywords", cached.apply(three), "cachetools TTLCache, RLock",
            with_cachetools(three), rounds, target=0.4, call="call('abc', b=2, c=3)",
        ),
        compare(
            "memory hit, one int: pyresilience", cached.apply(one), "pyresilience",
            pyresilience.resilient(cache=pyresilience.CacheConfig(ttl=TTL))(one), rounds, call="call(5)",
        ),
        compare(
            "memory hit, async", cached.apply(one_async), "pyresilience",
            pyresilience.resilient(cache=pyresilience.CacheConfig(ttl=TTL))(one_async), rounds, target=0.3,
            call="await call(5)",
        ),
        compare(
            "memory hit, async", cached.apply(one_async), "cashews", cashews(one_async), rounds, target=0.02,
            call="await call(5)",
        ),
        compare(
            "memory miss (max_size 1000, always another key)", missing(cached.apply(one)), "cachetools",
            missing(with_cachetools(one)), rounds, target=1.3, call="call()",
        ),
    ]  # fmt: skip


def long_tuples(rounds: int) -> list[Row]:
    """Hits on long tuples of numbers, beside what Python takes to hash them. Equal ones share no item."""
    cached = Policy(cache=True).apply(len)
    known, equal = (tuple(range(LONG)) for _ in range(2))
    floats, equal_floats = (tuple(map(float, range(LONG))) for _ in range(2))
    assert (cached(known), cached(floats)) == (LONG, LONG)
    rows = [
        compare(f"memory hit, {LONG:,} items: {name}", lambda _, each=each: cached(each), "its hash",
                lambda _, each=each: hash(each), rounds, target=target, call="call(0)")
        for name, each, target in (
            ("the same tuple", known, 0.1), ("an equal one", equal, 3.0), ("an equal one of floats", equal_floats, 3.0)
        )
    ]  # fmt: skip
    assert cached.stats.attempts == 2
    return rows


def missing(call: Any) -> Any:
    number = 0

    def miss() -> Any:
        nonlocal number
        number += 1
        return call(number)

    return miss


def cashews(function: Any) -> Any:
    cache = Cache()
    cache.setup("mem://", size=1000)
    return cache(ttl=f"{TTL}s", key="one:{x}")(function)


@contextlib.contextmanager
def redis() -> Iterator[str]:
    server = RedisServer(find_program(), tempfile.gettempdir())
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def in_stores(rounds: int) -> list[Row]:
    rows = []
    with redis() as url, tempfile.TemporaryDirectory() as directory:
        region = make_region().configure("dogpile.cache.redis", arguments={"url": url})
        region.set("key", 5)
        ours = filled(Policy(cache={"backend": "redis", "url": url, "ttl": TTL}).apply(one), "call(5)")
        rows.append(
            compare("redis hit", ours, "dogpile region.get", lambda _: region.get("key"), rounds, target=1.1,
                    call="call(5)")
        )  # fmt: skip
        path = Path(directory)
        dbm = make_region().configure("dogpile.cache.dbm", arguments={"filename": str(path / "cache.dbm")})
        with_dbm = dbm.cache_on_arguments()(one)
        ours = Policy(cache={"backend": "disk", "cache_dir": path, "ttl": TTL}).apply(one)
        for number in range(1000):
            ours(number)
            with_dbm(number)
        rows.append(
            compare("disk hit, of 1000", ours, "dogpile dbm", with_dbm, max(rounds // 20, 5), target=0.5,
                    call="call(5)")
        )  # fmt: skip
        ours.binding.cache.store.backend.close()
    return rows


def a_map(rounds: int) -> Row:
    """A process map of items that are all cached: none is sent anywhere."""
    mapped = Policy(cache={"max_size": 2 * ITEMS, "ttl": TTL}, parallel={"mode": "process", "progress": False}).apply(
        one
    )
    for item in range(ITEMS):
        mapped.cache_set(item, item)
    seconds = []
    for _ in range(max(3, rounds // 20)):
        gc.collect()
        started = time.perf_counter()
        assert mapped.map(range(ITEMS))[-1] == ITEMS - 1
        seconds.append(time.perf_counter() - started)
    assert mapped.stats.attempts == 0
    median = statistics.median(seconds)
    return Row(f"a process map of {ITEMS} items, all cached", median * 1e9, "the limit", 0.3e9, median / 0.3, 1.0)


def many_keys(rounds: int) -> Row:
    """Memory after many distinct keys, beside what it was when the cache had just been filled."""
    keys = KEYS if rounds > 100 else QUICK_KEYS
    call = Policy(cache={"max_size": MAX_SIZE, "ttl": TTL}).apply(one)
    process = psutil.Process(os.getpid())
    for key in range(3 * MAX_SIZE):
        call(key)
    gc.collect()
    before = process.memory_info().rss
    started = time.perf_counter()
    for key in range(keys):
        call(-key - 1)
    seconds = time.perf_counter() - started
    grown = process.memory_info().rss - before
    assert call.cache_info().size == MAX_SIZE
    note = f"grew by {grown / 2**20:.1f} MiB; {seconds / keys * 1e6:.2f} µs a miss"
    return Row(f"memory after {keys:,} keys, max_size {MAX_SIZE:,}", before + grown, "when just full", before,
               (before + grown) / before, 1.02, note)  # fmt: skip


def run(rounds: int) -> list[Row]:
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    assert asyncio.run(Policy(cache=True).apply(one_async)(3)) == 3
    return [*in_memory(rounds), *long_tuples(rounds), *in_stores(rounds), a_map(rounds), many_keys(rounds)]


if __name__ == "__main__":
    sys.exit("run it by: python -m tests.benchmarks cache")
