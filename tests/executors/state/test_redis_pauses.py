"""Pauses of rate limits with `share: redis`: they hold for all processes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from executors.state.test_redis_budget import executor_of, limited, until
from opero import RateLimitExceededError
from opero.executors.feedback import pause, slow_down
from redis_server import RedisServer


def pair(url: str, **options: Any) -> tuple[Any, Any]:
    """Two functions that share a budget as two processes would."""
    fields = {"rate": 100, "burst": 10, "max_wait": 60, **options}
    return limited(url, **fields), limited(url, **fields)


def seconds_of(bound: Any) -> float:
    started = time.monotonic()
    bound()
    return time.monotonic() - started


def test_a_pause_of_one_process_is_one_of_all(redis_url: str) -> None:
    one, other = pair(redis_url)
    one(), other()
    pause(executor_of(one), 0.5, "HTTP 429")
    assert seconds_of(other) > 0.45
    assert executor_of(other).paused_for() == 0
    gaps = [seconds_of(each) for each in (one, other, one)]
    assert sum(gaps) > 0.04, "they come back gradually, and nothing has been saved up"


def test_a_call_that_waits_already_waits_longer(redis_url: str) -> None:
    one, other = pair(redis_url, rate=2, burst=1)
    one()
    started = time.monotonic()

    async def wait_and_pause() -> None:
        waiting = asyncio.create_task(asyncio.to_thread(other))
        await asyncio.sleep(0.1)
        pause(executor_of(one), 1.0, "HTTP 429")
        await waiting

    asyncio.run(wait_and_pause())
    assert time.monotonic() - started >= 1.05


def test_a_call_that_cannot_wait_is_rejected_by_all(redis_url: str) -> None:
    one, other = pair(redis_url, max_wait=0)
    one(), other()
    pause(executor_of(one), 30, "HTTP 429")
    with pytest.raises(RateLimitExceededError, match="the service has asked for a pause, which lasts (30|29)"):
        one()
    with pytest.raises(RateLimitExceededError, match="the service has asked for a pause") as caught:
        other()
    assert caught.value.retry_in == pytest.approx(30, abs=0.5)


def test_the_longest_pause_counts_and_is_told_once(redis_url: str, heard: list[Any]) -> None:
    one, other = pair(redis_url)
    pause(executor_of(one), 2, "HTTP 429")
    pause(executor_of(other), 2, "HTTP 429")
    pause(executor_of(other), 30, "HTTP 503")
    pause(executor_of(one), 1, "HTTP 429")
    told = [each.seconds for each in heard if each.name == "rate_limit_paused"]
    assert told[0] == 2
    assert told[-1] == 30
    assert executor_of(one).next_permit() == pytest.approx(30, abs=1) or executor_of(other).paused_for() > 29


def test_calls_are_slowed_down_for_all(redis_url: str) -> None:
    one, other = pair(redis_url)
    slow_down(executor_of(one), 0.3)
    assert seconds_of(other) > 0.25


def test_permits_that_were_reserved_ahead_are_not_used(redis_url: str) -> None:
    one, _ = pair(redis_url, rate=1000, burst=1000, reserve=500)
    for _ in range(20):
        one()
    assert len(executor_of(one).own._reserved) > 0
    pause(executor_of(one), 0.4, "HTTP 429")
    assert seconds_of(one) > 0.35


def test_a_pause_while_the_server_is_gone_holds_here_and_afterwards_for_all(server: RedisServer) -> None:
    one, other = pair(server.url, max_wait=0)
    one(), other()
    server.kill()
    pause(executor_of(one), 20, "HTTP 429")
    with pytest.raises(RateLimitExceededError):
        one()
    server.start()

    def is_paused_for_all() -> bool:
        for each in (one, other):
            try:
                each()
            except RateLimitExceededError:
                continue
            return False
        return True

    until(is_paused_for_all)
