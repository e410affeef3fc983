"""Hammers limits from many threads at the smallest switch interval: never over the limit, and the counts add up.

Each round makes one bound function with a bulkhead, a rate limit, a circuit breaker or a cache, in this process or in a
file that processes share, sync or async, and calls it from threads that the interpreter switches after each few
instructions.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.harness import Chaos, begin

from opero import BulkheadFullError, CircuitOpenError, Policy, RateLimitExceededError
from opero.executors.state.sharing import share_limits
from opero.testing import VirtualClock

SWITCH = 1e-6
LIMIT = 60.0
"""Seconds after which a round hangs."""


class Inside:
    """How many calls are in a function at once, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0
        self.lock = threading.Lock()

    def enter(self) -> None:
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self.lock:
            self.now -= 1


def in_threads(chaos: Chaos, name: str, targets: list[Callable[[], None]]) -> bool:
    """Run functions in threads at once; whether all have come to their end."""
    threads = [threading.Thread(target=each, daemon=True) for each in targets]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        for each in threads:
            each.start()
        until = time.monotonic() + LIMIT
        for each in threads:
            each.join(max(0.0, until - time.monotonic()))
    finally:
        sys.setswitchinterval(before)
    hangs = [each for each in threads if each.is_alive()]
    if hangs:
        faulthandler.dump_traceback()
    chaos.check(not hangs, f"{name}: {len(hangs)} threads hang")
    return not hangs


def share(bound: Any, folder: str) -> None:
    """Move the limits of a function to files, as its first map with worker processes does."""
    share_limits(bound.binding.resolved().executors, "hammered", Path(folder))


# Bulkheads


def bulkheads(chaos: Chaos, folder: str) -> None:
    """No more calls than slots run at once; as many callers as slots are never refused; all is given back."""
    chance = chaos.random
    slots = chance.randint(1, 4)
    threads = chance.choice([slots, slots, slots + 1, 3 * slots])
    wait = chance.choice([0, 0, 30])
    kind = chance.choice(["sync", "sync", "failing", "generator", "loops", "failing loops"])
    home = chance.choice(["memory", "memory", "file", "memory, then file", "other policy"])
    is_shared = "file" in home
    each = 60 if is_shared or "loops" in kind else 300
    inside, lock = Inside(), threading.Lock()
    outcomes = {"done": 0, "full": 0, "other": 0}

    def told(what: str) -> None:
        with lock:
            outcomes[what] += 1

    def plain(number: int) -> int:
        inside.enter()
        inside.leave()
        if kind == "failing" and number % 2:
            raise KeyError(number)
        return number

    def generated(number: int) -> Iterator[int]:
        inside.enter()
        try:
            yield number
        finally:
            inside.leave()

    async def awaited(number: int) -> int:
        inside.enter()
        try:
            await asyncio.sleep(0)
            if kind == "failing loops" and number % 2:
                raise KeyError(number)
            return number
        finally:
            inside.leave()

    function: Any = {"generator": generated, "loops": awaited, "failing loops": awaited}.get(kind, plain)
    bound: Any = Policy(bulkhead={"max_concurrent": slots, "max_wait": wait}).apply(function)
    if home == "file":
        share(bound, folder)

    def call() -> None:
        for number in range(each):
            try:
                made = bound(number)
                if kind == "generator":
                    list(made)
                told("done")
            except KeyError:
                told("done")
            except BulkheadFullError:
                told("full")
            except Exception as error:
                told("other")
                chaos.lose(f"bulkhead ({kind}): {error!r:.300}")

    async def call_async() -> None:
        for number in range(each):
            try:
                await bound(number)
                told("done")
            except KeyError:
                told("done")
            except BulkheadFullError:
                told("full")

    name = f"bulkhead ({kind}, {slots} slots, {threads} threads, max_wait {wait}, {home})"
    targets = [(lambda: asyncio.run(call_async())) if "loops" in kind else call for _ in range(threads)]

    def move() -> None:
        """Have the state move while calls are under way."""
        if home == "memory, then file":
            time.sleep(0.001)
            share(bound, folder)
        while home == "other policy" and not sum(outcomes.values()) >= threads * each:
            bound.binding.swap(Policy(bulkhead={"max_concurrent": slots, "max_wait": wait}, retry={"retries": 0}))
            bound.binding.swap(Policy(bulkhead={"max_concurrent": slots, "max_wait": wait}))

    if home in ("memory, then file", "other policy"):
        targets += [move] * (1 if home == "memory, then file" else chance.choice([1, 3]))
    if not in_threads(chaos, name, targets):
        return
    chaos.check(inside.most <= slots, f"{name}: {inside.most} calls at once")
    chaos.check(sum(outcomes.values()) == threads * each, f"{name}: {outcomes} do not add up to {threads * each}")
    chaos.check(inside.calls == outcomes["done"], f"{name}: {inside.calls} runs, {outcomes}")
    if threads <= slots or wait:
        chaos.check(not outcomes["full"], f"{name}: it was full {outcomes['full']} times")
    executor = bound.binding.pipeline.executors["bulkhead"]
    chaos.within(LIMIT, lambda: executor.running == 0, f"{name}: all slots are given back")
    chaos.check(bound.stats.calls == threads * each, f"{name}: {bound.stats.calls} calls are counted")
    chaos.check(bound.stats.rejections == outcomes["full"], f"{name}: {bound.stats.rejections} rejections are counted")
    chaos.count("calls", threads * each)


# Rate limits


def rate_limits(chaos: Chaos, folder: str) -> None:
    """Permits of a while are no more than the rate allows, and no fewer calls are refused than have got none."""
    chance = chaos.random
    rate, burst, threads = chance.choice([500, 5000, 50_000]), chance.choice([1, 5, 50]), chance.randint(2, 6)
    clock = VirtualClock()
    inside, lock = Inside(), threading.Lock()
    refused = 0
    bound: Any = Policy(rate_limit={"rate": rate, "burst": burst, "max_wait": 0}).apply(inside.enter, clock=clock)
    each, over = 400, threading.Event()

    def call() -> None:
        nonlocal refused
        for _ in range(each):
            try:
                bound()
            except RateLimitExceededError:
                with lock:
                    refused += 1

    passed = 0.0

    def advance() -> None:
        nonlocal passed
        while not over.is_set():
            step = chance.choice([0.5, 1, 3]) / rate
            clock.advance(step)
            passed += step
            time.sleep(0)

    mover = threading.Thread(target=advance)
    mover.start()
    ended = in_threads(chaos, "rate limit", [call] * threads)
    over.set()
    mover.join()
    name = f"rate limit ({rate}/s, burst {burst}, {threads} threads)"
    most = burst + passed * rate + 1e-6 * rate
    chaos.check(inside.calls <= most, f"{name}: {inside.calls} permits where {most:.1f} are allowed")
    if ended:
        chaos.check(inside.calls + refused == threads * each, f"{name}: {inside.calls} + {refused} do not add up")
        chaos.check(bound.stats.rejections == refused, f"{name}: {bound.stats.rejections} rejections are counted")
    chaos.count("calls", threads * each)


# Circuit breakers


def breakers(chaos: Chaos, folder: str) -> None:
    """An open circuit calls nothing; a half-open one lets no more than its probes through; it closes after them."""
    chance = chaos.random
    failures, probes, threads = chance.randint(1, 5), chance.randint(1, 3), chance.randint(4, 8)
    clock, inside = VirtualClock(), Inside()
    is_down, may_end, rejected = True, threading.Event(), Inside()
    name = f"circuit breaker ({failures} failures, {probes} probes, {threads} threads)"

    def ask() -> None:
        inside.enter()
        try:
            if is_down:
                raise ConnectionError
            may_end.wait(LIMIT)
        finally:
            inside.leave()

    breaker = {"consecutive_failures": failures, "open_for": 10, "half_open_calls": probes}
    bound: Any = Policy(circuit_breaker=breaker).apply(ask, clock=clock)

    def fail() -> None:
        for _ in range(100):
            with contextlib.suppress(ConnectionError, CircuitOpenError):
                bound()

    if not in_threads(chaos, name, [fail] * threads):
        return
    # Each thread may have been within the function when the circuit opened.
    chaos.check(failures <= inside.calls < failures + threads, f"{name}: {inside.calls} calls of a service that fails")
    chaos.check(bound.binding.circuit_breaker.state == "open", f"{name}: it is not open")
    for is_down in (True, False):
        clock.advance(100)
        inside.calls, rejected.calls = 0, 0
        may_end.clear()

        def probe() -> None:
            try:
                bound()
            except CircuitOpenError:
                rejected.enter()
                if rejected.calls >= threads - probes:
                    may_end.set()
            except ConnectionError:
                pass

        if not in_threads(chaos, name, [probe] * threads):
            return
        if is_down:
            chaos.check(1 <= inside.calls <= probes, f"{name}: {inside.calls} probes of a service that fails")
        else:
            chaos.check(inside.calls == probes, f"{name}: {inside.calls} probes, and {rejected.calls} were refused")
            chaos.check(bound.binding.circuit_breaker.state == "closed", f"{name}: it has not closed")
    chaos.count("calls", 102 * threads)


# Caches


def caches(chaos: Chaos, folder: str) -> None:
    """However many callers want a key, sync or async, one computes it."""
    chance = chaos.random
    threads, keys = chance.randint(2, 6), chance.randint(1, 20)
    runs: list[int] = []
    is_async = chance.random() < 0.5
    wrong: list[Any] = []

    def compute(key: int) -> list[int]:
        runs.append(key)
        return [key]

    async def compute_async(key: int) -> list[int]:
        runs.append(key)
        await asyncio.sleep(0)
        return [key]

    bound: Any = Policy(cache=True).apply(compute_async if is_async else compute)

    async def all_keys() -> None:
        for key, value in enumerate(await asyncio.gather(*(bound(key) for key in range(keys)))):
            if value != [key]:
                wrong.append(value)

    def call() -> None:
        if is_async:
            return asyncio.run(all_keys())
        wrong.extend(key for key in range(keys) if bound(key) != [key])
        return None

    name = f"cache ({'async' if is_async else 'sync'}, {threads} threads, {keys} keys)"
    if in_threads(chaos, name, [call] * threads):
        chaos.check(not wrong, f"{name}: wrong values {wrong[:5]}")
        chaos.check(sorted(runs) == list(range(keys)), f"{name}: {len(runs)} computations")
        info = bound.cache_info()
        chaos.check(info.hits + info.misses == threads * keys, f"{name}: {info} does not add up")
    chaos.count("calls", threads * keys)


def main() -> int:
    faulthandler.enable()
    chaos = begin(__file__, __doc__)
    while chaos.goes_on():
        for round_of in (bulkheads, rate_limits, breakers, caches):
            with tempfile.TemporaryDirectory(prefix="opero-hammer-") as folder:
                round_of(chaos, folder)
            chaos.count("rounds")
    return chaos.end()


if __name__ == "__main__":
    sys.exit(main())
