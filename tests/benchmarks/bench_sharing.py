"""What a permit costs where its budget is shared by the processes of a machine, or by redis."""

from __future__ import annotations

import os
import tempfile
from typing import Any
from unittest.mock import patch

import redis
from tests.benchmarks.harness import Row, compare
from tests.redis_server import RedisServer, find_program

from opero import Policy, RateLimitPolicy

NEVER: dict[str, Any] = {"rate": 10**6, "burst": 10**6, "share_as": "bench"}
PING = b"*1\r\n$4\r\nPING\r\n"


def nothing() -> None:
    pass


def run(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_RUNTIME_DIR=folder):
        server = RedisServer(find_program(), folder)
        server.start()
        try:
            return _rows(rounds, server)
        finally:
            server.kill()


def _rows(rounds: int, server: RedisServer) -> list[Row]:
    client = redis.Redis(port=server.port)
    connection = client.connection_pool.get_connection()

    def bare_ping() -> None:
        connection.send_packed_command([PING])
        connection.read_response()

    alone = RateLimitPolicy(rate=10**6, burst=10**6).apply(nothing)
    machine = RateLimitPolicy(**NEVER, share="machine").apply(nothing)
    reserving: Any = {**NEVER, "share_as": "reserving", "reserve": 10**5}
    ahead = RateLimitPolicy(**reserving, share="redis", url=server.url, store_timeout=30).apply(nothing)
    shared = RateLimitPolicy(**NEVER, share="redis", url=server.url, store_timeout=30).apply(nothing)
    stated: Any = {"share": "redis", "url": server.url, "store_timeout": 30, "share_as": "bench"}
    slots = Policy.model_validate({"bulkhead": {"max_concurrent": 100, **stated}}).apply(nothing)
    circuit, own_circuit = (
        Policy.model_validate({"circuit_breaker": {"failure_rate": 0.5, **more}}).apply(nothing)
        for more in (stated, {})
    )

    def two_pings() -> None:
        client.ping()
        client.ping()

    rows = [
        compare("a permit, share: machine / process", machine, "process", alone, rounds),
        compare("a permit, share: redis / redis-py's ping()", shared, "ping()", client.ping, rounds, target=1.2),
        compare("the same with reserve / ping()", ahead, "ping()", client.ping, rounds, target=0.2),
        compare("without reserve / a packed PING on a connection", shared, "packed PING", bare_ping, rounds),
        compare("a slot taken and given back, share: redis / two ping()", slots, "two ping()", two_pings, rounds),
        compare("a closed circuit, share: redis / process", circuit, "process", own_circuit, rounds),
    ]
    client.connection_pool.release(connection)
    client.close()
    return rows
