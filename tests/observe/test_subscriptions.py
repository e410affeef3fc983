"""Subscriptions: which handlers receive an event, and that none of them harms a call."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from opero import Policy, Registry, on, opero
from opero.events import (
    EVENTS,
    AttemptFailed,
    CallSucceeded,
    CircuitChanged,
    CircuitForced,
    Event,
    RetryScheduled,
    Waited,
    watched,
)
from opero.observe import subscriptions
from opero.observe.subscriptions import SLOW, deliver, emit, join_slow_handlers

WITHIN = 30.0


@pytest.fixture
def listen() -> Any:
    """`on`, undone at the end."""
    offs: list[Callable[[], None]] = []

    def subscribe(*args: Any, **kwargs: Any) -> Callable[[], None]:
        offs.append(on(*args, **kwargs))
        return offs[-1]

    yield subscribe
    for off in offs:
        off()


def waited(function: str = "", policy: str = "", seconds: float = 1.0) -> Waited:
    return Waited(function=function, policy=policy, what="rate_limit", seconds=seconds)


# Which events


@pytest.mark.parametrize("event", [Waited, "waited", "*", Event])
def test_an_event_is_found_by_class_name_base_or_all(listen: Any, event: Any) -> None:
    seen: list[Event] = []
    listen(event, seen.append)
    one = waited()
    deliver(one)
    emit(RetryScheduled, attempt=2, delay=0.0, is_asked=False, error=ValueError())
    assert seen[0] is one
    assert len(seen) == (1 if event in (Waited, "waited") else 2)


def test_a_base_class_stands_for_its_classes(listen: Any) -> None:
    seen: list[CircuitChanged] = []
    listen(CircuitChanged, seen.append)
    emit(CircuitForced, breaker="b", before="closed", state="forced_open")
    deliver(waited())
    assert [event.name for event in seen] == ["circuit_forced"]


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"policy": "api"}, [0]),
        ({"policy": "api*"}, [0, 1]),
        ({"policy": ""}, [3]),
        ({"function": "app.users:*"}, [0, 2]),
        ({"function": "app.users:get"}, [0]),
        ({"policy": "db", "function": "app.*"}, [2]),
        ({"policy": "db", "function": "lib:*"}, []),
    ],
)
def test_events_are_selected_by_policy_and_function(listen: Any, filters: Any, numbers: list[int]) -> None:
    seen: list[Waited] = []
    listen("waited", seen.append, **filters)
    origins = [("app.users:get", "api"), ("lib:get", "api-v2"), ("app.users:put", "db"), ("app.main:run", "")]
    for number, (function, policy) in enumerate(origins):
        deliver(waited(function, policy, number))
    assert [event.seconds for event in seen] == numbers


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("retry_schedule", "unknown event 'retry_schedule'; did you mean 'retry_scheduled'"),
        ("RetryScheduled", "unknown event 'RetryScheduled'; did you mean 'retry_scheduled'"),
        ("cache_unavailable", "unknown event 'cache_unavailable'"),
        (ValueError, "unknown event 'ValueError'"),
        (3, "unknown event '3'"),
    ],
)
def test_an_unknown_event_is_refused_with_the_nearest_name(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on(given, print)


def test_what_is_no_handler_or_pattern_is_refused() -> None:
    with pytest.raises(TypeError, match="expects a handler that can be called, not a value of type str"):
        on("waited", "handler")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="expects policy to be a name or pattern, not a value of type Policy"):
        on("waited", print, policy=Policy())  # type: ignore[call-overload]


def test_unsubscribing_ends_one_subscription_and_may_be_repeated() -> None:
    gc.collect()  # functions of earlier tests may have hooks
    seen: list[Event] = []
    offs = [on("*", seen.append), on(CallSucceeded, seen.append)]
    assert watched.calls
    offs[0]()
    offs[0]()
    assert watched.calls
    deliver(waited())
    deliver(CallSucceeded(seconds=1.0))
    assert len(seen) == 1
    offs[1]()
    assert not watched.calls
    assert not watched.hits
    assert all(not event.handlers for event in EVENTS.values())


def test_handlers_may_subscribe_and_unsubscribe_while_they_are_called(listen: Any) -> None:
    seen: list[str] = []

    def once(event: Event) -> None:
        seen.append("once")
        off()
        listen(Waited, lambda event: seen.append("later"))

    off = listen(Waited, once)
    listen(Waited, lambda event: seen.append("always"))
    deliver(waited())
    deliver(waited())
    assert seen == ["once", "always", "always", "later"]


def test_subscriptions_of_many_threads_are_all_kept(listen: Any) -> None:
    seen: list[Event] = []
    begin = threading.Barrier(8)

    def subscribe() -> None:
        begin.wait()
        for _ in range(50):
            listen(Waited, seen.append)

    threads = [threading.Thread(target=subscribe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver(waited())
    assert len(seen) == 400


# What handlers do


def test_a_handler_that_raises_is_logged_once_and_harms_neither_call_nor_other_handlers(
    listen: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError("mine")

    seen: list[Event] = []
    listen(CallSucceeded, broken)
    listen(CallSucceeded, seen.append)
    bound = Policy().apply(lambda: 1)
    assert [bound() for _ in range(3)] == [1, 1, 1]
    assert len(seen) == 3
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "test_subscriptions" in record.getMessage()
    assert record.getMessage().endswith("broken of the event call_succeeded failed")
    assert record.exc_info
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_a_handler_does_not_receive_events_that_it_causes(listen: Any) -> None:
    seen: list[tuple[str, str]] = []

    @opero(retries=0)
    def send(text: str) -> str:
        return text

    def alert(event: Event) -> None:
        seen.append(("alert", event.function.rpartition(".")[2]))
        send(event.name)

    listen(CallSucceeded, alert)
    listen(CallSucceeded, lambda event: seen.append(("other", event.function.rpartition(".")[2])))
    send("once")
    assert seen == [("alert", "send"), ("other", "send"), ("other", "send")]


def test_an_async_handler_does_not_receive_events_that_it_causes(listen: Any) -> None:
    seen: list[str] = []

    @opero(retries=0)
    async def send(text: str) -> str:
        return text

    async def alert(event: Event) -> None:
        seen.append(event.name)
        await send(event.name)

    listen(CallSucceeded, alert)

    async def main() -> None:
        await send("once")
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == ["call_succeeded"]


def test_a_slow_handler_moves_to_a_thread_and_is_logged_once(listen: Any, caplog: pytest.LogCaptureFixture) -> None:
    threads: list[str] = []
    release = threading.Event()

    def slow(event: Waited) -> None:
        threads.append(threading.current_thread().name)
        if event.seconds == 0:
            time.sleep(2 * SLOW)  # being slow is the subject
        else:
            assert release.wait(WITHIN)

    listen(Waited, slow)
    deliver(waited(seconds=0))
    for _ in range(3):
        deliver(waited())  # would block here
    release.set()
    join_slow_handlers(WITHIN)
    assert threads == [threading.current_thread().name, *["opero-events"] * 3]
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "slow of the event waited takes longer than 50 ms; from now on it is called in another thread"
    )


def moved(handler: Callable[[Any], object]) -> subscriptions.Subscription:
    """The subscription of a handler, moved to the thread for slow ones."""
    one = next(each for each in Waited.handlers if each.handler is handler)
    one.is_slow = True
    return one


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_the_thread_survives_whatever_a_handler_raises(
    listen: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []

    def broken(event: Waited) -> None:
        seen.append(event.seconds)
        raise error

    listen(Waited, broken)
    moved(broken)
    for number in range(3):
        deliver(waited(seconds=number))
    join_slow_handlers(WITHIN)
    assert seen == [0, 1, 2]
    assert len([record for record in caplog.records if "failed" in record.getMessage()]) == 1


def test_events_that_too_many_wait_before_are_dropped_and_that_is_logged_once(
    listen: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MOST_WAITING", 5)
    monkeypatch.setattr(subscriptions, "_slow", slow := subscriptions._SlowHandlers())
    seen: list[float] = []
    begun, release = threading.Event(), threading.Event()

    def blocked(event: Waited) -> None:
        seen.append(event.seconds)
        begun.set()
        assert release.wait(WITHIN)

    slow._waiting.maxsize = 5
    listen(Waited, blocked)
    moved(blocked)
    deliver(waited(seconds=0))
    assert begun.wait(WITHIN)
    for number in range(1, 10):
        deliver(waited(seconds=number))
    release.set()
    slow.join(WITHIN)
    assert seen == [0, 1, 2, 3, 4, 5]
    (record,) = caplog.records
    assert "5 events wait, and others are dropped" in record.getMessage()


def test_the_thread_keeps_no_event_once_it_is_handled(listen: Any) -> None:
    class Error(Exception):
        pass

    def ignore(event: Event) -> None:
        pass

    listen(AttemptFailed, ignore)
    one = next(each for each in AttemptFailed.handlers if each.handler is ignore)
    one.is_slow = True
    emit(AttemptFailed, error=Error(), kind="unknown")
    join_slow_handlers(WITHIN)
    until = time.monotonic() + WITHIN
    while left := [each for each in gc.get_objects() if type(each) is Error]:
        assert time.monotonic() < until, left
        del left
        time.sleep(0.01)  # the thread tells that it is done before it lets go


# Async handlers


class Handler:
    """An async handler, as an object."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    async def __call__(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.seen.append((threading.current_thread().name, asyncio.get_running_loop()))


def test_an_async_handler_is_awaited_by_the_running_loop(listen: Any) -> None:
    handler = Handler()
    listen(CallSucceeded, handler)

    @opero(retries=0)
    async def get() -> int:
        return 1

    async def main() -> Any:
        assert await get() == 1
        while not handler.seen:
            await asyncio.sleep(0)
        return asyncio.get_running_loop()

    loop = asyncio.run(main())
    assert handler.seen == [(threading.current_thread().name, loop)]


def test_an_async_handler_is_awaited_in_a_thread_where_no_loop_runs_and_always_by_the_same_loop(listen: Any) -> None:
    handler = Handler()
    listen(CallSucceeded, handler)
    bound = Policy().apply(lambda: 1)
    bound()
    bound()
    join_slow_handlers(WITHIN)
    assert [name for name, _ in handler.seen] == ["opero-events"] * 2
    assert handler.seen[0][1] is handler.seen[1][1]


def test_methods_and_partial_functions_are_recognized_as_async(listen: Any) -> None:
    handler, seen = Handler(), []

    async def note(where: list[str], event: Event) -> None:
        where.append(event.name)

    listen(Waited, handler.__call__)
    listen(Waited, functools.partial(note, seen))
    deliver(waited())
    join_slow_handlers(WITHIN)
    assert (len(handler.seen), seen) == (1, ["waited"])


def test_a_handler_that_returns_a_coroutine_is_reported_once(listen: Any, caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler()

    def alert(event: Event) -> Any:
        return handler(event)

    listen(Waited, alert)
    deliver(waited())
    deliver(waited())
    assert handler.seen == []
    (record,) = caplog.records
    assert "returned a coroutine, which is not awaited" in record.getMessage()


@pytest.mark.parametrize("in_loop", [True, False])
def test_an_async_handler_that_raises_is_logged_once(
    listen: Any, caplog: pytest.LogCaptureFixture, in_loop: bool
) -> None:
    async def broken(event: Event) -> None:
        raise ZeroDivisionError

    listen(Waited, broken)

    async def main() -> None:
        for _ in range(3):
            deliver(waited())
        while subscriptions._tasks:
            await asyncio.sleep(0)

    if in_loop:
        asyncio.run(main())
    else:
        for _ in range(3):
            deliver(waited())
        join_slow_handlers(WITHIN)
    (record,) = caplog.records
    assert "broken of the event waited failed" in record.getMessage()


def test_tasks_of_a_slow_async_handler_are_limited(
    listen: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "MOST_WAITING", 5)
    seen: list[float] = []

    async def main() -> None:
        release = asyncio.Event()

        async def blocked(event: Waited) -> None:
            await release.wait()
            seen.append(event.seconds)

        listen(Waited, blocked)
        for number in range(10):
            deliver(waited(seconds=number))
        release.set()
        while subscriptions._tasks:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 1


# Processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_the_handlers_and_a_thread_of_its_own(listen: Any) -> None:
    threads: list[int] = []
    ready = threading.Event()

    def note(event: Event) -> None:
        threads.append(os.getpid())
        ready.set()

    listen(Waited, note)
    moved(note)
    deliver(waited())
    join_slow_handlers(WITHIN)
    ready.clear()
    child = os.fork()
    if not child:
        deliver(waited())
        os._exit(0 if ready.wait(WITHIN) and threads[1:] == [os.getpid()] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    deliver(waited())
    join_slow_handlers(WITHIN)
    assert threads == [os.getpid()] * 2


@pytest.mark.parametrize("handler", ["def alert(event):", "async def alert(event):"])
def test_the_end_of_the_program_waits_for_slow_handlers(handler: str) -> None:
    code = f"""
import time
from opero import Policy, on
from opero.events import CallFailed
{handler}
    time.sleep(0.2)
    print("alert", event.name, flush=True)
on(CallFailed, alert)
CallFailed.handlers[0].is_slow = True
def fail():
    raise ConnectionError
Policy().apply(fail)()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "alert call_failed\n"
    assert done.returncode == 1


def test_the_effective_profile_is_named_also_after_a_reload(tmp_path: Any, listen: Any) -> None:
    profiles = "policies: {one: {circuit_breaker: 5}, two: {circuit_breaker: 5}}"
    (tmp_path / "base.yaml").write_text(f"{profiles}\nfunctions: {{'{__name__}:*': {{policy: one}}}}\n")
    registry = Registry.load(tmp_path, environ={})
    seen: list[str] = []
    listen(CallSucceeded, lambda event: seen.append(event.policy))

    @opero(registry=registry)
    def get() -> int:
        return 1

    get()
    get()
    (tmp_path / "base.yaml").write_text(f"{profiles}\nfunctions: {{'{__name__}:*': {{policy: two}}}}\n")
    registry.reload()
    get()
    assert seen == ["one", "one", "two"]
    breaker: Any = get.binding.circuit_breaker  # type: ignore[attr-defined]
    assert breaker is registry.bind(lambda: 1, "two").binding.circuit_breaker
    assert breaker.name == "two"
