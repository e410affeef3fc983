"""Every event of calls is emitted where it should be, once, sync and async, with its function, policy and values."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opero import (
    AllFailedError,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    FailedResponseError,
    Policy,
    RateLimitExceededError,
    Registry,
    on,
    opero,
)
from opero.events import EVENTS, CallFailed, CallSucceeded
from opero.failures import Kind
from opero.testing import VirtualClock


class Response:
    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}


def names(events: list[Any]) -> list[str]:
    found = [event.name for event in events]
    events.clear()
    return found


def fails(call: Callable[..., Any], *args: Any) -> BaseException:
    try:
        call(*args)
    except Exception as error:  # whatever it is
        return error
    raise AssertionError("it did not fail")


# The ends of calls


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"retry": 2},
        {"timeout": 5},
        {"circuit_breaker": 5},
        {"bulkhead": 5},
        {"fallback": {"default": 0}},
        {"retry": 2, "circuit_breaker": 5, "timeout": {"total": "1m"}, "rate_limit": "100/s"},
    ],
)
def test_a_success_is_one_event_from_the_first_call_on(bind: Any, heard: list[Any], policy: Any) -> None:
    call = bind(Policy(**policy), lambda number: number)
    assert [call(1), call(2)] == [1, 2]
    ends = [event for event in heard if event.name != "waited"]
    assert [event.name for event in ends] == ["call_succeeded"] * 2
    assert {(event.function, event.policy) for event in ends} == {(bind.bound.stats.function, "")}
    assert bind.bound.stats.function.startswith("observe.test_emission:") or ":" in bind.bound.stats.function
    assert all(0 < event.seconds < 60 for event in ends)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, ["attempt_failed", "call_failed"]),
        ({"retry": 0}, ["attempt_failed", "call_failed"]),
        ({"retry": 1}, ["attempt_failed", "retry_scheduled", "attempt_failed", "call_failed"]),
        ({"timeout": 5}, ["attempt_failed", "call_failed"]),
        ({"circuit_breaker": 5}, ["attempt_failed", "call_failed"]),
        ({"cache": True}, ["cache_miss", "attempt_failed", "call_failed"]),
        ({"fallback": {"default": 0}}, ["attempt_failed", "fallback_used", "call_succeeded"]),
        ({"retry": 1, "timeout": {"total": "1h"}, "cache": True, "fallback": {"default": 0}}, None),
    ],
)
def test_a_failure_is_told_once_from_the_first_call_on(
    bind: Any, heard: list[Any], policy: Any, expected: list[str] | None
) -> None:
    def fail() -> None:
        raise ConnectionError("reset")

    call = bind(Policy(**policy), fail)
    if expected is None:
        expected = ["cache_miss", "attempt_failed", "retry_scheduled", "attempt_failed"]
        expected += ["fallback_used", "call_succeeded"]
    for _ in range(3):
        if "fallback" in policy:
            assert call() == 0
        else:
            fails(call)
        assert names(heard) == expected


def test_a_retry_has_its_values(bind: Any, heard: list[Any], script: Any) -> None:
    error = ConnectionError("reset")
    call = bind(Policy(retry={"retries": 2, "min_delay": 2, "jitter": False}), script(error, error, 3))
    assert call() == 3
    failed, scheduled, _, again, succeeded = heard
    assert (failed.error, failed.kind, failed.status, failed.reason) == (error, Kind.TRANSIENT, None, "ConnectionError")
    assert (scheduled.attempt, scheduled.delay, scheduled.is_asked, scheduled.error) == (2, bind.slept[0], False, error)
    assert (again.attempt, again.delay) == (3, bind.slept[1])
    assert succeeded.name == "call_succeeded"
    assert len({event.function for event in heard}) == 1


def test_a_failed_call_has_the_exception_that_its_caller_gets(bind: Any, heard: list[Any], script: Any) -> None:
    call = bind(Policy(retry={"retries": 1, "min_delay": 0}), script(ConnectionError("reset")))
    error = fails(call)
    assert isinstance(error, AllFailedError)
    last = heard[-1]
    assert (last.name, last.error, last.kind) == ("call_failed", error, Kind.TRANSIENT)
    assert 0 < last.seconds < 60


def test_the_profile_decides_of_which_kind_a_failure_is(bind: Any, heard: list[Any], script: Any) -> None:
    policy = Policy(retry=0, failures={"throttled": [KeyError]})
    fails(bind(policy, script(KeyError("k"))))
    assert [event.kind for event in heard] == [Kind.THROTTLED] * 2


@pytest.mark.parametrize("policy", [{}, {"retry": 0}, {"circuit_breaker": 5}, {"cache": True}])
@pytest.mark.parametrize("listened", [(CallSucceeded,), (CallFailed,), (CallSucceeded, CallFailed)])
def test_a_failed_response_is_a_failed_call_and_no_success(bind: Any, policy: Any, listened: Any) -> None:
    events: list[Any] = []
    offs = [on(event, events.append) for event in listened]
    try:
        response = Response(503)
        call = bind(Policy(**policy), lambda: response)
        looks = policy != {}  # without a policy that looks at failures, responses are results
        for _ in range(2):
            assert call() is response
        expected = [CallFailed if looks else CallSucceeded] * 2
        assert [type(event) for event in events] == [each for each in expected if each in listened]
        for event in events:
            if looks:
                assert isinstance(event.error, FailedResponseError)
    finally:
        for off in offs:
            off()


def test_a_call_that_began_before_anybody_listened_has_no_duration(bind: Any) -> None:
    events: list[Any] = []
    offs = []

    def fail() -> None:
        offs.append(on("*", events.append))
        raise KeyError

    call = bind(Policy(retry=0), fail)
    bind.bound.binding.accept(None)  # the first call is timed, and so is a sample of the others
    bind.bound.stats.sample_at = 1000
    try:
        fails(call)
    finally:
        for off in offs:
            off()
    assert [event.name for event in events] == ["attempt_failed", "call_failed"]
    assert events[-1].seconds is None


def test_a_generator_succeeds_with_its_first_item_and_may_still_fail(heard: list[Any]) -> None:
    @opero(retries=0, failures={"denied": [KeyError]})
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("k")

    stream = items()
    assert heard == []
    assert next(stream) == 1
    assert names(heard) == ["call_succeeded"]
    with pytest.raises(KeyError):
        next(stream)
    failed, ended = heard
    assert (failed.name, failed.kind) == ("attempt_failed", Kind.DENIED)
    assert (ended.name, ended.kind, ended.seconds) == ("call_failed", Kind.DENIED, None)


def test_a_cancelled_call_has_no_end(heard: list[Any]) -> None:
    @opero(retries=0)
    async def wait() -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert heard == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_function_of_a_profile_names_it_from_its_first_call_on(tmp_path: Any, heard: list[Any], kind: str) -> None:
    (tmp_path / "base.yaml").write_text("policies: {api: {retry: {retries: 1, min_delay: 0}, cache: true}}")
    registry = Registry.load(tmp_path, environ={})
    errors = [ConnectionError()]

    def work(number: int) -> int:
        if errors:
            raise errors.pop()
        return number

    async def work_async(number: int) -> int:
        return work(number)

    bound: Any = opero(policy="api", registry=registry)(work if kind == "sync" else work_async)

    def call(number: int) -> Any:
        return bound(number) if kind == "sync" else asyncio.run(bound(number))

    assert [call(1), call(1), call(2)] == [1, 1, 2]
    name = f"{__name__}:{bound.__qualname__}"
    assert {(event.function, event.policy) for event in heard} == {(name, "api")}
    first = ["cache_miss", "attempt_failed", "retry_scheduled", "call_succeeded"]
    assert names(heard) == [*first, "cache_hit", "call_succeeded", "cache_miss", "call_succeeded"]


# Fallbacks


def test_falling_back_is_told_with_what_and_why(bind: Any, heard: list[Any], script: Any) -> None:
    error = ConnectionError("reset")
    for fallback, what in (({"default": 0}, "default"), ({"function": lambda: 0}, "function")):
        assert bind(Policy(fallback=fallback), script(error))() == 0
        used = [event for event in heard if event.name == "fallback_used"]
        assert [(event.what, event.error) for event in used] == [(what, error)]
        heard.clear()


def test_another_value_is_told_and_one_that_is_set_aside(bind: Any, heard: list[Any]) -> None:
    denied = PermissionError("no")
    refused = ["bad"]

    def get(key: str) -> str:
        if key in refused:
            raise denied
        return key

    call = bind(
        Policy(fallback={"arg": "key", "on": ["denied"], "remember": "5m"}, failures={"denied": [PermissionError]}),
        get,
    )
    assert call(["bad", "good"]) == "good"
    used, aside = (next(each for each in heard if each.name == name) for name in ("fallback_used", "value_set_aside"))
    assert (used.what, used.error) == ("value", denied)
    assert (aside.argument, aside.position, aside.kind, aside.seconds) == ("key", 0, Kind.DENIED, 300)
    assert "bad" not in repr(aside)
    assert aside.function == used.function == bind.bound.stats.function
    refused.clear()
    heard.clear()
    bind.clock.advance(301)
    assert call(["bad", "good"]) == "bad"
    restored, _ = heard
    assert (restored.name, restored.position, restored.hash) == ("value_restored", 0, aside.hash)


# Limits


def test_a_wait_for_a_permit_is_told_afterwards(bind: Any, heard: list[Any]) -> None:
    call = bind(Policy(rate_limit={"rate": "1/s", "burst": 1}), lambda: 1)
    call()
    call()
    assert [(event.what, event.seconds) for event in heard if event.name == "waited"] == [("rate_limit", 1.0)]
    assert names(heard) == ["call_succeeded", "waited", "call_succeeded"]


def test_a_rejection_by_the_rate_limit_is_no_failed_attempt(bind: Any, heard: list[Any]) -> None:
    call = bind(Policy(rate_limit={"rate": "1/m", "burst": 1, "max_wait": 0}), lambda: 1)
    call()
    heard.clear()
    error = fails(call)
    assert isinstance(error, RateLimitExceededError)
    rejected, failed = heard
    assert (rejected.name, rejected.by, rejected.retry_in, rejected.error) == (
        "rejected",
        "rate_limit",
        error.retry_in,
        error,
    )
    assert (failed.name, failed.error) == ("call_failed", error)
    assert bind.bound.stats.errors == {}


def test_waits_for_a_slot_and_rejections_of_a_full_bulkhead_are_told(heard: list[Any]) -> None:
    clock = VirtualClock()

    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)

    bound = Policy(bulkhead={"max_concurrent": 1, "max_wait": "2s"}).apply(work, clock=clock)

    async def main() -> list[Any]:
        return await asyncio.gather(*(bound(seconds) for seconds in (1, 5, 1)), return_exceptions=True)

    *_, error = clock.run(main())
    assert isinstance(error, BulkheadFullError)
    assert [event.seconds for event in heard if event.name == "waited"] == [1.0, 2.0]
    assert [(event.by, event.error) for event in heard if event.name == "rejected"] == [("bulkhead", error)]


def test_changes_of_a_circuit_are_told_with_both_states(bind: Any, heard: list[Any], script: Any) -> None:
    policy = Policy(circuit_breaker={"consecutive_failures": 2, "open_for": 60})
    call = bind(policy, script(ConnectionError("reset"), ConnectionError("reset"), 1))
    fails(call)
    fails(call)
    assert isinstance(fails(call), CircuitOpenError)
    opened = next(event for event in heard if event.name == "circuit_opened")
    assert (opened.before, opened.state, opened.reason) == ("closed", "open", "ConnectionError: reset")
    assert (opened.failures, opened.calls) == (2, 2)
    assert (opened.function, opened.breaker) == (bind.bound.stats.function, bind.bound.binding.circuit_breaker.name)
    assert [event.by for event in heard if event.name == "rejected"] == ["circuit_breaker"]
    assert sum(event.name == "attempt_failed" for event in heard) == 2
    heard.clear()
    bind.clock.advance(1000)
    assert call() == 1
    half, closed = (event for event in heard if event.name.startswith("circuit"))
    assert (half.name, half.before, half.state) == ("circuit_half_opened", "open", "half_open")
    assert (closed.name, closed.before, closed.state, closed.reason) == ("circuit_closed", "half_open", "closed", "")
    heard.clear()
    breaker = bind.bound.binding.circuit_breaker
    breaker.force_open()
    breaker.force_open()
    breaker.force_closed()
    breaker.reset()
    assert [(event.name, event.state) for event in heard] == [
        ("circuit_forced", "forced_open"),
        ("circuit_forced", "forced_closed"),
        ("circuit_closed", "closed"),
    ]


def test_a_circuit_that_opens_by_a_rate_tells_what_its_window_holds(bind: Any, heard: list[Any], script: Any) -> None:
    policy = Policy(circuit_breaker={"failure_rate": 0.5, "min_calls": 4})
    call = bind(policy, script(1, ConnectionError("reset"), 1, ConnectionError("reset")))
    for _ in range(4):
        fails(call) if bind.bound.stats.calls % 2 else call()
    (opened,) = (event for event in heard if event.name == "circuit_opened")
    assert (opened.failures, opened.calls) == (2, 4)


def test_a_circuit_that_functions_share_names_the_profile_only(tmp_path: Any, heard: list[Any]) -> None:
    (tmp_path / "base.yaml").write_text("policies: {api: {circuit_breaker: {consecutive_failures: 1}}}")
    registry = Registry.load(tmp_path, environ={})

    def fail() -> None:
        raise ConnectionError("reset")

    fails(registry.bind(fail, "api"))
    (opened,) = (event for event in heard if event.name == "circuit_opened")
    assert (opened.function, opened.policy, opened.breaker) == ("", "api", "api")


def test_timeouts_are_told_with_their_scope(heard: list[Any]) -> None:
    clock = VirtualClock()

    async def work() -> None:
        await asyncio.sleep(60)

    for timeout, scope in (({"attempt": "1s"}, "attempt"), ({"total": "1s"}, "total")):
        bound = Policy(timeout=timeout).apply(work, clock=clock)
        with pytest.raises(CallTimeoutError) as caught:
            clock.run(bound())
        (timed_out,) = (event for event in heard if event.name == "timed_out")
        assert (timed_out.scope, timed_out.error) == (scope, caught.value)
        assert sum(event.name == "call_failed" for event in heard) == 1
        heard.clear()


# Caches


def test_hits_misses_stale_results_and_refreshes_are_told(heard: list[Any]) -> None:
    clock = VirtualClock()
    number = iter(range(10))

    async def get() -> int:
        return next(number)

    bound = Policy(cache={"ttl": 10, "stale_ttl": 100}).apply(get, clock=clock)

    async def main() -> None:
        assert await bound() == 0
        assert await bound() == 0
        await asyncio.sleep(20)
        assert await bound() == 0
        await asyncio.sleep(1)
        assert await bound() == 1

    clock.run(main())
    assert names(heard) == [
        *("cache_miss", "call_succeeded"),
        *("cache_hit", "call_succeeded"),
        *("cache_stale", "call_succeeded", "cache_refreshed"),
        *("cache_hit", "call_succeeded"),
    ]


def test_a_result_that_cannot_be_cached_names_the_function(bind: Any, heard: list[Any]) -> None:
    call = bind(Policy(cache={"ttl": lambda: "never"}), lambda: 1)
    assert call() == 1
    (failed,) = (event for event in heard if event.name == "cache_failed")
    assert (failed.what, failed.function, failed.since) == ("not_stored", bind.bound.stats.function, 0)


def test_callers_that_wait_for_a_computation_have_hits(heard: list[Any]) -> None:
    clock = VirtualClock()

    async def get() -> int:
        await asyncio.sleep(1)
        return 1

    bound = Policy(cache=True).apply(get, clock=clock)

    async def main() -> list[int]:
        return await asyncio.gather(*(bound() for _ in range(3)))

    assert clock.run(main()) == [1, 1, 1]
    counts = {
        name: sum(event.name == name for event in heard) for name in ("cache_miss", "cache_hit", "call_succeeded")
    }
    assert counts == {"cache_miss": 1, "cache_hit": 2, "call_succeeded": 3}


# What listening costs, and what not


def test_without_handlers_no_event_is_built(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an event was built")

    for event in EVENTS.values():
        monkeypatch.setattr(event, "__init__", refuse)
    outcomes = iter([ConnectionError("reset"), Response(503), 1, ConnectionError("reset"), ConnectionError("reset")])

    def work(key: int) -> Any:
        outcome = next(outcomes, ConnectionError("reset"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    everything = Policy(
        retry={"retries": 2, "min_delay": 1},
        cache={"ttl": 1, "stale_ttl": 5},
        circuit_breaker=3,
        timeout={"attempt": "30s", "total": "1h"},
        rate_limit={"rate": "1/s", "burst": 1},
        bulkhead=1,
        fallback={"default": 0},
    )
    call = bind(everything, work)
    assert call(1) == 1
    assert call(1) == 1
    bind.clock.advance(2)
    for key in range(5):
        call(key)
    stats = bind.bound.stats
    assert min(stats.retries, stats.cache_hits, stats.cache_misses, stats.waits, stats.rejections) > 0
    assert stats.fallbacks > 0
    bind.bound.binding.circuit_breaker.reset()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("more", [{}, {"circuit_breaker": 9, "timeout": {"total": "1h"}}])
def test_the_exception_of_an_event_is_freed_without_garbage_collection(heard: list[Any], kind: str, more: Any) -> None:
    class Error(Exception):
        pass

    seen: list[weakref.ref[BaseException]] = []

    def fail() -> None:
        error = Error()
        seen.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def fail_async() -> None:
        fail()

    policy = Policy(retry={"retries": 1, "min_delay": 0, "retry_on": [Error]}, **more)
    call, call_async = policy.apply(fail), policy.apply(fail_async)

    async def main() -> None:  # not `asyncio.run(call_async())`, which keeps exceptions itself
        for _ in range(2):
            with contextlib.suppress(AllFailedError):
                if kind == "sync":
                    call()
                else:
                    await call_async()
        assert [event.name for event in heard].count("attempt_failed") == 4
        heard.clear()
        assert [each() for each in seen] == [None] * 4

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_events_of_many_threads_are_all_delivered(heard: list[Any]) -> None:
    bound = Policy(retry={"retries": 1, "min_delay": 0}).apply(lambda number: number)

    def work() -> None:
        for number in range(200):
            bound(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(heard) == ["call_succeeded"] * 1600
