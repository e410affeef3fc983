"""Policies in shadow tell what they would have done, and change nothing for the calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opero import AllFailedError, CircuitOpenError, ConfigError, Policy, Registry, RetryPolicy, opero
from opero.events import Shadowed
from opero.health.contributions import contributions
from opero.integrations.reading import Reader
from opero.testing import VirtualClock

SHADOWS: dict[str, Any] = {
    "retry": {"retries": 3, "min_delay": 1, "jitter": False, "shadow": True},
    "timeout": {"attempt": 1, "total": 2, "shadow": True},
    "circuit_breaker": {"consecutive_failures": 1, "open_for": 60, "shadow": True},
    "rate_limit": {"rate": "1/s", "max_wait": 0, "shadow": True},
    "bulkhead": {"max_concurrent": 1, "shadow": True},
}


def told(heard: list[Any]) -> list[tuple[str, str, float | None]]:
    found = [(event.by, event.would, event.seconds) for event in heard if isinstance(event, Shadowed)]
    heard.clear()
    return found


def shadow(bind: Any) -> Any:
    return bind.bound.stats.snapshot().get("shadow")


def fails(call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(ConnectionError):
        call(*args)


# Each kind


def test_a_retry_tells_of_the_attempt_that_would_follow_and_makes_none(bind: Any, heard: list[Any]) -> None:
    error, calls = ConnectionError("reset"), []

    def fail() -> None:
        calls.append(1)
        raise error

    call = bind(Policy(retry=SHADOWS["retry"]), fail)
    fails(call)
    (event,) = [each for each in heard if isinstance(each, Shadowed)]
    assert (event.by, event.would, event.seconds, event.error) == ("retry", "retry", 1.0, error)
    assert event.message == "ConnectionError: reset"
    assert (len(calls), bind.bound.stats.retries, bind.slept) == (1, 0, [])
    assert shadow(bind) == {"rejected_by": {}, "retries": 1, "timeouts": 0, "waits": {}, "waited_for": {}}
    assert bind.bound.stats.errors == {"ConnectionError": 1}
    assert [each.name for each in heard if each is not event] == ["attempt_failed", "call_failed"]


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        ({"retries": 0}, ConnectionError()),
        ({}, TypeError()),
        ({"retry_on": KeyError}, ConnectionError()),
        ({}, 5),
    ],
)
def test_a_retry_tells_nothing_where_no_other_attempt_would_follow(
    bind: Any, script: Any, policy: Any, step: Any
) -> None:
    call = bind(Policy(retry={**policy, "shadow": True}), script(step))
    if isinstance(step, Exception):
        with pytest.raises(type(step)):
            call()
    else:
        assert call() == step
    assert shadow(bind) is None


def test_a_retry_looks_at_results_and_returns_them(bind: Any, script: Any, caplog: pytest.LogCaptureFixture) -> None:
    call = bind(Policy(retry={"retry_if_result": lambda result: 1 / result < 0, "shadow": True}), script(-1, 1, 0))
    assert [call(), call(), call()] == [-1, 1, 0]
    assert shadow(bind)["retries"] == 1
    assert "retry_if_result, in shadow, raised ZeroDivisionError" in caplog.text


def test_a_retry_in_shadow_leaves_values_of_a_fallback_alone(bind: Any) -> None:
    asked: list[str] = []

    def get(key: str | list[str]) -> str:
        asked.append(str(key))
        raise ConnectionError(str(key))

    call = bind(Policy(retry=SHADOWS["retry"], fallback={"arg": "key", "remember": False}), get)
    with pytest.raises(Exception, match="b"):
        call(["a", "b"])
    assert asked == ["a", "b"]
    assert shadow(bind)["retries"] == 1


def test_a_timeout_measures_attempts_and_calls(bind: Any, heard: list[Any]) -> None:
    def slow(seconds: float) -> float:
        bind.clock.now += seconds
        return seconds

    call = bind(Policy(timeout=SHADOWS["timeout"]), slow)
    assert [call(0.5), call(1.5), call(3)] == [0.5, 1.5, 3]
    assert told(heard) == [("timeout", "end", 1.0), ("timeout", "end", 1.0), ("timeout", "end", 2.0)]
    assert (shadow(bind)["timeouts"], bind.bound.stats.timeouts) == (3, 0)


def test_a_timeout_measures_the_items_of_generators() -> None:
    clock = VirtualClock()
    policy = Policy(timeout={"idle": 1, "shadow": True})

    def items() -> Iterator[int]:
        for seconds in (2, 0, 3):
            clock.now += seconds
            yield seconds

    async def items_async() -> AsyncIterator[int]:
        for each in items():
            yield each

    async def collected(stream: Any) -> list[int]:
        return [each async for each in stream]

    bound = policy.apply(items, clock=clock)
    assert list(bound()) == [2, 0, 3]
    bound_async = policy.apply(items_async, clock=clock)
    assert clock.run(collected(bound_async())) == [2, 0, 3]
    assert [each.stats.snapshot()["shadow"]["timeouts"] for each in (bound, bound_async)] == [2, 2]


def test_a_circuit_breaker_goes_through_its_states_and_rejects_nothing(
    bind: Any, script: Any, heard: list[Any]
) -> None:
    call = bind(Policy(circuit_breaker=SHADOWS["circuit_breaker"]), script(ConnectionError(), 1, 2, 3))
    breaker = bind.bound.binding.circuit_breaker
    fails(call)
    assert breaker.state == "open"
    assert (call(), breaker.state) == (1, "open")  # it would not have been let through, and does not count
    bind.clock.advance(200)
    assert (call(), breaker.state, call()) == (2, "closed", 3)
    decisions = told(heard)
    assert decisions[1][2] > 0
    assert [(*each[:2], None) for each in decisions] == [
        ("circuit_breaker", "open", None),
        ("circuit_breaker", "reject", None),
        ("circuit_breaker", "half_open", None),
        ("circuit_breaker", "close", None),
    ]
    assert shadow(bind)["rejected_by"] == {"circuit_breaker": 1}
    assert (bind.bound.stats.rejections, bind.bound.stats.rejected_by) == (0, {})


def test_a_circuit_breaker_in_shadow_under_real_retries_of_results(bind: Any, script: Any) -> None:
    policy = Policy(
        retry={"retries": 1, "min_delay": 0, "retry_if_result": lambda result: result < 0},
        circuit_breaker=SHADOWS["circuit_breaker"],
    )
    call = bind(policy, script(-1, -1, 5))
    with pytest.raises(AllFailedError):
        call()
    assert bind.bound.binding.circuit_breaker.state == "open"
    assert call() == 5
    assert shadow(bind)["rejected_by"] == {"circuit_breaker": 2}


def test_a_rate_limit_takes_permits_without_waiting(bind: Any, heard: list[Any]) -> None:
    call = bind(Policy(rate_limit={"rate": "1/s", "max_wait": 1.5, "shadow": True}), lambda: 1)
    assert [call() for _ in range(4)] == [1] * 4
    assert bind.slept == []
    assert told(heard) == [
        ("rate_limit", "delay", 1.0),
        ("rate_limit", "reject", 2.0),
        ("rate_limit", "reject", 2.0),
    ]
    assert shadow(bind) == {
        "rejected_by": {"rate_limit": 2},
        "retries": 0,
        "timeouts": 0,
        "waits": {"rate_limit": 1},
        "waited_for": {"rate_limit": 1.0},
    }
    assert bind.bound.stats.waits == 0


def test_a_cost_that_fails_in_shadow_harms_no_call(bind: Any, caplog: pytest.LogCaptureFixture) -> None:
    def cost(number: int) -> float:
        return 1 / number

    call = bind(Policy(rate_limit={"rate": "1/s", "cost": cost, "shadow": True}), lambda number: number)
    assert [call(0), call(1), call(1)] == [0, 1, 1]
    assert shadow(bind)["waits"] == {"rate_limit": 1}
    assert "the cost of a call, in shadow, raised ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("max_wait", "would"), [(0, "reject"), (None, "delay"), (1, "delay")])
def test_a_bulkhead_counts_what_is_in_use(heard: list[Any], max_wait: Any, would: str) -> None:
    policy = Policy(bulkhead={"max_concurrent": 1, "max_wait": max_wait, "shadow": True})
    in_use: list[int] = []

    async def nested(depth: int) -> int:
        in_use.append(bound.binding.resolved().executors["bulkhead"].running)
        return await bound(depth - 1) if depth else 0

    bound = policy.apply(nested)
    assert asyncio.run(bound(2)) == 0
    assert in_use == [1, 2, 3]
    assert bound.binding.resolved().executors["bulkhead"].running == 0
    assert [(by, does) for by, does, _ in told(heard)] == [("bulkhead", would)] * 2

    def plain(depth: int) -> int:
        return sync(depth - 1) if depth else 0

    sync = policy.apply(plain)
    assert sync(2) == 0
    assert sync.binding.resolved().executors["bulkhead"].running == 0
    assert len(told(heard)) == 2


def test_all_together_let_every_call_pass(bind: Any) -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ConnectionError
        return number

    call = bind(Policy(**SHADOWS), work)
    assert [call(1), call(2)] == [1, 2]
    fails(call, 3)
    assert [call(4), call(5)] == [4, 5]
    counts = bind.bound.stats.snapshot()
    assert (counts["calls"], counts["failures"], counts["rejections"], counts["timeouts"]) == (5, 1, 0, 0)
    assert counts["shadow"]["rejected_by"] == {"rate_limit": 4, "circuit_breaker": 2}
    assert counts["shadow"]["retries"] == 1


# Beside real ones


def test_real_policies_work_beside_those_in_shadow(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retries": 1, "min_delay": 1, "jitter": False}, circuit_breaker=SHADOWS["circuit_breaker"])
    call = bind(policy, script(ConnectionError(), 7))
    assert call() == 7
    assert (bind.bound.stats.retries, bind.slept) == (1, [1.0])
    assert shadow(bind)["rejected_by"] == {"circuit_breaker": 1}


def test_what_is_in_shadow_says_nothing_of_health() -> None:
    registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 1, "shadow": True})})

    def broken() -> None:
        raise ConnectionError

    bound = registry.bind(broken, "api")
    fails(bound)
    assert bound.binding.circuit_breaker.state == "open"
    assert list(contributions(registry)) == ["configuration"]


def test_metrics_tell_what_is_in_shadow_apart() -> None:
    registry = Registry({"api": Policy(**SHADOWS)})

    def work(number: int) -> int:
        if number == 1:
            raise ConnectionError
        return number

    bound = registry.bind(work, "api")
    for number in (0, 1, 2):
        try:
            bound(number)
        except ConnectionError:
            continue
    values = Reader(registry).read(registry)
    name = ("api", bound.stats.function)
    assert values["opero_shadow_decisions"] == {
        (*name, "rate_limit", "reject"): 2,
        (*name, "circuit_breaker", "reject"): 1,
        (*name, "retry", "retry"): 1,
    }
    assert "opero_rejections" not in values
    states = ("circuit_breaker_state", "rate_limit_saturation", "bulkhead_in_use")
    assert not any(f"opero_{each}" in values for each in states)
    assert registry.stats()["profiles"]["api"]["state"]["circuit_breaker"]["shadow"] is True


def test_counts_in_shadow_add_up() -> None:
    one, other = opero(retries=0)(lambda: 1).stats, opero(retries=0)(lambda: 1).stats
    for stats in (one, other):
        stats.count_shadow("bulkhead", "delay")
        stats.count_shadow("rate_limit", "delay", 2.0)
        stats.count_shadow("retry", "retry")
    one.add(other.drain())
    assert one.as_dict()["shadow"] == {
        "rejected_by": {},
        "retries": 2,
        "timeouts": 0,
        "waits": {"bulkhead": 2, "rate_limit": 2},
        "waited_for": {"rate_limit": 4.0},
    }
    assert "shadow" not in other.as_dict()


# Reloads


def test_state_goes_on_when_a_reload_ends_the_shadow(tmp_path: Path) -> None:
    def write(shadow: str) -> None:
        (tmp_path / "base.yaml").write_text(
            f"policies: {{api: {{circuit_breaker: {{consecutive_failures: 1, shadow: {shadow}}}, "
            f"rate_limit: {{rate: 1/h, burst: 5, max_wait: 0, shadow: {shadow}}}}}}}",
            "utf-8",
        )

    write("true")
    registry = Registry.load(tmp_path, environ={})

    def broken() -> None:
        raise ConnectionError

    bound = registry.bind(broken, "api")
    for _ in range(7):
        fails(bound)
    assert bound.stats.snapshot()["shadow"]["rejected_by"] == {"circuit_breaker": 6, "rate_limit": 2}
    write("false")
    registry.reload()
    with pytest.raises(CircuitOpenError):
        bound()
    write("true")
    registry.reload()
    assert bound.binding.circuit_breaker.state == "open"
    fails(bound)


def test_what_was_reserved_in_shadow_is_given_back() -> None:
    clock = VirtualClock()
    limit = {"rate": "1/s", "burst": 2}
    bound = Policy(rate_limit={**limit, "shadow": True}).apply(lambda: 1, clock=clock)
    for _ in range(100):
        bound()
    bound.binding.swap(Policy(rate_limit=limit))
    bound()
    assert clock.slept == []  # a permit is due
    bound()
    assert clock.slept == pytest.approx([1.0])


def test_calls_under_way_have_their_slots_when_the_shadow_ends() -> None:
    running: list[int] = []

    def nested(depth: int) -> int:
        if depth:
            return bound(depth - 1)
        bound.binding.swap(Policy(bulkhead=2))
        running.append(bound.binding.resolved().executors["bulkhead"].running)
        return 0

    bound = Policy(bulkhead={"max_concurrent": 2, "shadow": True}).apply(nested)
    bound(2)
    assert running == [3]
    assert bound.binding.resolved().executors["bulkhead"].running == 0


# Maps


def mapped(item: int) -> int:
    time.sleep(0.002)
    if item == 1:
        raise ConnectionError
    return item


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_maps_tell_what_policies_in_shadow_would_have_done(mode: Any, heard: list[Any]) -> None:
    policy = Policy(
        retry={"retries": 2, "shadow": True},
        timeout={"attempt": 0.001, "shadow": True},
        rate_limit={"rate": "1/h", "max_wait": 0, "shadow": True},
        bulkhead={"max_concurrent": 100, "shadow": True},
        circuit_breaker={"consecutive_failures": 100, "shadow": True},
        parallel={"mode": mode, "workers": 2, "on_error": "return"},
    )
    bound = policy.apply(mapped)
    results = bound.map(range(6))
    assert [results[0], *results[2:]] == [0, 2, 3, 4, 5]
    counts = bound.stats.snapshot()
    assert counts["shadow"] == {
        "rejected_by": {"rate_limit": 5},
        "retries": 1,
        "timeouts": 6,
        "waits": {},
        "waited_for": {},
    }
    assert (counts["attempts"], counts["failures"]) == (6, 1)
    assert sum(isinstance(event, Shadowed) for event in heard) == 12


# What is refused


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("cache", {"ttl": 5}, "a cache rejects, delays and repeats nothing"),
        ("fallback", {"default": 1}, "it acts where a call has failed anyway"),
        ("failures", {}, "it only says of which kind failures are"),
        ("hooks", {}, "hooks only listen"),
        ("parallel", {}, "it says how a map runs"),
    ],
)
def test_other_kinds_have_no_shadow_and_say_why(tmp_path: Path, kind: str, fields: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown field 'shadow' of .*: {why}"):
        Policy(**{kind: {**fields, "shadow": True}})
    (tmp_path / "base.yaml").write_text(f"policies:\n  api:\n    {kind}: {{shadow: true}}\n", "utf-8")
    with pytest.raises(ConfigError, match=f"unknown key 'shadow' in policies.api.{kind}: {why}"):
        Registry.load(tmp_path, environ={})


def test_a_variable_puts_a_policy_in_shadow(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("policies: {api: {retry: 2}}", "utf-8")
    registry = Registry.load(tmp_path, environ={"OPERO_POLICIES__API__RETRY__SHADOW": "true"})
    assert registry["api"].retry == RetryPolicy(retries=2, shadow=True)
