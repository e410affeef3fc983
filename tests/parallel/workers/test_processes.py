"""Maps in worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from typing import Any

import psutil
import pytest

from leftovers import workers as worker_processes
from opero import ConfigError, MapError, Policy, opero, opmap
from parallel import functions


def mapped(function: Any, **options: Any) -> Any:
    return opmap(**{"mode": "process", "workers": 2, "retries": 0, **options})(function)


# Which functions can be mapped


def test_a_decorated_module_function_is_found_by_its_name() -> None:
    assert functions.square(range(50)) == [number * number for number in range(50)]
    assert functions.squares(range(50)) == [number * number for number in range(50)]


def test_items_run_in_other_processes() -> None:
    pids = set(functions.pid.map(range(50)))
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_an_undecorated_module_function_is_found_by_its_name() -> None:
    bound = Policy(parallel={"mode": "process", "workers": 2}).apply(functions.undecorated)
    assert bound.map([1, 2]) == [2, 3]


def test_closures_lambdas_and_local_functions_are_pickled_by_value() -> None:
    base = 10

    def add(number: int) -> int:
        return base + number

    assert mapped(add)([1, 2]) == [11, 12]
    assert mapped(lambda number: -number)([1, 2]) == [-1, -2]


def test_functions_and_classes_of_main_are_pickled_by_value() -> None:
    code = """
        from opero import opmap

        class Point:
            def __init__(self, x):
                self.x = x

        class PointError(Exception):
            pass

        @opmap(mode="process", workers=2)
        def double(point: Point) -> Point:
            return Point(2 * helper(point.x))

        @opmap(mode="process", workers=2, retries=0, on_error="return")
        def fail(point):
            raise PointError(point.x)

        def helper(x):
            return x

        if __name__ == "__main__":
            points = double([Point(1), Point(2)])
            assert all(type(point) is Point for point in points), points
            [error] = fail([Point(3)])
            assert type(error) is PointError, error
            print([point.x for point in points])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("[2, 4]\n", "")


def test_builtins_and_callable_objects_can_be_mapped() -> None:
    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def __call__(self, number: int) -> int:
            return self.base + number

    assert mapped(abs)([-1, 2]) == [1, 2]
    assert mapped(Adder(3))([1, 2]) == [4, 5]


def test_methods_are_mapped_on_their_instance() -> None:
    service = functions.Service(10)
    assert service.add([1, 2], times=2) == [22, 24]
    assert service.add_batch([1, 2, 3]) == [11, 12, 13]
    assert functions.Service.named([1, 2]) == ["Service1", "Service2"]
    assert functions.Service.double([1, 2]) == [2, 4]


def test_further_arguments_are_passed_with_every_item() -> None:
    assert functions.scale([1, 2], 10, plus=5) == [15, 25]
    assert functions.scale(number=[1, 2], by=3) == [3, 6]


# Order and errors


def outcome(what: str) -> Any:
    with pytest.raises(MapError) as caught:
        opmap(mode="process", workers=2, retries=1, min_delay=0)(functions.misbehave.__wrapped__)([what])
    return caught.value.failures[0].exception


def test_an_exception_arrives_as_itself_with_the_lines_of_its_traceback() -> None:
    bound = opmap(mode="process", workers=2, retries=0)(functions.misbehave.__wrapped__)
    with pytest.raises(MapError) as caught:
        bound(["os error"])
    error = caught.value.failures[0].exception
    assert type(error) is FileNotFoundError
    assert (error.errno, error.filename) == (2, "x.txt")
    frames = traceback.extract_tb(error.__traceback__)
    assert [(frame.filename, frame.name) for frame in frames] == [(functions.__file__, "misbehave")]
    assert "x.txt" in frames[0].line


def test_attempts_with_unpicklable_exceptions_are_reported_within_their_group() -> None:
    error = outcome("awkward")
    assert "Awkward: code 7 at start" in str(error) + "".join(map(str, getattr(error, "errors", ())))


def test_a_stop_iteration_fails_its_item() -> None:
    bound = opmap(mode="process", workers=2, retries=0, on_error="return")(functions.misbehave.__wrapped__)
    [error] = bound(["stop"])
    assert type(error) is StopIteration


def test_an_exception_class_of_a_local_scope_arrives_as_itself() -> None:
    class OwnError(Exception):
        pass

    def fail(number: int) -> None:
        raise OwnError(number)

    [error] = mapped(fail, on_error="return")([3])
    assert type(error) is OwnError


# What cannot be sent


def test_a_further_argument_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(ConfigError, match="the arguments of scale cannot be sent"):
        functions.scale([1, 2], threading.Lock())


def test_a_later_item_that_cannot_be_pickled_fails_alone() -> None:
    one, lock, two = mapped(identity, on_error="return")([1, threading.Lock(), 2])
    assert (one, two) == (1, 2)
    assert isinstance(lock, ConfigError)
    assert "cannot be sent to a worker process" in str(lock)
    with pytest.raises(MapError) as caught:
        mapped(identity, workers=1)([1, threading.Lock()])
    assert [each.index for each in caught.value.failures] == [1]


def test_a_function_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker process.*mode='thread'"):
        mapped(lambda number: lock)([1])


def identity(value: Any) -> Any:
    return value


# Workers that die


def die(number: int) -> int:
    if number == 3:
        os._exit(9)
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("fatal", [3, 4], ids=["os._exit", "SIGKILL"])
def test_a_death_affects_no_other_result_and_the_next_map_works(fatal: int) -> None:
    items = [*range(3), fatal, *range(5, 8)]
    results = mapped(die, on_error="return")(items)
    assert isinstance(results.pop(3), Exception)
    assert results == [0, 1, 2, 5, 6, 7]
    assert mapped(die)([0, 1, 2]) == [0, 1, 2]


def test_a_worker_that_dies_raises_a_map_error() -> None:
    with pytest.raises(MapError) as caught:
        mapped(die)([3])
    assert [each.index for each in caught.value.failures] == [0]
    assert "worker" in str(caught.value) or "process" in str(caught.value)
    assert mapped(die)([1]) == [1]


def test_workers_that_are_killed_between_maps_are_replaced() -> None:
    assert functions.square([1, 2]) == [1, 4]
    for each in worker_processes():
        each.kill()
    assert functions.square([1, 2, 3]) == [1, 4, 9]


# Policies, cache and counts


def test_counts_of_all_workers_are_added_to_those_of_this_process() -> None:
    bound = opero(mode="process", workers=2)(functions.undecorated)
    assert bound(1) == 2
    assert bound.map(range(100)) == list(range(1, 101))
    assert bound.map(range(10)) == list(range(1, 11))
    assert bound.stats.calls == 111
    assert bound.stats.attempts == 111


def test_a_generator_of_many_items_is_mapped() -> None:
    assert mapped(functions.undecorated)(number for number in range(20_000)) == list(range(1, 20_001))


def test_worker_processes_are_kept_between_maps() -> None:
    functions.pid.map(range(20))
    before = {each.pid for each in worker_processes()}
    functions.pid.map(range(20))
    assert {each.pid for each in worker_processes()} == before


def test_two_threads_may_map_at_the_same_time() -> None:
    results: dict[int, Any] = {}

    def use(number: int) -> None:
        results[number] = functions.square([number] * 20)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {number: [number * number] * 20 for number in range(3)}


def test_ctrl_c_ends_the_map_and_the_script_at_once_and_leaves_no_process_behind() -> None:
    code = """
        import os, signal, threading, time, psutil
        from opero import opmap

        @opmap(mode="process", workers=2)
        def nap(seconds: float) -> None:
            time.sleep(seconds)

        nap([0.0, 0.0])
        workers = psutil.Process().children(recursive=True)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            nap([600.0, 600.0, 600.0])
        except KeyboardInterrupt:
            print("interrupted", *(worker.pid for worker in workers))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    word, *pids = done.stdout.split()
    assert word == "interrupted"
    until = time.monotonic() + 120
    while any(psutil.pid_exists(int(pid)) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert [pid for pid in pids if psutil.pid_exists(int(pid))] == []


def test_a_script_ends_at_once_and_leaves_no_process_behind() -> None:
    code = "from parallel import functions; import psutil; print(functions.square([2])); print(psutil.Process().pid)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.stdout.startswith("[4]\n"), done.stderr
    assert done.stderr == ""
