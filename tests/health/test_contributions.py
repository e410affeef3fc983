"""What opero knows of a registry is part of its health: circuits, limits, cache stores, the configuration."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from opero import ConfigError, HealthMonitor, HealthStatus, OperoError, Policy, PolicyNotFoundError, Registry
from opero.testing import VirtualClock

CACHED: dict[str, Any] = {"backend": "disk", "store_timeout": "50ms"}


def down() -> None:
    raise ConnectionError("refused")


def up() -> str:
    return "up"


def fail(function: Any, times: int = 2) -> None:
    for _ in range(times):
        with pytest.raises((OperoError, ConnectionError)):
            function()


def statuses(found: dict[str, HealthStatus]) -> dict[str, str]:
    return {name: each.status for name, each in found.items()}


def test_only_what_has_been_used_contributes() -> None:
    registry = Registry({"api": Policy(circuit_breaker=2, rate_limit=10)})
    monitor = HealthMonitor(registry)
    first, second = registry.bind(up, "api"), registry.bind(down, "api")
    assert statuses(monitor.run_all_health_checks_sync()) == {"configuration": "healthy"}
    assert first() == "up"
    fail(second, 1)
    assert statuses(monitor.run_all_health_checks_sync()) == {
        "configuration": "healthy",
        "api.circuit_breaker": "healthy",
        "api.rate_limit": "healthy",
    }


def test_a_circuit_is_unhealthy_while_it_is_open_and_degraded_while_it_is_probed() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 2, "open_for": "30s"})})
    function = registry.bind(down, "api", clock=clock)
    monitor = HealthMonitor(registry, clock=clock)
    fail(function)
    found = monitor.run_health_check_sync("api.circuit_breaker")
    assert found.status == "unhealthy"
    assert found.last_error == "the circuit is open after ConnectionError: refused"
    clock.advance(40)
    assert monitor.run_health_check_sync("api.circuit_breaker").status == "degraded"
    breaker = function.binding.circuit_breaker
    assert breaker is not None
    breaker.force_open()
    assert monitor.run_health_check_sync("api.circuit_breaker").last_error == "the circuit was forced open"
    breaker.reset()
    found = monitor.run_health_check_sync("api.circuit_breaker")
    assert (found.status, found.last_error, found.error_rate) == ("healthy", None, 0.5)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("circuit_breaker", {}, "its shared circuit cannot be used, and each process has its own: "),
        ("rate_limit", {"rate": 1000}, "its shared budget cannot be used, and on_store_error is local: "),
        ("bulkhead", {"max_concurrent": 2}, "its shared slots cannot be used, and on_store_error is local: "),
    ],
)
def test_what_is_shared_is_degraded_while_redis_cannot_be_used(kind: str, options: dict[str, Any], told: str) -> None:
    section = {**options, "share": "redis", "url": "redis://127.0.0.1:1/0", "share_as": kind}
    registry = Registry({"api": Policy.model_validate({kind: section})})
    assert registry.bind(up, "api")() == "up"
    found = HealthMonitor(registry).run_health_check_sync(f"api.{kind}")
    assert found.status == "degraded"
    assert found.last_error is not None
    assert found.last_error.startswith(told)
    assert "127.0.0.1:1" in found.last_error or "refused" in found.last_error.lower()


def test_a_function_with_a_breaker_of_its_own_contributes_under_its_name() -> None:
    registry = Registry({"api": Policy(circuit_breaker=2)})
    function = registry.bind(down, "api", circuit_breaker=1)
    fail(function, 1)
    found = HealthMonitor(registry).run_all_health_checks_sync()
    assert statuses(found) == {"configuration": "healthy", f"{__name__}:down.circuit_breaker": "unhealthy"}


def test_a_limit_is_degraded_while_it_rejects_calls_and_is_not_used_up_by_looking() -> None:
    clock = VirtualClock()
    policy = Policy(rate_limit={"rate": "1/s", "burst": 1, "max_wait": "500ms"})
    registry = Registry({"api": policy, "patient": Policy(rate_limit={"rate": "1/s", "burst": 1})})
    hasty, patient = registry.bind(up, "api", clock=clock), registry.bind(up, "patient", clock=clock)
    patient()
    hasty()
    monitor = HealthMonitor(registry, clock=clock)
    for _ in range(3):
        found = monitor.run_all_health_checks_sync()
        assert found["api.rate_limit"].last_error == (
            "calls are rejected: the next permit is 1s away, and max_wait is 500ms"
        )
        assert statuses(found)["patient.rate_limit"] == "healthy"  # its calls wait
    clock.advance(1)
    assert monitor.run_health_check_sync("api.rate_limit").status == "healthy"
    assert hasty() == "up"


def test_a_limit_is_degraded_while_the_service_wants_no_calls() -> None:
    class ThrottledError(Exception):
        status_code, retry_after = 429, 30

    def ask() -> None:
        raise ThrottledError

    clock = VirtualClock()
    registry = Registry({"api": Policy(rate_limit={"rate": "10/s", "max_wait": "1s"})})
    function = registry.bind(ask, "api", clock=clock)
    with pytest.raises(ThrottledError):
        function()
    found = HealthMonitor(registry, clock=clock).run_health_check_sync("api.rate_limit")
    assert found.status == "degraded"
    assert found.last_error == (
        "calls are rejected: the service has asked for a pause, which lasts 30s more, and max_wait is 1s"
    )


def test_a_full_bulkhead_is_degraded() -> None:
    registry = Registry({"api": Policy(bulkhead=1)})
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        leave.wait()

    function = registry.bind(wait, "api")
    thread = threading.Thread(target=function)
    thread.start()
    entered.wait()
    monitor = HealthMonitor(registry)
    found = monitor.run_health_check_sync("api.bulkhead")
    assert (found.status, found.last_error) == ("degraded", "calls are rejected: 1 of 1 slots are in use")
    leave.set()
    thread.join()
    assert monitor.run_health_check_sync("api.bulkhead").status == "healthy"


def test_a_cache_store_that_fails_is_degraded_until_it_works_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    folder = tmp_path / "cache"
    registry = Registry({"api": Policy(cache={**CACHED, "ttl": "1h", "cache_dir": folder})})
    function = registry.bind(up, "api", clock=clock)
    assert function() == "up"
    monitor = HealthMonitor(registry, critical=["api"], clock=clock)
    name = f"cache store disk at {folder}"
    assert statuses(monitor.run_all_health_checks_sync())[name] == "healthy"
    breaker = function.binding.cache.store.breaker  # type: ignore[union-attr]
    breaker(None, down)
    found = monitor.run_health_check_sync(name)
    assert found.status == "degraded"
    assert found.last_error == "functions run without it: ConnectionError: refused"
    assert monitor.is_ready()  # it works without
    clock.advance(2)
    assert function() == "up"
    assert monitor.run_health_check_sync(name).status == "healthy"


def test_a_rejected_reload_degrades_the_configuration_until_one_succeeds(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("policies: {api: {retry: 2}}\n")
    registry = Registry.load(tmp_path, environ={})
    monitor = HealthMonitor(registry)
    assert monitor.run_health_check_sync("configuration").status == "healthy"
    file.write_text("policies: {api: {retri: 2}}\n")
    with pytest.raises(ConfigError):
        registry.reload()
    found = monitor.run_health_check_sync("configuration")
    assert found.status == "degraded"
    assert "did you mean 'retry'?" in str(found.last_error)
    file.write_text("policies: {api: {retry: 3}}\n")
    registry.reload()
    assert monitor.run_health_check_sync("configuration").status == "healthy"


def test_a_removed_policy_no_longer_contributes(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("policies: {api: {circuit_breaker: 1}}\n")
    registry = Registry.load(tmp_path, environ={})
    function = registry.bind(down, "api")
    fail(function, 1)
    monitor = HealthMonitor(registry, critical=["api"])
    monitor.run_all_health_checks_sync()
    assert (monitor.get_overall_health(), monitor.is_ready()) == ("unhealthy", False)
    file.write_text("policies: {api: {retry: 0}}\n")
    registry.reload()
    assert statuses(monitor.run_all_health_checks_sync()) == {"configuration": "healthy"}
    assert set(monitor.status_history) == {"configuration"}
    assert (monitor.get_overall_health(), monitor.is_ready()) == ("healthy", True)


@pytest.mark.parametrize(("critical", "health", "ready"), [((), "degraded", True), (("api",), "unhealthy", False)])
def test_an_open_circuit_prevents_readiness_only_of_a_critical_profile(
    critical: tuple[str, ...], health: str, ready: bool
) -> None:
    registry = Registry({"api": Policy(circuit_breaker=1), "mail": Policy(circuit_breaker=1)})
    for name in ("api", "mail"):
        fail(registry.bind(down, name), 1)
    monitor = HealthMonitor(registry, critical=critical)
    assert monitor.is_ready()  # it has not looked yet
    monitor.run_all_health_checks_sync()
    assert (monitor.get_overall_health(), monitor.is_ready()) == (health, ready)


def test_a_function_with_a_breaker_of_its_own_belongs_to_its_profile() -> None:
    registry = Registry({"api": Policy(circuit_breaker=5)})
    function = registry.bind(down, "api", circuit_breaker=1)
    fail(function, 1)
    monitor = HealthMonitor(registry, critical=["api"])
    monitor.run_all_health_checks_sync()
    assert not monitor.is_ready()


def test_a_check_of_ones_own_takes_the_place_of_a_contribution() -> None:
    monitor = HealthMonitor(Registry())
    monitor.register_health_check("configuration", down)
    found = monitor.run_all_health_checks_sync()
    assert statuses(found) == {"configuration": "unhealthy"}
    assert monitor.status_history == {"configuration": (found["configuration"],)}


def test_unknown_critical_profiles_and_other_values_are_refused() -> None:
    registry = Registry({"payments": Policy(circuit_breaker=1)})
    with pytest.raises(PolicyNotFoundError, match="did you mean 'payments'"):
        HealthMonitor(registry, critical=["payment"])
    with pytest.raises(TypeError, match=r"critical=\['payments'\]"):
        HealthMonitor(registry, critical="payments")
    with pytest.raises(ValueError, match="pass registry="):
        HealthMonitor(critical=["payments"])
    with pytest.raises(TypeError, match="expects a Registry, not a value of type str"):
        HealthMonitor("payments")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no health check 'configurations'; did you mean 'configuration'"):
        HealthMonitor(registry).run_health_check_sync("configurations")


def test_contributions_are_read_under_trio_as_well() -> None:
    registry = Registry({"api": Policy(circuit_breaker=1)})
    function = registry.bind(down, "api")
    fail(function, 1)
    found = trio.run(HealthMonitor(registry).run_all_health_checks)
    assert statuses(found) == {"configuration": "healthy", "api.circuit_breaker": "unhealthy"}


def test_a_state_that_cannot_be_read_is_unhealthy_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry({"api": Policy(circuit_breaker=1, rate_limit=5)})
    function = registry.bind(up, "api")
    function()

    def vanished(*_: object) -> None:
        raise OSError("the file has vanished")

    monkeypatch.setattr(function.binding.circuit_breaker.home, "change", vanished)
    found = HealthMonitor(registry).run_all_health_checks_sync()
    assert found["api.circuit_breaker"].last_error == "its state cannot be read: OSError: the file has vanished"
    assert found["api.rate_limit"].status == "healthy"
