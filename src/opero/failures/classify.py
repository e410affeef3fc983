"""Classifies exceptions: their own kind, that of their cause, and that of the members of a group."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from opero.failures.databases import (
    of_database,
    of_mysql,
    of_psycopg,
    of_pymongo,
    of_redis,
    of_sqlalchemy,
    of_sqlite,
    sqlstate_of,
)
from opero.failures.kinds import Failure, Kind, gravest
from opero.failures.providers import exhausted, of_botocore, of_google, of_grpc, of_model_provider
from opero.failures.reading import family_of, lookup, read, text, words
from opero.failures.statuses import (
    DEFAULT_NAMES,
    STATUS_NAMES,
    error_headers,
    failure_of_status,
    response_failure,
    status_by,
    wait_of,
)
from opero.failures.system import of_system
from opero.failures.types import BY_NAME, by_convention
from opero.failures.waits import seconds_in
from opero.patterns import pattern


def of_aiohttp(error: BaseException) -> tuple[Kind, str] | None:
    """Recognise an invalid response, which aiohttp reports with a status of its own, 400."""
    cause = error.__cause__
    is_invalid = cause is not None and type(cause).__module__ == "aiohttp.http_exceptions"
    return (Kind.TRANSIENT, "invalid HTTP response") if is_invalid else None


READERS: dict[str, Callable[[Any], tuple[Any, ...] | None]] = {
    "aiohttp": of_aiohttp,
    "anthropic": of_model_provider,
    "asyncpg": sqlstate_of,
    "botocore": of_botocore,
    "google": of_google,
    "googleapiclient": of_google,
    "grpc": of_grpc,
    "grpclib": of_grpc,
    "openai": of_model_provider,
    "psycopg": of_psycopg,
    "pymongo": of_pymongo,
    "pymysql": of_mysql,
    "redis": of_redis,
    "sqlalchemy": of_sqlalchemy,
    "sqlite3": of_sqlite,
}
"""What reads the codes of a client's exceptions: it returns kind, reason and perhaps the seconds to wait, or None."""

WRAPPERS = {
    "requests": ("args",),
    "urllib3": ("args", "reason"),
    "urllib": ("reason",),
    "aiohttp": ("os_error", "certificate_error"),
    "httpx": ("args",),
    "botocore": ("kwargs",),
    "sqlalchemy": ("orig",),
}
"""The attributes in which a client's exceptions have the one that they were made of."""

Rule = Callable[[BaseException], Failure | None]

DEPTH = 50
"""How far causes and groups are followed."""

_FORCED = pattern(r"too many (\d{3}) error responses")
_EVIDENCE = words("sqlstate pgcode retry_after headers __getattr__ __getattribute__") | set(DEFAULT_NAMES)


class Shape(NamedTuple):
    """What the class of an exception says.

    Attributes:
        family: the client that it belongs to, or "".
        names: the names of the class and its bases.
        is_final: the class alone decides.
        is_bare: no class has attributes that say more; an instance may.
        reader: what reads the codes of instances.
        failure: the failure of an instance of which nothing more is known.
    """

    family: str
    names: frozenset[str]
    is_final: bool
    is_bare: bool
    reader: Callable[[Any], tuple[Any, ...] | None]
    failure: Failure


_shapes: weakref.WeakKeyDictionary[type[BaseException], Shape] = weakref.WeakKeyDictionary()


def shape_of(cls: type[BaseException]) -> Shape:
    """Return what the class of an exception says; it is remembered as long as the class lives."""
    shape = _shapes.get(cls)
    if shape is None:
        shape = _shapes[cls] = _shape_of(cls)
    return shape


def _shape_of(cls: type[Any]) -> Shape:
    packages = [family_of(base.__module__) for base in cls.__mro__]
    names = frozenset(base.__name__ for base in cls.__mro__)
    client = next((each for each in packages if each in READERS or each in WRAPPERS or each in STATUS_NAMES), "")
    listed = (BY_NAME.get((of_base, base.__name__)) for of_base, base in zip(packages, cls.__mro__, strict=True))
    kind = next(filter(None, listed), None) or by_convention(cls)
    if not issubclass(cls, BaseException):
        kind = Kind.UNKNOWN  # such as a mock
    elif not issubclass(cls, Exception | BaseExceptionGroup):
        kind = Kind.CONTROL
    is_database = "DatabaseError" in names
    foreign = [vars(base) for of_base, base in zip(packages, cls.__mro__, strict=True) if of_base != "builtins"]
    says_more = any(_EVIDENCE & attributes.keys() for attributes in foreign)
    return Shape(
        family=client,
        names=names,
        is_final=kind is Kind.CONTROL or "OperoError" in names or not issubclass(cls, BaseException),
        is_bare=not (client or is_database or says_more),
        reader=READERS.get(client, of_database if is_database else sqlstate_of),
        failure=Failure(kind or Kind.UNKNOWN, None, str(cls.__name__)),
    )


def own_failure(error: BaseException, shape: Shape, now: float | None) -> tuple[Failure, bool]:
    """Return what an exception says by itself, and whether that is final: a cause does not change a code or status."""
    if shape.is_final:
        return _of_opero(error, shape, now), True
    if shape.is_bare and not error.__dict__:
        return _of_system(error, shape), False
    status = status_by(error, STATUS_NAMES.get(shape.family, DEFAULT_NAMES))
    code = shape.reader(error)
    if code is not None:
        kind, reason, *waits = code
        wait = waits[0] if waits else None
        return Failure(kind, status, reason, _wait(error, kind, now) if wait is None else wait), True
    if status is not None and status >= 400:
        if status == 429 and exhausted(error):
            return Failure(Kind.DENIED, status, "insufficient_quota"), True
        wait = seconds_in(read(error, "retry_after"), now)
        return failure_of_status(status, error_headers(error), now, wait), True
    forced = _FORCED.search(str(error)) if shape.family in ("requests", "urllib3") else None
    if forced is not None:
        return failure_of_status(int(forced[1]), None, now), True
    failure = _of_system(error, shape)
    wait = _wait(error, failure.kind, now)
    return failure if status is None and wait is None else replace(failure, status=status, retry_in=wait), False


def _of_system(error: BaseException, shape: Shape) -> Failure:
    """Return the failure for an exception without a code or status: by its class, or the number of an OSError."""
    # The classes of clients say more than the number, which is that of the error they wrap.
    if not isinstance(error, OSError) or (shape.family in WRAPPERS and shape.failure.kind is not Kind.UNKNOWN):
        return shape.failure
    number = of_system(error, shape.names)
    return shape.failure if number is None else Failure(number[0], None, number[1])


def _wait(error: BaseException, kind: Kind, now: float | None) -> float | None:
    if kind in (Kind.TRANSIENT, Kind.THROTTLED, Kind.UNKNOWN):
        return wait_of(error, kind is Kind.THROTTLED, now)
    return None


def _of_opero(error: BaseException, shape: Shape, now: float | None) -> Failure:
    """Return the failure for an exception whose class decides, which opero's own exceptions may tell more of."""
    if "ResultRejectedError" in shape.names:
        failure = response_failure(read(error, "result"), now)
        return failure or Failure(Kind.UNKNOWN, None, "retry_if_result rejected the result")
    if "RejectedError" in shape.names:
        wait = read(error, "retry_in")
        return replace(shape.failure, retry_in=seconds_in(wait))
    return shape.failure


def inner_errors(error: BaseException, shape: Shape) -> Iterator[BaseException]:
    """Yield the cause of an exception, and those that its client has wrapped in it."""
    if error.__cause__ is not None:
        yield error.__cause__
    for name in WRAPPERS.get(shape.family, ()):
        value = read(error, name)
        if name == "args" and value:
            value = value[0]
        elif name == "kwargs":
            value = lookup(value, "error")
        if isinstance(value, BaseException):
            yield value


def _failure_of(error: BaseException, now: float | None, rule: Rule | None, seen: set[int], depth: int) -> Failure:
    """Return the failure, following the causes and members that have not been seen yet."""
    seen.add(id(error))
    stated = rule and rule(error)
    if stated:
        return replace(stated, retry_in=_wait(error, stated.kind, now))
    if isinstance(error, BaseExceptionGroup):
        found: Failure | None = None
        for member in error.exceptions:
            if id(member) in seen or depth >= DEPTH:
                continue
            each = _failure_of(member, now, rule, seen, depth + 1)
            found = each if found is None else gravest(found, each)
        return found or Failure(Kind.UNKNOWN, None, type(error).__name__)
    try:
        shape = shape_of(type(error))
        own, is_decided = own_failure(error, shape, now)
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return Failure(Kind.UNKNOWN, None, text(read(type(error), "__name__")))
    if is_decided or depth >= DEPTH:
        return own
    for cause in inner_errors(error, shape):
        if id(cause) in seen:
            continue
        inner = _failure_of(cause, now, rule, seen, depth + 1)
        # A cancellation that has been caught and turned into an error, as asyncio.timeout does, is over.
        if inner.kind is Kind.CONTROL:
            seen.discard(id(cause))  # as a member of a group it counts
        else:
            own = gravest(own, inner)
    return own


def failure_of(error: BaseException, now: float | None = None, rule: Rule | None = None) -> Failure:
    """Return what is known of an exception, by its shape: no client library is imported.

    Codes and statuses decide before classes. A cause, or what a client has wrapped, counts as well unless a code or
    status has decided; the gravest of all decides, and so it does among the members of a group: control, permanent,
    denied, throttled, transient, unknown. A cause of the kind `control` is no longer one.

    Of opero's own exceptions, the class decides: timeouts and `CircuitOpenError` are transient, the other rejections
    are throttled, an invalid configuration is permanent, and a rejected result is what it is as a response, or unknown.

    It never raises: an exception that cannot be read is of the kind `unknown`.

    Args:
        error: the exception.
        now: the current time in seconds since the epoch, for a header with a date; None reads the clock.
        rule: returns what a policy states about an exception, a cause or a member of a group, or None.
    """
    cls = type(error)
    if rule is None:
        # What most programs raise themselves, and what is asked often: a builtin exception that says nothing of itself.
        known = _bare.get(cls)
        if known is not None and _is_bare(error):
            return known
    try:
        failure = _failure_of(error, now, rule, set(), 0)
        is_builtin = cls.__module__ == "builtins" and not isinstance(error, BaseExceptionGroup)
        if is_builtin and rule is None and _is_bare(error):
            failure = _bare[cls] = replace(failure, is_bare=True)
    except Exception:  # noqa: BLE001  # the attributes of foreign classes may do anything
        return Failure(Kind.UNKNOWN, None, text(read(type(error), "__name__")))
    return failure


def kind_of(error: BaseException) -> Kind:
    """Return the kind of an exception; see `failure_of`."""
    known = _bare.get(type(error))
    return known.kind if known is not None and _is_bare(error) else failure_of(error).kind


def _is_bare(error: BaseException) -> bool:
    """Return whether a builtin exception says no more than its class."""
    if error.__cause__ is not None or error.__dict__:
        return False
    if not error.args or not isinstance(error, OSError):
        return True
    text = error.args[0]
    return error.errno is None and type(text) is str and "Errno" not in text


_bare: dict[type[BaseException], Failure] = {}
"""The failures of builtin exceptions that say no more than their class."""
