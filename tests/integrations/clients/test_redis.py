"""redis-py under a policy, against a real server: what is repeated, what is not, and what is raised."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

import opero
from opero import CallTimeoutError, CircuitOpenError, ConfigError, Policy
from opero.integrations.redis import client
from redis_server import RedisServer

NOW: dict[str, Any] = {"retry": {"retries": 3, "min_delay": 0}}


class Proxy:
    """Forwards connections to a server, and breaks some: before a request reaches it, or before its reply is passed on.

    Attributes:
        port: where it listens.
        breaks: for the next requests that are no handshake: "request", "reply" or "" each.
        seen: the requests.
    """

    def __init__(self, port: int) -> None:
        self.server = port
        self.breaks: list[str] = []
        self.seen: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(near)
            threading.Thread(target=self.serve, args=(near,), daemon=True).start()

    def serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self.server)) as far, contextlib.suppress(OSError):
            while request := near.recv(65536):
                how = ""
                if not any(each in request for each in (b"CLIENT", b"HELLO")):
                    self.seen.append(request)
                    how = self.breaks.pop(0) if self.breaks else ""
                if how == "request":
                    return
                far.sendall(request)
                reply = far.recv(65536)
                if how == "reply":
                    return
                near.sendall(reply)

    def close(self) -> None:
        self.listener.close()
        for each in self.sockets:
            each.close()


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with redis.Redis(port=redis_server.port) as own:
        own.flushall()
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()


class Caller:
    """Calls a client under a policy in one way, sync or async."""

    def __init__(self, kind: str, port: int) -> None:
        self.kind = kind
        self.port = port
        self.runner = asyncio.Runner() if kind == "async" else None
        self.client: Any = None

    def use(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = redis if self.kind == "sync" else redis.asyncio
        self.client = client(module.Redis(port=self.port), *args, **kwargs)
        return self.client

    def __call__(self, awaitable: Any) -> Any:
        if self.runner is None:
            return awaitable

        async def main() -> Any:
            return await awaitable

        return self.runner.run(main())

    def close(self) -> None:
        if self.client is not None:
            self(self.client.close() if self.kind == "sync" else self.client.aclose())
        if self.runner is not None:
            self.runner.close()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Caller]:
    caller = Caller(request.param, proxy.port)
    yield caller
    caller.close()


@pytest.mark.parametrize("how", ["request", "reply"])
def test_a_command_that_reads_is_repeated(call: Caller, proxy: Proxy, how: str) -> None:
    db = call.use(Policy(**NOW))
    call(db.set("k", "v"))
    proxy.breaks = [how, how]
    assert call(db.get("k")) == b"v"
    assert (db.bound.stats.calls, db.bound.stats.retries, db.bound.stats.recoveries) == (2, 2, 1)


def test_what_changes_at_each_execution_is_sent_once(call: Caller, proxy: Proxy) -> None:
    db = call.use(Policy(**NOW))
    proxy.breaks = ["reply"]
    with pytest.raises(redis.ConnectionError):
        call(db.incr("n"))
    assert call(db.get("n")) == b"1"
    proxy.breaks = ["reply"]
    with pytest.raises(redis.ConnectionError):
        call(db.set("k", "v", nx=True))
    proxy.breaks = ["reply"]
    assert call(db.set("k", "v2", ex=60)) is True
    assert db.bound.stats.retries == 1


def test_more_commands_may_be_named(call: Caller, proxy: Proxy) -> None:
    db = call.use(Policy(**NOW), retry_commands={"incrby"})
    proxy.breaks = ["reply"]
    assert call(db.incr("n")) == 2


def test_any_command_is_repeated_while_no_connection_can_be_made(call: Caller, redis_server: RedisServer) -> None:
    call.port = redis_server.port
    db = call.use(Policy(retry={"retries": 200, "min_delay": "50ms", "backoff_factor": 1, "jitter": False}))
    redis_server.kill()
    starter = threading.Timer(0.3, redis_server.start)
    starter.start()
    try:
        assert call(db.incr("n")) == 1
    finally:
        starter.join()
    assert db.bound.stats.retries >= 1


@pytest.mark.parametrize("transaction", [True, False])
def test_a_pipeline_is_repeated_as_a_whole_if_all_of_its_commands_may_be(
    call: Caller, proxy: Proxy, transaction: bool
) -> None:
    db = call.use(Policy(**NOW))
    pipe = db.pipeline(transaction=transaction)
    pipe.set("a", 1)
    pipe.get("a")
    proxy.breaks = ["reply", "request"]
    assert call(pipe.execute()) == [True, b"1"]
    assert (db.bound.stats.calls, db.bound.stats.retries) == (1, 2)
    pipe.get("a")  # it can be used again
    pipe.incr("a")
    assert call(pipe.execute()) == [b"1", 2]
    pipe.incr("a")
    proxy.breaks = ["reply"]
    with pytest.raises(redis.ConnectionError):
        call(pipe.execute())
    assert call(db.get("a")) == b"3"


def test_a_transaction_that_watches_keys_is_not_repeated(call: Caller, proxy: Proxy) -> None:
    db = call.use(Policy(**NOW))
    call(db.set("k", 1))

    def change(pipe: Any) -> Any:
        if call.kind == "sync":
            found = pipe.get("k")
            pipe.multi()
            pipe.set("k", int(found) + 1)
            return None
        return change_async(pipe)

    async def change_async(pipe: Any) -> None:
        found = await pipe.get("k")
        pipe.multi()
        pipe.set("k", int(found) + 1)

    assert call(db.transaction(change, "k")) == [True]
    assert call(db.get("k")) == b"2"
    proxy.breaks = ["", "", "reply"]
    proxy.seen.clear()

    def by_hand() -> Any:
        if call.kind == "async":
            return by_hand_async()
        with db.pipeline() as pipe:
            pipe.watch("k")
            change(pipe)
            return pipe.execute()

    async def by_hand_async() -> Any:
        async with db.pipeline() as pipe:
            await pipe.watch("k")
            await change_async(pipe)
            return await pipe.execute()

    with pytest.raises((redis.WatchError, redis.ConnectionError)):
        call(by_hand())
    assert sum(b"EXEC" in each for each in proxy.seen) == 1
    assert call(db.get("k")) == b"3"  # which took effect once


def test_the_clients_own_retries_are_off_under_the_policy_only(call: Caller, proxy: Proxy) -> None:
    db = call.use(Policy(timeout=60))
    own = db.get_retry().get_retries()
    assert own > 0
    proxy.breaks = ["request"]
    with pytest.raises(redis.ConnectionError):
        call(db.get("k"))
    assert len(proxy.seen) == 1
    messages = db.pubsub()
    proxy.breaks = ["request"]
    call(messages.subscribe("c"))
    until = time.monotonic() + 10
    found: Any = None
    while found is None and time.monotonic() < until:
        found = call(messages.get_message(timeout=0.1))
    assert found["type"] == "subscribe"  # it has reconnected by itself
    call(messages.close() if call.kind == "sync" else messages.aclose())


def test_what_opero_raises_is_the_clients_own_as_well(call: Caller, proxy: Proxy) -> None:
    db = call.use(Policy(circuit_breaker={"consecutive_failures": 1}))
    proxy.breaks = ["request"]
    with pytest.raises(redis.ConnectionError):
        call(db.get("k"))
    with pytest.raises(redis.ConnectionError) as caught:
        call(db.get("k"))
    assert isinstance(caught.value, CircuitOpenError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, redis.ConnectionError | CircuitOpenError)


def test_a_blocking_command_ends_at_its_timeout_and_leaves_the_client_usable(call: Caller) -> None:
    db = call.use(Policy(timeout={"attempt": 0.2}, retry={"retries": 2, "min_delay": 0}))
    with pytest.raises(redis.TimeoutError) as caught:
        call(db.blpop(["nothing"], timeout=30))
    assert isinstance(caught.value, CallTimeoutError)
    assert db.bound.stats.attempts == 1  # a message may have been taken
    call(db.rpush("list", "a"))
    assert call(db.blpop(["list"], timeout=30)) == (b"list", b"a")


def test_errors_that_the_server_replies_are_raised_as_they_are(call: Caller) -> None:
    db = call.use(Policy(**NOW))
    call(db.set("k", "text"))
    with pytest.raises(redis.ResponseError):
        call(db.incr("k"))
    with pytest.raises(redis.ResponseError):
        call(db.lrange("k", 0, 1))
    assert db.bound.stats.retries == 0


def test_reads_are_hedged_and_writes_that_count_are_not(call: Caller, proxy: Proxy, redis_server: RedisServer) -> None:
    db = call.use(Policy(hedge={"after": "50ms", "budget": "100%"}))
    call(db.set("k", "v"))
    with redis.Redis(port=redis_server.port) as other:
        before = db.bound.stats.hedges  # of a machine that is slow
        other.client_pause(400, all=True)
        assert call(db.get("k")) == b"v"
        assert db.bound.stats.hedges == before + 1
        other.client_pause(400, all=True)
        assert call(db.incr("n")) == 1
    assert db.bound.stats.hedges == before + 1


def test_a_named_profile_tunes_the_client(call: Caller, proxy: Proxy) -> None:
    registry = opero.Registry({"redis": Policy(**NOW)})
    db = call.use("redis", registry=registry)
    proxy.breaks = ["request"]
    assert call(db.get("k")) is None
    assert (db.bound.stats.policy, db.bound.stats.function) == ("redis", "opero.integrations.redis:client")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: client(object()), "expects a redis.Redis or a redis.asyncio.Redis, not a value of type object"),
        (lambda: client(client(redis.Redis())), "under a policy already"),
        (lambda: client(redis.Redis(), cache=True), "replies of redis are not cached"),
        (lambda: client(redis.Redis(), arg_fallback="x"), "has no parameter 'x'"),
        (lambda: client(redis.Redis(), retry_commands="INCR"), "expects a collection of commands"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
