"""Receipts: what a trace records of calls, how it reads, and that no call is different for it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from opero import (
    AllFailedError,
    CallReceipt,
    CircuitOpenError,
    ConfigError,
    Policy,
    Receipt,
    Registry,
    attach_receipts,
    on,
    opero,
    opmap,
    trace,
)
from opero.events import EVENTS, AttemptFailed
from opero.observe.timeline import timeline
from opero.observe.tracing import recording
from opero.testing import VirtualClock, faults, no_waits, slow, status, virtual_clock


def steps(receipt: Any) -> list[str]:
    """The events of a receipt, and its calls by the names of their functions."""
    return [each.function if isinstance(each, CallReceipt) else each.event for each in receipt.steps]


def fails(call: Callable[..., Any], *args: Any) -> Any:
    try:
        call(*args)
    except Exception as error:  # whatever it is
        return error
    raise AssertionError("it did not fail")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert (recording.traces, recording.always) == (0, bool(os.environ.get("OPERO_RECEIPTS")))


# What is recorded


def test_a_retried_call_has_its_attempts_and_delays_with_times(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retries": 2, "min_delay": 2, "backoff_factor": 2, "jitter": False})
    call = bind(policy, script(ConnectionError("reset"), TimeoutError("late"), 3))
    before = time.time()
    with trace() as receipt:
        assert call() == 3
    (made,) = receipt.calls
    assert (made.outcome, made.error, made.function) == ("succeeded", None, bind.bound.stats.function)
    assert steps(made) == ["attempt_failed", "retry_scheduled"] * 2
    failed, scheduled, again, _ = made.steps
    assert failed.details["error"] == {"type": "ConnectionError", "message": "reset"}
    assert (failed.details["kind"], failed.details["status"]) == ("transient", None)
    assert failed.details["seconds"] >= 0
    assert scheduled.details == {"attempt": 2, "delay": 2.0, "is_asked": False}
    assert again.details["error"]["message"] == "late"
    assert made.attempts == (failed, again)
    times = [receipt.time, made.time, *(each.time for each in made.steps)]
    assert times == sorted(times)
    assert before - 1 <= receipt.time <= times[-1] <= time.time() + 1
    assert 0 <= made.seconds <= receipt.seconds


def test_times_are_those_of_the_clock_of_the_test_kit() -> None:
    @opero(retries=2, min_delay=10, backoff_factor=1, jitter=False)
    def call() -> None:
        raise ConnectionError("reset")

    with virtual_clock(), trace() as receipt:
        fails(call)
    made = receipt.calls[0].as_dict()
    assert [round(step["at"]) for step in made["steps"]] == [0, 0, 10, 10, 20]
    assert round(made["seconds"]) == 20


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, ["attempt_failed"]),
        ({"retry": 0}, ["attempt_failed"]),
        ({"cache": True}, ["cache_miss", "attempt_failed"]),
        ({"fallback": {"default": 0}}, ["attempt_failed", "fallback_used"]),
        ({"circuit_breaker": {"consecutive_failures": 1}}, ["circuit_opened", "attempt_failed"]),
        ({"timeout": {"total": "1h"}, "retry": 1}, ["attempt_failed", "retry_scheduled", "attempt_failed"]),
    ],
)
def test_every_decision_is_a_step_from_the_first_call_on(bind: Any, policy: Any, expected: list[str]) -> None:
    def fail() -> None:
        raise ConnectionError("reset")

    with trace() as receipt, contextlib.suppress(Exception):
        bind(Policy(**policy), fail)()
    (made,) = receipt.calls
    assert sorted(steps(made)) == sorted(expected)
    assert made.outcome == ("succeeded" if "fallback" in policy else "failed")


def test_waits_rejections_and_cache_hits_are_steps(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": "1/s", "burst": 1, "max_wait": "1s"}, cache=True), lambda number: number)
    with trace() as receipt:
        call(1)
        call(1)
        call(2)
        assert bind.bound.binding.clock is bind.clock
    assert [steps(each) for each in receipt.calls] == [["cache_miss"], ["cache_hit"], ["cache_miss", "waited"]]
    assert receipt.calls[2].steps[1].details == {"what": "rate_limit", "seconds": 1.0}
    breaker = bind(Policy(circuit_breaker={"consecutive_failures": 1}), lambda: 1 / 0)
    bind.bound.binding.circuit_breaker.force_open()
    with trace() as receipt:
        error = fails(breaker)
    assert isinstance(error, CircuitOpenError)
    assert steps(receipt.calls[0]) == ["rejected"]
    assert receipt.calls[0].steps[0].details["by"] == "circuit_breaker"


def test_a_failed_response_is_a_failed_call(bind: Any) -> None:
    call = bind(Policy(retry=0), lambda: status(503))
    call()
    with trace() as receipt:
        assert call().status_code == 503
    (made,) = receipt.calls
    assert (made.outcome, made.error["kind"], made.steps[0].details["status"]) == ("failed", "transient", 503)


def test_a_call_names_its_profile_and_the_version_of_the_configuration() -> None:
    registry = Registry({"api": Policy(retry=1)})
    call = registry.bind(lambda: 1, "api")
    before = registry.stats()["configuration"]["version"]
    with trace() as receipt:
        call()
        with registry.override(api={"retry": 2}):
            call()
            during = registry.stats()["configuration"]["version"]
        Policy(retry=1).apply(lambda: 1)()
    assert [each.policy for each in receipt.calls] == ["api", "api", ""]
    assert [each.configuration for each in receipt.calls] == [before, during, ""]
    assert before != during
    assert f", configuration {' and '.join(sorted([before, during]))}: 3 calls in " in str(receipt)
    assert pickle.loads(pickle.dumps(receipt)).as_dict() == receipt.as_dict()


# Which call it belongs to


@opero(retries=0)
def inner(number: int) -> int:
    return 10 // number


def test_calls_within_calls_are_nested(bind: Any) -> None:
    def outer(number: int) -> int:
        return inner(number) + inner(1)

    call = bind(Policy(retry={"retries": 1, "min_delay": 0}), outer)
    name = inner.stats.function
    with trace() as receipt:
        assert call(2) == 15
        error = fails(call, 0)
    first, second = receipt.calls
    assert steps(first) == [name, name]
    assert steps(second) == [name, "attempt_failed", "retry_scheduled", name, "attempt_failed"]
    assert [each.outcome for each in second.calls] == ["failed", "failed"]
    assert error.receipt is second
    assert error.errors[-1].receipt is second.calls[-1]  # the call that it came out of last


def test_recursion_is_nested() -> None:
    @opero(retries=1, min_delay=0)
    def down(number: int) -> int:
        return 0 if number == 0 else down(number - 1)

    with trace() as receipt:
        down(3)
    depth, made = 0, receipt
    while made.calls:
        (made,) = made.calls  # type: ignore[assignment]
        depth += 1
    assert depth == 4


def test_tasks_and_their_calls_are_kept_apart() -> None:
    @opero
    async def leaf(name: str) -> None:
        await asyncio.sleep(0)

    @opero(retries=0)
    async def branch(name: str) -> None:
        await asyncio.gather(leaf(name), leaf(name))

    async def main() -> Receipt:
        with trace() as receipt:
            await asyncio.gather(branch("a"), branch("b"))
        await branch("c")
        return receipt

    receipt = asyncio.run(main())
    assert [steps(each) for each in receipt.calls] == [[leaf.stats.function] * 2] * 2


def test_threads_belong_to_it_if_they_inherit_the_context() -> None:
    @opero(timeout=60)
    def limited() -> int:
        return inner(1)

    def elsewhere() -> None:
        thread = threading.Thread(target=limited)  # which has a context of its own
        thread.start()
        thread.join()

    with trace() as receipt:
        asyncio.run(asyncio.to_thread(limited))  # in a helper thread, as signals are for the main thread
        elsewhere()
    assert [steps(each) for each in receipt.calls] == [[inner.stats.function]]


def test_what_others_do_meanwhile_is_not_in_it() -> None:
    go, done = threading.Event(), threading.Event()

    def others() -> None:
        go.wait(60)
        fails(inner, 0)
        done.set()

    thread = threading.Thread(target=others)
    thread.start()
    with trace() as receipt:
        go.set()
        assert done.wait(60)
    thread.join()
    assert receipt.steps == []


def test_a_trace_within_a_trace_belongs_to_both() -> None:
    with trace() as outside:
        inner(1)
        with trace() as inside:
            inner(2)
        inner(5)
    assert len(inside.calls) == 1
    assert len(outside.calls) == 3
    assert outside.calls[1] is inside.calls[0]


def test_a_task_that_outlives_its_trace_goes_on_in_the_one_around_it() -> None:
    async def main() -> tuple[Receipt, Receipt]:
        event = asyncio.Event()

        async def later() -> None:
            await event.wait()
            inner(1)

        with trace() as outside:
            with trace() as inside:
                task = asyncio.ensure_future(later())
                await asyncio.sleep(0)
            event.set()
            await task
        return outside, inside

    outside, inside = asyncio.run(main())
    assert (len(outside.calls), len(inside.calls)) == (1, 0)


def test_nothing_is_added_after_the_end() -> None:
    async def main() -> Receipt:
        event = asyncio.Event()

        @opero(retries=1, min_delay=0)
        async def wait() -> None:
            await event.wait()
            raise ConnectionError

        with trace() as receipt:
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
        with trace():  # others are recorded meanwhile
            event.set()
            with contextlib.suppress(AllFailedError):
                await task
        return receipt

    receipt = asyncio.run(main())
    assert (steps(receipt.calls[0]), receipt.calls[0].seconds) == ([], None)


def test_generators_belong_to_it_to_their_end() -> None:
    @opero(retries=0, failures={"denied": [KeyError]})
    def items() -> Iterator[int]:
        yield inner(1)
        yield inner(2)
        raise KeyError("k")

    with trace() as receipt:
        error = fails(lambda: list(items()))
    (made,) = receipt.calls
    assert steps(made) == [inner.stats.function] * 2 + ["attempt_failed"]
    assert (made.outcome, made.error["kind"], error.receipt) == ("failed", "denied", made)  # type: ignore[index]
    with trace() as receipt:
        for _ in items():
            break
    assert (receipt.calls[0].outcome, steps(receipt)) == ("succeeded", [items.stats.function])


@pytest.mark.parametrize("timeout", [{}, {"idle": 60}])
def test_async_generators_belong_to_it_to_their_end(timeout: Any) -> None:
    @opero(retries=0, **({"timeout": timeout} if timeout else {}))
    async def items() -> AsyncIterator[int]:
        yield inner(1)
        await asyncio.sleep(0)
        yield inner(2)
        raise ConnectionError

    async def read() -> None:
        async for _ in items():
            inner(5)

    with trace() as receipt, contextlib.suppress(ConnectionError):
        asyncio.run(read())
    name = inner.stats.function
    assert steps(receipt) == [items.stats.function, name, name]
    assert steps(receipt.calls[0]) == [name, name, "attempt_failed"]


@pytest.mark.parametrize("idle", [None, 60])
def test_a_followed_generator_receives_what_is_sent_and_closed(idle: int | None) -> None:
    closed = []

    @opero(retries=0, **({} if idle is None else {"timeout": {"idle": idle}}))
    def echo() -> Iterator[Any]:
        try:
            got = yield 0
            while True:
                got = yield got
        finally:
            closed.append(True)

    with trace():
        stream: Any = echo()
        assert [next(stream), stream.send(1), stream.send(2)] == [0, 1, 2]
        stream.close()
    assert closed == [True]


def test_methods_are_recorded() -> None:
    class Client:
        @opero(retries=0)
        def get(self) -> int:
            return 1

    with trace() as receipt:
        assert Client().get() == 1
    assert receipt.calls[0].function == Client.get.stats.function


@opmap(mode="thread", workers=2, retries=1, min_delay=0)
def mapped(number: int) -> int:
    return inner(number)


@opmap(mode="process", workers=1, retries=1, min_delay=0)
def mapped_in_processes(number: int) -> Any:
    with trace() as receipt:
        result = inner(number)
    return len(receipt.calls), result


def test_items_of_a_map_in_threads_are_calls() -> None:
    with trace() as receipt:
        assert sorted(mapped([1, 2, 5])) == [2, 5, 10]
    assert [steps(each) for each in receipt.calls] == [[inner.stats.function]] * 3
    others = [each.event for each in receipt.steps if not isinstance(each, CallReceipt)]
    assert (others[0], others[-1]) == ("map_started", "map_finished")


def test_worker_processes_report_failures_and_may_trace_themselves() -> None:
    with trace() as receipt:
        assert mapped_in_processes([1, 2]) == [(1, 10), (1, 5)]
        error = fails(mapped_in_processes, [0])
    assert receipt.calls == ()
    assert {"attempt_failed", "retry_scheduled", "map_item_failed"} <= set(steps(receipt))
    named = {each.function for each in receipt.steps if each.event == "attempt_failed"}
    assert mapped_in_processes.stats.function in named
    assert isinstance(error, ExceptionGroup)


# What it says


def test_what_happens_after_the_end_of_a_call_is_told_after_it() -> None:
    step = {"event": "cache_refreshed", "time": 12.0, "at": 2.0}
    call = {
        "event": "call",
        "function": "app:f",
        "policy": "",
        "configuration": "",
        "outcome": "succeeded",
        "error": None,
    }
    call |= {"time": 10.0, "at": 0.0, "seconds": 1.0, "steps": [{**step, "event": "cache_stale", "at": 0.5}, step]}
    assert timeline(call).splitlines() == [
        "1970-01-01 00:00:10.000 UTC",
        "    0.000  app:f",
        "    0.500    cache: answered with an old result",
        "    1.000    succeeded after 1.00 s",
        "    2.000    cache: refreshed in the background",
    ]


def test_its_text_is_a_timeline(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retries": 2, "min_delay": 2, "backoff_factor": 2, "jitter": False}, cache=True)
    call = bind(policy, script(ConnectionError("re\nset"), status(503, retry_after=3), 3))
    with trace() as receipt:
        call()
    lines = str(receipt).splitlines()
    assert ": 1 call in " in lines[0]
    texts = [line[11:] for line in lines[1:]]
    assert texts[0] == bind.bound.stats.function
    assert texts[1] == "  cache: miss"
    assert texts[2].startswith("  attempt 1 failed after ")
    assert texts[2].endswith(": transient: ConnectionError: re set")
    assert texts[3] == "  round 2 in 2.00 s (backoff)"
    assert (
        texts[4]
        .partition(": ")[2]
        .startswith("throttled (HTTP 503 with Retry-After), asks to wait 3.00 s: FailedResponseError: ")
    )
    assert texts[5] == "  round 3 in 3.00 s (as the failure asks)"
    assert texts[6].startswith("  succeeded after ")


def test_every_event_has_a_text() -> None:
    from opero import events
    from opero.failures import Kind
    from opero.values import Progress

    error = ConnectionError("reset")
    progress = Progress(name="f", done=3, total=4, failures=1, retries=0, cache_hits=0, seconds=1.0)
    common = {"function": "app:f", "policy": "api"}
    circuit = {"breaker": "api", "before": "closed", "state": "open", "reason": "E"}
    value = {"argument": "key", "position": 0, "hash": "ab"}
    values: dict[type[Any], dict[str, Any]] = {
        events.CallFailed: {"error": error, "kind": Kind.TRANSIENT, "seconds": 1.0},
        events.AttemptFailed: {"error": error, "kind": Kind.TRANSIENT},
        events.RetryScheduled: {"attempt": 2, "delay": 1.0, "is_asked": True, "error": error},
        events.HedgeStarted: {"attempt": 2, "delay": 0.2},
        events.FallbackUsed: {"what": "default", "error": error},
        events.ValueSetAside: {**value, "kind": Kind.DENIED, "seconds": 1.0},
        events.ValueRestored: value,
        events.Waited: {"what": "bulkhead", "seconds": 0.5},
        events.Rejected: {"by": "rate_limit", "retry_in": 1.5, "error": error},
        events.TimedOut: {"scope": "total", "error": error},
        events.RateLimitPaused: {"limit": "api", "seconds": 1.5, "reason": "HTTP 429"},
        events.RateLimitAdapted: {"limit": "api", "before": 10.0, "rate": 7.5},
        events.Shadowed: {"by": "rate_limit", "would": "delay", "seconds": 0.5, "message": "m"},
        events.LimitChanged: {"what": "bulkhead", "before": 4, "after": 8},
        events.CircuitOpened: circuit,
        events.CircuitHalfOpened: circuit,
        events.CircuitClosed: circuit,
        events.CircuitForced: circuit,
        events.CacheFailed: {"cache": "c", "what": "unavailable", "message": "m", "error": error},
        events.CacheRestored: {"cache": "c", "message": "m", "skipped": 3},
        events.StoreFailed: {"store": "s", "message": "m", "error": error},
        events.StoreRestored: {"store": "s", "message": "m", "skipped": 3},
        events.AlertFired: {"alert": "a", "message": "m"},
        events.AlertResolved: {"alert": "a", "message": "m"},
        events.ConfigurationReloaded: {"changes": ("api.retry.retries: 4 → 6",)},
        events.ConfigurationRejected: {"error": error},
        events.MapStarted: {"mode": "thread", "total": None},
        events.MapItemFailed: {"index": 3, "error": error},
        events.MapWorkerLost: {"error": error},
        events.MapFinished: {"progress": progress, "error": error},
    }
    skipped = (events.CallSucceeded, events.MapProgressed)
    with trace() as receipt:
        from opero.observe.subscriptions import emit

        for each in EVENTS.values():
            emit(each, **common, **(values.get(each, {}) if each not in skipped else {"seconds": 1.0, "progress": 0}))
    lines = str(receipt).splitlines()[1:]
    assert len(lines) == len(receipt.steps) == len(EVENTS) - len(skipped)
    assert all("app:f: " in line for line in lines)
    assert "app:f: waited 500 ms for a slot of the bulkhead" in "".join(lines)
    assert "app:f: rate limit api: paused for 1.50 s, as the service asks (HTTP 429)" in "".join(lines)
    assert "app:f: rate limit api: 10/s → 7.5/s" in "".join(lines)
    assert "app:f: in shadow: the rate limit would delay (500 ms): m" in "".join(lines)
    assert "app:f: map finished, 3 items done, 1 failed: ConnectionError: reset" in "".join(lines)
    assert "{" not in str(receipt)


def test_it_is_json_without_arguments_results_and_passwords(bind: Any) -> None:
    def connect(secret: str) -> str:
        raise ConnectionError(f"redis://user:hunter2@host/0 is\ndown {'x' * 1000}")

    call = bind(Policy(retry={"retries": 1, "min_delay": 0}), connect)
    with trace() as receipt:
        fails(call, "argument-of-the-call")
    text = receipt.as_json()
    assert json.loads(text) == json.loads(json.dumps(receipt.as_dict()))
    for secret in ("hunter2", "argument-of-the-call"):
        assert secret not in text
        assert secret not in str(receipt)
    (made,) = receipt.as_dict()["steps"]
    message = made["steps"][0]["error"]["message"]
    assert message.startswith("redis://**********@host/0 is down xxx")
    assert len(message) == 300


def test_an_exception_without_a_text_harms_nothing(bind: Any) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise BrokenError

    call = bind(Policy(), fail)
    with trace() as receipt:
        assert isinstance(fails(call), BrokenError)
    assert receipt.calls[0].error == {"type": "BrokenError", "message": "<unprintable BrokenError>", "kind": "unknown"}


def test_what_is_under_way_reads_as_such() -> None:
    seen: list[str] = []

    @opero
    def look() -> None:
        seen.append(str(receipt))

    with trace() as receipt:
        look()
    assert ": 1 call so far" in seen[0]
    assert "after" not in seen[0]
    assert "succeeded after" in str(receipt)


def test_a_long_trace_is_cut_and_says_so() -> None:
    with trace(most=5) as receipt:
        for _ in range(20):
            inner(1)
        fails(inner, 0)
    assert (len(receipt.calls), receipt.omitted) == (5, 18)
    assert str(receipt).endswith("and 18 more that were not recorded")
    assert receipt.as_dict()["omitted"] == 18


@pytest.mark.parametrize("most", [0, -1, 1.5, "10", True, None])
def test_a_wrong_limit_is_refused(most: Any) -> None:
    with pytest.raises(ConfigError, match="most must be a whole number of at least 1"):
        trace(most=most)


def test_it_can_be_pickled_and_copied() -> None:
    with trace() as receipt:
        error = fails(opero(retries=1, min_delay=0)(inner.__wrapped__), 0)
        inner(1)
    for each in (pickle.loads(pickle.dumps(receipt)), copy.deepcopy(receipt)):
        assert each.as_dict() == receipt.as_dict()
    again = pickle.loads(pickle.dumps(error))
    assert again.receipt.as_dict() == error.receipt.as_dict()


# The receipt of an exception


def test_an_exception_has_the_receipt_of_the_outermost_call() -> None:
    @opero(retries=0)
    def outer() -> int:
        return inner(0)

    with trace() as receipt:
        error = fails(outer)
    assert error.receipt is receipt.calls[0]
    assert not hasattr(fails(outer), "receipt")
    assert fails(opero(retries=1, min_delay=0)(inner.__wrapped__), 0).receipt is None


def test_an_attribute_of_that_name_is_not_replaced() -> None:
    class PaidError(Exception):
        receipt = "of a class"

    class GivenError(Exception):
        pass

    @dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    def fail(error: Exception) -> None:
        raise error

    given = GivenError()
    given.receipt = None  # type: ignore[attr-defined]
    with trace():
        call = opero(retries=0)(fail)
        assert fails(call, PaidError()).receipt == "of a class"
        assert fails(call, given).receipt is None
        assert fails(call, FrozenError(1)).code == 1


def test_receipts_outside_of_traces_are_for_failures_only() -> None:
    call = opero(retries=1, min_delay=0)(inner.__wrapped__)
    attach_receipts()
    try:
        assert call(1) == 10
        error = fails(call, 0)
        assert steps(error.receipt) == ["attempt_failed", "retry_scheduled", "attempt_failed"]
        assert error.receipt.outcome == "failed"
    finally:
        attach_receipts(False)
    assert fails(call, 0).receipt is None
    with pytest.raises(ConfigError, match="True or False, got 'no'"):
        attach_receipts("no")  # type: ignore[arg-type]


def test_receipts_outside_of_traces_are_bounded_and_follow_generators() -> None:
    @opero(retries=0)
    def items() -> Iterator[int]:
        for number in range(2000):
            yield inner(number + 1)
        raise ConnectionError

    attach_receipts()
    try:
        error = fails(lambda: list(items()))
    finally:
        attach_receipts(False)
    assert (error.receipt.outcome, len(error.receipt.calls)) == ("failed", 1000)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)  # noqa: PLW1510


def test_a_variable_attaches_receipts_from_the_beginning() -> None:
    code = "import opero\n@opero.opero\ndef f(): 1/0\ntry: f()\nexcept Exception as error: print(error.receipt.outcome)"
    assert run(code, OPERO_RECEIPTS="True").stdout == "failed\n"
    wrong = run(code, OPERO_RECEIPTS="perhaps")
    assert "ConfigError: OPERO_RECEIPTS: 'perhaps' is invalid: use true or false" in wrong.stderr


PROCESSES = """
from opero import opmap

@opmap(mode="process", workers=1, retries=1, min_delay=0)
def invert(number):
    return 1 / number

if __name__ == "__main__":
    try:
        invert([0])
    except Exception as error:
        print(error.failures[0].exception.receipt.outcome, error.receipt)
"""


def test_exceptions_of_worker_processes_bring_their_receipts(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROCESSES)
    code = f"import runpy; runpy.run_path({str(tmp_path / 'app.py')!r}, run_name='__main__')"
    assert run(code, OPERO_RECEIPTS="1").stdout == "failed None\n"


# A trace changes nothing


def shape(error: BaseException) -> Any:
    """What a traceback shows, without line numbers and addresses of this test."""
    parts = [(frame.name, frame.filename) for frame in traceback.extract_tb(error.__traceback__)[1:]]
    causes = [each for each in (error.__cause__, error.__context__) if each is not None]
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return type(error), str(error), parts, [shape(each) for each in (*causes, *members)]


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"retry": {"retries": 1, "min_delay": 0}},
        {"timeout": 60, "retry": 0},
        {"cache": True},
        {"circuit_breaker": 5, "bulkhead": 3},
    ],
)
def test_exceptions_and_tracebacks_are_the_same(bind: Any, policy: Any) -> None:
    def fail() -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ConnectionError("reset") from error

    call = bind(Policy(**policy), fail)
    fails(call)
    without = shape(fails(call))
    with trace():
        within = shape(fails(call))
    assert within == without


def test_cancellations_pass_and_are_told() -> None:
    @opero(retries=3)
    async def wait() -> None:
        await asyncio.sleep(3600)

    async def main() -> Receipt:
        with trace() as receipt:
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        assert not hasattr(caught.value, "receipt")
        assert task.cancelled()
        return receipt

    (made,) = asyncio.run(main()).calls
    assert (made.outcome, made.error) == ("cancelled", {"type": "CancelledError", "message": ""})


def test_an_interruption_is_told() -> None:
    @opero(retries=3)
    def interrupted() -> None:
        raise KeyboardInterrupt

    with trace() as receipt, pytest.raises(KeyboardInterrupt):
        interrupted()
    assert receipt.calls[0].outcome == "cancelled"


def test_a_success_within_an_except_block_is_a_success() -> None:
    with trace() as receipt:
        try:
            raise ValueError
        except ValueError:
            inner(1)
    assert receipt.calls[0].outcome == "succeeded"


def test_nobody_listens_before_and_afterwards() -> None:
    def listened() -> list[str]:
        return [each.name for each in EVENTS.values() if each.handlers]

    before = listened()
    with trace(), trace():
        assert len(listened()) > 20
    assert listened() == before


def test_handlers_receive_what_they_did_before() -> None:
    events: list[Any] = []
    off = on("*", events.append)
    try:
        with trace() as receipt:
            inner(1)
            fails(inner, 0)
    finally:
        off()
    assert [each.name for each in events] == ["call_succeeded", "attempt_failed", "call_failed"]
    assert len(receipt.calls) == 2


def test_a_trace_may_end_in_another_context() -> None:
    def block() -> Iterator[Receipt]:
        with trace() as receipt:
            yield receipt

    stream = block()
    receipt = asyncio.run(asyncio.to_thread(next, stream))
    inner(1)
    assert next(stream, None) is None
    assert (receipt.calls, receipt.seconds is not None) == ((), True)


def test_exceptions_are_not_kept() -> None:
    import gc
    import weakref

    class BigError(Exception):
        pass

    @opero(retries=1, min_delay=0)
    def fail() -> None:
        raise BigError

    with trace() as receipt:
        error = fails(fail)
    gone = weakref.ref(error.errors[-1])
    del error
    gc.collect()
    assert gone() is None
    assert receipt.calls[0].error is not None


# How long an attempt took


def test_an_attempt_says_how_long_it_took_if_somebody_listens() -> None:
    call = opero(retries=2, min_delay=0)(inner.__wrapped__)
    call(1)
    heard: list[AttemptFailed] = []
    off = on(AttemptFailed, heard.append)
    try:
        fails(call, 0)
        assert [each.seconds is None for each in heard[1:]] == [False, False]  # the first is known if it is sampled
        heard.clear()
        also = on("call_failed", lambda event: None)
        try:
            fails(call, 0)
        finally:
            also()
        assert all(each.seconds is not None and 0 <= each.seconds < 60 for each in heard)
    finally:
        off()


def test_waits_are_no_part_of_an_attempt() -> None:
    @opero(rate_limit={"rate": "1/s", "burst": 1}, retries=1, min_delay=0)
    def fail() -> None:
        raise ConnectionError

    with no_waits(), faults(fail, [slow("2s"), ConnectionError]), trace() as receipt:
        fails(fail)
    times = [each.details["seconds"] for each in receipt.calls[0].attempts]
    assert all(0 <= each < 60 for each in times)


def test_under_a_virtual_clock_of_its_own_a_call_is_recorded_as_well() -> None:
    clock = VirtualClock()
    call = Policy(retry={"retries": 1, "min_delay": 30}).apply(lambda: 1 / 0, clock=clock)
    with trace() as receipt:
        fails(call)
    assert receipt.calls[0].steps[1].details["delay"] > 0
