"""Names → policies, and the state that the functions bound to one name share."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

from opero import (
    CircuitOpenError,
    ConfigError,
    Policy,
    PolicyNotFoundError,
    Registry,
    get_default_registry,
    opero,
    set_default_registry,
)
from opero.testing import VirtualClock


def one() -> int:
    return 1


def broken() -> int:
    raise ConnectionError


def test_a_registry_is_a_mapping_of_names_to_policies() -> None:
    registry = Registry({"api": Policy(retry=2), "db": Policy()})
    assert registry["api"] == Policy(retry=2)
    assert sorted(registry) == ["api", "db"]
    assert len(registry) == 2
    assert registry.get("nothing") is None
    assert "api" in registry


def test_an_unknown_profile_is_named_with_the_nearest_and_all_that_there_are() -> None:
    registry = Registry({"api": Policy(), "batch": Policy()})
    with pytest.raises(PolicyNotFoundError, match=r"no profile 'apy' .*\(api, batch\); did you mean 'api'?") as caught:
        registry["apy"]
    assert caught.value.name == "apy"
    assert isinstance(caught.value, KeyError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_without_any_policy_files_it_says_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyNotFoundError, match=r"there is no \./policies here; set OPERO_CONFIG"):
        Registry.load(environ={})["api"]


def test_binding_to_an_unknown_profile_fails_at_once_and_a_decorated_one_at_its_first_call() -> None:
    registry = Registry()
    with pytest.raises(PolicyNotFoundError):
        registry.bind(one, "api")
    late = opero(policy="api", registry=registry)(one)
    for _ in range(2):
        with pytest.raises(PolicyNotFoundError):
            late()


def test_functions_bound_to_one_name_share_its_rate_limit_sync_and_async_alike() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(rate_limit=10)})
    first = registry.bind(one, "api", clock=clock)

    @opero(policy="api", registry=registry, clock=clock)
    async def second() -> int:
        return 2

    async def both() -> None:
        for _ in range(2):
            first()
            await second()

    started = clock.monotonic()
    clock.run(both())
    assert clock.monotonic() - started == pytest.approx(0.3)


def test_functions_bound_to_one_name_share_its_circuit_breaker() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(circuit_breaker=2)})
    bad, good = registry.bind(broken, "api", clock=clock), registry.bind(one, "api", clock=clock)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            bad()
    with pytest.raises(CircuitOpenError, match="api: the circuit is open"):
        good()
    assert good.binding.circuit_breaker is bad.binding.circuit_breaker
    assert good.binding.circuit_breaker.state == "open"


@pytest.mark.parametrize(
    ("profile", "options"),
    [
        ({"circuit_breaker": {"consecutive_failures": 1, "scope": "function"}}, {}),
        ({"circuit_breaker": 1}, {"circuit_breaker": 2}),
    ],
)
def test_state_is_a_functions_own_where_its_scope_or_its_own_options_say_so(profile: Any, options: Any) -> None:
    registry = Registry({"api": Policy(**profile)})
    first, second = registry.bind(one, "api"), registry.bind(one, "api", **options)
    assert first.binding.circuit_breaker is not second.binding.circuit_breaker


def test_equal_policies_of_two_profiles_share_nothing() -> None:
    registry = Registry({"a": Policy(circuit_breaker=1), "b": Policy(circuit_breaker=1)})
    assert registry.bind(one, "a").binding.circuit_breaker is not registry.bind(one, "b").binding.circuit_breaker


def test_inline_options_get_state_of_their_own() -> None:
    first, second = opero(circuit_breaker=1)(one), opero(circuit_breaker=1)(one)
    assert first.binding.circuit_breaker is not second.binding.circuit_breaker


def test_a_disabled_registry_calls_functions_plainly_but_a_fallback_result_still_answers() -> None:
    registry = Registry(
        {"api": Policy(retry=5, cache=True, rate_limit=1), "safe": Policy(retry=5, fallback={"default": 7})},
        enabled=False,
    )
    with pytest.raises(ConnectionError):
        registry.bind(broken, "api")()
    safe = registry.bind(broken, "safe")
    assert safe() == 7
    assert safe.stats.attempts == 1


@pytest.mark.parametrize("name", ["OPERO_ENABLED", "opero_enabled"])
def test_opero_enabled_switches_inline_policies_off_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "false")
    calls = []
    plainly = opero(retries=5, cache=True)(lambda: calls.append(1) or broken())
    with pytest.raises(ConnectionError):
        plainly()
    assert calls == [1]
    assert opero(retries=5, fallback={"default": 7})(broken)() == 7
    monkeypatch.setenv(name, "perhaps")
    with pytest.raises(ConfigError, match="OPERO_ENABLED: 'perhaps' is neither true nor false"):
        opero(one)


def test_the_default_registry_can_be_set_and_is_asked_at_the_first_call() -> None:
    late = opero(policy="api")(one)
    set_default_registry(Registry({"api": Policy(retry=9)}))
    try:
        assert late() == 1
        assert late.policy == get_default_registry()["api"] == Policy(retry=9)
    finally:
        set_default_registry(None)


def test_a_profile_that_does_not_fit_the_function_is_refused_when_binding() -> None:
    registry = Registry({"api": Policy(fallback={"arg": "api_key"})})
    with pytest.raises(ConfigError, match="has no parameter 'api_key'"):
        registry.bind(one, "api")


def test_swapping_a_policy_lets_calls_under_way_finish_on_the_old_one_and_keeps_the_counts() -> None:
    clock = VirtualClock()

    async def main() -> None:
        begun = asyncio.Event()
        go_on = asyncio.Event()

        async def fails_when_told() -> int:
            begun.set()
            await go_on.wait()
            raise ConnectionError

        bound = Policy(retry={"retries": 2, "jitter": False}).apply(fails_when_told, clock=clock)
        task = asyncio.create_task(bound())
        await begun.wait()
        bound.binding.swap(Policy())
        go_on.set()
        with pytest.raises(ExceptionGroup):
            await task
        assert bound.stats.attempts == 3
        with pytest.raises(ConnectionError):
            await bound()
        assert (bound.stats.calls, bound.stats.attempts) == (2, 4)
        assert bound.policy == Policy()

    clock.run(main())


def test_a_swap_that_does_not_fit_changes_nothing() -> None:
    bound = Policy(retry=1).apply(one)
    with pytest.raises(ConfigError):
        bound.binding.swap(Policy(fallback={"arg": "api_key"}))
    assert bound.policy == Policy(retry=1)
    assert bound() == 1
