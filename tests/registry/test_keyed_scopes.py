"""States for each value of an argument, shared by the functions of a profile: files, reloads, redis, what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from opero import CircuitOpenError, ConfigError, Policy, RateLimitExceededError, Registry
from opero.cli.plain import in_words
from opero.executors import by_key
from opero.health.monitor import HealthMonitor
from opero.integrations.reading import Reader
from runtime.test_forking import in_child

FILE = """
policies:
  api:
    retry: {retries: 0}
    circuit_breaker: {consecutive_failures: 1, open_for: %s, scope: {by: tenant, max_keys: 50}}
"""


class DownError(ConnectionError):
    pass


def get(tenant: str, fails: bool = False) -> str:
    if fails:
        raise DownError
    return tenant


def put(body: str, tenant: str = "main") -> str:
    return tenant


def test_functions_of_a_profile_share_the_state_of_a_value_and_one_without_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(FILE % "60s", "utf-8")
    registry = Registry.load(tmp_path, environ={})
    one, other = registry.bind(get, "api"), registry.bind(put, "api")
    with pytest.raises(DownError):
        one("a", fails=True)
    with pytest.raises(CircuitOpenError, match=r"^api\[a\]: the circuit is open"):
        other("body", "a")
    assert other("body") == "main"
    with pytest.raises(ConfigError, match=r"len has no parameter 'tenant' for circuit_breaker.scope.by"):
        registry.bind(len, "api")


def test_a_reload_keeps_the_states(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(FILE % "60s", "utf-8")
    registry = Registry.load(tmp_path, environ={})
    bound = registry.bind(get, "api")
    with mock.patch.object(by_key, "MOST_LIVE", 2):
        for number in range(6):
            with pytest.raises(DownError):
                bound(str(number), fails=True)
        (tmp_path / "base.yaml").write_text(FILE % "2h", "utf-8")
        assert registry.reload().profiles
        for number in range(6):
            with pytest.raises(CircuitOpenError, match=r"for another ([678]\d\d\ds|1[0-3]\dm|2h)"):
                bound(str(number))
        assert bound("6") == "6"


def test_a_variable_says_whose_the_state_is(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("policies: {api: {rate_limit: 5/s}}", "utf-8")
    variable = "OPERO_API_RATE_LIMIT_SCOPE"
    policy = Registry.load(tmp_path, environ={variable: '{"by": "tenant"}'})["api"]
    assert policy == Policy(rate_limit={"rate": 5, "scope": {"by": "tenant"}})
    for value, told in (("tenant", "is not one of 'auto', 'profile'"), ('{"bye": "x"}', "unknown field 'bye'")):
        with pytest.raises(ConfigError, match=told):
            Registry.load(tmp_path, environ={variable: value})


def test_a_scope_by_an_argument_is_not_kept_in_files_of_the_machine() -> None:
    with pytest.raises(ConfigError, match="share: machine exclude each other.*use share: redis, or leave share out"):
        Policy(rate_limit={"rate": 5, "share": "machine", "scope": {"by": "tenant"}})


def test_what_stands_out_is_shown_and_keys_are_no_labels_of_metrics() -> None:
    policies: dict[str, Any] = {
        "circuit_breaker": {"consecutive_failures": 1, "scope": {"by": "tenant"}},
        "rate_limit": {"rate": 0.001, "burst": 2, "max_wait": 0, "scope": {"by": "tenant"}},
        "bulkhead": {"max_concurrent": 3, "scope": {"by": "tenant"}},
    }
    registry = Registry({"api": Policy(retry={"retries": 0}, **policies)})
    bound = registry.bind(get, "api")
    for tenant in "abc":
        bound(tenant)
    with pytest.raises(DownError):
        bound("bad", fails=True)
    state = registry.stats()["profiles"]["api"]["state"]
    breaker = state["circuit_breaker"]
    assert (breaker["state"], breaker["by"], breaker["keys"], breaker["standing_out"]) == ("open", "tenant", 4, 1)
    assert breaker["shown"][0]["key"] == "bad"
    limit, slots = state["rate_limit"], state["bulkhead"]
    assert (limit["keys"], limit["queue"], limit["standing_out"]) == (4, 0, 0)
    assert limit["saturation"] == pytest.approx(0.5, abs=0.01)
    assert (slots["keys"], slots["slots"], slots["in_use"], slots["queue"], slots["shown"]) == (4, 3, 0, 0, [])
    read = Reader().read(registry)
    assert read["opero_scope_keys"]["api", "", "circuit_breaker"] == 4
    states = {labels[2]: value for labels, value in read["opero_circuit_breaker_state"].items()}
    assert (states["open"], states["closed"], states["half_open"]) == (1, 3, 0)
    assert read["opero_bulkhead_slots"] == {("api", ""): 3}
    found = HealthMonitor(registry).run_all_health_checks_sync()["api.circuit_breaker"]
    assert (found.status, found.last_error) == ("degraded", "1 of 4 keys: bad: the circuit is open")
    text = dict(in_words(registry["api"]))["circuit"]
    assert "Each value of tenant has its own, for the 10,000 used last." in text


def test_a_forked_child_begins_with_the_states_and_without_the_calls_of_its_parent() -> None:
    policies: dict[str, Any] = {
        "circuit_breaker": {"consecutive_failures": 1, "scope": {"by": "tenant"}},
        "bulkhead": {"max_concurrent": 1, "scope": {"by": "tenant"}},
    }
    bound: Any = None

    def forks(tenant: str) -> None:
        if tenant == "outer":
            in_child(lambda: bound("inner"))
            in_child(check)

    def check() -> None:
        assert bound("outer2") is None
        table = bound.binding.pipeline.executors["bulkhead"].limiter
        assert [entry.calls for entry in table.live.values()] == [0] * len(table.live)
        with table.using("outer") as bulkhead:
            assert bulkhead.running == 0

    bound = Policy(retry={"retries": 0}, **policies).apply(forks)
    bound("outer")
    table = bound.binding.pipeline.executors["bulkhead"].limiter
    assert [entry.calls for entry in table.live.values()] == [0]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_budget_in_redis_is_one_for_each_value(redis_url: str, tmp_path: Path, is_first: bool) -> None:
    limit = {"rate": 0.01, "burst": 2, "max_wait": 0, "share": "redis", "url": redis_url, "store_timeout": 10}
    limit |= {"scope": {"by": "tenant"}, "share_as": f"{tmp_path.name}{is_first}"}
    one, other = (Policy(retry={"retries": 0}, rate_limit=limit).apply(get) for _ in range(2))
    with mock.patch.object(by_key, "MOST_LIVE", 1):
        assert (one("a"), other("a"), one("b"), other("b")) == ("a", "a", "b", "b")
        for bound in (one, other):
            for tenant in "ab":
                with pytest.raises(RateLimitExceededError):
                    bound(tenant)
