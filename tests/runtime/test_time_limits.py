"""Objects that belong to a thread, under a timeout in another thread than the main one. In real time."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from opero import CallTimeoutError, Policy
from opero.runtime.helper_threads import abandoned

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


def until(condition: Any) -> None:
    end = time.monotonic() + LONG
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    assert condition()


@pytest.mark.parametrize("enforce", ["wait", "none"])
def test_objects_of_a_thread_work_where_the_function_is_not_interrupted(enforce: Any) -> None:
    local = threading.local()

    def caller() -> tuple[Any, str]:
        connection = sqlite3.connect(":memory:")
        local.name = "the caller's"

        def function() -> tuple[Any, str]:
            return connection.execute("select 42").fetchone()[0], local.name

        try:
            limited = Policy(timeout={"total": LONG, "enforce": enforce}).apply(function)
            result: tuple[Any, str] = limited()
            return result
        finally:
            connection.close()

    assert in_thread(caller) == (42, "the caller's")


def test_a_function_that_is_waited_for_runs_in_the_callers_thread_to_its_end() -> None:
    ran = []

    def function() -> None:
        time.sleep(2 * SOON)
        ran.append(threading.get_ident())

    def caller() -> int:
        with pytest.raises(CallTimeoutError, match="took longer than its timeout of 50ms"):
            Policy(timeout={"attempt": SOON, "enforce": "wait"}).apply(function)()
        return threading.get_ident()

    before = abandoned()
    assert in_thread(caller) == ran[0]
    assert abandoned() <= before
    ran.clear()
    assert caller() == ran[0]  # in the main thread as well


class Rows:
    """A generator of rows of a connection, which only the thread may use that has opened it."""

    def __init__(self, *pauses: float) -> None:
        self.pauses = pauses
        self.threads: set[int] = set()
        self.is_closed = threading.Event()

    def __call__(self) -> Iterator[int]:
        connection = sqlite3.connect(":memory:")
        try:
            for number, seconds in enumerate(self.pauses):
                time.sleep(seconds)
                self.threads.add(threading.get_ident())
                yield connection.execute("select ?", (number,)).fetchone()[0]
        finally:
            self.threads.add(threading.get_ident())
            connection.close()
            self.is_closed.set()

    def rows(self) -> Iterator[int]:
        yield from self()


@pytest.mark.parametrize("timeout", [{"total": LONG}, {"attempt": LONG}, {"idle": LONG}])
@pytest.mark.parametrize("enforce", ["interrupt", "wait"])
def test_a_generator_stays_in_one_thread(timeout: Any, enforce: str) -> None:
    for call in (in_thread, lambda function: function()):
        rows = Rows(0, 0, 0)
        limited = Policy(timeout={**timeout, "enforce": enforce}).apply(rows.rows)
        assert call(partial(list, limited())) == [0, 1, 2]
        assert len(rows.threads) == 1
    closed_early = Rows(0, 0, 0)

    def read_one() -> int:
        stream: Any = Policy(timeout={**timeout, "enforce": enforce}).apply(closed_early.rows)()
        first: int = next(stream)
        stream.close()
        return first

    assert in_thread(read_one) == 0
    assert closed_early.is_closed.is_set()
    assert len(closed_early.threads) == 1


def test_a_generator_that_is_left_behind_is_closed_in_its_thread() -> None:
    rows = Rows(0, 4 * SOON, 0)
    limited = Policy(timeout={"idle": SOON}).apply(rows.rows)
    items = []

    def read() -> None:
        stream = limited()
        items.append(next(stream))
        with pytest.raises(CallTimeoutError, match="idle timeout of 50ms for the next item"):
            next(stream)

    until(lambda: abandoned() == 0)  # of earlier tests
    in_thread(read)
    assert items == [0]
    assert abandoned() == 1
    assert rows.is_closed.wait(LONG)
    assert len(rows.threads) == 1
    until(lambda: abandoned() == 0)


def test_in_the_main_thread_a_generator_is_interrupted_and_closed() -> None:
    rows = Rows(0, LONG)
    started = time.monotonic()
    with pytest.raises(CallTimeoutError):
        list(Policy(timeout={"idle": SOON}).apply(rows.rows)())
    assert rows.is_closed.is_set()
    assert time.monotonic() - started < LONG / 2


def test_a_generator_that_is_read_elsewhere_stays_with_its_reader() -> None:
    """It was started in the main thread, where it would be interrupted; its reader's thread cannot do that."""
    rows = Rows(0, 2 * SOON, 0)
    threads = []

    def plain() -> Iterator[int]:
        for seconds in rows.pauses:
            time.sleep(seconds)
            threads.append(threading.get_ident())
            yield len(threads)

    stream = Policy(timeout={"idle": SOON}).apply(plain)()
    assert next(stream) == 1

    def read() -> int:
        with pytest.raises(CallTimeoutError):
            next(stream)
        return threading.get_ident()

    assert in_thread(read) == threads[1]


def test_many_generators_give_their_threads_back() -> None:
    limited = Policy(timeout={"idle": LONG}).apply(Rows(0, 0).rows)

    def read() -> int:
        for _ in range(50):
            assert list(limited()) == [0, 1]
        return threading.active_count()

    before = threading.active_count()
    assert in_thread(read) <= before + 3


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_generator_in_a_helper_thread_goes_on_in_the_parent_process_only() -> None:
    limited = Policy(timeout={"idle": LONG}).apply(Rows(0, 0).rows)

    def read() -> tuple[int, list[int]]:
        stream = limited()
        first = next(stream)
        child = os.fork()
        if child == 0:
            try:
                next(stream)
            except RuntimeError as error:
                os._exit(7 if "in the parent process only" in str(error) else 8)
            finally:
                os._exit(9)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, [first, *stream]

    assert in_thread(read) == (7, [0, 1])
