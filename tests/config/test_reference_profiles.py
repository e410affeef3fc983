"""The profiles that the repository offers as an example hold the numbers of the best practices."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from pathlib import Path

import pytest

from opero import AllFailedError, CircuitOpenError
from opero.config.configuration import Configuration
from opero.config.settings import load
from opero.failures import Kind
from opero.policies import (
    CachePolicy,
    CircuitBreakerPolicy,
    ParallelPolicy,
    Policy,
    RateLimitPolicy,
    RetryPolicy,
    TimeoutPolicy,
)
from opero.testing import VirtualClock


class ThrottledError(Exception):
    status_code = 429


class Highest(random.Random):
    """Chance falls as high as it can."""

    def random(self) -> float:
        return 1.0 - 2**-53


DIRECTORY = Path(__file__).parents[2] / "policies"
ENVIRONMENTS = ("development", "staging", "production")


def profiles(environment: str, **environ: str) -> Configuration:
    return load(DIRECTORY, environment, environ)


@pytest.mark.parametrize(
    ("environment", "retries", "backoff_factor", "ttl", "rate", "workers"),
    [
        ("production", 5, 2.0, 3600, 20, 20),
        ("staging", 3, 1.5, 600, 15, 15),
        ("development", 1, 1.0, 60, 5, 5),
    ],
)
def test_default_has_the_values_of_configuration_management(
    environment: str, retries: int, backoff_factor: float, ttl: float, rate: float, workers: int
) -> None:
    assert profiles(environment).policies["default"] == Policy(
        retry=RetryPolicy(retries=retries, backoff_factor=backoff_factor, min_delay=0.1, max_delay=30),
        cache=CachePolicy(ttl=ttl, backend="memory"),
        rate_limit=RateLimitPolicy(rate=rate),
        parallel=ParallelPolicy(mode="thread", workers=workers),
    )


def test_production_has_the_values_of_configuration_for_production() -> None:
    found = profiles("production").policies
    assert found["api"] == Policy(
        retry=RetryPolicy(retries=5, backoff_factor=2.0, retry_on=(Kind.TRANSIENT, Kind.THROTTLED)),
        cache=CachePolicy(ttl=1800),
        rate_limit=RateLimitPolicy(rate=50, max_wait=30),
        timeout=TimeoutPolicy(total=120),
        circuit_breaker=CircuitBreakerPolicy(failure_rate=0.5, window=60.0, open_for=30),
    )
    assert found["batch"] == Policy(
        retry=RetryPolicy(retries=3),
        timeout=TimeoutPolicy(total=300),
        parallel=ParallelPolicy(mode="process", workers="auto", ordered=True, progress=False),
    )
    assert found["db"] == Policy(
        retry=RetryPolicy(retries=3, backoff_factor=1.5, retry_on=(Kind.TRANSIENT,)),
        rate_limit=RateLimitPolicy(rate=100, max_wait=10),
        timeout=TimeoutPolicy(total=30, enforce="none"),
        circuit_breaker=CircuitBreakerPolicy(failure_rate=0.5, window=60.0, open_for=15),
    )
    assert found["db"].cache is None


def test_each_environment_has_the_same_profiles_with_smaller_limits_below_production() -> None:
    found = {name: profiles(name).policies for name in ENVIRONMENTS}
    assert all(set(each) == {"default", "api", "batch", "db"} for each in found.values())
    for name in ("default", "api", "db"):
        rates = [found[each][name].rate_limit.rate for each in ENVIRONMENTS]  # type: ignore[union-attr]
        assert rates == sorted(rates)
    for name in ("default", "api", "batch", "db"):
        retries = [found[each][name].retry.retries for each in ENVIRONMENTS]  # type: ignore[union-attr]
        assert retries == sorted(retries)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("name", ["api", "db"])
def test_calls_of_services_end_wait_and_stop(environment: str, name: str) -> None:
    policy = profiles(environment).policies[name]
    assert policy.circuit_breaker is not None
    assert policy.rate_limit is not None
    assert policy.rate_limit.max_wait is not None
    assert policy.timeout is not None
    assert policy.timeout.total is not None
    assert policy.rate_limit.max_wait < policy.timeout.total


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize(
    ("name", "error"), [("api", ConnectionError), ("api", ThrottledError), ("db", ConnectionError)]
)
def test_the_timeout_leaves_room_for_all_retries(environment: str, name: str, error: type[Exception]) -> None:
    """Each attempt takes 1 s, delays fall as high as they can, and the first waits for a permit as long as it may."""
    policy, clock = profiles(environment).policies[name], VirtualClock()
    assert policy.retry is not None
    assert policy.rate_limit is not None
    assert policy.rate_limit.max_wait is not None
    waited = policy.rate_limit.max_wait
    clock.random = Highest()
    attempts = 0

    def fail() -> None:
        nonlocal attempts
        attempts += 1
        clock.sleep(1 if attempts > 1 else 1 + waited)
        raise error

    with pytest.raises(AllFailedError):
        policy.apply(fail, clock=clock)()
    assert attempts == policy.retry.retries + 1


def test_calls_of_a_service_that_is_down_are_rejected_for_a_while() -> None:
    clock, answers = VirtualClock(), []

    def call() -> None:
        answers.append(clock.monotonic())
        raise ConnectionError

    bound = profiles("production").policies["api"].apply(call, clock=clock)
    for _ in range(10):
        with pytest.raises((AllFailedError, CircuitOpenError)):
            bound()
    made = len(answers)
    with pytest.raises(CircuitOpenError):
        bound()
    assert len(answers) == made
    clock.advance(40)
    with pytest.raises((AllFailedError, CircuitOpenError)):
        bound()
    assert len(answers) > made


@pytest.mark.parametrize(
    ("name", "value", "profile", "policy", "field", "expected"),
    [
        ("OPERO_API_RETRIES", "8", "api", "retry", "retries", 8),
        ("OPERO_API_BACKOFF", "3.0", "api", "retry", "backoff_factor", 3.0),
        ("OPERO_API_CACHE_TTL", "900", "api", "cache", "ttl", 900.0),
        ("OPERO_API_RATE_LIMIT", "25.0", "api", "rate_limit", "rate", 25.0),
        ("OPERO_BATCH_MODE", "thread", "batch", "parallel", "mode", "thread"),
        ("OPERO_BATCH_WORKERS", "3", "batch", "parallel", "workers", 3),
        ("OPERO_BATCH_RETRIES", "4", "batch", "retry", "retries", 4),
        ("OPERO_BATCH_ORDERED", "false", "batch", "parallel", "ordered", False),
        ("OPERO_BATCH_PROGRESS", "true", "batch", "parallel", "progress", True),
        ("OPERO_BATCH_TIMEOUT", "60.0", "batch", "timeout", "total", 60.0),
        ("OPERO_DB_RETRIES", "4", "db", "retry", "retries", 4),
        ("OPERO_DB_BACKOFF", "1.1", "db", "retry", "backoff_factor", 1.1),
        ("OPERO_DB_RATE_LIMIT", "10.0", "db", "rate_limit", "rate", 10.0),
    ],
)
def test_every_variable_of_the_best_practices_works(
    name: str, value: str, profile: str, policy: str, field: str, expected: object
) -> None:
    loaded = profiles("production", **{name: value})
    assert getattr(getattr(loaded.policies[profile], policy), field) == expected
    assert str(loaded.leaves(profile)[f"{policy}.{field}"].source) == name


def test_a_connection_that_belongs_to_a_thread_may_be_used_there() -> None:
    policy = profiles("production").policies["db"]
    found: list[object] = []

    def ask() -> None:
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            found.append(policy.apply(lambda: connection.execute("select 1").fetchone())())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [(1,)]
