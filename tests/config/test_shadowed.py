"""Variables that have no effect on a function, as its decorator sets the same option, are reported once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from opero import Registry, RetryPolicy, opero, opmap

if TYPE_CHECKING:
    from pathlib import Path

    from config.conftest import Policies

BASE = "policies: {api: {retry: {retries: 3}, cache: 5m, rate_limit: 50/s}, child: {extends: api}}"


def get(number: int) -> int:
    return number


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """Returns the warnings that have been logged since it was called last."""

    def logged() -> list[str]:
        found = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        caplog.clear()
        return found

    return logged


def load(policies: Policies, **environ: str) -> Registry:
    policies.write(base=BASE)
    return Registry.load(policies.directory, environ=environ)


def test_it_is_logged_once_at_the_first_call_with_the_cure(policies: Policies, warnings: Any) -> None:
    registry = load(policies, OPERO_API_RETRIES="8")
    call: Any = opero(policy="api", retries=2, registry=registry)(get)
    assert warnings() == []
    call(1)
    (told,) = warnings()
    assert told.startswith(
        "OPERO_API_RETRIES has no effect on config.test_shadowed:get, as code takes precedence over a "
    )
    assert "and sets retry.retries at " in told
    assert "test_shadowed.py:" in told
    assert told.endswith("(@opero); remove it there, or set it in `functions:`, which takes precedence over code")
    assert call.policy.retry.retries == 2
    call(2)
    assert warnings() == []


@pytest.mark.parametrize(
    ("options", "variable", "path"),
    [
        ({"retries": 2}, {"OPERO_POLICIES__API__RETRY__RETRIES": "8"}, "retry.retries"),
        ({"retries": 2}, {"OPERO_DEFAULTS__RETRY__RETRIES": "8"}, None),  # the profile says 3
        ({"retries": 2}, {"OPERO_API_RETRIES": "2"}, None),
        ({"retries": 2}, {"OPERO_API_BACKOFF": "2"}, None),
        ({"min_delay": 1}, {"OPERO_DEFAULTS__RETRY__MIN_DELAY": "2"}, "retry.min_delay"),
        ({"retry": RetryPolicy(reraise=True)}, {"OPERO_API_RETRIES": "8"}, "retry.retries"),
        ({"cache": None}, {"OPERO_API_CACHE_TTL": "8"}, "cache.ttl"),
        ({"cache": None}, {"OPERO_API_CACHE": '{"ttl": 8, "max_size": 9}'}, "cache.ttl"),
        ({"rate_limit": False}, {"OPERO_API_RATE_LIMIT": "8"}, "rate_limit.enabled"),
        ({"rate_limit": "10/s"}, {"OPERO_API_RATE_LIMIT": "8"}, "rate_limit.rate"),
        ({"rate_limit": {"burst": 2}}, {"OPERO_API_RATE_LIMIT": "8"}, None),
        ({}, {"OPERO_API_RETRIES": "8"}, None),
    ],
)
@pytest.mark.parametrize("decorator", [opero, opmap])
def test_it_is_told_of_each_way_to_set_and_to_remove(
    policies: Policies, warnings: Any, options: Any, variable: dict[str, str], path: str | None, decorator: Any
) -> None:
    call = decorator(policy="api", registry=load(policies, **variable), **options)(get)
    assert call.policy is not None
    assert call([1]) if decorator is opmap else call(1)
    told = warnings()
    assert len(told) == (path is not None)
    assert all(each.startswith(next(iter(variable))) and f"sets {path} at" in each for each in told)


def test_a_variable_of_a_parent_is_told_as_well(policies: Policies, warnings: Any) -> None:
    registry = load(policies, OPERO_API_RETRIES="8")
    registry.bind(get, "child", retries=2)
    (told,) = warnings()
    assert told.startswith("OPERO_API_RETRIES has no effect on config.test_shadowed:get")
    assert "(Registry.bind)" in told


def test_an_entry_of_functions_takes_precedence_so_nothing_is_told(policies: Policies, warnings: Any) -> None:
    policies.write(base=f"{BASE}\nfunctions: {{'config.test_shadowed:get': {{retry: 5}}}}")
    registry = Registry.load(policies.directory, environ={"OPERO_API_RETRIES": "8"})
    assert registry.bind(get, "api", retries=2).policy.retry == RetryPolicy(retries=5)
    assert warnings() == []


def test_without_a_profile_there_is_nothing_to_shadow(policies: Policies, warnings: Any) -> None:
    registry = load(policies, OPERO_API_RETRIES="8")
    opero(retries=2, registry=registry)(get)(1)
    assert warnings() == []


def test_variables_of_files_and_secrets_are_told(
    policies: Policies, warnings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies.write(base=BASE)
    (tmp_path / ".env").write_text("OPERO_API_RETRIES=8\n")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "OPERO_API_CACHE_TTL").write_text("8")
    registry = Registry.load(policies.directory, environ={}, env_file=".env", secrets_dir="secrets")
    registry.bind(get, "api", retries=2, cache_ttl=9)
    assert [each.partition(" ")[0] for each in warnings()] == ["OPERO_API_RETRIES", "OPERO_API_CACHE_TTL"]


def test_a_reload_tells_of_new_ones_only(policies: Policies, warnings: Any, tmp_path: Path) -> None:
    policies.write(base=BASE)
    env = tmp_path / ".env"
    env.write_text("OPERO_API_RETRIES=8\n")
    registry = Registry.load(policies.directory, environ={}, env_file=".env")
    call: Any = opero(policy="api", retries=2, cache_ttl=9, registry=registry)(get)
    late: Any = opero(policy="api", cache_ttl=9, registry=registry)(get)
    call(1)
    assert len(warnings()) == 1
    env.write_text("OPERO_API_RETRIES=8\nOPERO_API_CACHE_TTL=5\n")
    registry.reload()
    (told,) = warnings()
    assert told.startswith("OPERO_API_CACHE_TTL has no effect")
    late(1)
    assert len(warnings()) == 1
