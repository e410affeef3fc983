"""Policies that change the same call: hedges, keyed scopes, several limits, throttles, priorities, adaptive limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from opero import CircuitOpenError, Policy
from opero.testing import VirtualClock

EVERYTHING: dict[str, Any] = {
    "retry": {"retries": 2, "min_delay": 0, "max_delay": 0},
    "timeout": {"total": 60, "attempt": 20},
    "circuit_breaker": {"consecutive_failures": 3, "scope": {"by": "tenant"}},
    "throttle": 2,
    "rate_limit": {
        "limits": [{"rate": 1000}, {"rate": 1e5, "cost": "tokens", "name": "tokens"}],
        "scope": {"by": "tenant"},
    },
    "bulkhead": {"max_concurrent": "adaptive", "max_wait": 30},
    "hedge": {"after": 1, "budget": 1.0},
    "priority": "background",
}


def test_a_slow_attempt_is_hedged_under_all_policies_and_leaves_nothing_behind() -> None:
    clock, started = VirtualClock(), []

    async def work(tenant: str, tokens: int = 10) -> str:
        started.append(tenant)
        await clock.async_sleep(10 if len(started) == 1 else 0.1)
        return tenant

    bound: Any = Policy.model_validate(EVERYTHING).apply(work, clock=clock)

    async def use() -> list[Any]:
        return [await bound("a"), *await asyncio.gather(*(bound("b") for _ in range(20)))]

    assert clock.run(use()) == ["a", *["b"] * 20]
    executors = bound.binding.pipeline.executors
    assert bound.stats.hedge_wins >= 1
    assert executors["bulkhead"].running == 0
    for kind in ("circuit_breaker", "rate_limit"):
        assert all(entry.calls == 0 for entry in executors[kind].limiter.live.values())
    assert not executors["rate_limit"].limiter.find("a").executor.turns


def test_a_tenant_whose_calls_fail_is_rejected_and_others_are_not() -> None:
    clock = VirtualClock()

    async def work(tenant: str, tokens: int = 10) -> str:
        await clock.async_sleep(0.1)
        if tenant == "bad":
            raise ConnectionError(tenant)
        return tenant

    policy = Policy.model_validate({**EVERYTHING, "retry": False, "throttle": {"ratio": 1000}})
    bound: Any = policy.apply(work, clock=clock)

    async def use() -> None:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await bound("bad")
        with pytest.raises(CircuitOpenError):
            await bound("bad")
        for _ in range(50):
            assert await bound("good") == "good"

    clock.run(use())


def test_a_sync_function_is_hedged_under_all_policies() -> None:
    clock = VirtualClock()

    def work(tenant: str, tokens: int = 10) -> str:
        clock.sleep(0.1)
        return tenant

    bound: Any = Policy.model_validate(EVERYTHING).apply(work, clock=clock)
    assert [bound(each) for each in "abc" * 5] == list("abc" * 5)
    assert bound.binding.pipeline.executors["bulkhead"].running == 0


def test_cancelled_calls_under_all_policies_leave_nothing_behind() -> None:
    async def work(tenant: str, tokens: int = 10) -> None:
        await asyncio.sleep(60)

    bound: Any = Policy.model_validate({**EVERYTHING, "hedge": {"after": 0.01, "budget": 1.0}}).apply(work)

    async def use() -> None:
        for turns in range(40):
            tasks = [asyncio.ensure_future(bound("a")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns == 39:
                await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(10):
                await asyncio.sleep(0)

    asyncio.run(use())
    executors = bound.binding.pipeline.executors
    assert executors["bulkhead"].running == 0
    assert not executors["bulkhead"].home.queue
    for kind in ("circuit_breaker", "rate_limit"):
        assert all(entry.calls == 0 for entry in executors[kind].limiter.live.values())
    assert not executors["rate_limit"].limiter.find("a").executor.turns
