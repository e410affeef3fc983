"""Hooks of policies: the events of the functions bound under one, and of no other, reach its handlers."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opero import (
    AllFailedError,
    CircuitOpenError,
    ConfigError,
    HooksPolicy,
    Policy,
    Registry,
    UnknownOptionError,
    opero,
    opmap,
)
from opero.events import EVENTS, Event, MapFinished, RetryScheduled, watched
from opero.observe.subscriptions import join_slow_handlers
from opero.policies.hooks import HOOKS
from opero.policies.policy import KINDS

SEEN: list[Any] = []
OTHERS: list[Any] = []


def hears(event: Any) -> None:
    SEEN.append(event)


def hears_too(event: Any) -> None:
    OTHERS.append(event)


async def hears_async(event: Any) -> None:
    await asyncio.sleep(0)
    SEEN.append(event)


ALL = HooksPolicy(**dict.fromkeys(HOOKS, hears))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def forgotten() -> None:
    SEEN.clear()
    OTHERS.clear()


def names() -> list[str]:
    found = [event.name for event in SEEN]
    SEEN.clear()
    return found


def fails(call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises((ConnectionError, AllFailedError, CircuitOpenError)):
        call(*args)


def work(item: int) -> int:
    if item == 3:
        raise ConnectionError("three")
    return item * 10


# Which events


def test_each_hook_is_one_event_and_each_event_of_a_function_has_a_hook() -> None:
    others = ("configuration", "alert", "store")
    assert sorted(HOOKS.values()) == sorted(name for name in EVENTS if not name.startswith(others))
    assert list(HOOKS) == [name for name in KINDS["hooks"].model_fields if name != "enabled"]
    for hook, event in HOOKS.items():
        assert HooksPolicy(**{hook: hears}).handlers() == {EVENTS[event]: (hears,)}


def test_hooks_hear_the_whole_of_a_call(bind: Any, script: Any) -> None:
    policy = Policy(
        retry={"retries": 2, "min_delay": 1, "jitter": False},
        circuit_breaker={"consecutive_failures": 1, "open_for": 60},
        rate_limit={"rate": "1/s", "burst": 1},
        fallback={"default": 0},
        cache=True,
        hooks=ALL,
    )
    call = bind(policy, script(3, ConnectionError(), 5))
    assert call() == 3
    assert names() == ["cache_miss", "call_succeeded"]
    assert call() == 3
    assert names() == ["cache_hit", "call_succeeded"]
    assert call(1) == 0
    assert names() == [
        *("cache_miss", "waited", "circuit_opened", "attempt_failed", "retry_scheduled"),
        *("rejected", "fallback_used", "call_succeeded"),
    ]


def test_a_hook_has_the_event_that_a_subscription_gets(bind: Any, script: Any, heard: list[Any]) -> None:
    call = bind(
        Policy(retry={"retries": 1, "min_delay": 2, "jitter": False}, hooks={"on_retry": hears}), script(OSError(), 1)
    )
    assert call() == 1
    (event,) = SEEN
    assert isinstance(event, RetryScheduled)
    assert (event.attempt, event.delay) == (2, 2.0)
    assert event is next(each for each in heard if each.name == "retry_scheduled")


def test_hooks_concern_the_functions_of_their_policy_alone() -> None:
    def made(policy: Policy) -> Any:
        return policy.apply(lambda: 1)  # all of the same name

    one, other, third = (
        made(Policy(hooks={"on_success": hears})),
        made(Policy(hooks={"on_success": hears_too})),
        made(Policy()),
    )
    assert one.binding.stats.function == other.binding.stats.function
    one(), other(), third(), one()
    assert (len(SEEN), len(OTHERS)) == (2, 1)


def test_there_may_be_several_handlers_in_their_order() -> None:
    order: list[int] = []
    handlers = [lambda event: order.append(1), lambda event: order.append(2), hears, hears]
    Policy(hooks={"on_success": handlers}).apply(lambda: 1)()
    assert order == [1, 2]
    assert names() == ["call_succeeded"]


def test_decorators_take_hooks_as_options() -> None:
    @opero(retries=1, min_delay=0, on_retry=hears, on_failure=[hears_too])
    def broken() -> None:
        raise ConnectionError

    fails(broken)
    assert names() == ["retry_scheduled"]
    assert [event.name for event in OTHERS] == ["call_failed"]
    assert broken.policy.hooks == HooksPolicy(on_retry=hears, on_failure=hears_too)


def test_methods_and_generators_have_hooks() -> None:
    class Client:
        @opero(retries=1, min_delay=0, on_retry=hears, on_success=hears)
        def get(self, number: int) -> int:
            self.tries = getattr(self, "tries", 0) + 1
            if self.tries == 1:
                raise ConnectionError
            return number

    assert Client().get(4) == 4
    assert names() == ["retry_scheduled", "call_succeeded"]

    @opero(retries=0, on_success=hears, on_failure=hears)
    def stream() -> Iterator[int]:
        yield 1
        raise ConnectionError

    fails(list, stream())
    assert names() == ["call_succeeded", "call_failed"]


def test_an_async_hook_is_awaited() -> None:
    @opero(retries=0, on_success=hears_async)
    async def get() -> int:
        return 1

    async def main() -> None:
        await get()
        while not SEEN:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert names() == ["call_succeeded"]
    opero(retries=0, on_success=hears_async)(lambda: 1)()
    join_slow_handlers(30)
    assert names() == ["call_succeeded"]


def test_a_hook_that_raises_harms_no_call_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    policy = Policy(hooks={"on_success": [broken, hears]})
    calls = [policy.apply(lambda: 1), policy.apply(lambda: 2)]
    assert [call() for call in calls * 2] == [1, 2, 1, 2]
    assert len(SEEN) == 4
    assert len(caplog.records) == 1
    assert "broken of the event call_succeeded failed" in caplog.text


# What functions share


def test_a_handler_is_called_once_for_the_breaker_of_several_functions() -> None:
    registry = Registry({"api": Policy(circuit_breaker=1, hooks={"on_open": hears, "on_force": hears})})

    def down() -> None:
        raise ConnectionError

    own: list[Any] = []
    first, second = registry.bind(down, "api"), registry.bind(down, "api", on_open=[hears, own.append])
    third = registry.bind(down, "api", hooks=False)
    for each in (second, third, first):
        fails(each)
    assert names() == ["circuit_opened"]
    assert [(event.policy, event.function) for event in own] == [("api", "")]
    first.binding.circuit_breaker.force_open()
    assert names() == ["circuit_forced"]


def test_a_reload_replaces_hooks_also_for_a_breaker_that_goes_on(tmp_path: Path) -> None:
    here = __name__

    def write(policy: str) -> None:
        (tmp_path / "base.yaml").write_text(f"policies: {{api: {{{policy}}}}}", "utf-8")

    write(f"circuit_breaker: 5, hooks: {{on_force: '{here}:hears', on_success: '{here}:hears'}}")
    registry = Registry.load(tmp_path, environ={})
    call = registry.bind(lambda: 1, "api")
    call()
    assert names() == ["call_succeeded"]
    before = call.binding.circuit_breaker
    write(f"circuit_breaker: 5, hooks: {{on_force: '{here}:hears_too'}}")
    registry.reload()
    call()
    call.binding.circuit_breaker.force_open()
    assert call.binding.circuit_breaker is before
    assert (names(), [event.name for event in OTHERS]) == ([], ["circuit_forced"])
    OTHERS.clear()
    write(f"circuit_breaker: 6, hooks: {{on_force: '{here}:hears'}}")
    registry.reload()
    before.force_closed()  # as a call under way may do
    assert (names(), OTHERS) == (["circuit_forced"], [])
    write("circuit_breaker: 6")
    registry.reload()
    call.binding.circuit_breaker.force_open()
    assert (names(), OTHERS) == ([], [])


# Merging, and values


def test_a_function_lays_its_hooks_over_those_of_its_profile(tmp_path: Path) -> None:
    here = __name__
    (tmp_path / "base.yaml").write_text(
        f"policies: {{api: {{hooks: {{on_success: '{here}:hears', "
        f"on_failure: ['{here}:hears', '{here}:hears_too']}}}}}}",
        "utf-8",
    )
    registry = Registry.load(tmp_path, environ={"OPERO_API_ON_RETRY": f"{here}:hears"})
    assert registry["api"].hooks == HooksPolicy(on_success=hears, on_failure=(hears, hears_too), on_retry=hears)
    bound = registry.bind(work, "api", on_success=hears_too, on_retry=None)
    assert bound.policy.hooks == HooksPolicy(on_success=hears_too, on_failure=(hears, hears_too))
    off = registry.bind(work, "api", hooks=False)
    bound(1), off(1)
    assert (names(), len(OTHERS)) == ([], 1)


def test_policies_with_hooks_are_values_that_can_be_pickled_and_written() -> None:
    policy = Policy(retry=1, hooks={"on_retry": hears, "on_open": ["builtins:print"]})
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(Policy(retry=1, hooks={"on_retry": [hears], "on_open": print}))
    assert json.loads(policy.model_dump_json(exclude_unset=True))["hooks"] == {
        "on_retry": [f"{__name__}.hears"],
        "on_open": ["print"],
    }
    assert repr(policy.hooks) == f"HooksPolicy(on_retry=({__name__}.hears,), on_open=(print,))"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"on_retries": hears}, "unknown field 'on_retries' of HooksPolicy; did you mean 'on_retry'"),
        ({"on_retry": 3}, "3 is not callable"),
        ({"on_retry": f"{__name__}:hear"}, "has no 'hear'; did you mean 'hears'"),
        ({"on_retry": [hears, "nowhere:function"]}, "No module named 'nowhere'"),
        ({"on_retry": lambda: None}, r"<lambda>\(\) cannot be called with one argument, the event"),
        ({"on_open": lambda event, other: None}, "cannot be called with one argument, the event"),
    ],
)
def test_what_is_no_hook_is_refused(hooks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(hooks=hooks)


def test_a_generator_function_is_no_hook() -> None:
    def items(event: Event) -> Iterator[Event]:
        yield event

    with pytest.raises(ConfigError, match="items is a generator function, so calling it runs nothing"):
        Policy(hooks={"on_retry": items})


def test_unknown_hooks_are_refused_with_the_nearest_wherever_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownOptionError, match="unknown option 'on_retrys'; did you mean 'on_retry'"):
        opero(on_retrys=hears)  # type: ignore[call-overload]
    (tmp_path / "base.yaml").write_text("policies:\n  api:\n    hooks:\n      on_opn: app:f\n", "utf-8")
    with pytest.raises(ConfigError, match="on_opn.*did you mean 'on_open'"):
        Registry.load(tmp_path, environ={})


# What it costs


def test_hooks_other_than_of_the_ends_of_calls_leave_successes_alone() -> None:
    rest = {hook: hears for hook in HOOKS if hook not in ("on_success", "on_failure", "on_cache_hit")}
    gc.collect()
    bound = Policy(retry=1, hooks=rest).apply(lambda: 1)
    bound()
    assert (watched.calls, watched.hits) == (False, False)
    one = Policy(hooks={"on_success": hears}).apply(lambda: 1)
    assert watched.calls
    del one
    gc.collect()
    assert not watched.calls


# Maps


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_hooks_hear_of_a_map_once_in_the_process_that_runs_it(mode: Any) -> None:
    unpicklable = open(__file__)  # noqa: SIM115

    def hears_here(event: Any, _: Any = unpicklable) -> None:
        SEEN.append(event)

    bound = Policy(
        retry={"retries": 1, "min_delay": 0, "retry_on": "transient"},
        parallel={"mode": mode, "workers": 2, "on_error": "return"},
        hooks={"on_retry": hears_here, "on_failure": hears_here, "on_success": hears_here, "on_map_finish": hears_here},
    ).apply(work)
    with unpicklable:
        bound.map([1, 2, 3, 4])
    assert isinstance(SEEN[-1], MapFinished)
    assert sorted(names()) == ["call_failed", *["call_succeeded"] * 3, "map_finished", "retry_scheduled"]


@opero(retries=1, min_delay=0, on_retry=hears)
def inner(item: int) -> int:
    return work(item)


def outer(item: int) -> Any:
    return inner(item)


def test_hooks_of_a_function_that_is_called_in_a_worker_hear_of_it_in_the_parent() -> None:
    inner(1)  # its hooks are in force
    try:
        results = opmap(mode="process", workers=1, retries=0, on_error="return")(outer)([1, 3])
        assert results[0] == 10
        assert names() == ["retry_scheduled"]
    finally:
        inner.binding.swap(Policy())  # for all later tests


def test_hooks_are_no_longer_called_while_policies_are_switched_off() -> None:
    program = textwrap.dedent(
        """
        from opero import opero
        seen = []
        call = opero(retries=1, on_success=seen.append)(lambda: 1)
        call()
        print(len(seen))
        """
    )
    for enabled, expected in (("true", "1"), ("false", "0")):
        environment = {**os.environ, "OPERO_ENABLED": enabled}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
