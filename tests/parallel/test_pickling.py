"""What travels between processes: functions, arguments, items, results and exceptions."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import AllFailedError, ConfigError, MapError, opero, opmap
from opero.parallel.transport.exceptions import portable
from opero.parallel.transport.pickling import dumps, loads
from parallel import functions

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = os.getpid()


def mapped(function: Any, **options: Any) -> Any:
    return opmap(**{"mode": "process", "workers": 1, "retries": 0, "on_error": "return", **options})(function)


# Exceptions


class OtherArguments(Exception):  # noqa: N818
    def __init__(self, code: int, where: str = "nowhere") -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code


class KeywordOnly(Exception):  # noqa: N818
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Slotted(Exception):  # noqa: N818
    __slots__ = ("code",)

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Holding(Exception):  # noqa: N818
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()
        self.where = "here"


class Mute(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ZeroDivisionError


class Irreducible(Exception):  # noqa: N818
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


class Homesick(Exception):  # noqa: N818
    """It can be built in the worker only."""

    def __reduce__(self) -> Any:
        return homesick, (os.getpid(),)


def homesick(pid: int) -> Homesick:
    if os.getpid() != pid:
        raise LookupError("not at home")
    return Homesick("I want home")


class CodedOSError(OSError):
    def __init__(self, code: int) -> None:
        super().__init__(code, "no luck", "x.txt")
        self.code = code


class Point(pydantic.BaseModel):
    x: int


def chained() -> None:
    try:
        try:
            raise KeyError("innermost")
        except KeyError as error:
            raise OtherArguments(2) from error
    except OtherArguments:
        raise ValueError("outermost")  # noqa: B904  # its context is what matters


def refused() -> None:
    response = requests.Response()
    response.status_code, response.url, response._content = 503, "http://localhost/x", b"busy"
    response.raise_for_status()


def fail(what: str) -> Any:
    match what:
        case "other arguments":
            raise OtherArguments(7, "home")
        case "keyword only":
            raise KeywordOnly(code=7)
        case "slots":
            raise Slotted("slotted", 7)
        case "holding":
            raise Holding("held")
        case "mute":
            raise Mute(7)
        case "irreducible":
            raise Irreducible("seven", 7)
        case "homesick":
            raise Homesick("I want home")
        case "local":

            class LocalError(Exception):
                pass

            raise LocalError("of a local class")
        case "unicode":
            b"\xff".decode("utf-8")
        case "os error":
            raise FileNotFoundError(2, "No such file", "x.txt")
        case "own os error":
            raise CodedOSError(28)
        case "json":
            json.loads("{")
        case "key":
            return {}["missing"]
        case "pydantic":
            Point.model_validate({"x": "no number"})
        case "requests":
            refused()
        case "chained":
            chained()
        case "groups":
            raise ExceptionGroup(
                "outer", [ExceptionGroup("inner", [OtherArguments(1), Holding("in")]), ValueError("v")]
            )
        case "note":
            error = ValueError("noted")
            error.add_note("look here")
            raise error
        case "lambda":
            raise ValueError(lambda: None, threading.Lock())
        case "stop":
            raise StopAsyncIteration(7)
    return what


CASES: dict[str, tuple[type[BaseException], Callable[[Any], bool]]] = {
    "other arguments": (OtherArguments, lambda error: str(error) == "code 7 at home" and error.code == 7),
    "keyword only": (KeywordOnly, lambda error: str(error) == "code 7" and error.code == 7),
    "slots": (Slotted, lambda error: error.code == 7),
    "holding": (Holding, lambda error: str(error) == "held" and error.where == "here" and "lock" in error.lock),
    "mute": (Mute, lambda error: error.args == (7,)),
    "irreducible": (Irreducible, lambda error: error.args == ("seven", 7)),
    "local": (Exception, lambda error: type(error).__name__ == "LocalError" and str(error) == "of a local class"),
    "unicode": (UnicodeDecodeError, lambda error: (error.start, error.object) == (0, b"\xff")),
    "os error": (FileNotFoundError, lambda error: (error.errno, error.filename) == (2, "x.txt")),
    "own os error": (CodedOSError, lambda error: (error.errno, error.filename, error.code) == (28, "x.txt", 28)),
    "json": (json.JSONDecodeError, lambda error: error.lineno == 1),
    "key": (KeyError, lambda error: error.args == ("missing",)),
    "pydantic": (ValueError, lambda error: "valid integer" in str(error)),
    "requests": (requests.HTTPError, lambda error: error.response.status_code == 503),
    "chained": (
        ValueError,
        lambda error: (
            isinstance(error.__context__, OtherArguments)
            and isinstance(error.__context__.__cause__, KeyError)
            and error.__context__.__suppress_context__
        ),
    ),
    "groups": (
        ExceptionGroup,
        lambda error: [type(each) for each in error.exceptions[0].exceptions] == [OtherArguments, Holding],
    ),
    "note": (ValueError, lambda error: error.__notes__[0] == "look here"),
    "lambda": (ValueError, lambda error: "lock" in str(error.args[1])),
    "stop": (StopAsyncIteration, lambda error: error.args == (7,)),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What each of the troubles comes to, in one map."""
    troubles = [*CASES, "homesick", "none"]
    return dict(zip(troubles, mapped(fail)(troubles), strict=True))


@pytest.mark.parametrize("what", CASES)
def test_an_awkward_exception_arrives_as_itself(outcomes: dict[str, Any], what: str) -> None:
    kind, is_right = CASES[what]
    error = outcomes[what]
    assert isinstance(error, kind)
    assert is_right(error)
    [message] = [note for note in error.__notes__ if note.startswith("In the worker process:")]
    assert "in fail" in message
    assert outcomes["none"] == "none"


def test_an_exception_that_cannot_be_built_in_the_parent_fails_its_item_and_says_why(outcomes: dict[str, Any]) -> None:
    assert isinstance(outcomes["homesick"], Exception)
    assert "not at home" in str(outcomes["homesick"])


def test_a_traceback_that_is_printed_shows_the_workers_lines(outcomes: dict[str, Any]) -> None:
    import traceback

    text = "".join(traceback.format_exception(outcomes["chained"]))
    assert text.count("in chained") >= 1
    assert "innermost" in text
    assert os.path.join("opero", "parallel") not in text


@pytest.mark.parametrize("what", ["mute", "other arguments", "holding"])
def test_awkward_exceptions_within_retries_arrive_within_all_failed_error(what: str) -> None:
    [error] = mapped(fail, retries=1, min_delay=0)([what])
    assert type(error) is AllFailedError
    assert [type(each) for each in error.errors] == [CASES[what][0]] * 2
    assert error.__cause__ is error.errors[-1]


def test_a_map_error_of_a_map_within_a_worker_arrives_whole() -> None:
    def inner(number: int) -> int:
        if number == 1:
            raise Holding("inner")
        return number

    def outer(_: int) -> Any:
        return opmap(mode="thread", workers=1, retries=0)(inner)([0, 1])

    [error] = mapped(outer)([0])
    assert type(error) is MapError
    assert error.results == {0: 0}
    assert [type(each.exception) for each in error.failures] == [Holding]


def test_an_exception_that_fails_a_batch_is_sent_once_with_one_note() -> None:
    def fail_all(numbers: list[int]) -> list[int]:
        raise ValueError("all of them")

    first, *others = mapped(fail_all, batch_size=10)(range(10))
    assert all(other is first for other in others)
    assert len(first.__notes__) == 1


def test_an_exception_that_is_raised_again_and_again_gathers_no_notes() -> None:
    one = ValueError("the same object")

    def fail_again(_: int) -> None:
        raise one

    errors = mapped(fail_again)(range(200))
    assert {len(error.__notes__) for error in errors} == {1}


def test_an_exception_without_a_text_is_reported_by_a_map_in_threads_too() -> None:
    with pytest.raises(MapError, match="<unprintable Mute>"):
        mapped(fail, mode="thread", on_error="raise")(["mute"])
    with pytest.raises(AllFailedError, match="<unprintable Mute>"):
        opero(retries=1, min_delay=0)(fail)("mute")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_item_that_wants_to_end_the_program_ends_the_map_with_what_was_done(kind: type[BaseException]) -> None:
    def leave(number: int) -> int:
        if number == 1:
            raise kind(3)
        return number

    with pytest.raises(kind) as caught:
        mapped(leave)([0, 1])
    assert caught.value.args == (3,)
    assert isinstance(caught.value.__cause__, MapError)
    assert mapped(leave)([0, 2]) == [0, 2]


def test_a_base_exception_that_does_not_pickle_breaks_no_pool() -> None:
    class Strange(BaseException):
        def __init__(self, code: int, lock: Any) -> None:
            super().__init__(code)
            self.lock = lock

    def leave(number: int) -> int:
        raise Strange(number, threading.Lock())

    with pytest.raises(BaseException) as caught:  # noqa: PT011  # that is what it is
        mapped(leave)([3])
    assert type(caught.value) is Strange
    assert caught.value.args == (3,)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)


@given(st.sampled_from([ValueError, KeyError, RuntimeError, OSError, LookupError]), st.lists(PLAIN, max_size=4))
@settings(max_examples=100)
def test_exceptions_of_plain_data_arrive_as_they_were(kind: type[Exception], args: list[Any]) -> None:
    error = kind(*args)
    copy = loads(dumps(portable(error)))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert str(copy) == str(error)
    assert not hasattr(error, "__notes__")


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
def test_the_part_of_a_function_that_does_not_pickle_is_named(what: str) -> None:
    function, message = local_function()[what]
    with pytest.raises(ConfigError, match=f"cannot be sent to a worker process, because of .*{message}, <"):
        mapped(function)([1])


def test_an_argument_whose_repr_fails_is_named_all_the_same() -> None:
    class Shy:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __repr__(self) -> str:
            raise ZeroDivisionError

    with pytest.raises(ConfigError, match="the first item of identity cannot be sent .* attribute 'lock'"):
        mapped(identity)([Shy()])


def identity(value: Any) -> Any:
    return value


# What cannot be sent back, or read


class Shy:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        raise ZeroDivisionError


def test_a_result_that_does_not_pickle_fails_its_item_even_where_its_repr_fails() -> None:
    def make(number: int) -> Any:
        return Shy() if number == 1 else number

    zero, one, two = mapped(make)([0, 1, 2])
    assert (zero, two) == (0, 2)
    assert "the result <Shy> cannot be sent back" in str(one)


class Unreadable:
    """It can be read in the process of that number only."""

    def __init__(self, home: int, value: Any = None) -> None:
        self.home = home
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["home"]:
            raise LookupError("not at home")
        self.__dict__.update(state)


def unreadable(home: int) -> Unreadable:
    if os.getpid() != home:
        raise LookupError("not at home")
    return Unreadable(home)


class Reduced:
    def __init__(self, home: int) -> None:
        self.home = home

    def __reduce__(self) -> Any:
        return unreadable, (self.home,)


@pytest.mark.parametrize("wrap", [Unreadable, Reduced, lambda home: [{"deep": (Unreadable(home),)}]])
def test_an_item_that_cannot_be_read_in_the_worker_fails_alone(wrap: Any) -> None:
    bound = mapped(identity)
    one, wrong, two, three = bound([1, wrap(HERE), 2, [3]])
    assert (one, two, three) == (1, 2, [3])
    assert "cannot be read in a worker process: LookupError: not at home" in str(wrong)
    assert (bound.stats.calls, bound.stats.failures) == (4, 1)
    with pytest.raises(MapError) as caught:
        mapped(identity, on_error="raise")([wrap(HERE)])
    assert [each.index for each in caught.value.failures] == [0]


@pytest.mark.parametrize("wrap", [Unreadable, Reduced, lambda home: [{"deep": (Unreadable(home),)}]])
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
    assert "cannot be read here: LookupError: not at home" in str(one)
    assert sorted(path.read_text().split()) == ["0", "1", "2"]


def test_an_unreadable_item_twice_in_a_chunk_fails_both() -> None:
    same = Unreadable(HERE)
    results = mapped(identity)([0, *[same, 1, same] * 3])
    assert [type(each) for each in results] == [int, *[TypeError, int, TypeError] * 3]


def test_in_batches_an_item_that_cannot_be_read_fails_alone_too() -> None:
    def lengths(items: list[Any]) -> list[int]:
        return [len(items)] * len(items)

    results = mapped(lengths, batch_size=4)([1, Unreadable(HERE), 2, 3])
    assert results[0] == results[2] == results[3] == 3
    assert isinstance(results[1], TypeError)


def test_an_async_worker_takes_them_as_well() -> None:
    import asyncio

    async def identity_async(value: Any) -> Any:
        return value

    one, wrong, two = asyncio.run(mapped(identity_async, mode="async_process")([1, Unreadable(HERE), 2]))
    assert (one, two) == (1, 2)
    assert isinstance(wrong, TypeError)


def test_very_large_items_and_results_travel() -> None:
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


def test_methods_of_nested_classes_travel() -> None:
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
def test_all_kinds_of_callables_travel(function: Any) -> None:
    assert mapped(function)([1, 2]) == [function(1), function(2)]


def test_functions_of_a_consoles_namespace_travel() -> None:
    namespace: dict[str, Any] = {"__name__": "a_console"}
    code = """
        def helper(number):
            return number + 1

        def shift(number):
            return helper(number) * 2
    """
    exec(textwrap.dedent(code), namespace)
    assert mapped(namespace["shift"])([1, 2]) == [4, 6]


def test_a_module_that_is_run_as_a_program_travels(tmp_path: Path) -> None:
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
