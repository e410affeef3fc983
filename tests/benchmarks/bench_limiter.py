"""What a permit costs where there is nothing to wait for, and how exact the limit is where there is."""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiolimiter
import pyresilience
from tests.benchmarks.harness import Row, compare

from opero import Policy, RateLimitPolicy
from opero.binding.innermost import innermost
from opero.executors.rate_limit import RateLimitExecutor
from opero.runtime.clock import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER = 10**9
RATE, PERMITS, CALLERS = 1000, 2000, 8
IDEAL = (PERMITS - 1) / RATE
RUNS = 4


def nothing() -> None:
    pass


def a_dict() -> dict[str, int]:
    return {"a": 1}


async def a_dict_async() -> dict[str, int]:
    return {"a": 1}


async def nothing_async() -> None:
    pass


def with_an_idle_layer(function: Callable[..., Any]) -> Any:
    """A bound function whose call goes through the layers as a limited one's does, without the limit."""
    bound = Policy().apply(function)
    binding = bound.binding
    binding.pipeline = dataclasses.replace(binding.pipeline, function=None, layer=innermost(binding.target, function))
    return bound


def at_once(rounds: int) -> list[Row]:
    limiter = RateLimitExecutor(RateLimitPolicy(rate=NEVER), SYSTEM, "bench")
    take, book, now = limiter.own.take, limiter.own.book, SYSTEM.monotonic
    assert take()
    config = pyresilience.RateLimiterConfig(max_calls=NEVER, period=1.0)
    theirs, theirs_whole = pyresilience.RateLimiter(config), pyresilience.resilient(rate_limiter=config)
    assert theirs.acquire()

    async def acquire() -> None:
        """What the async layer does before it calls on, in a coroutine of its own; the layer itself makes none."""
        if limiter.queued or not take():
            raise AssertionError

    limited = Policy(rate_limit=NEVER)
    ours_whole, ours_whole_async = limited.apply(nothing), limited.apply(nothing_async)

    def aiolimiters() -> Callable[[], Any]:
        return aiolimiter.AsyncLimiter(NEVER, 1).acquire  # one for each event loop

    their_acquire = aiolimiters()

    async def their_acquire_and_call() -> None:
        await their_acquire()
        await nothing_async()

    rows = [
        compare("permit at once: take", take, "pyresilience's acquire", theirs.acquire, rounds, target=0.5),
        compare(
            "permit at once: what it adds to a call",
            ours_whole,
            "pyresilience's acquire",
            theirs.acquire,
            rounds,
            less=with_an_idle_layer(nothing),
        ),
        compare(
            "permit at once: reserve",
            lambda: book(now(), 1.0, 0.0),
            "pyresilience's acquire",
            theirs.acquire,
            rounds,
        ),
        compare("permit at once: the whole call", ours_whole, "pyresilience", theirs_whole(nothing), rounds),
        compare(
            "permit at once, async: coroutine to coroutine",
            acquire,
            "aiolimiter's acquire",
            aiolimiters(),
            rounds,
            target=0.7,
            call="await call()",
        ),
        compare(
            "permit at once, async: what it adds to a call",
            ours_whole_async,
            "aiolimiter's acquire",
            aiolimiters(),
            rounds,
            target=0.7,
            call="await call()",
            less=with_an_idle_layer(nothing_async),
        ),
        compare(
            "permit at once, async: the whole call",
            ours_whole_async,
            "acquire, then call",
            their_acquire_and_call,
            rounds,
            call="await call()",
        ),
        compare(
            "permit at once, async: the whole call",
            ours_whole_async,
            "pyresilience",
            theirs_whole(nothing_async),
            rounds,
            call="await call()",
        ),
    ]
    assert ours_whole.stats.waits == ours_whole_async.stats.waits == 0
    return [*rows, *with_feedback(rounds)]


def with_feedback(rounds: int) -> list[Row]:
    """What it costs to look whether a result says something of a quota, where it is no response."""
    rows = []
    for also, more in (("", {}), (" and a retry", {"retry": {"retries": 3}})):
        with_it, without = (
            Policy.model_validate({"rate_limit": {"rate": NEVER, "feedback": feedback}, **more})
            for feedback in (True, False)
        )
        for kind, function, call in (("", a_dict, "call()"), (", async", a_dict_async, "await call()")):
            rows.append(
                compare(
                    f"feedback of a dict, with a rate limit{also}{kind}",
                    with_it.apply(function),
                    "without feedback",
                    without.apply(function),
                    rounds,
                    target=1.2,
                    call=call,
                )
            )
    return rows


def with_threads() -> list[float]:
    """The moments at which threads got their permits, after that of the start."""
    moments = [time.perf_counter()]
    call = Policy(rate_limit=RATE).apply(lambda: moments.append(time.perf_counter()))
    workers = [threading.Thread(target=lambda: [call() for _ in range(PERMITS // CALLERS)]) for _ in range(CALLERS)]
    moments[0] = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return moments


async def with_tasks() -> list[float]:
    """The same, for tasks."""
    moments = [time.perf_counter()]

    async def permitted() -> None:
        moments.append(time.perf_counter())

    call = Policy(rate_limit=RATE).apply(permitted)

    async def worker() -> None:
        for _ in range(PERMITS // CALLERS):
            await call()

    moments[0] = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CALLERS)))
    return moments


def taken_by_the_host() -> float:
    """Seconds in which the machine's processors were given to other machines; 0 where that is not known."""
    try:
        total = Path("/proc/stat").read_text().splitlines()[0].split()
        return int(total[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, LookupError, ValueError):
        return 0.0


def exact(name: str, once: Callable[[], list[float]]) -> Row:
    """How far the time is from the ideal, in either direction, in the run that the machine itself disturbed least.

    Permits lapse while nobody can run to use them: more than 8 ms of silence cannot be made up by 8 callers.
    """
    runs, notes = [], []
    for _ in range(RUNS):
        before = taken_by_the_host()
        moments = once()
        taken, seconds = taken_by_the_host() - before, max(moments) - moments[0]
        runs.append((taken, seconds, most_in_a_second(sorted(moments[1:]))))
        notes.append(f"{seconds / IDEAL - 1:+.2%} ({taken * 1e3:.0f} ms)")
    _, seconds, _ = min(runs)
    most = max(most for _, _, most in runs)
    note = f"at most {most} permits in any second; runs (host took): {', '.join(notes)}"
    return Row(name, seconds * 1e9, "the ideal time", IDEAL * 1e9, 1 + abs(seconds / IDEAL - 1), 1.01, note)


def most_in_a_second(moments: list[float]) -> int:
    return max(bisect.bisect_left(moments, first + 1) - at for at, first in enumerate(moments))


def run(rounds: int) -> list[Row]:
    assert with_an_idle_layer(nothing)() is None
    return [
        *at_once(rounds),
        exact(f"{PERMITS} permits at {RATE}/s, {CALLERS} threads", with_threads),
        exact(f"{PERMITS} permits at {RATE}/s, {CALLERS} tasks", lambda: asyncio.run(with_tasks())),
    ]
