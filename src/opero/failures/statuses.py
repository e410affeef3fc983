"""HTTP: the status of exceptions and responses of any library, and the kinds of failures that statuses stand for."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from opero.failures.kinds import ORDINARY, Failure, Kind
from opero.failures.reading import family_of, lookup, read, whole, words
from opero.failures.waits import Headers, asked_wait, headers_of, is_spent, quota_wait, seconds_in

_HOLDERS = frozenset({"response", "resp"})
DEFAULT_NAMES = ("response", "resp", "status_code", "http_status", "status", "code")
_NONE: tuple[str, ...] = ()
STATUS_NAMES = {
    "aiohttp": ("status", "response"),
    "asyncpg": _NONE,
    "botocore": ("response",),
    "bson": _NONE,
    "discord": ("status", "response"),
    "grpc": _NONE,
    "grpclib": _NONE,
    "httpx": ("response",),
    "openai": ("response", "status_code"),
    "anthropic": ("response", "status_code"),
    "psycopg": _NONE,
    "pymongo": _NONE,
    "pymysql": _NONE,
    "redis": _NONE,
    "requests": ("response",),
    "sqlalchemy": _NONE,
    "sqlite3": _NONE,
    "ssl": _NONE,
    "stripe": ("http_status",),
    "twilio": ("status",),
    "urllib": ("code",),
    "urllib3": _NONE,
    "websockets": ("response",),
}
"""The attributes in which the exceptions of a client have their HTTP status; for other classes, `DEFAULT_NAMES`."""

RETRIED = frozenset({408, 425})
DENIED = frozenset({401, 403, 407})
UNSUPPORTED = frozenset({501, 505})


def family(cls: type[Any]) -> str:
    """Return the client that a class or its nearest base outside the user's own code belongs to."""
    for base in cls.__mro__:
        found = family_of(base.__module__)
        if found in STATUS_NAMES:
            return found
    return ""


def valid(status: object) -> int | None:
    """Return a number if it can be an HTTP status."""
    number = whole(status)
    return number if number is not None and 100 <= number <= 599 else None


def status_of_response(response: object) -> int | None:
    """Return the status of a response object, or of botocore's dictionary."""
    if isinstance(response, dict) and "ResponseMetadata" in response:
        return valid(lookup(response, "ResponseMetadata", "HTTPStatusCode"))
    found = valid(read(response, "status_code"))
    return valid(read(response, "status")) if found is None else found


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status in an exception of requests, httpx, aiohttp, urllib, botocore or similar libraries."""
    try:
        return status_by(error, STATUS_NAMES.get(family(type(error)), DEFAULT_NAMES))
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return None


def status_by(error: BaseException, names: tuple[str, ...]) -> int | None:
    """Return the HTTP status in the first of these attributes that has one."""
    if isinstance(error, SystemExit):
        return None
    for name in names:
        # A requests.Response with an error status is falsy.
        if (found := read(error, name)) is None:
            continue
        status = status_of_response(found) if name in _HOLDERS else valid(found)
        if status is not None:
            return status
    return None


def headers_in(response: object) -> Any:
    """Return the headers of a response object, or of botocore's dictionary, as its library has them."""
    if isinstance(response, dict):
        # An httplib2.Response, which googleapiclient has, is a dictionary of its headers.
        return lookup(response, "ResponseMetadata", "HTTPHeaders") if type(response) is dict else response
    return read(response, "headers")


def response_headers(response: object) -> Headers | None:
    """Return a function that looks up the headers of a response object, or of botocore's dictionary."""
    return headers_of(headers_in(response))


def headers_of_error(error: BaseException) -> Any:
    """Return the headers of an exception, or of its response, as its library has them."""
    for name in ("response", "resp"):
        response = read(error, name)
        if response is not None:
            found = headers_in(response)
            if headers_of(found) is not None or isinstance(response, dict):
                return found
    return read(error, "headers")


def error_headers(error: BaseException) -> Headers | None:
    """Return a function that looks up the headers of an exception, or of its response."""
    return headers_of(headers_of_error(error))


def wait_of(error: BaseException, is_throttled: bool, now: float | None) -> float | None:
    """Return the seconds to wait that an exception asks for by its headers or its attribute `.retry_after`, or None."""
    headers = error_headers(error)
    found = asked_wait(headers, now)
    if found is None:
        found = seconds_in(read(error, "retry_after"), now)
    return quota_wait(headers, now) if found is None and is_throttled else found


def retry_after(error: BaseException, now: float | None = None) -> float | None:
    """Return the seconds to wait that an exception asks for, or None if it does not.

    It reads the headers `retry-after-ms` and `Retry-After`, the attribute `.retry_after`, and if the status says
    that the call was throttled, headers such as `x-ratelimit-reset`.

    Args:
        error: an exception that may have a response.
        now: the current time in seconds since the epoch, for a header with a date; None reads the clock.
    """
    try:
        status = status_of(error)
        is_limit = status == 429 or (status == 403 and is_spent(error_headers(error)))
        return wait_of(error, is_limit, now)
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return None


def kind_of_status(status: int, asks_to_wait: bool = False, is_spent: bool = False) -> Kind:
    """Return the kind of failure that an HTTP status stands for; `unknown` below 400.

    Args:
        status: the status.
        asks_to_wait: the response says how long to wait.
        is_spent: the response says that no calls remain in a limit.
    """
    if status < 400:
        return Kind.UNKNOWN
    if status == 429 or (status == 503 and asks_to_wait):
        return Kind.THROTTLED
    if status in DENIED:
        # GitHub and others refuse a call over their limit with a 403.
        return Kind.THROTTLED if status == 403 and is_spent else Kind.DENIED
    if status in RETRIED or (status >= 500 and status not in UNSUPPORTED):
        return Kind.TRANSIENT
    return Kind.PERMANENT


def failure_of_status(
    status: int, headers: Headers | None, now: float | None, attribute: float | None = None
) -> Failure:
    """Return the failure that an HTTP status and headers stand for.

    Args:
        status: the status.
        headers: the headers, if there are any.
        now: the current time in seconds since the epoch, for dates; None reads the clock.
        attribute: the seconds to wait that the exception has as an attribute; headers count before it.
    """
    wait = asked_wait(headers, now)
    if wait is None:
        wait = attribute
    kind = kind_of_status(status, wait is not None, status == 403 and is_spent(headers))
    reason = f"HTTP {status}"
    if kind is Kind.THROTTLED:
        if status == 503:
            reason += " with Retry-After"
        elif status == 403:
            reason += " with no calls remaining"
        if wait is None:
            wait = quota_wait(headers, now)
    return Failure(kind, status, reason, wait)


# Responses

SERVERS = words(
    "bottle cherrypy django falcon fastapi flask litestar quart rest_framework sanic starlette tornado werkzeug"
)
"""Frameworks whose responses are a program's own answers, so their statuses say nothing about a service."""

_ordinary: set[int] = {id(each) for each in ORDINARY}
_responses: set[int] = set()
_classes: dict[int, weakref.ref[type[Any]]] = {}


def failed_status(value: object, also: Collection[int] = ()) -> int | None:
    """Return the status of a returned response if it is a failure; None for a success, and for what is no response.

    A response is an object of requests, httpx, aiohttp, urllib3 or botocore, or of the same shape: it has
    `status_code` or `status`, and `headers` or a class whose name ends in "Response". Responses that web
    frameworks send are none. Whether a type is one of responses is decided by its first value; of a `SimpleNamespace`,
    by each value.

    Args:
        value: what a function has returned.
        also: the statuses below 400 that are failures, too.
    """
    cls = type(value)
    if id(cls) in _ordinary:
        return None
    if cls is dict and "ResponseMetadata" not in value:  # type: ignore[operator]
        return None
    try:
        if cls is not dict and id(cls) not in _responses and not _is_response_type(value):
            return None
        status = status_of_response(value)
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return None
    return status if status is not None and (status >= 400 or status in also) else None


def is_response(value: object) -> bool:
    """Return whether a value is a response object, as `failed_status` has it; botocore's dictionaries hold nothing."""
    key = id(type(value))
    if key in _ordinary or isinstance(value, dict):
        return False
    try:
        return key in _responses or _is_response_type(value)
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return False


def response_failure(value: object, now: float | None = None) -> Failure | None:
    """Return the failure that a returned response stands for; None for a success, and for what is no response.

    Args:
        value: what a function has returned; see `failed_status`.
        now: the current time in seconds since the epoch, for a header with a date; None reads the clock.
    """
    status = failed_status(value)
    if status is None:
        return None
    try:
        return failure_of_status(status, response_headers(value), now)
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return Failure(kind_of_status(status), status, f"HTTP {status}")


def _is_response_type(value: object) -> bool:
    """Decide whether values of a type are responses, and remember it as long as the type lives."""
    cls = type(value)
    found = _looks_like_a_response(value)
    if issubclass(cls, SimpleNamespace):  # each may have other attributes
        return found
    known, key = (_responses if found else _ordinary), id(cls)

    def forget(_: weakref.ref[type[Any]]) -> None:
        known.discard(key)
        _classes.pop(key, None)

    _classes[key] = weakref.ref(cls, forget)
    known.add(key)
    return found


def _looks_like_a_response(value: object) -> bool:
    cls = type(value)
    if issubclass(cls, BaseException | type):
        return False
    names = set(read(value, "__dict__") or ())
    for base in cls.__mro__:
        module = str(base.__module__)
        if module.partition(".")[0] in SERVERS or module.startswith("aiohttp.web"):
            return False
        names.update(vars(base))
    is_named = cls.__name__.endswith("Response")
    return not names.isdisjoint(("status_code", "status")) and (is_named or "headers" in names)
