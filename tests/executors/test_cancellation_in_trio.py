"""Cancelling a call of trio's at each step of its tasks: whatever it held is free again afterwards.

As tests/executors/test_cancellation.py does under asyncio. A scope that is cancelled stays so: each wait of a cleanup
ends with another cancellation.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from opero import OperoError, Policy

MOST = 400
"""No call takes more steps; one that does would never end."""
LIMIT = 30
SOON = 0.001
POLICIES: dict[str, dict[str, Any]] = {
    "retry": {"retry": {"retries": 3, "min_delay": SOON, "max_delay": 2 * SOON}},
    "memory": {"cache": {"ttl": 60}},
    "disk": {"cache": {"ttl": 60, "backend": "disk"}},
    "rate_limit": {"rate_limit": {"rate": 500, "burst": 1}},
    "timeout": {"timeout": {"total": 30, "attempt": 5}},
    "breaker": {"circuit_breaker": {"consecutive_failures": 1, "open_for": SOON}},
    "bulkhead": {"bulkhead": {"max_concurrent": 1, "max_wait": 25}},
    "hedge": {"hedge": {"after": SOON / 4, "budget": 1}, "bulkhead": {"max_concurrent": 3}},
    "fallback": {"fallback": {"arg": "model", "values": ["a", "b"]}},
}
ALL = {name: policy for each in POLICIES.values() for name, policy in each.items()}
POLICIES["all, disk"] = ALL | POLICIES["disk"]
POLICIES["all, memory"] = ALL | POLICIES["memory"]


class Cancel(trio.abc.Instrument):
    """Cancels scopes right before the n-th step that any task takes."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.scopes: list[trio.CancelScope] = []

    def before_task_step(self, task: Any) -> None:
        if self.scopes:
            self.step -= 1
            if self.step < 0:
                for each in self.scopes:
                    each.cancel()
                self.scopes = []


def cancelled_at(step: int, functions: list[Callable[[], Any]], *, everything: bool) -> tuple[list[Any], bool]:
    """Run functions in tasks, and cancel the first or all of them at a step; return results, and whether it was so.

    A result is None for a task that was cancelled.
    """
    cancel = Cancel(step)
    results: list[Any] = [None] * len(functions)
    scopes = [trio.CancelScope() for _ in functions]

    async def one(number: int) -> None:
        with scopes[number]:
            try:
                results[number] = await functions[number]()
            except Exception as error:
                results[number] = error

    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                for number in range(len(functions)):
                    nursery.start_soon(one, number)
                cancel.scopes = scopes if everything else scopes[:1]

    trio.run(main, instruments=[cancel])
    return results, any(each.cancelled_caught for each in scopes)


def eventually(is_so: Callable[[], object]) -> None:
    """Wait for threads that end what a cancelled call has begun."""
    until = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


def at_each_step(attempt: Callable[[int], bool]) -> None:
    """Try every step until nothing is cancelled any more."""
    for step in range(MOST):
        if not attempt(step):
            assert step > 0
            return
    raise AssertionError("the call never came to its end")


def within_limit(function: Callable[[], Any]) -> Any:
    async def main() -> Any:
        with trio.fail_after(LIMIT):
            return await function()

    return trio.run(main)


class Calls:
    """A bound function of which two callers want the same at once, and fails at first."""

    def __init__(self, policy: dict[str, Any], folder: Path, key: str) -> None:
        if policy.get("cache", {}).get("backend") == "disk":
            policy = policy | {"cache": policy["cache"] | {"cache_dir": folder}}
        self.key = key
        self.attempts = 0

        async def fetch(key: str, model: str = "a") -> str:
            self.attempts += 1
            if self.attempts == 1:
                raise ConnectionError
            await trio.lowlevel.checkpoint()
            await trio.sleep(SOON)
            return key

        self.bound: Any = Policy.model_validate(policy).apply(fetch)

    async def one(self) -> str:
        for _ in range(5):
            try:
                return str(await self.bound(self.key))
            except Exception:  # the first failure, or an open circuit
                await trio.sleep(2 * SOON)
        return str(await self.bound(self.key))

    def check(self) -> None:
        """Nothing is held any more, and the next call gets what it wants."""
        executors = self.bound.binding.pipeline.executors
        cache, bulkhead, limit = (executors.get(each) for each in ("cache", "bulkhead", "rate_limit"))
        if cache is not None:
            eventually(lambda: cache.single_flight.running == {})
            if cache.is_shared:
                key = cache.key((self.key,), {})
                eventually(lambda: not cache.store.mutex(key).locked())
        if bulkhead is not None:
            eventually(lambda: bulkhead.running == 0)
            assert not bulkhead.home.queue
        if limit is not None:
            assert limit.limiter.queued == 0
            assert limit.limiter._waiting == {}
        assert within_limit(self.one) == self.key


@pytest.mark.parametrize(
    ("name", "everything"),
    [*((each, False) for each in POLICIES if each != "disk"), ("all, disk", True), ("all, memory", True)],
)
def test_a_call_that_is_cancelled_at_any_step_leaves_nothing_taken(name: str, everything: bool, tmp_path: Path) -> None:
    def attempt(step: int) -> bool:
        calls = Calls(POLICIES[name], tmp_path, f"key {step}")
        results, was_cancelled = cancelled_at(step, [calls.one, calls.one], everything=everything)
        if not everything:
            assert results[1] == calls.key or isinstance(results[1], OperoError)
        calls.check()
        return was_cancelled

    at_each_step(attempt)


@pytest.mark.parametrize("everything", [False, True])
def test_a_stream_that_is_cancelled_at_any_step_leaves_nothing_taken(everything: bool) -> None:
    def attempt(step: int) -> bool:
        failures = [ConnectionError()]

        async def items() -> AsyncIterator[int]:
            await trio.lowlevel.checkpoint()
            if failures:
                raise failures.pop()
            for each in range(3):
                yield each
                await trio.sleep(SOON)

        stream: Any = Policy(
            retry={"min_delay": SOON, "max_delay": 2 * SOON, "retries": 5},
            bulkhead={"max_concurrent": 1, "max_wait": 25},
            rate_limit="1000/s",
            timeout={"attempt": 5, "idle": 5, "total": 30},
            circuit_breaker={"consecutive_failures": 5},
        ).apply(items)

        async def read() -> list[int]:
            return [each async for each in stream()]

        results, was_cancelled = cancelled_at(step, [read, read], everything=everything)
        if not everything:
            assert results[1] == [0, 1, 2]
        assert stream.binding.pipeline.executors["bulkhead"].running == 0
        assert within_limit(read) == [0, 1, 2]
        assert stream.binding.circuit_breaker.state == "closed"
        return was_cancelled

    at_each_step(attempt)
