"""What is pickled for workers and sent back: functions, arguments, items and results."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from opero import ConfigError, MapError, opero, opmap
from parallel import functions

HERE = os.getpid()


def mapped(function: Any, **options: Any) -> Any:
    return opmap(**{"mode": "process", "workers": 1, "retries": 0, "on_error": "return", **options})(function)


# What cannot be sent


class Client:
    def __init__(self) -> None:
        self.base = "http://localhost"
        self.pool = {"connections": [1, threading.Lock()]}

    def fetch(self, number: int) -> int:
        return number

    @opmap(mode="process", workers=1)
    def fetch_all(self, number: int) -> int:
        return number


class SlottedClient:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_a_bound_method_of_an_object_that_holds_a_lock_names_the_attribute() -> None:
    with pytest.raises(ConfigError) as caught:
        mapped(Client().fetch)([1])
    assert str(caught.value) == (
        "Client.fetch cannot be sent to a worker process, because of item 1 of value 'connections' of attribute 'pool' "
        f"of instance 'Client', {str(caught.value).split(', ')[2].split(':')[0]}: cannot pickle '_thread.lock' object; "
        "use mode='thread', or create that object in the worker: on first use, or in an initializer"
    )


def test_a_decorated_method_names_self_and_the_attribute() -> None:
    with pytest.raises(ConfigError, match=r"'self' of the arguments of Client.fetch_all cannot .* of attribute 'pool'"):
        Client().fetch_all([1])


def local_function(**made: Any) -> Any:
    lock = threading.Lock()

    class Part:
        def __init__(self) -> None:
            self.inner = SlottedClient()

    part = Part()

    def takes_default(number: int, by: Any = lock) -> int:
        return number

    def takes_keyword(number: int, *, by: Any = lock) -> int:
        return number

    return {
        "variable": (lambda number: lock, "variable 'lock'"),
        "nested": (lambda number: part, "attribute 'lock' of attribute 'inner' of variable 'part'"),
        "dict": (functools.partial(takes_key, by={"a": lock}), "value 'a' of argument 'by'"),
        "default": (takes_default, "default of 'by'"),
        "keyword default": (takes_keyword, "default of 'by'"),
        "partial": (functools.partial(takes_key, by=lock), "argument 'by'"),
        "partial of a method": (functools.partial(Client().fetch), "of instance 'Client' of function"),
    }


def takes_key(number: int, by: Any) -> int:
    return number


@pytest.mark.parametrize("what", local_function())
def test_the_part_of_a_function_that_cannot_be_pickled_is_named(what: str) -> None:
    function, message = local_function()[what]
    with pytest.raises(ConfigError, match=f"cannot be sent to a worker process, because of .*{message}, <"):
        mapped(function)([1])


def test_the_unpicklable_attribute_of_an_item_whose_repr_fails_is_named() -> None:
    class BrokenRepr:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __repr__(self) -> str:
            raise ZeroDivisionError

    [error] = mapped(identity, on_error="return")([BrokenRepr()])
    assert re.match("item 0 of identity cannot be sent .* attribute 'lock'", str(error))


def identity(value: Any) -> Any:
    return value


# What cannot be sent back, or read


class BrokenRepr:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        raise ZeroDivisionError


def test_a_result_that_cannot_be_pickled_fails_its_item_even_if_its_repr_fails() -> None:
    def make(number: int) -> Any:
        return BrokenRepr() if number == 1 else number

    zero, one, two = mapped(make)([0, 1, 2])
    assert (zero, two) == (0, 2)
    assert "the result <BrokenRepr> cannot be sent back" in str(one)


class Unreadable:
    """Can be unpickled only in the process with that id."""

    def __init__(self, pid: int, value: Any = None) -> None:
        self.pid = pid
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["pid"]:
            raise LookupError("read in another process")
        self.__dict__.update(state)


def unreadable(pid: int) -> Unreadable:
    if os.getpid() != pid:
        raise LookupError("read in another process")
    return Unreadable(pid)


class Reduced:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return unreadable, (self.pid,)


@pytest.mark.parametrize("wrap", [Unreadable, Reduced, lambda pid: [{"deep": (Unreadable(pid),)}]])
def test_an_item_that_cannot_be_read_in_the_worker_fails_alone(wrap: Any) -> None:
    bound = mapped(identity)
    one, wrong, two, three = bound([1, wrap(HERE), 2, [3]])
    assert (one, two, three) == (1, 2, [3])
    assert "cannot be read in a worker process: LookupError: read in another process" in str(wrong)
    assert (bound.stats.calls, bound.stats.failures) == (4, 1)
    with pytest.raises(MapError) as caught:
        mapped(identity, on_error="raise")([wrap(HERE)])
    assert [each.index for each in caught.value.failures] == [0]


@pytest.mark.parametrize("wrap", [Unreadable, Reduced, lambda pid: [{"deep": (Unreadable(pid),)}]])
def test_a_result_that_cannot_be_read_in_the_parent_fails_alone_and_nothing_runs_twice(
    wrap: Any, tmp_path: Path
) -> None:
    path = tmp_path / "calls"

    def make(number: int) -> Any:
        with path.open("a") as file:
            file.write(f"{number}\n")
        return wrap(os.getpid()) if number == 1 else {"number": [number]}

    zero, one, two = mapped(make)([0, 1, 2])
    assert (zero, two) == ({"number": [0]}, {"number": [2]})
    assert "cannot be read here: LookupError: read in another process" in str(one)
    assert sorted(path.read_text().split()) == ["0", "1", "2"]


def test_an_unreadable_item_twice_in_a_chunk_fails_both() -> None:
    same = Unreadable(HERE)
    results = mapped(identity)([0, *[same, 1, same] * 3])
    assert [type(each) for each in results] == [int, *[TypeError, int, TypeError] * 3]


def test_an_item_of_a_batch_that_cannot_be_read_fails_alone() -> None:
    def lengths(items: list[Any]) -> list[int]:
        return [len(items)] * len(items)

    results = mapped(lengths, batch_size=4)([1, Unreadable(HERE), 2, 3])
    assert results[0] == results[2] == results[3] == 3
    assert isinstance(results[1], TypeError)


def test_an_item_that_cannot_be_read_in_an_async_worker_fails_alone() -> None:
    import asyncio

    async def identity_async(value: Any) -> Any:
        return value

    one, wrong, two = asyncio.run(mapped(identity_async, mode="async_process")([1, Unreadable(HERE), 2]))
    assert (one, two) == (1, 2)
    assert isinstance(wrong, TypeError)


def test_very_large_items_and_results_are_sent() -> None:
    size = 100 << 20

    def grow(data: bytes) -> bytes:
        return data[:1] * size

    [grown] = mapped(grow)([bytes(size)])
    assert len(grown) == size


# Functions


class Outer:
    class Inner:
        factor = 3

        @opmap(mode="process", workers=1)
        def times(self, number: int) -> int:
            return self.factor * number


class Callable_:  # noqa: N801
    def __init__(self, base: int) -> None:
        self.base = base

    def __call__(self, number: int) -> int:
        return self.base + number

    def add(self, number: int) -> int:
        return self.base + number


@opero(retries=1)
def bound_function(number: int, by: int = 1) -> int:
    return number * by


def test_methods_of_nested_classes_can_be_mapped() -> None:
    assert Outer.Inner().times([1, 2]) == [3, 6]


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(bound_function, by=3),
        functools.partial(functions.undecorated),
        Callable_(2),
        Callable_(2).add,
        bound_function,
        int,
        "{}".format,
    ],
    ids=["partial of an opero function", "partial", "callable", "method", "opero function", "class", "builtin method"],
)
def test_all_kinds_of_callables_can_be_mapped(function: Any) -> None:
    assert mapped(function)([1, 2]) == [function(1), function(2)]


def test_functions_of_a_namespace_without_a_module_can_be_mapped() -> None:
    namespace: dict[str, Any] = {"__name__": "a_console"}
    code = """
        def helper(number):
            return number + 1

        def shift(number):
            return helper(number) * 2
    """
    exec(textwrap.dedent(code), namespace)
    assert mapped(namespace["shift"])([1, 2]) == [4, 6]


def test_functions_of_a_module_that_is_run_as_a_program_can_be_mapped(tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def shift(number):\n    return number + 1\n")
    code = """
        from opero import opmap
        from app.helper import shift

        class ShiftError(Exception):
            pass

        @opmap(mode="process", workers=2, retries=0, on_error="return")
        def work(number: int) -> int:
            if number == 3:
                raise ShiftError(number)
            return shift(number)

        if __name__ == "__main__":
            first, second, third = work([1, 2, 3])
            print(first, second, type(third) is ShiftError)
    """
    (package / "run.py").write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "app.run"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("2 3 True\n", "")


def test_a_module_that_workers_cannot_import_is_named(tmp_path: Path) -> None:
    import types

    module = types.ModuleType("made_up_module")
    exec("def work(number):\n    return number", module.__dict__)
    sys.modules["made_up_module"] = module
    try:
        with pytest.raises(
            Exception, match="work: its function could not be set up in a worker process: .*made_up_mod"
        ):
            mapped(module.work)([1])
    finally:
        del sys.modules["made_up_module"]
