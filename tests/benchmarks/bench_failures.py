"""What two failures and a success cost, without a delay between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tenacity
from tests.benchmarks.harness import Row, compare

from opero import opero

if TYPE_CHECKING:
    from collections.abc import Callable


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


def by_hand(function: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        for _ in range(3):
            try:
                return function()
            except Exception:
                pass
        return function()

    return call


async def no_sleep(seconds: float) -> None:
    pass


def run(rounds: int) -> list[Row]:
    settings: Any = {
        "stop": tenacity.stop_after_attempt(4),
        "wait": tenacity.wait_exponential(multiplier=0.1, max=30),
    }
    ours: Any = opero(retries=3, min_delay=0, max_delay=0, jitter=False)
    theirs: Any = tenacity.retry(**settings, sleep=lambda seconds: None)
    theirs_async: Any = tenacity.retry(**settings, sleep=no_sleep)
    name = "two failures, then success"
    return [
        compare(name, ours(flaky()), "tenacity, no-op sleep", theirs(flaky()), rounds, target=0.25),
        compare(
            f"{name}, async",
            ours(flaky_async()),
            "tenacity, no-op sleep",
            theirs_async(flaky_async()),
            rounds,
            call="await call()",
        ),
        compare(name, ours(flaky()), "a plain loop", by_hand(flaky()), rounds),
    ]
