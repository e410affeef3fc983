"""The statistics of a registry: counts by profile and function, the state of limits, and the limits to act on."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from opero import CircuitOpenError, ConfigError, Policy, PolicyNotFoundError, Registry
from opero.testing import virtual_clock

FAST = {"retries": 2, "min_delay": 0}


def divide(number: int) -> float:
    return 1 / number


def identity(number: int) -> int:
    return number


def test_counts_of_the_functions_of_a_profile_are_added() -> None:
    registry = Registry({"api": Policy(retry=FAST), "other": Policy(retry=1)})
    first, second = registry.bind(divide, "api"), registry.bind(identity, "api")
    lone = registry.bind(lambda: 1, "other")
    first(1)
    with pytest.raises(ExceptionGroup):
        first(0)
    second(1)
    lone()
    stats = json.loads(json.dumps(registry.stats()))
    api = stats["profiles"]["api"]
    assert (api["calls"], api["failures"], api["retries"], api["attempts"]) == (3, 1, 2, 5)
    assert api["kinds"] == {"unknown": 3}
    assert api["errors"] == {"ZeroDivisionError": 3}
    assert api["functions"] == [f"{__name__}:divide", f"{__name__}:identity"]
    assert api["latency"]["count"] == 3
    assert api["rates"]["calls"]["1h"] == pytest.approx(
        sum(stats["functions"][name]["rates"]["calls"]["1h"] for name in api["functions"])
    )
    assert stats["profiles"]["other"]["calls"] == 1
    assert stats["functions"][f"{__name__}:divide"]["policy"] == "api"


def test_functions_of_one_name_are_added() -> None:
    registry = Registry({"api": Policy(retry=1)})
    functions = [registry.bind(divide, "api") for _ in range(3)]
    for function in functions:
        function(1)
    assert registry.stats()["functions"][f"{__name__}:divide"]["calls"] == 3


def test_a_function_that_has_not_been_called_counts_zero_and_is_not_resolved() -> None:
    registry = Registry({"api": Policy(retry=1, circuit_breaker=3)})
    function: Any = registry.bind(identity, "api")
    stats = registry.stats()
    assert stats["functions"][f"{__name__}:identity"]["calls"] == 0
    assert stats["profiles"]["api"]["state"] == {}
    assert function.binding.is_late


def test_the_state_of_limits_is_shown() -> None:
    limits: Any = {"circuit_breaker": 2, "rate_limit": {"rate": "1/s", "burst": 4, "max_wait": 0}, "bulkhead": 5}
    with virtual_clock() as clock:
        registry = Registry({"api": Policy(**limits, cache=60)})
        function = registry.bind(divide, "api")
        function(1)
        function(1)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                function(0)
        clock.advance(1)
        state = registry.stats()["profiles"]["api"]["state"]
    circuit = state["circuit_breaker"]
    assert circuit["state"] == "open"
    assert 0 < circuit["retry_in"] < 70
    assert "ZeroDivisionError" in circuit["last_error"]
    limit = state["rate_limit"]
    assert (limit["rate"], limit["burst"], limit["queue"], limit["next_permit"]) == (1, 4, 0, 0)
    assert limit["saturation"] == pytest.approx(0.5)
    assert state["bulkhead"] == {"slots": 5, "in_use": 0, "queue": 0}
    assert state["cache"] == {"hits": 1, "misses": 3, "hit_ratio": 0.25, "size": 1}


@pytest.mark.parametrize(("rate", "shown"), [("5/s", 5), ("adaptive", 2), ("service", None)])
def test_a_pause_and_the_rate_in_force_are_shown(rate: str, shown: float | None) -> None:
    class ThrottledError(Exception):
        status_code, retry_after = 429, 30

    def ask() -> None:
        raise ThrottledError

    with virtual_clock() as clock:
        registry = Registry({"api": Policy(rate_limit={"rate": rate})})
        function = registry.bind(ask, "api")
        assert registry.state("api").rate_limit.paused_for() == 0
        assert registry.stats()["profiles"]["api"]["state"]["rate_limit"]["rate"] == shown
        with pytest.raises(ThrottledError):
            function()
        clock.advance(10)
        assert registry.stats()["profiles"]["api"]["state"]["rate_limit"]["paused_for"] == pytest.approx(20)


def test_values_that_are_set_aside_are_shown_by_hash() -> None:
    registry = Registry({"api": Policy(fallback={"arg": "key"})})

    class DeniedError(Exception):
        status_code = 401

    def deny(key: str | list[str]) -> str:
        if key == "dead":
            raise DeniedError
        return str(key)

    function = registry.bind(deny, "api")
    assert function(["dead", "alive"]) == "alive"
    [aside] = registry.stats()["profiles"]["api"]["state"]["fallback"]["aside"]
    assert aside["kind"] == "denied"
    assert aside["for"] > 0
    assert "dead" not in json.dumps(registry.stats())


def test_a_circuit_is_opened_by_its_profile_before_anything_has_been_called() -> None:
    registry = Registry({"api": Policy(circuit_breaker=5)})
    function = registry.bind(identity, "api")
    registry.state("api").circuit_breaker.force_open()
    with pytest.raises(CircuitOpenError):
        function(1)
    registry.state("api").circuit_breaker.reset()
    assert function(1) == 1


def test_limits_and_caches_are_reached_by_profile() -> None:
    registry = Registry({"api": Policy(rate_limit="5/s", bulkhead=3, cache=60)})
    function = registry.bind(identity, "api")
    function(1)
    state = registry.state("api")
    assert state.bulkhead.running == 0
    assert state.rate_limit.next_permit() >= 0
    [cache] = state.caches.values()
    assert cache.get(1) == 1
    cache.clear()
    assert cache.get(1) is None


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"retry": 1}, "has no circuit_breaker"),
        ({"circuit_breaker": {"consecutive_failures": 2, "scope": "function"}}, "of its own"),
    ],
)
def test_a_limit_that_a_profile_does_not_share_is_refused(policy: Any, text: str) -> None:
    registry = Registry({"api": Policy(**policy)})
    with pytest.raises(ConfigError, match=text):
        _ = registry.state("api").circuit_breaker


def test_the_state_of_an_unknown_profile_is_refused() -> None:
    with pytest.raises(PolicyNotFoundError, match="did you mean 'api'"):
        Registry({"api": Policy()}).state("apo")


def test_the_default_registry_tells_of_functions_without_a_registry() -> None:
    from opero import set_default_registry

    registry = Registry({"api": Policy()})
    bound: Any = Policy(retry=1).apply(identity)
    bound(1)
    assert f"{__name__}:identity" not in registry.stats()["functions"]
    set_default_registry(registry)
    try:
        assert registry.stats()["functions"][f"{__name__}:identity"]["calls"] >= 1
    finally:
        set_default_registry(None)


def test_functions_that_are_gone_are_not_counted() -> None:
    registry = Registry({"api": Policy(retry=1)})
    registry.bind(lambda: 1, "api")()
    gc.collect()
    assert registry.stats()["profiles"]["api"]["calls"] == 0


def test_the_version_of_the_configuration_changes_with_its_values_only(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"

    def version(text: str, **variables: str) -> str:
        file.write_text(text)
        return str(Registry.load(tmp_path, environ=variables).stats()["configuration"]["version"])

    first = version("policies: {api: {retry: 2}}")
    assert version("# a comment\npolicies:\n  api:\n    retry: 2\n") == first
    assert version("policies: {api: {retry: 3}}") != first
    assert version("policies: {api: {retry: 2}}", OPERO_API_RETRIES="5") != first
    assert (
        Registry({"api": Policy(retry=2)}).stats()["configuration"]["version"]
        == (Registry({"api": Policy(retry=2)}).stats()["configuration"]["version"])
    )
