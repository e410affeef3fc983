"""Timeouts of sync functions, in real time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from opero import CallTimeoutError, Policy, RejectedError
from opero.runtime import helper_threads, interruption
from opero.runtime.helper_threads import abandoned
from opero.runtime.interruption import Expired, Interruption
from opero.runtime.time_limits import run_within

pytestmark = pytest.mark.alone

SOON = 0.05
LONG = 5.0


def in_thread(function: Any) -> Any:
    """Run a function in another thread, and return its result or raise its exception."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LONG * 4)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def busy() -> None:
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize("function", [busy, lambda: time.sleep(LONG)])
def test_in_the_main_thread_the_function_is_interrupted(function: Any) -> None:
    started = time.monotonic()
    with pytest.raises(Expired):
        run_within(SOON, function)
    assert SOON <= time.monotonic() - started < LONG / 2


def test_a_function_that_ends_in_time_returns_or_raises_as_usual() -> None:
    for within in (run_within, lambda *args: in_thread(lambda: run_within(*args))):
        assert within(LONG, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            within(LONG, divmod, 1, 0)


def test_except_exception_does_not_catch_the_interruption_and_finally_runs() -> None:
    done = []

    def careless() -> None:
        try:
            time.sleep(LONG)
        except Exception:
            done.append("caught")
        finally:
            done.append("finally")

    with pytest.raises(Expired):
        run_within(SOON, careless)
    assert done == ["finally"]


def test_a_function_that_catches_the_interruption_has_still_timed_out() -> None:
    def stubborn() -> str:
        with contextlib.suppress(Interruption):
            time.sleep(LONG)
        return "late"

    with pytest.raises(Expired):
        run_within(SOON, stubborn)


class Swallowing:
    """Functions that swallow an interruption in different ways, and would go on for long."""

    def bare_except(self) -> None:
        for _ in range(3):
            try:
                time.sleep(LONG)
            except:  # noqa: E722
                time.sleep(0)

    def finally_that_returns(self) -> None:
        for _ in range(3):
            self._with_finally()

    def _with_finally(self) -> None:
        try:
            time.sleep(LONG)
        finally:
            return  # noqa: B012

    def callback_from_c(self) -> None:
        class Slow:
            def __del__(self) -> None:
                busy()

        Slow()  # what its finalizer raises is printed and lost
        busy()

    def callback_of_an_event_loop(self) -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        loop.call_soon(busy)
        loop.call_soon(busy)
        try:
            loop.run_forever()
        finally:
            loop.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "swallow", ["bare_except", "finally_that_returns", "callback_from_c", "callback_of_an_event_loop"]
)
def test_a_function_that_swallows_the_interruption_is_interrupted_again(swallow: str) -> None:
    started = time.monotonic()
    with pytest.raises(Expired):
        run_within(SOON, getattr(Swallowing(), swallow))
    assert time.monotonic() - started < LONG / 2


def test_the_handling_of_an_interruption_gets_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def orderly() -> None:
        try:
            time.sleep(LONG)
        finally:
            try:
                raise KeyError
            except KeyError:
                time.sleep(3 * interruption.AGAIN)
            done.append("cleaned up")

    with pytest.raises(Expired):
        run_within(SOON, orderly)
    assert done == ["cleaned up"]
    monkeypatch.setattr(interruption, "CLEANUP", SOON)
    with pytest.raises(Expired):
        run_within(SOON, orderly)
    assert done == ["cleaned up"]


def test_an_exception_that_the_interrupted_function_raises_instead_is_the_cause() -> None:
    def converts() -> None:
        try:
            time.sleep(LONG)
        except BaseException as error:
            raise KeyError("converted") from error

    with pytest.raises(Expired) as caught:
        run_within(SOON, converts)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(CallTimeoutError) as told:
        Policy(timeout=SOON).apply(converts)()
    assert isinstance(told.value.__cause__, KeyError)


def test_an_interruption_in_an_exception_group_is_found() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(LONG))
            group.create_task(spin())

    async def spin() -> None:
        busy()

    with pytest.raises(Expired):
        run_within(SOON, lambda: asyncio.run(main()))


def test_what_ends_the_program_is_not_converted() -> None:
    def exits() -> None:
        try:
            time.sleep(LONG)
        finally:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_within(SOON, exits)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_nothing_is_raised_once_the_function_has_returned() -> None:
    """Timeouts that expire about when the function ends: either way, nothing comes later."""
    before = signal.getsignal(signal.SIGALRM)
    outcomes = set()
    for number in range(300):
        seconds = 2e-4 + number * 1e-6

        def function(until: float) -> str:
            while time.monotonic() < until:
                pass
            return "returned"

        try:
            outcomes.add(run_within(seconds, function, time.monotonic() + 3.5e-4))
        except Expired:
            outcomes.add("expired")
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        for _ in range(20):
            pass
    assert outcomes == {"returned", "expired"}


def test_an_outer_timeout_leaves_no_slot_of_an_inner_function_taken() -> None:
    """The outer function is interrupted anywhere, also between taking a slot and giving it back."""
    policy = Policy(bulkhead=1, circuit_breaker=1000, rate_limit=1e6, timeout={"attempt": LONG})
    inner = policy.apply(lambda: None)
    bulkhead: Any = inner.binding.resolved().executors["bulkhead"]
    inner()

    def outer() -> None:
        while True:
            inner()

    for number in range(100):
        with pytest.raises(Expired):
            run_within(1e-3 + number * 1e-6, outer)
        assert bulkhead.running == 0


def hanging_handler(seconds: float, began: list[float]) -> logging.Handler:
    class Hanging(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            began.append(time.monotonic())
            time.sleep(seconds)

    return Hanging()


@pytest.mark.parametrize(("seconds", "is_put_off"), [(0.1, True), (LONG, False)])
def test_what_opero_calls_for_itself_is_interrupted_only_if_it_hangs(
    seconds: float, is_put_off: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The circuit breaker logs that it lets a probe through, when it has counted that."""
    began: list[float] = []
    handler = hanging_handler(seconds, began)
    bound: Any = Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 0.001}).apply(
        lambda error: error and 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        bound(True)
    time.sleep(0.01)
    logger = logging.getLogger("opero")
    caplog.set_level(logging.INFO, "opero")
    logger.addHandler(handler)
    try:
        with pytest.raises(Expired):
            run_within(SOON, lambda: bound(False) or time.sleep(LONG))
        ended = time.monotonic()
    finally:
        logger.removeHandler(handler)
    assert ended - began[0] >= (seconds if is_put_off else interruption.PATIENCE)
    assert ended - began[0] < LONG / 2
    assert bound(False) is False  # the probe has been given back, or has closed the circuit
    assert bound.binding.circuit_breaker.state == "closed"


def test_a_coroutine_that_a_bound_function_awaits_is_interrupted_at_once() -> None:
    interrupted_at: list[float] = []

    async def busily() -> None:
        try:
            busy()
        finally:
            interrupted_at.append(time.monotonic())

    bound = Policy(bulkhead=1, circuit_breaker=3).apply(busily)
    started = time.monotonic()
    with pytest.raises(Expired):
        run_within(SOON, asyncio.run, bound())
    assert interrupted_at[0] - started < LONG / 2
    assert bound.binding.pipeline.executors["bulkhead"].running == 0


@pytest.mark.parametrize(
    "scenarios",
    [["all, memory, sync", "bulkhead, sync"], ["all, memory, async"], ["stale, memory", "queue", "breaker, sync"]],
    ids=lambda names: names[0],
)
def test_a_call_that_is_interrupted_at_any_point_leaves_nothing_taken(scenarios: list[str]) -> None:
    """`python -m tests.chaos.interrupts` does so for every kind of policy, reloads and maps."""
    command = [sys.executable, "-m", "tests.chaos.interrupts", "--step", "2", *scenarios]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=root)
    assert re.fullmatch(r"interrupts: \d+ points, 0 lost\n", done.stdout), done.stdout + done.stderr


def test_a_handler_that_the_function_installs_to_stay_stays() -> None:
    before = signal.getsignal(signal.SIGALRM)

    def handler(*_: object) -> None: ...

    try:
        run_within(LONG, signal.signal, signal.SIGALRM, handler)
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_timeout_inside_an_alarm_of_the_functions_own() -> None:
    """The function of a timeout sets an alarm of its own, under which another timeout runs."""
    rung: list[float] = []

    def function() -> None:
        mine = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
        signal.setitimer(signal.ITIMER_REAL, 3 * SOON)
        try:
            with pytest.raises(Expired):
                run_within(SOON, time.sleep, LONG)
            time.sleep(4 * SOON)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, mine)

    run_within(LONG, function)
    assert len(rung) == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_repeating_timer_of_the_program_goes_on() -> None:
    rung: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        with pytest.raises(Expired):
            run_within(0.15, time.sleep, LONG)
        during = len(rung)
        assert during >= 3
        until = time.monotonic() + LONG
        while len(rung) <= during and time.monotonic() < until:
            time.sleep(0.01)
        assert len(rung) > during
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_handler_that_sets_its_timer_anew_does_not_stop_the_timeout() -> None:
    rung: list[int] = []

    def handler(*_: object) -> None:
        rung.append(1)
        signal.setitimer(signal.ITIMER_REAL, 0.02)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Expired):
            run_within(0.15, time.sleep, LONG)
        assert len(rung) >= 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_inside_a_running_event_loop_the_function_itself_is_interrupted() -> None:
    ended = []

    async def other() -> None:
        await asyncio.sleep(2 * SOON)
        ended.append("other")

    async def main() -> None:
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        with pytest.raises(Expired):
            run_within(SOON, time.sleep, LONG)
        await task

    asyncio.run(main())
    assert ended == ["other"]


def test_an_outer_timer_and_handler_are_restored_and_fire_on_time() -> None:
    fired: list[float] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: fired.append(time.monotonic()))
    started = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(Expired):
            run_within(SOON, time.sleep, LONG)
        assert signal.getsignal(signal.SIGALRM) is not None
        remaining = signal.getitimer(signal.ITIMER_REAL)[0]
        assert 0 < remaining <= 1.0
        while not fired and time.monotonic() < started + LONG:
            time.sleep(0.01)
        assert fired[0] - started >= 0.99
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_an_outer_timer_that_is_due_first_fires_first() -> None:
    fired: list[float] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: fired.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Expired):
            run_within(0.1, time.sleep, LONG)
        assert len(fired) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(("outer", "inner", "expired"), [(LONG, SOON, "inner"), (SOON, LONG, "outer")])
def test_the_shorter_of_nested_timeouts_expires(outer: float, inner: float, expired: str) -> None:
    def nested() -> str:
        try:
            return run_within(inner, lambda: time.sleep(LONG) or "slept")
        except Expired:
            return "inner"

    started = time.monotonic()
    try:
        result = run_within(outer, nested)
    except Expired:
        result = "outer"
    assert result == expired
    assert time.monotonic() - started < LONG / 2
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_no_timer_and_no_handler_remain() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Expired):
        run_within(SOON, time.sleep, LONG)
    run_within(LONG, int)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_in_another_thread_the_caller_returns_on_time_while_the_function_continues() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def function() -> None:
        go_on.wait(LONG)
        ended.set()

    def caller() -> float:
        started = time.monotonic()
        with pytest.raises(Expired):
            run_within(SOON, function)
        return time.monotonic() - started

    assert in_thread(caller) < LONG / 2
    assert abandoned() == 1
    go_on.set()
    assert ended.wait(LONG)
    until = time.monotonic() + LONG
    while abandoned() and time.monotonic() < until:
        time.sleep(0.005)
    assert abandoned() == 0


def test_context_variables_reach_the_helper_thread() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def caller() -> str:
        variable.set("here")
        return run_within(LONG, variable.get)

    assert in_thread(caller) == "here"


def test_context_variables_that_the_function_sets_come_back() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def fails() -> None:
        variable.set("failed")
        raise KeyError

    def caller() -> list[str]:
        run_within(LONG, variable.set, "set")
        seen = [variable.get()]
        with pytest.raises(KeyError):
            run_within(LONG, fails)
        return [*seen, variable.get()]

    assert in_thread(caller) == ["set", "failed"]


def test_the_number_of_abandoned_functions_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_threads, "MAX_ABANDONED", 0)
    with pytest.raises(RejectedError, match="still running in their threads"):
        in_thread(lambda: run_within(LONG, int))


def test_helper_threads_are_reused() -> None:
    names = {in_thread(lambda: run_within(LONG, lambda: threading.current_thread().ident)) for _ in range(5)}
    assert len(names) <= 2


def test_a_bound_function_times_out_in_main_and_other_threads() -> None:
    bound = Policy(timeout={"attempt": SOON}).apply(lambda: time.sleep(0.3))
    for call in (bound, lambda: in_thread(bound)):
        with pytest.raises(CallTimeoutError, match="took longer than its timeout of 50ms"):
            call()
