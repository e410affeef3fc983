"""What two failures and a success cost, without a delay between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tenacity
from tests.benchmarks.harness import Row, compare, compare_async

from opero import opero


def flaky() -> Callable[[], int]:
    """A function that fails twice, succeeds, and begins again."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise ConnectionError
        return calls

    return call


def flaky_async() -> Callable[[], Any]:
    call = flaky()

    async def call_async() -> int:
        return call()

    return call_async


async def no_sleep(seconds: float) -> None:
    pass


def run(rounds: int) -> list[Row]:
    settings: Any = {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_exponential(multiplier=0.1, max=30)}
    ours = opero(retries=3, min_delay=0, max_delay=0, jitter=False)
    peer = tenacity.retry(**settings, sleep=lambda seconds: None)(flaky())
    peer_async = tenacity.retry(**settings, sleep=no_sleep)(flaky_async())
    return [
        compare("two failures, then success", ours(flaky()), "tenacity, no-op sleep", peer, 0.4, rounds),
        compare_async(
            "two failures, then success, async", ours(flaky_async()), "tenacity, no-op sleep", peer_async, None, rounds
        ),
    ]
