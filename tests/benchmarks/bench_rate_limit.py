"""What a permit costs where there is nothing to wait for, and how exact the limit is where there is."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import aiolimiter
import pyresilience
from tests.benchmarks.harness import Row, compare, compare_async

from opero import Policy, RateLimitPolicy
from opero.clock import SYSTEM
from opero.executors.call import Call
from opero.executors.rate_limit import Meter, RateLimitExecutor
from opero.stats import Stats

NEVER = 10**9
RATE, ACQUISITIONS, CALLERS = 1000, 2000, 8
IDEAL = (ACQUISITIONS - 1) / RATE * 1e9


def nothing() -> None:
    pass


def ready(call: Any, args: Any, kwargs: Any) -> Any:
    """The function within the limit, for an acquisition alone."""


async def ready_async(call: Any, args: Any, kwargs: Any) -> Any:
    pass


def limited(call: Callable[[Any, Any, Any], Any]) -> Callable[[], Any]:
    return functools.partial(call, Call.of(Stats())(), (), {})


def run(rounds: int) -> list[Row]:
    limiter = RateLimitExecutor(RateLimitPolicy(rate=NEVER), SYSTEM, "bench")
    take = limiter.ledger.take

    async def acquire() -> None:
        """What the async layer does, made a coroutine for the comparison's sake; the layer itself makes none."""
        if limiter.queued or not take():
            raise AssertionError

    meter = Meter(RateLimitExecutor(RateLimitPolicy(rate=NEVER), SYSTEM, "bench"), nothing)
    theirs = pyresilience.RateLimiter(pyresilience.RateLimiterConfig(max_calls=NEVER, period=1.0))
    ours_whole = Policy(rate_limit=NEVER).apply(nothing)
    theirs_whole = pyresilience.resilient(rate_limiter=pyresilience.RateLimiterConfig(max_calls=NEVER, period=1.0))(
        nothing
    )
    queue = functools.cache(lambda loop: aiolimiter.AsyncLimiter(NEVER, 1))

    def acquire_async() -> Any:
        return queue(asyncio.get_running_loop()).acquire()

    return [
        compare("permit at once", take, "pyresilience", theirs.acquire, 0.5, rounds),
        compare(
            "permit at once, the whole layer", limited(meter.wrap(ready)), "pyresilience", theirs.acquire, None, rounds
        ),
        compare("permit at once, the whole call", ours_whole, "pyresilience", theirs_whole, None, rounds),
        compare_async("permit at once, async", acquire, "aiolimiter", acquire_async, 0.7, rounds),
        compare_async(
            "permit at once, async, the whole layer",
            limited(meter.wrap_async(ready_async)),
            "aiolimiter",
            acquire_async,
            None,
            rounds,
        ),
        exact("2000 permits at 1000/s, 8 threads", with_threads()),
        exact("2000 permits at 1000/s, 8 tasks", asyncio.run(with_tasks())),
    ]


def exact(name: str, seconds: float) -> Row:
    """Within 1% of the ideal time, and never below it."""
    return Row(name, seconds * 1e9, "the ideal time", IDEAL, seconds * 1e9 / IDEAL, 1.01)


def with_threads() -> float:
    call = Policy(rate_limit=RATE).apply(nothing)
    call()
    started = time.perf_counter()
    workers = [
        threading.Thread(target=lambda: [call() for _ in range(ACQUISITIONS // CALLERS)]) for _ in range(CALLERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


async def with_tasks() -> float:
    async def nothing_async() -> None:
        pass

    call = Policy(rate_limit=RATE).apply(nothing_async)
    await call()
    started = time.perf_counter()

    async def worker() -> None:
        for _ in range(ACQUISITIONS // CALLERS):
            await call()

    await asyncio.gather(*(worker() for _ in range(CALLERS)))
    return time.perf_counter() - started
