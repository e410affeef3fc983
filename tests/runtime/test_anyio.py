"""Bound functions under anyio, on asyncio and on trio: its cancel scopes and task groups work through every policy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from opero import CallTimeoutError, Policy

LONG = 30.0
SOON = 0.05
POLICIES: dict[str, dict[str, Any]] = {
    "retry": {"retry": 3},
    "timeout": {"timeout": LONG},
    "bulkhead": {"bulkhead": {"max_concurrent": 1, "max_wait": None}},
    "rate_limit": {"rate_limit": 1000},
    "circuit_breaker": {"circuit_breaker": 5},
    "cache": {"cache": True},
}
POLICIES["all"] = {kind: policy for each in POLICIES.values() for kind, policy in each.items()}


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    return lambda main: anyio.run(main, backend=request.param)


@pytest.mark.parametrize("policies", POLICIES.values(), ids=POLICIES)
def test_a_cancel_scope_around_a_call_cancels_it(run: Any, policies: dict[str, Any]) -> None:
    ended = []

    async def slow() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            ended.append(sys.exc_info()[0] is not None)

    bound: Any = Policy(**policies).apply(slow)

    async def main() -> None:
        with anyio.move_on_after(SOON) as scope:
            await bound()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(bound)
            await anyio.sleep(SOON)
            group.cancel_scope.cancel()

    run(main)
    assert ended == [True, True]


@pytest.mark.parametrize("policies", POLICIES.values(), ids=POLICIES)
def test_a_cancel_scope_inside_the_function_is_its_own(run: Any, policies: dict[str, Any]) -> None:
    async def moves_on() -> str:
        with anyio.move_on_after(0.01):
            await anyio.sleep(LONG)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        return "moved on"

    bound: Any = Policy(**policies).apply(moves_on)
    results = []

    async def main() -> None:
        async def one() -> None:
            results.append(await bound())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(one)

    run(main)
    assert results == ["moved on"] * 3


def test_a_timeout_inside_a_cancel_scope_is_opero_s(run: Any) -> None:
    async def slow() -> None:
        await anyio.sleep(LONG)

    bound: Any = Policy(timeout=SOON).apply(slow)

    async def main() -> None:
        with anyio.fail_after(LONG) as scope:
            with pytest.raises(CallTimeoutError):
                await bound()
        assert not scope.cancelled_caught
        await anyio.sleep(0)  # nothing of the cancellation is left

    run(main)


def test_a_shielded_call_is_not_cancelled_from_outside(run: Any) -> None:
    async def work() -> str:
        await anyio.sleep(2 * SOON)
        return "done"

    bound: Any = Policy(timeout=LONG, retry=1, cache=True).apply(work)
    results = []

    async def main() -> None:
        with anyio.move_on_after(SOON):
            with anyio.CancelScope(shield=True):
                results.append(await bound())
            await anyio.sleep(LONG)

    run(main)
    assert results == ["done"]
