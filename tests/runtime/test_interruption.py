"""Timeouts of sync functions, in real time."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
import time
from typing import Any

import pytest

from opero import CallTimeoutError, Policy, RejectedError
from opero.runtime import interruption
from opero.runtime.interruption import Expired, Interruption, abandoned, run_within

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


def test_the_number_of_abandoned_functions_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "MAX_ABANDONED", 0)
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
