"""A conformance suite for kinds of workers: what a map promises, wherever its items run.

Test your own executor, or the cluster that you deploy to, in a few lines of a pytest module:

    from opero.testing.workers import WorkerTests

    class TestMyExecutor(WorkerTests):
        options = {"executor": lambda: MyExecutor(4)}
        survives_deaths = False

Each method of `WorkerTests` maps functions of this module with `ParallelPolicy(**options)`. Class attributes say what
the workers are (an executor of threads also sets `shares_memory = True`); a test that does not apply to them is
skipped. Fixtures of the subclass may start and stop what the workers need. The workers must be able to import this
module, and must see this machine's temporary folder.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from opero.decorators import opmap
from opero.errors import CallTimeoutError, ConfigError, MapError, WorkerDiedError
from opero.policies.policy import Policy

__all__ = ["WorkerTests"]

LONG = 60.0
"""Seconds after which a test that waits for something has failed."""
LOCK = threading.Lock()
"""Cannot be pickled: functions that use it must be found by their names."""
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("opero_testing_variable", default="unset")


# Functions to be mapped


def square(number: int) -> int:
    with LOCK:
        return number * number


def scale(number: int, by: int, *, plus: int = 0) -> int:
    with LOCK:
        return number * by + plus


def negatives(numbers: list[int]) -> list[int]:
    with LOCK:
        return [-number for number in numbers]


@opmap(retries=0)
def cube(number: int) -> int:
    """Decorated, so the name refers to the bound function."""
    with LOCK:
        return number**3


@opmap(retries=0)
async def cube_async(number: int) -> int:
    with LOCK:
        return number**3


@opmap(retries=0)
def halves(numbers: list[int]) -> list[float]:
    """Decorated, and receives batches by its annotation."""
    with LOCK:
        return [number / 2 for number in numbers]


@opmap(retries=0)
async def halves_async(numbers: list[int]) -> list[float]:
    with LOCK:
        return [number / 2 for number in numbers]


def too_few(numbers: list[int]) -> list[int]:
    return numbers[1:]


def fail_at_three(number: int) -> int:
    if number == 3:
        raise KeyError(number)
    return number


def interrupt_itself(what: str, folder: str) -> str:
    note(what, folder)
    if what == "raise":
        raise KeyboardInterrupt
    return what


def fail_from(number: int, first: int) -> int:
    """Fail at once from an item on; those before it take their time."""
    if number == first or (number > first and number % 3 == 0):
        raise KeyError(number)
    time.sleep(number * 7 % 5 / 1000)
    return number


def fail_odd(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


def note(item: Any, folder: str) -> Any:
    """Record in a file that the item was started."""
    with (Path(folder) / "started").open("a", encoding="utf-8") as file:
        file.write(f"{item}\n")
    return item


def started(folder: str) -> Counter[str]:
    """How often each item was started."""
    path = Path(folder) / "started"
    return Counter(path.read_text(encoding="utf-8").split()) if path.exists() else Counter()


def fail_first_time(item: int, folder: str) -> int:
    note(item, folder)
    if item % 2 and started(folder)[str(item)] == 1:
        raise ConnectionError(item)
    return item


def note_or_fail_at_three(item: int, folder: str) -> int:
    return fail_at_three(note(item, folder))


def kill_worker(item: int, folder: str, fatal: int, times: int) -> int:
    """Kill the worker with one item, as often as `times` says."""
    note(item, folder)
    if item == fatal and started(folder)[str(item)] <= times:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return item * 10


def misbehave(what: str) -> Any:
    if what == "awkward":
        raise AwkwardError(7, "start")
    if what == "locked":
        raise LockedError("holds a lock")
    if what == "missing":
        raise FileNotFoundError(2, "No such file", "x.txt")
    if what == "group":
        raise ExceptionGroup("several", [ValueError("one"), AwkwardError(1, "two")])
    if what == "unpicklable":
        return threading.Lock()
    if what == "unreadable":
        return Unreadable(os.getpid())
    if what == "exit":
        raise SystemExit(3)
    return what


def identity(value: Any) -> Any:
    return value


def say(number: int) -> str:
    logging.getLogger("opero.testing").warning("item %d", number)
    return VARIABLE.get()


def set_variable(text: str) -> str:
    before = VARIABLE.get()
    VARIABLE.set(text)
    return before


def nested(number: int) -> list[int]:
    """A map within a map."""
    return list(Policy(parallel={"mode": "process", "workers": 2, "progress": False}).apply(square).map(range(number)))


def keyed(number: int, key: str = "bad") -> str:
    if key == "bad":
        raise PermissionError(key)
    return f"{key}{number}"


def stamp(_: int) -> float:
    return time.monotonic()


def initialize() -> None:
    VARIABLE.set("initialized")


def read_variable(_: int) -> str:
    return VARIABLE.get()


def wait_for(item: int, folder: str, slow: tuple[int, ...]) -> int:
    """Wait, with a slow item, until the file "go" exists or the folder is gone: no item outlives its test."""
    note(item, folder)
    while item in slow and _must_wait(folder):
        time.sleep(0.005)
    return item


async def wait_for_async(item: int, folder: str, slow: tuple[int, ...]) -> int:
    note(item, folder)
    while item in slow and _must_wait(folder):  # noqa: ASYNC110  # all workers see files
        await asyncio.sleep(0.005)
    return item


def _must_wait(folder: str) -> bool:
    return Path(folder).exists() and not (Path(folder) / "go").exists()


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def nap_async(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


ASYNC: dict[Any, Any] = {
    wait_for: wait_for_async,
    nap: nap_async,
    cube.__wrapped__: cube_async.__wrapped__,
    halves.__wrapped__: halves_async.__wrapped__,
}
"""Async twins of functions that wait, and of functions that must be found by their names."""


def as_async(function: Callable[..., Any]) -> Callable[..., Any]:
    """An async function that does the same."""
    if function in ASYNC:
        return ASYNC[function]  # type: ignore[no-any-return]

    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    return run


class AwkwardError(Exception):
    """Its constructor takes other arguments than it keeps."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code


class LockedError(Exception):
    """Holds something that cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Unreadable:
    """Can be unpickled in one process only."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["home"]:
            raise LookupError("read in another process")
        self.__dict__.update(state)


class Adder:
    """An object whose method is mapped."""

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, number: int) -> int:
        with LOCK:
            return self.base + number


class _Stream:
    """Reads a stream, sync or async, item by item."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._runner = asyncio.Runner() if hasattr(stream, "__anext__") else None

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runner is None:
            self._stream.close()
        else:
            self._runner.run(self._stream.aclose())
            self._runner.close()

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield next(self._stream) if self._runner is None else self._runner.run(self._next())
            except (StopIteration, StopAsyncIteration):
                return

    async def _next(self) -> Any:
        return await anext(self._stream)

    def take(self, count: int) -> list[Any]:
        return list(itertools.islice(self, count))


# The suite


class WorkerTests:
    """What a map promises, wherever its items run. Subclass it for each kind of workers.

    Attributes:
        options: of `ParallelPolicy`, which select the workers. At least two items must run at once.
        is_async: the workers run async functions.
        shares_memory: the workers are threads or tasks of this process: nothing is pickled.
        survives_deaths: the workers are processes, and one that dies is replaced.
        shares_limits: a rate limit, circuit breaker or bulkhead holds for all workers together.
        is_prompt: a result is delivered although a slow item of the same chunk still runs.
        stops_at_once: an item that runs does not delay the end of a map that is closed or has passed its deadline.
    """

    options: dict[str, Any]
    is_async: ClassVar[bool] = False
    shares_memory: ClassVar[bool] = False
    survives_deaths: ClassVar[bool] = True
    shares_limits: ClassVar[bool] = True
    is_prompt: ClassVar[bool] = False
    stops_at_once: ClassVar[bool] = True

    # Helpers

    def bind(self, function: Callable[..., Any], policies: dict[str, Any] | None = None, **parallel: Any) -> Any:
        """Bind a function, as an async one if the workers run those."""
        function = as_async(function) if self.is_async and not asyncio.iscoroutinefunction(function) else function
        return Policy(parallel={"progress": False, **self.options, **parallel}, **policies or {}).apply(function)

    def map(self, bound: Any, *args: Any, **kwargs: Any) -> list[Any]:
        result = bound.map(*args, **kwargs)
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    def error(self, bound: Any, *args: Any, **kwargs: Any) -> MapError:
        """The error with which a map ends."""
        error: MapError = self.raised(MapError, lambda: self.map(bound, *args, **kwargs))
        return error

    def raised(self, kind: type[BaseException], run: Callable[[], Any]) -> Any:
        """The exception of that class that a function raises."""
        try:
            result = run()
        except kind as error:
            return error
        raise AssertionError(f"no {kind.__name__} was raised, and {result!r:.200} returned")

    def need(self, condition: bool, what: str) -> None:
        """Skip a test that does not apply to these workers."""
        if not condition:
            raise unittest.SkipTest(f"these workers do not need to: {what}")

    @contextmanager
    def folder(self) -> Iterator[str]:
        """A folder that the workers see, too."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield folder

    def until(self, condition: Callable[[], Any]) -> None:
        until = time.monotonic() + LONG
        while not condition():
            assert time.monotonic() < until, f"it has not happened within {LONG:g} s"
            time.sleep(0.01)

    # Items and results

    def test_results_have_the_order_of_the_items(self) -> None:
        assert self.map(self.bind(square), range(2000)) == [number * number for number in range(2000)]

    def test_results_have_the_order_of_the_items_however_long_each_takes(self) -> None:
        naps = [0.05, 0.0, 0.02, 0.0, 0.01, 0.0]
        assert self.map(self.bind(nap), naps) == naps

    def test_unordered_results_arrive_once_each(self) -> None:
        results = self.map(self.bind(square, ordered=False), range(500))
        assert sorted(results) == [number * number for number in range(500)]

    def test_an_empty_source_gives_no_results(self) -> None:
        assert self.map(self.bind(square), []) == []
        assert self.map(self.bind(square), iter(())) == []

    def test_a_generator_can_be_mapped(self) -> None:
        assert self.map(self.bind(square), (number for number in range(300))) == [n * n for n in range(300)]

    def test_an_async_source_can_be_mapped(self) -> None:
        self.need(self.is_async, "read an async iterable")

        async def numbers() -> Any:
            for number in range(50):
                await asyncio.sleep(0)
                yield number

        assert self.map(self.bind(square), numbers()) == [number * number for number in range(50)]

    def test_a_source_that_fails_ends_the_map_with_all_results_so_far(self) -> None:
        def numbers() -> Iterator[int]:
            yield from range(10)
            raise LookupError("no more")

        error = self.raised(LookupError, lambda: self.map(self.bind(square), numbers()))
        assert isinstance(error.__cause__, MapError)
        assert error.__cause__.results == {number: number * number for number in range(10)}

    def test_batches_are_lists_and_give_a_result_for_each_item(self) -> None:
        assert self.map(self.bind(negatives, batch_size=7), range(100)) == [-number for number in range(100)]

    def test_a_batch_with_too_few_results_fails_as_a_whole(self) -> None:
        results = self.map(self.bind(too_few, batch_size=5, on_error="return"), range(10))
        assert [type(each) for each in results] == [ValueError] * 10

    def test_other_arguments_are_the_same_for_all_items(self) -> None:
        assert self.map(self.bind(scale), [1, 2], 10, plus=5) == [15, 25]
        assert self.map(self.bind(scale), number=[1, 2], by=3) == [3, 6]

    def test_a_decorated_module_function_is_found_by_its_name(self) -> None:
        assert self.map(self.bind(cube.__wrapped__), range(50)) == [number**3 for number in range(50)]

    def test_a_decorated_module_function_with_a_list_annotation_receives_batches(self) -> None:
        expected = [number / 2 for number in range(50)]
        assert self.map(self.bind(halves.__wrapped__), range(50)) == expected
        assert self.map(self.bind(halves.__wrapped__, batch_size=7), range(50)) == expected

    def test_methods_closures_and_lambdas_can_be_mapped(self) -> None:
        base = 10
        assert self.map(self.bind(Adder(base).add), [1, 2]) == [11, 12]
        assert self.map(self.bind(lambda number: number + base), [1, 2]) == [11, 12]

    def test_at_least_two_items_run_at_once(self) -> None:
        with self.folder() as folder:
            bound, results = self.bind(wait_for), []
            thread = threading.Thread(target=lambda: results.extend(self.map(bound, range(4), folder, (0, 1, 2, 3))))
            thread.start()
            self.until(lambda: len(started(folder)) >= 2)
            (Path(folder) / "go").touch()
            thread.join(LONG)
            assert results == [0, 1, 2, 3]

    # Streams

    def test_a_stream_yields_every_result_once(self) -> None:
        for ordered in (True, False):
            with _Stream(self.bind(square, ordered=ordered).stream(range(700))) as stream:
                results = list(stream)
            assert (results if ordered else sorted(results)) == [number * number for number in range(700)]

    def test_a_stream_over_an_endless_source_can_be_closed(self) -> None:
        with _Stream(self.bind(square).stream(itertools.count())) as stream:
            assert stream.take(300) == [number * number for number in range(300)]

    def test_a_source_is_never_far_ahead_of_the_reader(self) -> None:
        for ordered in (True, False):
            read = most_ahead = 0

            def source() -> Iterator[int]:
                nonlocal read
                for number in range(400):
                    read += 1
                    yield number

            with _Stream(self.bind(square, ordered=ordered, window=16).stream(source())) as stream:
                for consumed, _ in enumerate(stream):
                    most_ahead = max(most_ahead, read - consumed)
            assert read == 400
            assert most_ahead <= 16 + 2 * 4

    def test_a_result_does_not_wait_for_a_slow_item_of_its_chunk(self) -> None:
        self.need(self.is_prompt, "deliver results before their chunk has finished")
        with self.folder() as folder, _Stream(self.bind(wait_for).stream(range(600), folder, (555,))) as stream:
            assert stream.take(555) == list(range(555))
            assert not (Path(folder) / "go").exists()
            (Path(folder) / "go").touch()
            assert stream.take(45) == list(range(555, 600))

    def test_an_ordered_stream_yields_every_result_before_the_first_failure(self) -> None:
        for first in (0, 1, 6, 45):
            for window in ("auto", 5):
                with _Stream(self.bind(fail_from, window=window).stream(range(60), first)) as stream:
                    results: list[int] = []
                    error = self.raised(MapError, lambda: results.extend(stream))  # noqa: B023
                assert results == list(range(first))
                assert error.failures[0].index == first
                assert all(value == index > first for index, value in error.results.items())

    # Failures

    def test_a_failed_item_raises_an_error_with_all_results(self) -> None:
        error = self.error(self.bind(fail_at_three), range(5000))
        assert [(each.index, type(each.exception)) for each in error.failures] == [(3, KeyError)]
        assert all(value == index for index, value in error.results.items())
        assert "1 of 5000 items failed" in str(error)

    def test_after_a_failure_no_more_items_are_sent(self) -> None:
        with self.folder() as folder:
            error = self.error(self.bind(note_or_fail_at_three), range(5000), folder)
            assert "not finished" in str(error)
            assert len(error.results) < started(folder).total() < 5000

    def test_failures_can_be_returned_or_skipped(self) -> None:
        two, three, four = self.map(self.bind(fail_at_three, on_error="return"), [2, 3, 4])
        assert (two, repr(three), four) == (2, "KeyError(3)", 4)
        assert self.map(self.bind(fail_at_three, on_error="skip"), [2, 3, 4]) == [2, 4]

    def test_max_failures_ends_the_map(self) -> None:
        error = self.error(self.bind(fail_odd, max_failures=3), range(3000))
        assert "max_failures" in str(error)
        assert 3 < len(error.failures) < 1500

    def test_items_that_are_left_can_be_retried(self) -> None:
        with self.folder() as folder:
            error = self.error(self.bind(fail_first_time), range(40), folder)
            for _ in range(40):
                try:
                    results = error.retry_failed()
                    results = asyncio.run(results) if asyncio.iscoroutine(results) else results
                    break
                except MapError as again:
                    error = again
            assert results == list(range(40))

    def test_a_deadline_ends_the_map_and_keeps_the_results(self) -> None:
        self.need(self.stops_at_once, "end a map while an item runs")
        self.map(self.bind(nap), [0.0] * 8)  # so that the workers have started
        error = self.error(self.bind(nap, deadline=2.0), [0.0, 0.0, 4.0, 4.0, 4.0, 4.0])
        assert isinstance(error.reason, CallTimeoutError)
        assert {index: value for index, value in error.results.items() if index < 2} == {0: 0.0, 1: 0.0}

    def test_an_item_that_exits_ends_the_map(self) -> None:
        self.need(not (self.is_async and self.shares_memory), "survive SystemExit: it ends the event loop itself")
        error = self.raised(SystemExit, lambda: self.map(self.bind(misbehave), ["a", "exit", "b"]))
        assert error.code == 3
        assert isinstance(error.__cause__, MapError)

    def test_an_item_that_interrupts_itself_fails_alone_and_is_not_run_again(self) -> None:
        self.need(not (self.is_async and self.shares_memory), "survive an interrupt: it is the program's")
        bound = self.bind(interrupt_itself, on_error="return")
        with self.folder() as folder:
            first, failure, last = self.map(bound, ["a", "raise", "b"], folder)
            assert (first, last, started(folder)["raise"]) == ("a", "b", 1)
        assert isinstance(failure, RuntimeError)
        assert isinstance(failure.__cause__, KeyboardInterrupt)

    def test_an_exception_arrives_as_itself(self) -> None:
        whats = ["a", "awkward", "locked", "missing", "group", "b"]
        first, awkward, locked, missing, group, last = self.map(self.bind(misbehave, on_error="return"), whats)
        assert (first, last) == ("a", "b")
        assert (type(awkward), str(awkward), awkward.code) == (AwkwardError, "code 7 at start", 7)
        assert (type(locked), str(locked)) == (LockedError, "holds a lock")
        assert (type(missing), missing.errno, missing.filename) == (FileNotFoundError, 2, "x.txt")
        assert [type(each) for each in group.exceptions] == [ValueError, AwkwardError]
        if not self.shares_memory:
            assert traceback.extract_tb(awkward.__traceback__)[-1].name == "misbehave"

    # Pickling

    def test_a_result_that_cannot_be_sent_or_read_fails_alone(self) -> None:
        self.need(not self.shares_memory, "pickle results")
        bound = self.bind(misbehave, on_error="return")
        first, unpicklable, unreadable, last = self.map(bound, ["a", "unpicklable", "unreadable", "b"])
        assert (first, last) == ("a", "b")
        assert (type(unpicklable), type(unreadable)) == (TypeError, TypeError)
        assert "cannot be sent back" in str(unpicklable)
        assert "cannot be read here: LookupError: read in another process" in str(unreadable)

    def test_an_item_that_cannot_be_sent_or_read_fails_alone(self) -> None:
        self.need(not self.shares_memory, "pickle items")
        here = os.getpid()
        wrong = [threading.Lock(), Unreadable(here)]
        items = [number if number % 10 < 8 else wrong[number % 2] for number in range(90)]
        results = self.map(self.bind(identity, on_error="return"), items)
        kinds = [type(each) if isinstance(each, Exception) else each for each in results]
        assert kinds == [n if n % 10 < 8 else (ConfigError, TypeError)[n % 2] for n in range(90)]
        for place in (0, 1):
            items = [threading.Lock() if each == place else each for each in range(2)]
            results = self.map(self.bind(identity, on_error="return"), items)
            unsendable = results.pop(place)
            assert (results, type(unsendable)) == ([1 - place], ConfigError)
            assert "cannot be sent to a worker process" in str(unsendable)
            assert [each.index for each in self.error(self.bind(identity), items).failures] == [place]

    def test_the_part_that_cannot_be_sent_is_named_before_any_item_runs(self) -> None:
        self.need(not self.shares_memory, "pickle items")
        lock = threading.Lock()
        with self.folder() as folder:
            for part, function, items, *fixed in (
                ("'folder' of the arguments of note", note, [1], lock),
                ("variable 'lock'", lambda number: note(number, folder) or lock, [1]),
            ):
                error = self.raised(ConfigError, functools.partial(self.map, self.bind(function), items, *fixed))
                assert part in str(error)
                assert "cannot be sent to a worker process" in str(error)
            assert not started(folder)

    def test_large_items_and_results_arrive_whole(self) -> None:
        items = [bytes([number]) * (3 << 20) for number in range(6)]
        assert self.map(self.bind(identity), items) == items

    # Policies

    def test_each_item_is_retried_and_counted(self) -> None:
        with self.folder() as folder:
            bound = self.bind(fail_first_time, {"retry": {"retries": 1, "min_delay": 0}})
            assert self.map(bound, range(10), folder) == list(range(10))
            stats = bound.stats
            assert (stats.calls, stats.attempts, stats.retries, stats.recoveries) == (10, 15, 5, 5)
            assert stats.errors == {"ConnectionError": 5}

    def test_fallback_values_are_tried(self) -> None:
        bound = self.bind(keyed, {"fallback": {"arg": "key"}})
        assert self.map(bound, [1, 2], key=["bad", "good"]) == ["good1", "good2"]
        assert bound.stats.fallbacks in (1, 2)  # the second item begins with the value that worked, if it comes later

    def test_cached_items_are_not_run(self) -> None:
        bound = self.bind(square, {"cache": {}})
        assert self.map(bound, [1, 2]) == [1, 4]
        assert self.map(bound, [2, 1, 3]) == [4, 1, 9]
        assert (bound.stats.cache_hits, bound.stats.cache_misses, bound.stats.attempts) == (2, 3, 3)

    def test_a_journal_keeps_the_results(self) -> None:
        with self.folder() as folder:
            journal = Path(folder) / "run.jsonl"
            assert self.map(self.bind(square), range(20), journal=journal) == [number * number for number in range(20)]
            again = self.bind(square)
            assert self.map(again, range(22), journal=journal) == [number * number for number in range(22)]
            assert again.stats.attempts == 2

    def test_a_rate_limit_holds_for_all_workers_together(self) -> None:
        self.need(self.shares_limits, "share a rate limit")
        moments = sorted(self.map(self.bind(stamp, {"rate_limit": {"rate": 40}}), range(20)))
        assert moments[-1] - moments[0] >= 19 / 40 * 0.9

    def test_a_timeout_ends_an_attempt(self) -> None:
        bound = self.bind(nap, {"timeout": {"attempt": 1.0}}, on_error="return")
        short, long = self.map(bound, [0.0, 5.0])
        assert short == 0.0
        assert isinstance(long, CallTimeoutError)

    def test_progress_counts_every_item(self) -> None:
        updates: list[Any] = []
        self.map(self.bind(fail_odd, on_error="skip"), range(100), progress=updates.append)
        assert (updates[-1].done, updates[-1].failures) == (100, 50)

    # Context

    def test_context_variables_arrive_and_records_are_handled_here_once(self) -> None:
        messages: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("opero.testing")
        logger.addHandler(handler)
        try:
            context = contextvars.copy_context()
            context.run(VARIABLE.set, "from here")
            assert context.run(self.map, self.bind(say), [1, 2]) == ["from here"] * 2
        finally:
            logger.removeHandler(handler)
        assert sorted(messages) == ["item 1", "item 2"]

    def test_a_context_variable_that_an_item_sets_does_not_reach_the_next_map(self) -> None:
        assert self.map(self.bind(set_variable), ["set"])[0] == "unset"
        assert self.map(self.bind(set_variable), ["set"])[0] == "unset"
        assert VARIABLE.get() == "unset"

    def test_an_initializer_runs_before_the_first_item(self) -> None:
        self.need(not self.shares_memory, "be initialized apart from this process")
        assert set(self.map(self.bind(read_variable, initializer=initialize), range(50))) == {"initialized"}

    def test_a_map_within_a_map_ends(self) -> None:
        assert self.map(self.bind(nested), [3, 4]) == [[0, 1, 4], [0, 1, 4, 9]]

    def test_an_error_can_be_pickled(self) -> None:
        error = pickle.loads(pickle.dumps(self.error(self.bind(fail_at_three), range(5))))
        assert [each.index for each in error.failures] == [3]

    # Deaths

    def test_a_death_that_does_not_recur_loses_no_result(self) -> None:
        self.need(self.survives_deaths, "survive the death of a worker")
        with self.folder() as folder:
            assert self.map(self.bind(kill_worker), range(120), folder, 60, 1) == [n * 10 for n in range(120)]

    def test_an_item_that_kills_its_workers_is_found_and_all_other_results_arrive(self) -> None:
        self.need(self.survives_deaths, "survive the death of a worker")
        with self.folder() as folder:
            bound = self.bind(kill_worker, on_error="return", worker_retries=1)
            results = self.map(bound, range(120), folder, 60, 1000)
            died = results.pop(60)
            assert results == [number * 10 for number in range(120) if number != 60]
            assert isinstance(died, WorkerDiedError)
            assert died.times == 2
            assert "died of item 60" in str(died)
            assert bound.stats.errors == {"WorkerDiedError": 1}

    # Ends

    def test_closing_a_stream_does_not_wait_for_its_items(self) -> None:
        self.need(self.stops_at_once, "end a map while an item runs")
        # Items 0 and 1 are sent before any result: more are sent only while the stream is read.
        with self.folder() as folder:
            with _Stream(self.bind(wait_for).stream(itertools.count(), folder, (1, 2, 3, 4))) as stream:
                assert next(iter(stream)) == 0
                self.until(lambda: "1" in started(folder))
                closing = time.monotonic()
            assert time.monotonic() - closing < LONG / 4
            (Path(folder) / "go").touch()

    def test_a_cancelled_task_ends_the_map_with_all_results_so_far(self) -> None:
        self.need(self.is_async and self.stops_at_once, "end a map when its task is cancelled")

        async def cancel(folder: str) -> None:
            task = asyncio.ensure_future(self.bind(wait_for).map(range(10), folder, (5, 6, 7, 8)))
            await asyncio.to_thread(self.until, lambda: "5" in started(folder))
            await asyncio.sleep(0.2)
            task.cancel()
            cause: Any = None
            try:
                await asyncio.wait_for(task, LONG)
            except asyncio.CancelledError as error:
                cause = error.__cause__
            assert isinstance(cause, MapError)
            assert set(cause.results) <= {0, 1, 2, 3, 4, 9}

        with self.folder() as folder:
            asyncio.run(cancel(folder))
            (Path(folder) / "go").touch()
