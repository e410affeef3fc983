"""Several limits whose policy is replaced while calls wait, and in the worker processes of a map."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

import opero
from opero import Policy, Registry
from opero.testing import VirtualClock

BEFORE = {
    "rate": {"rate": 10, "burst": 20},
    "cost": {"rate": 10, "burst": 20, "cost": "n"},
    "limits": {"limits": [{"rate": 10, "burst": 20}, {"rate": 10, "burst": 20, "cost": "n"}]},
    "other limits": {"limits": [{"rate": 10, "burst": 20, "cost": "n"}, 5, {"rate": 10, "burst": 20, "name": "more"}]},
}


def limiter_of(bound: Any) -> Any:
    return bound.binding.resolved().executors["rate_limit"].limiter


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", BEFORE)
def test_calls_under_way_finish_when_the_policy_is_replaced_by_one_with_other_limits(before: str, after: str) -> None:
    clock = VirtualClock()
    started: list[float] = []

    async def call(n: float) -> None:
        started.append(clock.now)
        await clock.async_sleep(1)
        opero.settle(n / 2)

    registry = Registry({"p": Policy(rate_limit=BEFORE[before])})
    bound = registry.bind(call, "p", clock=clock)

    async def main() -> None:
        tasks = [asyncio.ensure_future(bound(20)) for _ in range(4)]
        await clock.async_sleep(0.5)
        with registry.override({"p": {"rate_limit": BEFORE[after]}}):
            tasks += [asyncio.ensure_future(bound(20)) for _ in range(2)]
            await clock.async_sleep(0.7)
            tasks[2].cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert not getattr(limiter_of(bound), "turns", ())
        await bound(1)

    clock.run(main())
    assert 6 <= len(started) <= 7


@pytest.mark.parametrize(
    ("before", "after", "wait"), [("rate", "limits", 0.1), ("cost", "limits", 1), ("limits", "cost", 1)]
)
def test_what_has_been_taken_stays_taken(before: str, after: str, wait: float) -> None:
    clock = VirtualClock()
    registry = Registry({"p": Policy(rate_limit=BEFORE[before])})
    bound = registry.bind(lambda n: clock.now, "p", clock=clock)
    for _ in range(20 if before == "rate" else 1):
        bound(20)
    with registry.override({"p": {"rate_limit": BEFORE[after]}}):
        assert bound(10 if wait == 1 else 1) == pytest.approx(1000 + wait)


def test_a_limiter_settles_the_call_that_it_has_let_through() -> None:
    policy = Policy(rate_limit=[{"rate": 0.01, "burst": 20, "cost": "n"}])
    registry = Registry({"p": policy, "q": policy})

    def outer(n: float) -> None:
        inner(5)

    def within(n: float) -> None:
        assert registry.state("p").rate_limit.settle(2)

    bound = registry.bind(outer, "p")
    inner = registry.bind(within, "q")
    bound(10)
    assert [round(20 * limiter_of(each).loads()["n"][0]) for each in (bound, inner)] == [2, 5]
    assert not registry.state("p").rate_limit.settle(2)


def test_a_registry_tells_of_each_limit() -> None:
    registry = Registry({"p": Policy(rate_limit=BEFORE["limits"])})
    bound = registry.bind(lambda n: None, "p", clock=VirtualClock())
    bound(15)
    state = registry.stats()["profiles"]["p"]["state"]["rate_limit"]
    assert state["saturation"] == 0.75
    assert state["limits"]["n"] == {"rate": 10, "burst": 20, "saturation": 0.75, "next_permit": 0}
    assert state["limits"]["requests"]["saturation"] == pytest.approx(0.05)


def used(n: float) -> dict[str, Any]:
    return {"cost": 1 + n / 4, "time": time.monotonic()}


def test_the_worker_processes_of_a_map_take_permits_of_all_limits_together_and_settle(tmp_path: Path) -> None:
    limits = [{"rate": 200, "burst": 5}, {"rate": 100, "burst": 40, "cost": "n", "cost_from_result": "cost"}]
    policy = Policy(rate_limit=limits, parallel={"mode": "process", "workers": 3})
    found = policy.apply(used).map([20] * 40)
    moments = sorted(each["time"] for each in found)
    took = moments[-1] - moments[0]
    assert 40 + 100 * took + 20 + 1 >= 40 * 6
    assert took <= 6
