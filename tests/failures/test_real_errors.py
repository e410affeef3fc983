"""The kinds of exceptions that real libraries raise, most of them against a server that misbehaves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import pickle
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import botocore.config
import botocore.session
import celery.exceptions
import django.core.exceptions
import django.db.utils
import django.http
import httpx
import openai
import psycopg
import psycopg.errors
import pymongo
import pymongo.errors
import pytest
import redis
import requests
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.pool
import starlette.exceptions
import trio
import urllib3
import werkzeug.exceptions
from aiohttp import web

from failures.misbehaving_server import closed_port, http_server, redis_server
from opero.executors.unsent import is_unsent
from opero.failures import Failure, failure_of

LIMIT = 10.0
"""A limit for what is to be answered at once."""


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with http_server() as url:
        yield url


@pytest.fixture(scope="module")
def https() -> Iterator[str]:
    with http_server(tls=True) as url:
        yield url


def raised(action: Callable[[], Any]) -> BaseException:
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def failure(action: Callable[[], Any]) -> Failure:
    return failure_of(raised(action))


# HTTP clients


def by_requests(url: str, timeout: float) -> None:
    with requests.Session() as session:
        session.get(url, timeout=timeout).raise_for_status()


def by_httpx(url: str, timeout: float) -> None:
    with httpx.Client(timeout=timeout, follow_redirects=True, trust_env=False) as client:
        client.get(url).raise_for_status()


def by_httpx_async(url: str, timeout: float) -> None:
    async def get() -> None:
        async with httpx.AsyncClient(timeout=timeout, follow_redirects=True, trust_env=False) as client:
            (await client.get(url)).raise_for_status()

    asyncio.run(get())


def by_aiohttp(url: str, timeout: float) -> None:
    async def get() -> None:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout), raise_for_status=True) as session,
            session.get(url) as response,
        ):
            await response.read()

    asyncio.run(get())


def by_urllib(url: str, timeout: float) -> None:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            response.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise


def by_urllib3(url: str, timeout: float) -> None:
    with urllib3.PoolManager(retries=urllib3.Retry(0, status_forcelist=range(400, 600)), timeout=timeout) as pool:
        pool.request("GET", url)


CLIENTS = [by_requests, by_httpx, by_httpx_async, by_aiohttp, by_urllib, by_urllib3]
clients = pytest.mark.parametrize("client", CLIENTS, ids=[each.__name__[3:] for each in CLIENTS])


@clients
@pytest.mark.parametrize("way", ["drop", "hang", "junk", "short"])
def test_a_broken_connection_is_transient(client: Any, way: str, http: str) -> None:
    found = failure(lambda: client(f"{http}/{way}", 0.05 if way == "hang" else LIMIT))
    assert found.kind == "transient", found


@clients
@pytest.mark.parametrize("way", ["drop", "hang", "junk", "short", "503"])
def test_a_request_that_the_service_may_have_received_is_not_unsent(client: Any, way: str, http: str) -> None:
    assert not is_unsent(raised(lambda: client(f"{http}/{way}", 0.05 if way == "hang" else LIMIT)))


@clients
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_request_without_a_connection_is_unsent(client: Any, host: str) -> None:
    assert is_unsent(raised(lambda: client(f"http://{host}:{closed_port()}", LIMIT)))


@clients
def test_a_refused_connection_is_transient(client: Any) -> None:
    assert failure(lambda: client(f"http://127.0.0.1:{closed_port()}", LIMIT)).kind == "transient"


@clients
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "transient") for status in (408, 425, 500, 502, 503, 504, 529)),
        *((status, "permanent") for status in (400, 404, 405, 409, 410, 422, 501, 505)),
        *((status, "denied") for status in (401, 403, 407)),
        (429, "throttled"),
    ],
)
def test_each_status_has_its_kind(client: Any, status: int, kind: str, http: str) -> None:
    assert failure(lambda: client(f"{http}/{status}", LIMIT)) == Failure(kind, status, f"HTTP {status}")


@clients
def test_a_503_with_retry_after_is_throttled(client: Any, http: str) -> None:
    found = failure(lambda: client(f"{http}/busy", LIMIT))
    if client is by_urllib3:  # its exception has the status only
        assert found == Failure("transient", 503, "HTTP 503")
    else:
        assert found == Failure("throttled", 503, "HTTP 503 with Retry-After", 3.0)


@clients
def test_a_certificate_that_is_not_trusted_is_permanent(client: Any, https: str) -> None:
    found = failure(lambda: client(https, LIMIT))
    assert found.kind == "permanent", found


@clients
def test_tls_with_a_server_that_has_none_is_permanent(client: Any, http: str) -> None:
    found = failure(lambda: client(http.replace("http:", "https:"), LIMIT))
    assert found.kind == "permanent", found


@clients
@pytest.mark.parametrize(("code", "kind"), [("EAI_AGAIN", "transient"), ("EAI_NONAME", "permanent")])
def test_a_name_that_does_not_resolve(client: Any, code: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(getattr(socket, code), "not resolved")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = failure(lambda: client("http://service.example", LIMIT))
    assert found.kind == kind, found
    if kind == "permanent":
        assert found.reason == "DNS EAI_NONAME"


@pytest.mark.parametrize("client", [by_requests, by_httpx, by_aiohttp])
def test_endless_redirects_and_unknown_schemes_are_permanent(client: Any, http: str) -> None:
    assert failure(lambda: client(f"{http}/redirects", LIMIT)).kind == "permanent"
    assert failure(lambda: client("gopher://localhost", LIMIT)).kind == "permanent"


def test_a_pool_without_free_connections_is_transient(http: str) -> None:
    with urllib3.HTTPConnectionPool("localhost", 1, maxsize=1, block=True) as pool:
        pool._get_conn()
        assert failure(lambda: pool.request("GET", "/", pool_timeout=0.01)).kind == "transient"


def test_errors_that_have_crossed_a_process_boundary(http: str) -> None:
    error = raised(lambda: by_requests(f"{http}/busy", LIMIT))
    assert failure_of(pickle.loads(pickle.dumps(error))) == failure_of(error)


# Providers


def call_openai(url: str) -> None:
    with openai.OpenAI(api_key="key", base_url=url, max_retries=0, timeout=LIMIT) as client:
        client.models.list()


def call_anthropic(url: str, stream: bool = False) -> None:
    with anthropic.Anthropic(api_key="key", base_url=url, max_retries=0, timeout=LIMIT) as client:
        if not stream:
            client.models.list()
            return
        for _ in client.messages.create(
            model="model", max_tokens=1, messages=[{"role": "user", "content": "?"}], stream=True
        ):
            pass


@pytest.mark.parametrize("call", [call_openai, call_anthropic])
@pytest.mark.parametrize(
    ("way", "kind", "status"),
    [
        ("401", "denied", 401),
        ("402", "denied", 402),
        ("404", "permanent", 404),
        ("429", "throttled", 429),
        ("500", "transient", 500),
        ("credit", "denied", 400),
        ("drop", "transient", None),
        ("overloaded", "throttled", 529),
        ("quota", "denied", 429),
    ],
)
def test_model_providers(call: Any, way: str, kind: str, status: int | None, http: str) -> None:
    found = failure(lambda: call(f"{http}/{way}"))
    assert (found.kind, found.status) == (kind, status), found


@pytest.mark.parametrize("call", [call_openai, call_anthropic])
def test_a_model_provider_that_says_how_long_to_wait(call: Any, http: str) -> None:
    assert failure(lambda: call(f"{http}/slow-down")) == Failure("throttled", 429, "rate_limit_exceeded", 1.5)


def test_an_overload_that_anthropic_reports_in_a_stream(http: str) -> None:
    assert failure(lambda: call_anthropic(f"{http}/stream", stream=True)).kind == "throttled"


@pytest.mark.parametrize("client", [by_requests, by_httpx])
def test_an_exhausted_quota_is_denied_for_plain_http_clients(client: Any, http: str) -> None:
    assert failure(lambda: client(f"{http}/quota", LIMIT)) == Failure("denied", 429, "insufficient_quota")


def call_aws(url: str, **options: Any) -> None:
    session = botocore.session.Session()
    session.set_credentials("key", "secret")
    config = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=LIMIT, read_timeout=LIMIT)
    client = session.create_client("dynamodb", region_name="eu-west-1", endpoint_url=url, config=config)
    try:
        client.list_tables(**options)
    finally:
        client.close()


@pytest.mark.parametrize(
    ("way", "kind", "reason"),
    [
        ("aws-throttled", "throttled", "AWS ProvisionedThroughputExceededException"),
        ("aws-expired", "denied", "AWS ExpiredTokenException"),
        ("aws-missing", "permanent", "HTTP 400"),
        ("503", "transient", "HTTP 503"),
        ("busy", "throttled", "HTTP 503 with Retry-After"),
        ("drop", "transient", "ConnectionClosedError"),
    ],
)
def test_botocore(way: str, kind: str, reason: str, http: str) -> None:
    found = failure(lambda: call_aws(f"{http}/{way}"))
    assert (found.kind, found.reason) == (kind, reason)


def test_botocore_without_a_server_or_with_wrong_arguments(https: str) -> None:
    assert failure(lambda: call_aws(f"http://127.0.0.1:{closed_port()}")).kind == "transient"
    assert failure(lambda: call_aws(https)).kind == "permanent"
    assert failure(lambda: call_aws("http://127.0.0.1", Limit="many")).kind == "permanent"


# gRPC


@pytest.fixture(scope="module")
def of_grpc() -> dict[str, Failure]:
    program = [sys.executable, str(Path(__file__).with_name("grpc_errors.py"))]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: Failure(*values) for name, values in json.loads(done.stdout).items()}


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        ("transient", "UNAVAILABLE DEADLINE_EXCEEDED ABORTED INTERNAL"),
        ("throttled", "RESOURCE_EXHAUSTED"),
        ("denied", "UNAUTHENTICATED PERMISSION_DENIED"),
        ("permanent", "INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS FAILED_PRECONDITION OUT_OF_RANGE UNIMPLEMENTED"),
        ("permanent", "DATA_LOSS"),
        ("unknown", "UNKNOWN CANCELLED"),
    ],
)
def test_grpc_codes(kind: str, codes: str, of_grpc: dict[str, Failure]) -> None:
    for code in codes.split():
        assert of_grpc[code] == Failure(kind, None, f"gRPC {code}", 2.5)


def test_grpc_without_a_server_and_for_async_callers(of_grpc: dict[str, Failure]) -> None:
    assert of_grpc["refused"] == Failure("transient", None, "gRPC UNAVAILABLE")
    assert of_grpc["async"].kind == "permanent"


# Databases


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("-LOADING Redis is loading the dataset in memory", "transient"),
        ("-BUSY Redis is busy running a script", "transient"),
        ("-CLUSTERDOWN The cluster is down", "transient"),
        ("-READONLY You can't write against a read only replica.", "transient"),
        ("-OOM command not allowed when used memory > 'maxmemory'.", "transient"),
        ("-NOAUTH Authentication required.", "denied"),
        ("-WRONGPASS invalid username-password pair or user is disabled.", "denied"),
        ("-NOPERM this user has no permissions to run the 'get' command", "denied"),
        ("-WRONGTYPE Operation against a key holding the wrong kind of value", "permanent"),
        ("-ERR unknown command", "permanent"),
    ],
)
def test_redis_answers(answer: str, kind: str) -> None:
    with redis_server(answer) as port:
        found = failure(lambda: ask_redis(port))
    assert found.kind == kind, found


def ask_redis(port: int) -> None:
    with redis.Redis(port=port, socket_timeout=LIMIT, retry=None, protocol=2) as client:
        client.get("key")


def test_redis_without_a_server() -> None:
    assert failure(lambda: ask_redis(closed_port())).kind == "transient"
    assert failure_of(redis.WatchError("changed")).kind == "transient"


def test_pymongo_without_a_server() -> None:
    with pymongo.MongoClient("127.0.0.1", closed_port(), serverSelectionTimeoutMS=50) as client:
        assert failure(lambda: client.admin.command("ping")).kind == "transient"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pymongo.errors.AutoReconnect("lost"), "transient"),
        (pymongo.errors.NotPrimaryError("stepped down"), "transient"),
        (pymongo.errors.NetworkTimeout("slow"), "transient"),
        (pymongo.errors.OperationFailure("conflict", 112), "transient"),
        (pymongo.errors.OperationFailure("x", 1, {"errorLabels": ["TransientTransactionError"]}), "transient"),
        (pymongo.errors.ExecutionTimeout("slow", 50), "transient"),
        (pymongo.errors.OperationFailure("no", 13), "denied"),
        (pymongo.errors.OperationFailure("no", 18), "denied"),
        (pymongo.errors.OperationFailure("request rate is large", 16500), "throttled"),
        (pymongo.errors.DuplicateKeyError("twice", 11000), "permanent"),
        (pymongo.errors.ConfigurationError("wrong"), "permanent"),
        (pymongo.errors.OperationFailure("a number that looks like a status", 503), "unknown"),
        (pymongo.errors.OperationFailure("a number that looks like a status", 404), "unknown"),
    ],
)
def test_pymongo_codes(error: Exception, kind: str) -> None:
    found = failure_of(error)
    assert (found.kind, found.status) == (kind, None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SerializationFailure", "transient"),
        ("DeadlockDetected", "transient"),
        ("LockNotAvailable", "transient"),
        ("QueryCanceled", "transient"),
        ("AdminShutdown", "transient"),
        ("CannotConnectNow", "transient"),
        ("TooManyConnections", "transient"),
        ("ConnectionFailure", "transient"),
        ("ReadOnlySqlTransaction", "transient"),
        ("InvalidPassword", "denied"),
        ("InsufficientPrivilege", "denied"),
        ("UniqueViolation", "permanent"),
        ("UndefinedTable", "permanent"),
        ("SyntaxError", "permanent"),
        ("NumericValueOutOfRange", "permanent"),
        ("FeatureNotSupported", "permanent"),
        ("InFailedSqlTransaction", "permanent"),
        ("RaiseException", "permanent"),
    ],
)
def test_sqlstates_of_psycopg(name: str, kind: str) -> None:
    cls = getattr(psycopg.errors, name)
    for error in (cls("failed"), sqlalchemy.exc.DBAPIError("SELECT 1", None, cls("failed"))):
        assert failure_of(error).kind == kind
        if name != "RaiseException":  # whose code says nothing, but it is a ProgrammingError
            assert failure_of(error).reason == f"SQLSTATE {cls.sqlstate}"


def test_psycopg_without_a_server() -> None:
    found = failure(lambda: psycopg.connect(host="127.0.0.1", port=closed_port(), connect_timeout=10))
    assert found.kind == "transient"


def test_psycopg_with_a_wrong_password() -> None:
    text = 'connection failed: connection to server failed: FATAL:  password authentication failed for user "me"'
    assert failure_of(psycopg.OperationalError(text)).kind == "denied"


def test_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "file.db"
    holder, other = sqlite3.connect(file, timeout=0, isolation_level=None), sqlite3.connect(file, timeout=0)
    try:
        holder.execute("CREATE TABLE numbers (number UNIQUE)")
        holder.execute("BEGIN EXCLUSIVE")
        holder.execute("INSERT INTO numbers VALUES (1)")
        locked = raised(lambda: other.execute("INSERT INTO numbers VALUES (1)"))
        assert failure_of(locked) == Failure("transient", None, "SQLITE_BUSY")
        assert failure_of(sqlite3.OperationalError("database is locked")).kind == "transient"
        for statement in ("INSERT INTO numbers VALUES (1)", "SELECT * FROM missing", "SELECT", "SELECT ?"):
            assert failure(lambda: holder.execute(statement)).kind == "permanent"  # noqa: B023
        for wrapper in (sqlalchemy.exc.OperationalError("x", None, locked), django.db.utils.OperationalError("x")):
            wrapper.__cause__ = locked
            assert failure_of(wrapper).kind == "transient"
    finally:
        holder.close()
        other.close()
    assert failure(lambda: holder.execute("SELECT 1")).kind == "permanent"


def test_sqlalchemy(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path}/file.db",
        poolclass=sqlalchemy.pool.QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0,
    )
    with engine.connect() as connection:
        assert failure(engine.connect).kind == "transient"
        assert failure(lambda: connection.execute(sqlalchemy.text("SELECT * FROM missing"))).kind == "permanent"
        assert failure(lambda: connection.execute(sqlalchemy.text("SELECT 1")).scalars("x")).kind == "permanent"
    engine.dispose()
    lost = sqlalchemy.exc.DBAPIError("SELECT 1", None, Exception("?"), connection_invalidated=True)
    assert failure_of(lost) == Failure("transient", None, "the connection was lost")


# What frameworks raise to steer


def trio_cancelled() -> BaseException:
    found: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                found.append(error)
                raise

    trio.run(main)
    return found[0]


def trio_too_slow() -> BaseException:
    async def main() -> None:
        with trio.fail_after(0):
            await trio.sleep_forever()

    return raised(lambda: trio.run(main))


def asyncio_cancelled() -> BaseException:
    async def main() -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        await asyncio.sleep(0)
        task.cancel()
        await task

    return raised(lambda: asyncio.run(main()))


def asyncio_timeout() -> BaseException:
    async def main() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    return raised(lambda: asyncio.run(main()))


def future_cancelled() -> BaseException:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    return raised(future.result)


@pytest.mark.parametrize(
    "error",
    [
        asyncio_cancelled(),
        future_cancelled(),
        trio_cancelled(),
        KeyboardInterrupt(),
        SystemExit(404),
        GeneratorExit(),
        celery.exceptions.Retry(exc=ConnectionError(), when=1),
        celery.exceptions.Ignore(),
        celery.exceptions.Reject(),
        celery.exceptions.SoftTimeLimitExceeded(),
        raised(lambda: werkzeug.exceptions.abort(404)),
        raised(lambda: werkzeug.exceptions.abort(503)),
        starlette.exceptions.HTTPException(503),
        web.HTTPServiceUnavailable(),
        django.http.Http404(),
        django.core.exceptions.PermissionDenied(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_frameworks_raise_to_steer_is_control(error: BaseException) -> None:
    assert failure_of(error) == Failure("control", None, type(error).__name__)


class FastApiHttpException(starlette.exceptions.HTTPException):
    """FastAPI's exception is such a subclass."""


def test_subclasses_of_what_steers_are_control() -> None:
    assert failure_of(FastApiHttpException(500)).kind == "control"


def test_timeouts_of_event_loops_and_futures_are_transient() -> None:
    assert failure_of(asyncio_timeout()).kind == "transient", "though a cancellation is its cause"
    assert failure_of(trio_too_slow()).kind == "transient"
    assert failure(lambda: concurrent.futures.Future().result(0)).kind == "transient"
    assert (
        failure(lambda: subprocess.run([sys.executable, "-c", "input()"], timeout=0, check=False)).kind == "transient"
    )
