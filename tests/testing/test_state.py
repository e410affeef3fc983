"""Blocks without waits or policies, and state that begins anew."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from opero import CircuitOpenError, OperoError, Policy, RateLimitExceededError, Registry, opero
from opero.bound import bind
from opero.executors.state.sharing import share_limits
from opero.testing import disabled, fresh_state, no_waits

RETRIED = {"retry": {"retries": 2, "min_delay": 30, "jitter": False}}


def flaky() -> None:
    raise ConnectionError


def next_number() -> int:
    return next(numbers)


numbers = itertools.count()


async def flaky_async() -> None:
    raise ConnectionError


def attempts(bound: Any) -> int:
    """Call it, which fails, and return how often it was executed."""
    before = bound.stats.attempts
    call = (lambda: asyncio.run(bound())) if bound.binding.is_async else bound
    with pytest.raises((ConnectionError, OperoError)):
        call()
    return int(bound.stats.attempts - before)


@pytest.fixture(params=[flaky, flaky_async])
def function(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_without_waits_delays_are_skipped_and_recorded(function: Any) -> None:
    bound, began = Policy(**RETRIED).apply(function), time.monotonic()
    with no_waits() as waits:
        assert attempts(bound) == 3
    assert waits.slept == [30, 30]
    assert time.monotonic() - began < 20


def test_without_waits_permits_come_back_as_if_time_had_passed() -> None:
    with no_waits() as waits:
        limited = Policy(rate_limit={"rate": "1/min", "burst": 1}).apply(lambda: None)
        for _ in range(3):
            limited()
    assert sum(waits.slept) == pytest.approx(120, abs=5)


def test_the_time_that_is_skipped_counts_for_the_limit_of_a_call(function: Any) -> None:
    bound = Policy(retry={"retries": 9, "min_delay": 30, "jitter": False}, timeout={"total": 70}).apply(function)
    with no_waits() as waits:
        assert attempts(bound) == 3
    assert waits.slept == [30, 30]


@pytest.mark.parametrize("bound_by", ["registry", "apply", "decorator"])
def test_disabled_functions_run_without_their_policies_within_the_block(bound_by: str, function: Any) -> None:
    policy = Policy(retry={"retries": 2, "min_delay": 0, "jitter": False})
    bound: Any = {
        "registry": lambda: Registry({"api": policy}).bind(function, "api"),
        "apply": lambda: policy.apply(function),
        "decorator": lambda: opero(retries=2, min_delay=0, jitter=False)(function),
    }[bound_by]()
    assert attempts(bound) == 3
    with disabled():
        assert attempts(bound) == 1
        with disabled():
            assert attempts(bound) == 1
        assert attempts(bound) == 1
    assert attempts(bound) == 3


def test_functions_bound_while_disabled_have_their_policies_after_the_block(function: Any) -> None:
    policy = Policy(retry={"retries": 2, "min_delay": 0, "jitter": False})
    registry = Registry({"api": policy})
    with disabled():
        bound: list[Any] = [
            registry.bind(function, "api"),
            policy.apply(function),
            opero(retries=2, min_delay=0, jitter=False)(function),
        ]
        assert [attempts(each) for each in bound] == [1, 1, 1]
    assert [attempts(each) for each in bound] == [3, 3, 3]


def test_what_functions_of_a_profile_share_continues_after_the_block() -> None:
    registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 1})})
    bound: Any = registry.bind(flaky, "api")
    attempts(bound)
    with disabled():
        assert attempts(bound) == 1
    with pytest.raises(CircuitOpenError):
        bound()


def test_a_reload_while_disabled_puts_nothing_in_force() -> None:
    registry = Registry({"api": Policy(retry={"retries": 2, "min_delay": 0})})
    bound: Any = registry.bind(flaky, "api")
    attempts(bound)
    with disabled():
        with registry.override(api={"retry": {"retries": 4}}):
            assert attempts(bound) == 1
        assert attempts(bound) == 1
    assert attempts(bound) == 3


@pytest.mark.parametrize("bound_by", ["registry", "apply"])
class TestFreshState:
    """Everything that a function remembers begins anew."""

    def bind(self, bound_by: str, function: Any, **policies: Any) -> Any:
        policy = Policy(**policies)
        return Registry({"api": policy}).bind(function, "api") if bound_by == "registry" else policy.apply(function)

    def test_circuit_breaker(self, bound_by: str) -> None:
        bound = self.bind(bound_by, flaky, circuit_breaker={"consecutive_failures": 1})
        attempts(bound)
        assert bound.binding.circuit_breaker.state == "open"
        fresh_state()
        assert bound.binding.circuit_breaker.state == "closed"
        assert attempts(bound) == 1

    def test_rate_limit(self, bound_by: str) -> None:
        bound = self.bind(bound_by, lambda: 1, rate_limit={"rate": "1/h", "burst": 1, "max_wait": 0})
        bound()
        with pytest.raises(RateLimitExceededError):
            bound()
        fresh_state()
        assert bound() == 1

    def test_memory_cache(self, bound_by: str) -> None:
        calls: list[int] = []
        bound = self.bind(bound_by, lambda: calls.append(1), cache=True)
        bound(), bound()
        assert len(calls) == 1
        fresh_state()
        bound()
        assert len(calls) == 2

    def test_a_cache_on_disk_is_kept(self, bound_by: str, tmp_path: Path) -> None:
        bound = self.bind(bound_by, next_number, cache={"backend": "disk", "cache_dir": str(tmp_path), "ttl": 60})
        number = bound()
        fresh_state()
        assert bound() == number

    def test_memory_of_fallback_values(self, bound_by: str) -> None:
        asked: list[str] = []

        class RefusedError(Exception):
            status_code = 401

        def ask(key: str) -> str:
            asked.append(key)
            if key == "dead":
                raise RefusedError
            return key

        bound = self.bind(bound_by, ask, fallback={"arg": "key"})
        bound(["dead", "good"]), bound(["dead", "good"])
        assert asked == ["dead", "good", "good"]
        fresh_state()
        bound(["dead", "good"])
        assert asked[3:] == ["dead", "good"]

    def test_counts(self, bound_by: str) -> None:
        bound = self.bind(bound_by, flaky, retry={"retries": 1, "min_delay": 0})
        stats = bound.stats
        attempts(bound)
        fresh_state()
        assert bound.stats is stats
        assert (stats.calls, stats.attempts, stats.errors) == (0, 0, {})
        attempts(bound)
        assert (stats.calls, stats.attempts) == (1, 2)


def test_functions_of_a_profile_share_their_fresh_state() -> None:
    registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 2})})
    one: Any = registry.bind(flaky, "api")
    other: Any = registry.bind(flaky, "api")
    attempts(one), attempts(other)
    fresh_state()
    attempts(one), attempts(other)
    with pytest.raises(CircuitOpenError):
        one()


def test_a_function_whose_shared_limits_are_gone_is_left_alone(tmp_path: Path) -> None:
    policy = Policy(rate_limit={"rate": 0.001, "burst": 1, "max_wait": 0})
    mapped = policy.apply(next_number)
    shared = share_limits(mapped.binding.resolved().executors, "work", tmp_path)
    there, own = bind(policy, next_number, provider=shared), policy.apply(next_number)
    there()
    own()
    for file in tmp_path.iterdir():
        file.unlink()
    fresh_state()
    own()  # it has a permit again
    with pytest.raises(RateLimitExceededError):
        there()
