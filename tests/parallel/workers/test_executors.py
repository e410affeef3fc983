"""Maps on executors of `concurrent.futures` that users create."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from joblib.externals.loky import get_reusable_executor

import opero.parallel
from leftovers import is_alive
from opero import ConfigError, MapError, Policy, Registry, WorkerDiedError, opmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK = threading.Lock()
"""Cannot be pickled: functions that use it must be found by their names."""
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
SPAWN = multiprocessing.get_context("spawn")


def processes(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=SPAWN)


class Made:
    """A factory of executors, and those that it has made."""

    def __init__(self, make: Callable[[], Executor]) -> None:
        self.make = make
        self.all: list[Any] = []

    def __call__(self) -> Executor:
        self.all.append(self.make())
        return self.all[-1]

    def are_shut_down(self) -> bool:
        return all(is_shut_down(each) for each in self.all)


def is_shut_down(executor: Executor) -> bool:
    try:
        executor.submit(int)
    except RuntimeError:
        return True
    return False


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two spawned processes, for all tests that leave them alive."""
    with processes() as executor:
        yield executor


@pytest.fixture(params=["threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "processes":
        yield request.getfixturevalue("pool")
        return
    with ThreadPoolExecutor(2) as threads:
        yield threads


def mapped(function: Any, executor: Any, **options: Any) -> Any:
    return opmap(**{"executor": executor, "retries": 0, **options})(function)


# Functions whose names refer to their wrappers


@opmap(retries=0)
def square(number: int) -> int:
    with LOCK:
        return number * number


@opmap(retries=0)
def negatives(numbers: list[int]) -> list[int]:
    with LOCK:
        return [-number for number in numbers]


def over(executor: Any, function: Any, **options: Any) -> Any:
    """The wrapped function of this module, bound to an executor."""
    return mapped(function.__wrapped__, executor, **options)


# Kinds of executors


def test_lokys_reusable_executor_runs_maps_and_is_not_shut_down() -> None:
    executor = get_reusable_executor(max_workers=2)
    try:
        assert over(executor, square)(range(50)) == [number * number for number in range(50)]
        assert over(executor, negatives)(range(50)) == [-number for number in range(50)]
        assert not is_shut_down(executor)
    finally:
        executor.shutdown()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python 3.14 brings it")
def test_an_interpreter_pool_runs_maps() -> None:  # pragma: no cover  # on the newest Python only
    from concurrent.futures import InterpreterPoolExecutor

    with InterpreterPoolExecutor(2) as executor:
        assert over(executor, square)(range(50)) == [number * number for number in range(50)]


class Immediate(Executor):
    """Runs each call in `submit`: the simplest executor."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def test_an_executor_that_runs_calls_in_this_process_does_not_mark_it_as_a_worker() -> None:
    VARIABLE.set("from here")
    pids = mapped(lambda _: (os.getpid(), VARIABLE.get()), Immediate())(range(20))
    assert set(pids) == {(os.getpid(), "from here")}
    assert not opero.parallel.is_worker


def test_forked_processes_are_marked_as_workers_and_their_records_are_handled_here_once() -> None:
    code = """
        import logging, multiprocessing, os
        from concurrent.futures import ProcessPoolExecutor
        import opero.parallel
        from opero import opmap

        class Printer(logging.Handler):
            def emit(self, record):
                print(record.getMessage(), os.getpid() == PARENT, flush=True)

        PARENT = os.getpid()
        logging.root.addHandler(Printer())

        @opmap(retries=0, executor=lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")))
        def work(number: int) -> tuple:
            if not number:
                logging.getLogger("work").warning("logged")
            return number, opero.parallel.is_worker, os.getpid()

        if __name__ == "__main__":
            results = work(range(20))
            assert [(number, is_worker) for number, is_worker, _ in results] == [(each, True) for each in range(20)]
            assert os.getpid() not in {pid for *_, pid in results}
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "logged True\n", "")


# Executors and factories


def test_a_given_executor_is_not_shut_down(executor: Executor) -> None:
    assert over(executor, square)([2]) == [4]
    with pytest.raises(MapError):
        mapped(fail_at_three, executor)([3])
    next(over(executor, square).stream(itertools.count()))
    assert not is_shut_down(executor)


def test_a_factory_makes_an_executor_for_each_map_which_is_shut_down_at_its_end() -> None:
    made = Made(lambda: ThreadPoolExecutor(2))
    bound = over(made, square)
    assert bound([2, 3]) == [4, 9]
    assert bound([4]) == [16]
    assert len(made.all) == 2
    assert made.are_shut_down()


def test_the_executor_of_a_factory_is_shut_down_after_a_failure() -> None:
    made = Made(lambda: ThreadPoolExecutor(2))
    with pytest.raises(MapError):
        mapped(fail_at_three, made)(range(100))
    assert made.are_shut_down()


def test_the_executor_of_a_factory_is_shut_down_when_its_stream_is_closed() -> None:
    made = Made(lambda: ThreadPoolExecutor(2))
    stream = over(made, square).stream(itertools.count())
    for result in stream:
        if result == 4:
            break
    stream.close()
    assert made.are_shut_down()


def test_the_executor_of_a_factory_is_shut_down_if_the_first_item_cannot_be_sent() -> None:
    made = Made(processes)
    with pytest.raises(MapError) as caught:
        mapped(identity, made)([threading.Lock()])
    assert "cannot be sent" in str(caught.value.exceptions[0])
    assert made.are_shut_down()


def test_closing_a_stream_ends_the_running_processes_of_a_factorys_executor(tmp_path: Path) -> None:
    made = Made(processes)
    stream = mapped(signal_and_wait, made).stream(["", *[str(tmp_path)] * 5])
    assert next(stream) == ""
    pids = [int(name) for name in wait_for_files(tmp_path, 1)]
    stream.close()
    assert made.are_shut_down()
    for pid in pids:
        wait_until_gone(pid)


def signal_and_wait(folder: str) -> str:
    """Create a file named by the process, and do not end."""
    if folder:
        open(os.path.join(folder, str(os.getpid())), "w").close()
        threading.Event().wait(600)
    return folder


def wait_for_files(folder: Path, count: int) -> list[str]:
    until = threading.Event()
    for _ in range(12000):
        names = os.listdir(folder)
        if len(names) >= count:
            return names
        until.wait(0.01)
    raise AssertionError(f"no {count} files in {folder}")


def wait_until_gone(pid: int) -> None:
    for _ in range(12000):
        if not is_alive(pid):
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"process {pid} is still there")


MODULE = """
    from concurrent.futures import ThreadPoolExecutor

    MADE = []

    def make():
        MADE.append(ThreadPoolExecutor(3))
        return MADE[-1]

    held = ThreadPoolExecutor(1)
    neither = 3
"""


def test_a_profile_may_name_a_factory_or_an_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_pools.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_pools", raising=False)
    (tmp_path / "base.yaml").write_text(
        "policies:\n"
        '  made: {parallel: {executor: "users_pools:make"}}\n'
        '  held: {parallel: {executor: "users_pools:held"}}\n'
    )
    registry = Registry.load(tmp_path, environ={})
    assert registry.bind(square.__wrapped__, "made").map([2, 3]) == [4, 9]
    assert registry.bind(square.__wrapped__, "held").map([2, 3]) == [4, 9]
    import users_pools  # type: ignore[import-not-found]

    assert [is_shut_down(each) for each in users_pools.MADE] == [True]
    assert not is_shut_down(users_pools.held)
    users_pools.held.shutdown()


def test_a_profile_that_names_neither_an_executor_nor_a_factory_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_other_pools.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base.yaml").write_text('policies:\n  wrong: {parallel: {executor: "users_other_pools:neither"}}\n')
    with pytest.raises(ConfigError, match=r"base.yaml:2.*neither a concurrent.futures.Executor nor a function"):
        Registry.load(tmp_path, environ={})


@pytest.mark.parametrize("wrong", [3, [], {"max_workers": 2}, dict])
def test_a_value_that_is_no_executor_is_refused_when_the_function_is_decorated(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"^executor: .*neither a concurrent.futures.Executor nor a function"):
        opmap(executor=wrong)(identity)


def test_a_factory_that_returns_no_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must make a concurrent.futures.Executor, and made 7"):
        mapped(identity, lambda: 7)([1])


def test_the_error_for_an_executor_that_was_shut_down_suggests_a_factory() -> None:
    executor = ThreadPoolExecutor(2)
    executor.shutdown()
    with pytest.raises(MapError, match="cannot schedule new futures after shutdown.*executor= a function") as caught:
        over(executor, square)([1, 2])
    assert caught.value.results == {}


def test_futures_that_others_cancel_end_the_map_with_all_results_so_far() -> None:
    executor = ThreadPoolExecutor(1)

    def shut_down(number: int) -> int:
        if number == 2:
            executor.shutdown(wait=False, cancel_futures=True)
        return number

    with pytest.raises(MapError, match="has cancelled what it was sent|takes nothing more") as caught:
        mapped(shut_down, executor)(range(10_000))
    assert caught.value.results.items() >= {0: 0, 1: 1}.items()


# Failures


def identity(value: Any) -> Any:
    return value


def fail_at_three(number: int) -> int:
    if number == 3:
        raise KeyError(number)
    return number


@pytest.mark.parametrize("count", [1, 50])
def test_items_that_cannot_be_pickled_fail_alone(pool: Executor, count: int) -> None:
    items = [number if number % 10 != 9 else threading.Lock() for number in range(10 * count)]
    results = mapped(identity, pool, on_error="return")(items)
    assert [each for each in results if isinstance(each, int)] == [n for n in range(10 * count) if n % 10 != 9]
    assert all(isinstance(each, ConfigError) for each in results if not isinstance(each, int))


def test_items_for_threads_are_not_pickled() -> None:
    lock = threading.Lock()
    with ThreadPoolExecutor(2) as threads:
        assert mapped(identity, threads)([lock, lock]) == [lock, lock]


# Workers that die


def die_at(number: int) -> int:
    """Ends its process for a multiple of 100, but for 0."""
    if number and number % 100 == 0:
        os._exit(9)
    return number


def test_an_item_that_kills_its_workers_is_found_and_all_other_results_arrive() -> None:
    made = Made(lambda: processes(1))
    bound = mapped(die_at, made, on_error="return")
    results = bound(range(150))
    died = results.pop(100)
    assert results == [number for number in range(150) if number != 100]
    assert isinstance(died, WorkerDiedError)
    assert "item 100 2 times" in str(died)
    assert died.times == 2
    assert 1 < len(made.all) <= 6
    assert made.are_shut_down()
    assert (bound.stats.calls, bound.stats.failures) == (150, 1)
    assert bound.stats.errors == {"WorkerDiedError": 1}


def die_once(number: int, folder: str) -> int:
    """Ends its process for number 3, the first time; the size of a file is how often it has run."""
    with open(os.path.join(folder, str(number)), "a") as file:
        file.write("x")
    if number == 3 and os.path.getsize(os.path.join(folder, "3")) == 1:
        os._exit(9)
    return number


def test_only_items_that_were_sent_are_run_again_after_a_death(tmp_path: Path) -> None:
    bound = mapped(die_once, Made(processes), window=8)  # so that chunks have two items at most, and four are sent
    assert bound(range(400), str(tmp_path)) == list(range(400))
    times = {int(path.name): path.stat().st_size for path in tmp_path.iterdir()}
    assert times[3] == 2
    assert set(times.values()) == {1, 2}
    assert sum(count == 2 for count in times.values()) <= 8


def test_worker_retries_limits_how_often_an_item_is_run_again(tmp_path: Path) -> None:
    bound = mapped(record_and_die, Made(lambda: processes(1)), worker_retries=2, on_error="return")
    [died] = bound([str(tmp_path / "tries")])
    assert died.times == 3
    assert (tmp_path / "tries").stat().st_size == 3


def record_and_die(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    os._exit(9)


def test_a_death_does_not_affect_an_item_that_could_not_be_sent(tmp_path: Path) -> None:
    """What could not be pickled has failed already: it is not tried, or counted, again."""
    items: list[Any] = [*range(60), threading.Lock(), 100, *range(61, 90)]
    updates: list[Any] = []
    bound = mapped(die_at, Made(lambda: processes(1)), on_error="return")
    results = bound(items, progress=updates.append)
    assert (updates[-1].done, updates[-1].failures) == (len(items), 2)
    failed = {index: type(each) for index, each in enumerate(results) if isinstance(each, Exception)}
    assert failed == {60: ConfigError, 61: WorkerDiedError}
    assert [each for each in results if isinstance(each, int)] == [*range(60), *range(61, 90)]


@pytest.mark.parametrize("way", ["list", "stream"])
def test_a_given_executor_that_breaks_ends_the_map_with_all_results_so_far(way: str) -> None:
    executor = processes()
    bound = mapped(die_at, executor)
    got: list[int] = []
    items = itertools.chain(range(90), [100], range(1000))
    with pytest.raises(MapError, match=r"the executor of .*die_at is broken.*executor= a function") as caught:
        bound(items) if way == "list" else got.extend(bound.stream(items))
    error = caught.value
    done = {**dict(enumerate(got)), **error.results}
    assert len(done) >= 1
    assert all(done[index] == index for index in done if index < 90)
    assert isinstance(error.reason, WorkerDiedError)
    assert isinstance(error.reason.__cause__, BrokenExecutor)
    with pytest.raises(MapError, match="is broken"):
        bound([1])
    executor.shutdown()


def test_a_broken_executor_of_loky_is_replaced() -> None:
    made = Made(lambda: get_reusable_executor(max_workers=2))
    results = mapped(die_at, made, on_error="return")([1, 100, 2])
    assert (results[0], results[2]) == (1, 2)
    assert isinstance(results[1], WorkerDiedError)


# Async functions


running = 0


async def most_at_a_time(seconds: float) -> int:
    """How many calls are running, including this one."""
    global running
    running += 1
    try:
        await asyncio.sleep(seconds)
        return running
    finally:
        running -= 1


def test_concurrency_limits_the_calls_at_a_time_in_a_process(pool: Executor) -> None:
    bound = mapped(most_at_a_time, pool, concurrency=3)
    assert max(asyncio.run(bound([0.01] * 100))) == 3


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def test_an_async_function_is_refused_for_threads_when_it_is_decorated() -> None:
    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(ConfigError, match=r"threads of an executor cannot run; leave executor out for mode='async'"),
    ):
        mapped(double, threads)


def test_an_async_function_is_refused_for_a_factory_of_threads_when_it_is_mapped() -> None:
    made = Made(lambda: ThreadPoolExecutor(1))
    with pytest.raises(ConfigError, match=r"threads of an executor cannot run"):
        asyncio.run(mapped(double, made)([1]))
    assert made.are_shut_down()


def test_cancelling_the_task_ends_the_map_and_its_processes(tmp_path: Path) -> None:
    made = Made(processes)

    async def cancel() -> None:
        task = asyncio.ensure_future(mapped(never_ends, made)([str(tmp_path)] * 4))
        while not os.listdir(tmp_path):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)

    asyncio.run(cancel())
    assert made.are_shut_down()
    for name in os.listdir(tmp_path):
        wait_until_gone(int(name))


async def never_ends(folder: str) -> None:
    open(os.path.join(folder, str(os.getpid())), "w").close()
    await asyncio.Event().wait()


# Limits that processes share


def test_one_circuit_breaker_holds_for_all_processes(pool: Executor, tmp_path: Path) -> None:
    bound = mapped(record_and_fail, pool, circuit_breaker=4, on_error="return")
    results = bound([str(tmp_path / "calls")] * 40)
    assert all(isinstance(each, Exception) for each in results)
    calls = (tmp_path / "calls").stat().st_size
    assert 4 <= calls <= 5  # one may have started at the same time as the last
    assert sum(type(each).__name__ == "CircuitOpenError" for each in results) == 40 - calls


def record_and_fail(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    raise ConnectionError(path)


def test_one_bulkhead_holds_for_all_processes(pool: Executor, tmp_path: Path) -> None:
    policy = Policy(bulkhead={"max_concurrent": 1, "max_wait": 30}, parallel={"executor": pool, "on_error": "raise"})
    bound = policy.apply(alone)
    assert bound.map([str(tmp_path / "inside")] * 30) == [True] * 30


def alone(path: str) -> bool:
    """Whether no other call is running."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    os.unlink(path)
    return True
