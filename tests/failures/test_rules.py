"""Laws of classification: what decides, and that reading an error never replaces it."""

from __future__ import annotations

import asyncio
import errno
import gc
import http
import socket
import subprocess
import sys
import urllib.error
import weakref
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opero
from opero.failures import GRAVITY, Failure, Kind, failure_of, gravest, kind_of, retry_after, status_of
from opero.failures.classify import READERS, WRAPPERS
from opero.failures.statuses import STATUS_NAMES

EXAMPLES: dict[Kind, BaseException] = {
    Kind.UNKNOWN: ValueError("?"),
    Kind.TRANSIENT: ConnectionError(),
    Kind.THROTTLED: opero.RateLimitExceededError("full"),
    Kind.DENIED: urllib.error.HTTPError("http://localhost", 401, "no", None, None),  # type: ignore[arg-type]
    Kind.PERMANENT: TypeError(),
    Kind.CONTROL: KeyboardInterrupt(),
}
kinds = st.sampled_from(Kind)


class Odd(Exception):  # noqa: N818  # it may be anything
    """An exception of a program, with attributes of its own."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)


# Kinds of statuses and classes


@given(st.integers())
def test_every_status_has_the_kind_of_its_class(status: int) -> None:
    kind = kind_of(Odd(status_code=status))
    if not 400 <= status <= 599:
        assert kind is Kind.UNKNOWN
    elif status in (408, 425) or (status >= 500 and status not in (501, 505)):
        assert kind is Kind.TRANSIENT
    elif status == 429:
        assert kind is Kind.THROTTLED
    elif status in (401, 403, 407):
        assert kind is Kind.DENIED
    else:
        assert kind is Kind.PERMANENT


@pytest.mark.parametrize("name", ["response", "resp", "status_code", "http_status", "status", "code"])
def test_the_attributes_that_have_a_status(name: str) -> None:
    value: Any = 503 if name not in ("response", "resp") else Odd(status_code=503)
    assert failure_of(Odd(**{name: value})) == Failure(Kind.TRANSIENT, 503, "HTTP 503")
    assert status_of(Odd(**{name: http.HTTPStatus.NOT_FOUND if value == 503 else Odd(status=404)})) == 404


@pytest.mark.parametrize("status", [True, 99, 600, 1006, -503, "503", 503.0, None, Mock(), MagicMock(), [503]])
def test_what_is_no_status(status: Any) -> None:
    for name in ("status_code", "status", "code"):
        assert failure_of(Odd(**{name: status})) == Failure(Kind.UNKNOWN, None, "Odd")
        assert failure_of(Odd(response=Odd(**{name: status}))) == Failure(Kind.UNKNOWN, None, "Odd")


def test_a_status_below_400_says_nothing() -> None:
    assert failure_of(Odd(status_code=200)) == Failure(Kind.UNKNOWN, 200, "Odd")


def test_a_403_of_an_exhausted_limit_is_throttled() -> None:
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1000000030"}
    assert failure_of(Odd(status=403, headers=headers), now=1e9) == Failure(
        Kind.THROTTLED, 403, "HTTP 403 with no calls remaining", 30.0
    )
    assert kind_of(Odd(status=403, headers={**headers, "X-RateLimit-Remaining": "7"})) is Kind.DENIED


@pytest.mark.parametrize(
    ("kind", "errors"),
    [
        (
            Kind.TRANSIENT,
            [ConnectionResetError(), BrokenPipeError(), TimeoutError(), asyncio.IncompleteReadError(b"", 1)],
        ),
        (Kind.TRANSIENT, [OSError(errno.EHOSTUNREACH, "x"), OSError(errno.EMFILE, "x"), BlockingIOError()]),
        (Kind.TRANSIENT, [socket.gaierror(socket.EAI_AGAIN, "x"), subprocess.TimeoutExpired("x", 1)]),
        (Kind.TRANSIENT, [OSError("Multiple exceptions: [Errno 111] refused, [Errno 111] refused")]),
        (Kind.PERMANENT, [TypeError(), AttributeError(), NameError(), ImportError(), SyntaxError(), KeyError()]),
        (Kind.PERMANENT, [IndexError(), NotImplementedError(), AssertionError(), RecursionError(), MemoryError()]),
        (
            Kind.PERMANENT,
            [FileNotFoundError(), PermissionError(errno.EACCES, "x"), OSError(errno.ENOSPC, "x"), IsADirectoryError()],
        ),
        (Kind.PERMANENT, [socket.gaierror(socket.EAI_NONAME, "x"), OSError("[Errno 111] a, [Errno 13] b")]),
        (Kind.UNKNOWN, [ValueError(), RuntimeError(), ZeroDivisionError(), Exception(), OSError(), OSError("text")]),
        (Kind.UNKNOWN, [EOFError(), StopIteration(), OSError(errno.EIO, "x"), subprocess.CalledProcessError(1, "x")]),
    ],
)
def test_builtin_exceptions(kind: Kind, errors: list[Exception]) -> None:
    assert {repr(each): kind_of(each) for each in errors} == {repr(each): kind for each in errors}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (opero.CallTimeoutError("slow"), Kind.TRANSIENT),
        (opero.CallTimeoutError("slow", scope="total", errors=[TypeError()]), Kind.TRANSIENT),
        (opero.CircuitOpenError("open", retry_in=7), Kind.TRANSIENT),
        (opero.RateLimitExceededError("full", retry_in=7), Kind.THROTTLED),
        (opero.BulkheadFullError("full", retry_in=7), Kind.THROTTLED),
        (opero.ConfigError("wrong"), Kind.PERMANENT),
        (opero.PolicyNotFoundError("missing"), Kind.PERMANENT),
        (opero.WorkerDiedError("died"), Kind.UNKNOWN),
        (opero.OperoError("?"), Kind.UNKNOWN),
        (opero.ResultRejectedError("rejected", result=None), Kind.UNKNOWN),
        (opero.AllFailedError("all", [ValueError(), ConnectionError()]), Kind.TRANSIENT),
        (opero.AllFailedError("all", [ConnectionError(), KeyError()]), Kind.PERMANENT),
        (opero.MapError("map", {}, [opero.Failure(0, "item", KeyError())]), Kind.PERMANENT),
        (opero.MapError("map", {}, []), Kind.UNKNOWN),
    ],
)
def test_exceptions_of_opero(error: Exception, kind: Kind) -> None:
    failure = failure_of(error)
    assert failure.kind is kind
    assert failure.retry_in == getattr(error, "retry_in", None)


# Groups and causes


@given(st.lists(kinds, min_size=1), st.randoms())
def test_the_gravest_member_of_a_group_decides(members: list[Kind], random: Any) -> None:
    errors = [EXAMPLES[each] for each in members]
    while len(errors) > 1 and random.random() < 0.5:  # groups in groups
        cut = random.randrange(1, len(errors))
        errors = [BaseExceptionGroup("inner", errors[:cut]), *errors[cut:]]
    assert kind_of(BaseExceptionGroup("outer", errors)) is max(members, key=GRAVITY.__getitem__)


@pytest.mark.parametrize("own", [Kind.UNKNOWN, Kind.TRANSIENT, Kind.PERMANENT])
@pytest.mark.parametrize("cause", Kind)
def test_the_gravest_of_an_exception_and_its_cause_decides(own: Kind, cause: Kind) -> None:
    error = type(EXAMPLES[own])()
    error.__cause__ = EXAMPLES[cause]
    expected = own if cause is Kind.CONTROL else max(own, cause, key=GRAVITY.__getitem__)
    assert kind_of(error) is expected


def test_a_cause_does_not_change_a_status_or_a_cancellation() -> None:
    for error, kind in ((Odd(status=503), Kind.TRANSIENT), (asyncio.CancelledError(), Kind.CONTROL)):
        error.__cause__ = KeyError()
        assert kind_of(error) is kind


def test_a_cancellation_that_is_a_cause_and_a_member_counts() -> None:
    cancelled = asyncio.CancelledError()
    late = TimeoutError()
    late.__cause__ = cancelled
    assert kind_of(late) is Kind.TRANSIENT
    for members in ([late, cancelled], [cancelled, late]):
        assert kind_of(BaseExceptionGroup("both", members)) is Kind.CONTROL


def test_a_context_is_no_cause() -> None:
    error = ValueError()
    error.__context__ = KeyError()
    assert kind_of(error) is Kind.UNKNOWN


def test_the_longest_wait_of_a_group_counts() -> None:
    errors = [opero.RateLimitExceededError("full", retry_in=each) for each in (3.0, 9.0, 5.0)]
    assert failure_of(ExceptionGroup("all", errors)).retry_in == 9.0


@given(kinds, kinds)
def test_which_of_two_failures_decides_does_not_depend_on_their_order(one: Kind, other: Kind) -> None:
    assert gravest(Failure(one), Failure(other)) == gravest(Failure(other), Failure(one))


# Reading never raises


def test_circles_of_causes_and_deep_groups() -> None:
    first, second = ValueError(), ConnectionError()
    first.__cause__, second.__cause__ = second, first
    assert kind_of(first) is Kind.TRANSIENT
    error: Exception = KeyError()
    for _ in range(10_000):
        error, outer = ValueError(), error
        error.__cause__ = outer
    assert kind_of(error) is Kind.UNKNOWN
    group: Exception = KeyError()
    for _ in range(5_000):
        group = ExceptionGroup("deep", [group, group])
    assert kind_of(group) is Kind.UNKNOWN


def hostile(what: BaseException | object) -> type[Exception]:
    """Make a class each of whose attributes that could say something raises, or is an absurd value."""

    def read(_: object) -> Any:
        if isinstance(what, BaseException):
            raise what
        return what

    names = "response resp status_code http_status status code sqlstate pgcode headers retry_after errno kwargs orig"
    return type("Hostile", (Exception,), {name: property(read) for name in names.split()})


ABSURD = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    st.dictionaries(st.text(), st.text()) | st.lists(st.none()),
    st.builds(Mock) | st.builds(MagicMock) | st.builds(lambda: object),
    st.sampled_from([ValueError("x"), RuntimeError("x"), RecursionError("x")]),
)


@given(ABSURD)
def test_reading_never_raises(value: Any) -> None:
    for error in (hostile(value)(value), OSError(value, value), ExceptionGroup("group", [hostile(value)()])):
        assert isinstance(failure_of(error), Failure)
        assert isinstance(status_of(error), int | None)
        assert isinstance(retry_after(error), float | None)


@pytest.mark.parametrize("package", sorted({*READERS, *WRAPPERS, *STATUS_NAMES, "unheard_of"}))
@settings(max_examples=20)
@given(value=ABSURD)
def test_reading_the_exceptions_of_any_client_never_raises(package: str, value: Any) -> None:
    for base in (hostile(value), hostile(Mock()), Odd):
        error = type("Error", (base,), {"__module__": f"{package}.errors"})()
        error.args = (value,)
        error.__dict__.update(body=value, details=value, trailing_metadata=value, has_error_label=value)
        assert failure_of(error).kind in Kind


def test_attributes_that_raise_and_mocks_are_unknown() -> None:
    for what in (RuntimeError("hidden"), Mock(), MagicMock()):
        assert failure_of(hostile(what)()) == Failure(Kind.UNKNOWN, None, "Hostile")
    assert failure_of(Odd(response=MagicMock(), headers=MagicMock())) == Failure(Kind.UNKNOWN, None, "Odd")
    assert failure_of(MagicMock()) == Failure(Kind.UNKNOWN, None, "MagicMock")


def test_a_mocked_response_of_a_test_counts() -> None:
    response = Mock(status_code=503, headers={"Retry-After": "2"})
    assert failure_of(Odd(response=response)) == Failure(Kind.THROTTLED, 503, "HTTP 503 with Retry-After", 2.0)


def test_a_class_that_hides_its_names() -> None:
    class Hidden(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError(name)

    error = Hidden("Error", (Exception,), {})()
    assert failure_of(error).kind is Kind.UNKNOWN
    assert failure_of(ExceptionGroup("group", [error, KeyError()])).kind is Kind.PERMANENT


# Waits


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": b"7"}, 7.0),
        ({"RETRY-AFTER": 7}, 7.0),
        ({"Retry-After": "7.5"}, 7.5),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "Sun, 09 Sep 2001 01:46:52 GMT"}, 12.0),
        ({"Retry-After": "Sun, 09 Sep 2001 01:46:30 GMT"}, None),
        ({"Retry-After": "20ms"}, 0.02),
        ({"Retry-After": "7", "retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "7", "retry-after-ms": "soon"}, 7.0),
        ({"x-ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "1000000030"}, 30.0),
        ({"x-ratelimit-reset": "1000000030000"}, 30.0),
        ({"x-ratelimit-reset": "999"}, 999.0),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 1.0),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "0",
            },
            360.0,
        ),
        ({"anthropic-ratelimit-tokens-reset": "2001-09-09T01:46:45Z"}, 5.0),
        ({"Retry-After": "7", "x-ratelimit-reset": "30"}, 7.0),
        *(({"Retry-After": each}, None) for each in ("", "soon", "inf", "nan", "1e999", None, True, [7], Mock())),
        ({"x-ratelimit-reset": "soon"}, None),
    ],
)
def test_how_long_to_wait_by_the_headers(headers: Any, wait: float | None) -> None:
    error = Odd(response=Odd(status_code=429, headers=headers))
    assert retry_after(error, now=1e9) == wait
    assert failure_of(error, now=1e9).retry_in == wait


def test_resets_count_only_if_the_call_was_throttled() -> None:
    error = Odd(response=Odd(status_code=500, headers={"x-ratelimit-reset-tokens": "6m0s"}))
    assert failure_of(error) == Failure(Kind.TRANSIENT, 500, "HTTP 500")


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        (7, 7.0),
        (0.5, 0.5),
        ("7", 7.0),
        (__import__("datetime").timedelta(seconds=3), 3.0),
        (None, None),
        (Mock(), None),
    ],
)
def test_a_plain_attribute_says_how_long_to_wait(value: Any, wait: float | None) -> None:
    assert failure_of(Odd(status=429, retry_after=value)) == Failure(Kind.THROTTLED, 429, "HTTP 429", wait)
    assert retry_after(Odd(retry_after=value)) == wait


@given(st.text() | st.integers() | st.floats() | st.binary())
def test_waits_are_finite_and_not_negative(value: Any) -> None:
    wait = retry_after(Odd(status=429, headers={"Retry-After": value, "x-ratelimit-reset": value}, retry_after=value))
    assert wait is None or 0 <= wait < float("inf")


def test_a_503_with_an_invalid_retry_after_is_transient() -> None:
    assert kind_of(Odd(status=503, headers={"Retry-After": "soon"})) is Kind.TRANSIENT
    assert kind_of(Odd(status=503, headers={"Retry-After": "0"})) is Kind.THROTTLED


# Clients that are not installed here: classes with the modules, names and attributes of theirs


def client_error(module: str, name: str, base: type[Exception] = Exception, **attributes: Any) -> Exception:
    error = type(name, (base,), {"__module__": module})("failed")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


class Httplib2Response(dict[str, str]):
    """Like httplib2.Response: a dictionary of headers, with the status as an attribute."""

    status = 403


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            client_error("googleapiclient.errors", "HttpError", resp=Httplib2Response({"retry-after": "4"})),
            Failure(Kind.DENIED, 403, "HTTP 403", 4.0),
        ),
        (
            client_error(
                "googleapiclient.errors",
                "HttpError",
                resp=Httplib2Response({"retry-after": "4"}),
                error_details=[{"reason": "rateLimitExceeded"}],
            ),
            Failure(Kind.THROTTLED, 403, "Google rateLimitExceeded", 4.0),
        ),
        (
            client_error("google.api_core.exceptions", "ServiceUnavailable", code=http.HTTPStatus(503)),
            Failure(Kind.TRANSIENT, 503, "HTTP 503"),
        ),
        (
            client_error(
                "google.genai.errors",
                "ClientError",
                code=429,
                status="RESOURCE_EXHAUSTED",
                details={"error": {"details": [{"@type": "google.rpc.RetryInfo", "retryDelay": "34s"}]}},
            ),
            Failure(Kind.THROTTLED, 429, "Google RetryInfo", 34.0),
        ),
        (
            client_error(
                "google.genai.errors",
                "ClientError",
                code=400,
                details={"error": {"details": [{"reason": "API_KEY_INVALID"}]}},
            ),
            Failure(Kind.DENIED, 400, "Google API_KEY_INVALID"),
        ),
        (
            client_error("stripe", "RateLimitError", http_status=429, code="lock_timeout"),
            Failure(Kind.THROTTLED, 429, "HTTP 429"),
        ),
        (
            client_error("asyncpg.exceptions", "DeadlockDetectedError", sqlstate="40P01"),
            Failure(Kind.TRANSIENT, None, "SQLSTATE 40P01"),
        ),
        (
            client_error("psycopg2.errors", "UndefinedTable", pgcode="42P01"),
            Failure(Kind.PERMANENT, None, "SQLSTATE 42P01"),
        ),
        (
            client_error("pymysql.err", "OperationalError", args=(1213, "Deadlock found")),
            Failure(Kind.TRANSIENT, None, "MySQL error 1213"),
        ),
        (
            client_error("MySQLdb", "OperationalError", args=(1045, "Access denied")),
            Failure(Kind.DENIED, None, "MySQL error 1045"),
        ),
        (
            client_error("pyodbc", "Error", client_error("pyodbc", "DatabaseError").__class__, args=("40001", "x")),
            Failure(Kind.TRANSIENT, None, "SQLSTATE 40001"),
        ),
        (client_error("kafka.errors", "KafkaTimeoutError"), Failure(Kind.TRANSIENT, None, "KafkaTimeoutError")),
        (
            client_error("websockets.exceptions", "ConnectionClosedError", code=1006),
            Failure(Kind.TRANSIENT, None, "ConnectionClosedError"),
        ),
        (
            client_error("discord.errors", "HTTPException", status=429, code=20028, retry_after=2),
            Failure(Kind.THROTTLED, 429, "HTTP 429", 2.0),
        ),
        (client_error("dramatiq.errors", "Retry"), Failure(Kind.CONTROL, None, "Retry")),
        (client_error("click.exceptions", "Abort", RuntimeError), Failure(Kind.CONTROL, None, "Abort")),
        (
            client_error(
                "rest_framework.exceptions",
                "NotFound",
                client_error("rest_framework.exceptions", "APIException").__class__,
                status_code=404,
            ),
            Failure(Kind.CONTROL, None, "NotFound"),
        ),
    ],
    ids=lambda value: f"{type(value).__module__}.{type(value).__name__}" if isinstance(value, Exception) else "",
)
def test_clients_that_are_not_installed(error: Exception, expected: Failure) -> None:
    assert failure_of(error) == expected


# What it costs


def test_classes_of_exceptions_are_not_kept_alive() -> None:
    def classify() -> weakref.ref[type[Exception]]:
        cls = type("Short", (Exception,), {})
        failure_of(cls())
        return weakref.ref(cls)

    found = classify()
    gc.collect()
    assert found() is None


def test_the_module_loads_the_standard_library_only() -> None:
    program = "import sys, opero.failures; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - {"opero", "__main__"}
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert not foreign & {"pydantic", "pydantic_core", "tenacity", "requests", "httpx", "yaml"}
    assert "socket" not in loaded, "it is loaded with an error that needs it"
