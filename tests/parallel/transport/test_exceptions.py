"""Exceptions that workers send: they arrive as themselves, or as nearly as possible."""

from __future__ import annotations

import json
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import AllFailedError, MapError, opero, opmap
from opero.parallel.transport.exceptions import portable
from opero.parallel.transport.pickling import dumps, loads
from opero.runtime.tracebacks import MOST_LINES

if TYPE_CHECKING:
    from collections.abc import Callable


def mapped(function: Any, **options: Any) -> Any:
    return opmap(**{"mode": "process", "workers": 1, "retries": 0, "on_error": "return", **options})(function)


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


class Textless(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ZeroDivisionError


class Irreducible(Exception):  # noqa: N818
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


class Unreadable(Exception):  # noqa: N818
    """Can be unpickled in the worker only."""

    def __reduce__(self) -> Any:
        return unreadable, (os.getpid(),)


def unreadable(pid: int) -> Unreadable:
    if os.getpid() != pid:
        raise LookupError("read in another process")
    return Unreadable("from the worker")


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
            raise OtherArguments(7, "start")
        case "keyword only":
            raise KeywordOnly(code=7)
        case "slots":
            raise Slotted("slotted", 7)
        case "holding":
            raise Holding("held")
        case "textless":
            raise Textless(7)
        case "irreducible":
            raise Irreducible("seven", 7)
        case "unreadable":
            raise Unreadable("from the worker")
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
    "other arguments": (OtherArguments, lambda error: str(error) == "code 7 at start" and error.code == 7),
    "keyword only": (KeywordOnly, lambda error: str(error) == "code 7" and error.code == 7),
    "slots": (Slotted, lambda error: error.code == 7),
    "holding": (Holding, lambda error: str(error) == "held" and error.where == "here" and "lock" in error.lock),
    "textless": (Textless, lambda error: error.args == (7,)),
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
    """The exception of each case, from one map."""
    whats = [*CASES, "unreadable", "none"]
    return dict(zip(whats, mapped(fail)(whats), strict=True))


@pytest.mark.parametrize("what", CASES)
def test_an_exception_arrives_as_itself(outcomes: dict[str, Any], what: str) -> None:
    kind, is_right = CASES[what]
    error = outcomes[what]
    assert isinstance(error, kind)
    assert is_right(error)
    frames = traceback.extract_tb(error.__traceback__)
    assert (frames[0].filename, frames[0].name) == (__file__, "fail")
    assert outcomes["none"] == "none"


def test_an_exception_that_cannot_be_read_in_the_parent_fails_its_item(outcomes: dict[str, Any]) -> None:
    assert isinstance(outcomes["unreadable"], Exception)
    assert "read in another process" in str(outcomes["unreadable"])


def test_a_printed_traceback_shows_the_lines_of_the_worker(outcomes: dict[str, Any]) -> None:
    text = "".join(traceback.format_exception(outcomes["chained"]))
    assert text.count("in chained") >= 1
    assert "innermost" in text
    assert os.path.join("opero", "parallel") not in text


@pytest.mark.parametrize("what", ["textless", "other arguments", "holding"])
def test_exceptions_of_all_attempts_arrive_within_all_failed_error(what: str) -> None:
    [error] = mapped(fail, retries=1, min_delay=0)([what])
    assert type(error) is AllFailedError
    assert [type(each) for each in error.errors] == [CASES[what][0]] * 2
    assert error.__cause__ is error.errors[-1]


def test_the_map_error_of_a_map_within_a_worker_arrives_complete() -> None:
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


def test_an_exception_that_fails_a_batch_is_sent_once() -> None:
    def fail_all(numbers: list[int]) -> list[int]:
        raise ValueError("all of them")

    first, *others = mapped(fail_all, batch_size=10)(range(10))
    assert all(other is first for other in others)
    assert [frame.name for frame in traceback.extract_tb(first.__traceback__)] == ["fail_all"]


def test_a_traceback_that_grows_each_time_that_its_exception_is_raised_is_sent_in_part() -> None:
    one = ValueError("the same object")

    def fail_again(_: int) -> None:
        raise one

    for error in mapped(fail_again)(range(500)):
        assert 1 <= len(traceback.extract_tb(error.__traceback__)) <= MOST_LINES


def test_an_exception_whose_str_fails_is_reported_by_threads_and_single_calls() -> None:
    with pytest.raises(MapError, match="<unprintable Textless>"):
        mapped(fail, mode="thread", on_error="raise")(["textless"])
    with pytest.raises(AllFailedError, match="<unprintable Textless>"):
        opero(retries=1, min_delay=0)(fail)("textless")


def test_system_exit_ends_the_map_with_all_results_so_far() -> None:
    def leave(number: int) -> int:
        if number == 1:
            raise SystemExit(3)
        return number

    with pytest.raises(SystemExit) as caught:
        mapped(leave)([0, 1])
    assert caught.value.args == (3,)
    assert isinstance(caught.value.__cause__, MapError)
    assert mapped(leave)([0, 2]) == [0, 2]


def test_a_base_exception_that_cannot_be_pickled_arrives_as_itself() -> None:
    class Unpicklable(BaseException):
        def __init__(self, code: int, lock: Any) -> None:
            super().__init__(code)
            self.lock = lock

    def leave(number: int) -> int:
        raise Unpicklable(number, threading.Lock())

    with pytest.raises(BaseException) as caught:  # noqa: PT011  # that is what it is
        mapped(leave)([3])
    assert type(caught.value) is Unpicklable
    assert caught.value.args == (3,)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)


@given(st.sampled_from([ValueError, KeyError, RuntimeError, OSError, LookupError]), st.lists(PLAIN, max_size=4))
@settings(max_examples=100)
def test_exceptions_of_plain_data_are_pickled_unchanged(kind: type[Exception], args: list[Any]) -> None:
    error = kind(*args)
    copy = loads(dumps(portable(error)))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert str(copy) == str(error)
    assert not hasattr(error, "__notes__")
