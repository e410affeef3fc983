"""Canaries: a share of the calls of a profile runs on another, with its limits, state, hooks and counts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from opero import CanaryPolicy, CircuitOpenError, ConfigError, Policy, Registry, on, trace
from opero.binding.canary import place_among
from opero.config.declaration import name_in_config
from opero.integrations.reading import Reader
from opero.testing import VirtualClock, faults, fresh_state

ALL, NONE = {"share": "100%", "policy": "next"}, {"share": 0, "policy": "next"}


def registry_of(canary: Any, main: Any = None, other: Any = None, **more: Policy) -> Registry:
    return Registry({"api": Policy(**{**(main or {}), "canary": canary}), "next": Policy(**(other or {})), **more})


def value(number: int) -> int:
    return number


async def value_async(number: int) -> int:
    return number


def down(number: int = 0) -> int:
    raise ConnectionError


def counts(registry: Registry, what: str = "calls") -> dict[str, int]:
    return {name: profile[what] for name, profile in registry.stats()["profiles"].items()}


# Which calls


@pytest.mark.parametrize("is_async", [False, True])
def test_a_share_of_the_calls_is_drawn_from_the_clocks_random_numbers(is_async: bool) -> None:
    registry = registry_of({"share": "20%", "policy": "next"})
    clock = VirtualClock(seed=7)
    draws = VirtualClock(seed=7).random
    bound = registry.bind(value_async if is_async else value, "api", clock=clock)
    for number in range(200):
        assert (clock.run(bound(number)) if is_async else bound(number)) == number
    chosen = sum(draws.random() < 0.2 for _ in range(200))
    assert 20 < chosen < 60
    assert counts(registry) == {"api": 200 - chosen, "next": chosen}
    assert counts(registry, "attempts") == {"api": 200 - chosen, "next": chosen}
    assert registry.stats()["functions"][bound.stats.function]["calls"] == 200


@pytest.mark.parametrize("canary", [NONE, {**NONE, "share": "0%"}, {**ALL, "enabled": False}])
def test_none_of_the_calls(canary: Any) -> None:
    registry = registry_of(canary)
    bound = registry.bind(value, "api")
    assert [bound(each) for each in range(20)] == [*range(20)]
    assert counts(registry) == {"api": 20, "next": 0}


def test_equal_arguments_run_on_the_same_profile_in_all_processes() -> None:
    def get(user: str, *, tenant: str = "none") -> tuple[str, str]:
        return user, tenant

    def chosen(share: float, by: str) -> set[str]:
        registry = registry_of({"share": share, "policy": "next", "by": by})
        bound, found = registry.bind(get, "api"), set()
        for user in map(str, range(200)):
            before = counts(registry)["next"]
            bound(user) if by == "user" else bound("x", tenant=user)
            if counts(registry)["next"] > before:
                found.add(user)
            bound(user=user) if by == "user" else bound(user="x", tenant=user)
            assert counts(registry)["next"] == before + 2 * (user in found)
        return found

    few, many = chosen(0.1, "user"), chosen(0.3, "user")
    assert few < many
    assert 8 <= len(few) <= 35
    assert chosen(0.3, "tenant") == many
    code = "from opero.binding.canary import place_among; place = place_among('next'); print(place('ada'), place(3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(place_among("next")("ada")), str(place_among("next")(3))]


def test_a_key_of_which_there_is_no_text_harms_no_call() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ZeroDivisionError

    bound = registry_of({"share": 0.5, "policy": "next", "by": "number"}).bind(value, "api")
    odd: Any = Odd()
    assert bound(odd) is odd


def test_methods_choose_by_their_arguments() -> None:
    registry = registry_of({**ALL, "by": "key"})

    class Client:
        def get(self, key: str) -> str:
            return key

    Client.get = registry.bind(Client.get, "api")  # type: ignore[method-assign]
    assert Client().get("a") == "a"
    assert counts(registry) == {"api": 0, "next": 1}


# What runs on the other profile


def test_a_canary_has_its_own_retries_state_and_counts(heard: list[Any]) -> None:
    policy = {"retry": {"retries": 1, "min_delay": 0}, "circuit_breaker": 5}
    registry = registry_of(ALL, policy, {"retry": {"retries": 2, "min_delay": 0}, "circuit_breaker": 1})
    bound, other = registry.bind(down, "api"), registry.bind(down, "next")
    with pytest.raises(CircuitOpenError):
        bound()
    assert (registry.state("api").circuit_breaker.state, registry.state("next").circuit_breaker.state) == (
        "closed",
        "open",
    )
    with pytest.raises(CircuitOpenError):  # it shares the breaker of the profile
        other()
    assert {event.policy for event in heard} == {"next"}
    assert counts(registry) == {"api": 0, "next": 2}
    assert counts(registry, "failures") == {"api": 0, "next": 2}
    assert counts(registry, "rejections") == {"api": 0, "next": 2}
    assert registry.stats()["profiles"]["next"]["functions"] == sorted({bound.stats.function, other.stats.function})


def test_the_functions_own_options_lie_over_both() -> None:
    registry = registry_of(ALL, {"retry": 0}, {"retry": {"retries": 0, "min_delay": 0}})
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError

    with pytest.raises(Exception, match="all 4 attempts"):
        registry.bind(fail, "api", retries=3)()
    assert len(calls) == 4


def test_events_and_hooks_are_of_the_profile_that_ran(heard: list[Any]) -> None:
    own: list[Any] = []
    others: list[Any] = []
    registry = registry_of(
        {"share": 0.5, "policy": "next", "by": "number"},
        {"hooks": {"on_success": own.append}},
        {"hooks": {"on_success": others.append}},
    )
    bound = registry.bind(value, "api")
    for each in range(40):
        bound(each)
    assert {event.policy for event in own} == {"api"}
    assert {event.policy for event in others} == {"next"}
    assert len(own) + len(others) == len(heard) == 40
    assert {"api": len(own), "next": len(others)} == counts(registry)


def test_failed_calls_of_both_raise_what_they_raised(heard: list[Any]) -> None:
    for share in (0, 1):
        registry = registry_of({"share": share, "policy": "next"})
        bound = registry.bind(down, "api")
        for _ in range(2):
            with pytest.raises(ConnectionError) as caught:
                bound()
            assert "canary.py" not in [Path(str(entry.path)).name for entry in caught.traceback]
        name = "next" if share else "api"
        assert (counts(registry, "failures")[name], counts(registry, "calls")[name]) == (2, 2)
        assert [(event.name, event.policy) for event in heard] == [("attempt_failed", name), ("call_failed", name)] * 2
        heard.clear()


def test_latencies_are_of_the_profile_that_ran() -> None:
    registry = registry_of(ALL)
    bound = registry.bind(value, "api")
    bound.stats.exact = True
    for each in range(5):
        bound(each)
    profiles = registry.stats()["profiles"]
    assert profiles["next"]["latency"]["count"] == 5
    assert profiles["api"]["latency"] is None
    assert (profiles["api"]["in_flight"], profiles["next"]["in_flight"]) == (0, 0)


def test_generators_fail_on_the_profile_that_ran(heard: list[Any]) -> None:
    registry = registry_of(ALL)

    def stream() -> Iterator[int]:
        yield 1
        raise ConnectionError

    async def stream_async() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    async def read(items: Any) -> list[int]:
        return [each async for each in items]

    with pytest.raises(ConnectionError):
        list(registry.bind(stream, "api")())
    with pytest.raises(ConnectionError):
        asyncio.run(read(registry.bind(stream_async, "api")()))
    assert counts(registry, "failures") == {"api": 0, "next": 2}
    assert {event.policy for event in heard} == {"next"}


def test_the_first_call_of_an_async_function_is_chosen_as_well() -> None:
    async def exact(number: int, *, cost: int = 1) -> int:
        return number

    registry = registry_of(ALL, None, {"rate_limit": {"rate": "100/s", "cost": lambda number, cost=1: cost}})
    assert asyncio.run(registry.bind(exact, "api")(1)) == 1
    assert counts(registry) == {"api": 0, "next": 1}


def test_a_canary_may_have_a_canary() -> None:
    further = Policy(canary={"share": 1, "policy": "last"})
    registry = Registry({"api": Policy(canary=ALL), "next": further, "last": Policy()})
    bound = registry.bind(value, "api")
    assert [bound(1), bound(2)] == [1, 2]
    assert counts(registry) == {"api": 0, "next": 0, "last": 2}


def test_a_cache_answers_before_one_is_chosen_and_is_one_for_both() -> None:
    registry = registry_of(
        {"share": 0.5, "policy": "next", "by": "number"}, {"cache": True}, {"cache": True, "retry": 1}
    )
    bound = registry.bind(value, "api")
    for _ in range(2):
        assert [bound(each) for each in range(20)] == [*range(20)]
    misses, hits = counts(registry, "cache_misses"), counts(registry, "cache_hits")
    assert misses["api"] + misses["next"] == 20
    assert min(misses.values()) > 0
    assert hits == {"api": 20, "next": 0}
    bound.cache_delete(3)
    assert bound.cache_info().size == 19


def test_maps_run_on_the_profile_itself() -> None:
    registry = registry_of(ALL, {"parallel": {"mode": "thread", "workers": 2}})
    bound = registry.bind(value, "api")
    assert bound.map([1, 2, 3]) == [1, 2, 3]
    assert counts(registry) == {"api": 3, "next": 0}
    bound(1)
    assert counts(registry) == {"api": 3, "next": 1}


def test_scripted_faults_and_fresh_state_reach_the_canary() -> None:
    registry = registry_of(ALL, None, {"circuit_breaker": 1})
    bound = registry.bind(value, "api")
    assert bound(1) == 1
    with faults(bound, [ConnectionError]), pytest.raises(ConnectionError):
        bound(1)
    with pytest.raises(CircuitOpenError):
        bound(1)
    fresh_state()
    assert bound(2) == 2
    assert counts(registry) == {"api": 0, "next": 1}


def test_metrics_have_the_profile_that_ran() -> None:
    registry = registry_of({"share": 0.5, "policy": "next", "by": "number"})
    bound = registry.bind(value, "api")
    for each in range(20):
        bound(each)
    calls = {labels[0]: number for labels, number in Reader(registry).read(registry)["opero_calls"].items() if number}
    assert calls == counts(registry)
    assert sum(calls.values()) == 20


def test_receipts_have_the_profile_that_ran() -> None:
    bound = registry_of(ALL).bind(value, "api")
    with trace() as receipt:
        bound(1)
        bound(2)
    assert [call.policy for call in receipt.calls] == ["next", "next"]


# Reloads


def test_a_reload_changes_the_share_the_profile_and_what_that_says(tmp_path: Path) -> None:
    def reload(share: str, after: str, policy: str = "next") -> None:
        (tmp_path / "base.yaml").write_text(
            f"policies: {{api: {{canary: {{share: {share}, policy: {policy}}}}}, next: {{{after}}}, last: }}", "utf-8"
        )
        if registry is not None:
            registry.reload()

    registry: Registry | None = None
    reload("0%", "circuit_breaker: {consecutive_failures: 1, scope: function}")
    registry = Registry.load(tmp_path, environ={})
    bound = registry.bind(down, "api")
    for expected, share in ((ConnectionError, "0%"), (ConnectionError, "100%"), (CircuitOpenError, "100%")):
        reload(share, "circuit_breaker: {consecutive_failures: 1, scope: function}")
        with pytest.raises(expected):
            bound()
    reload("100%", "circuit_breaker: {consecutive_failures: 2, scope: function}")
    with pytest.raises(CircuitOpenError):  # its state has gone on
        bound()
    reload("100%", "")
    with pytest.raises(ConnectionError):
        bound()
    assert counts(registry) == {"api": 1, "next": 4, "last": 0}
    reload("100%", "", "last")
    with pytest.raises(ConnectionError):
        bound()
    assert counts(registry) == {"api": 1, "next": 4, "last": 1}
    (tmp_path / "base.yaml").write_text("policies: {api: , next: , last: }", "utf-8")
    registry.reload()
    with pytest.raises(ConnectionError):
        bound()
    assert counts(registry) == {"api": 2, "next": 4, "last": 1}


def test_nothing_runs_on_a_canary_while_opero_is_switched_off(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "policies: {api: {canary: {share: 1, policy: next}}, next: {circuit_breaker: 1}}", "utf-8"
    )
    registry = Registry.load(tmp_path, environ={"OPERO_ENABLED": "false"})
    registry.bind(value, "api")(1)
    assert counts(registry) == {"api": 1, "next": 0}


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api: {canary: {share: 5%, policy: nxt}}", "the canary is 'nxt', which does not exist; did you mean 'next'"),
        ("api: {canary: {share: 5%, policy: api}}", "circular canaries: api → api; use `canary: null` there"),
        (
            "api: {canary: {share: 5%, policy: next}}, next: {canary: {share: 1, policy: api}}",
            "circular canaries: api → next → api; remove one of them",
        ),
        (
            "api: {canary: {share: 5%, policy: child}}, child: {extends: api}",
            "circular canaries: child → child; use `canary: null` there",
        ),
        (
            "api: {cache: 5, canary: {share: 5%, policy: next}}",
            "the cache of 'next' is another than that of 'api': both answer from one cache",
        ),
        ("api: {canary: {share: 101%, policy: next}}", "canary.share"),
        ("api: {canary: {share: -0.1, policy: next}}", "canary.share"),
        ("api: {canary: {share: 5%}}", "missing field 'policy'"),
        ("api: {canary: {share: 5%, policy: next, shadow: true}}", "a canary is a trial itself"),
        ("api: {canary: {share: 5%, polcy: next}}", "did you mean 'policy'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_loaded(tmp_path: Path, text: str, message: str) -> None:
    other = "" if " next: {" in text else ", next: {retry: 1}"
    (tmp_path / "base.yaml").write_text(f"policies: {{{text}{other}}}", "utf-8")
    with pytest.raises(ConfigError) as caught:
        Registry.load(tmp_path, environ={})
    assert message in str(caught.value)
    assert "base.yaml:1:" in str(caught.value)


def test_an_heir_of_a_profile_is_its_canary_if_it_has_none_itself(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "policies: {api: {retry: 2, canary: {share: 5%, policy: child}}, child: {extends: api, canary: null}}", "utf-8"
    )
    registry = Registry.load(tmp_path, environ={})
    assert registry["child"] == Policy(retry=2)
    assert registry["api"].canary == CanaryPolicy(share=0.05, policy="child")


def test_what_does_not_fit_a_function_is_refused_when_it_is_bound() -> None:
    with pytest.raises(ConfigError, match="value has no parameter 'user' to choose a canary by"):
        registry_of({**ALL, "by": "user"}).bind(value, "api")
    with pytest.raises(ConfigError, match="no parameter"):
        registry_of(ALL, None, {"fallback": {"arg": "key"}}).bind(value, "api")
    with pytest.raises(ConfigError, match="the canary is 'nowhere', which does not exist"):
        registry_of(NONE).bind(value, "api", canary={"share": 0.5, "policy": "nowhere"})
    with pytest.raises(ConfigError, match="a canary names a profile; bind the function by its registry"):
        Policy(canary=ALL).apply(value)
    with pytest.raises(ConfigError):
        CanaryPolicy(share="5", policy="x")


def test_a_function_may_have_a_canary_of_its_own() -> None:
    registry = Registry({"api": Policy(), "next": Policy()})
    bound = registry.bind(value, "api", canary=ALL)
    assert bound(1) == 1
    assert counts(registry) == {"api": 0, "next": 1}


def test_an_entry_gives_a_function_a_canary(tmp_path: Path) -> None:
    name = name_in_config(value)
    (tmp_path / "base.yaml").write_text(
        f"policies: {{api: , next: }}\nfunctions: {{'{name}': {{canary: {{share: 1, policy: next}}}}}}", "utf-8"
    )
    registry = Registry.load(tmp_path, environ={})
    bound = registry.bind(value, "api")
    assert bound(1) == 1
    assert counts(registry) == {"api": 0, "next": 1}
    registry.check()
    with registry.override(functions={name: {"canary": False}}):
        bound(1)
        assert counts(registry) == {"api": 1, "next": 1}


def test_a_listener_hears_of_every_call_of_a_canary_from_its_subscription_on() -> None:
    registry = Registry({"api": Policy(retry=1, canary={"share": 1.0, "policy": "next"}), "next": Policy(retry=2)})
    function: Any = registry.bind(lambda: 1, "api")
    for _ in range(20_000):
        function()
    heard: list[Any] = []
    off = on("call_succeeded", heard.append)
    try:
        for _ in range(10):
            function()
    finally:
        off()
    assert [event.policy for event in heard] == ["next"] * 10
