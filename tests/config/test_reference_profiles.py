"""The profiles that the repository offers as an example hold the numbers of the best practices."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from opero.config.configuration import Configuration
from opero.config.settings import load
from opero.policies import CachePolicy, ParallelPolicy, Policy, RateLimitPolicy, RetryPolicy, TimeoutPolicy

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
        retry=RetryPolicy(retries=5, backoff_factor=2.0, retry_on=(ConnectionError, TimeoutError, requests.HTTPError)),
        cache=CachePolicy(ttl=1800),
        rate_limit=RateLimitPolicy(rate=50),
    )
    assert found["batch"] == Policy(
        retry=RetryPolicy(retries=3),
        timeout=TimeoutPolicy(total=300),
        parallel=ParallelPolicy(mode="process", workers="auto", ordered=True, progress=False),
    )
    assert found["db"] == Policy(
        retry=RetryPolicy(retries=3, backoff_factor=1.5, retry_on=(ConnectionError, TimeoutError)),
        rate_limit=RateLimitPolicy(rate=100),
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
    assert str(loaded.source(profile, f"{policy}.{field}").source) == name
