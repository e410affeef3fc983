"""What a state for each value of an argument costs: a lookup, and the memory of 100,000 values."""

from __future__ import annotations

import gc
import itertools
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from tests.benchmarks.harness import Row, compare

from opero import opero

MOST = 300
"""Nanoseconds that a keyed scope may add to a call."""
KEYS, MOST_BYTES = 100_000, 50e6
POLICIES: dict[str, dict[str, Any]] = {
    "circuit_breaker": {},
    "rate_limit": {"rate": 1e9, "burst": 10**6},
    "bulkhead": {"max_concurrent": 10},
}
SLOW = {"rate": "100/h", "burst": 10}
"""A rate limit whose state is kept for a while."""


def ask(tenant: str) -> str:
    return tenant


async def ask_async(tenant: str) -> str:
    return tenant


def with_policy(function: Any, kind: str, **more: Any) -> Any:
    return opero(retry=False, **{kind: {**POLICIES[kind], **more}})(function)


def lookup(kind: str, rounds: int, *, is_async: bool) -> Row:
    """What it adds to a call that the same policy without keys is around, of keys that are used in turn."""
    function = ask_async if is_async else ask
    one, keyed = with_policy(function, kind), with_policy(function, kind, scope={"by": "tenant"})
    following: Callable[[], str] = itertools.cycle([f"tenant {number}" for number in range(100)]).__next__
    name = f"{kind}, {'async' if is_async else 'sync'}: with a state for each key"
    if is_async:

        async def ours() -> None:
            await keyed(following())

        async def theirs() -> None:
            await one(following())

        row = compare(name, ours, "with one", theirs, rounds, call="await call()")
    else:
        row = compare(name, lambda: keyed(following()), "with one", lambda: one(following()), rounds)
    added = (row.ratio - 1) * row.theirs  # by pairs, as the machine may be busy
    return Row(name, added, "the aim", MOST, added / MOST, 1.2, f"{row.theirs:.0f} ns with one state")


def memory(kind: str, **more: Any) -> Row:
    """The bytes of 100,000 keys that have been used once, and the time of a call with a new one."""
    bound = with_policy(ask, kind, scope={"by": "tenant", "max_keys": KEYS}, **more)
    started = time.perf_counter()
    for number in range(KEYS // 10):
        bound(f"earlier {number}")
    new = (time.perf_counter() - started) / (KEYS // 10)
    bound = with_policy(ask, kind, scope={"by": "tenant", "max_keys": KEYS}, **more)
    gc.collect()
    tracemalloc.start()
    for number in range(KEYS):
        bound(f"tenant {number}")
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    name = f"{kind}{', slow' if more else ''}: memory of 100,000 keys"
    note = f"a new key takes {new * 1e6:.0f} µs"
    return Row(name, taken / 1e6, "the aim", MOST_BYTES / 1e6, taken / MOST_BYTES, 1.0, note, unit="MB")


def run(rounds: int) -> list[Row]:
    return [
        *(lookup(kind, rounds, is_async=is_async) for is_async in (False, True) for kind in POLICIES),
        *(memory(kind) for kind in POLICIES),
        memory("rate_limit", **SLOW),
    ]
