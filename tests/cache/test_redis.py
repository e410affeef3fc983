"""The redis backend, against a real server that is stopped and started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from dogpile.cache.api import NO_VALUE
from hypothesis import given
from hypothesis import strategies as st

from opero.cache.redis import RedisBackend
from redis_server import RedisServer

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("*?[]\\^-"), max_size=4)


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    made = RedisBackend({"url": redis_url, "timeout": 0.3, "lock_timeout": 5})
    yield made
    made.close()


def test_many_values_are_read_and_written_in_the_order_of_their_keys(backend: RedisBackend) -> None:
    backend.set_serialized_multi({"a": b"1", "b": b"\x00\xff"})
    backend.set_serialized_multi({})
    assert backend.get_serialized_multi(["b", "c", "a"]) == [b"\x00\xff", NO_VALUE, b"1"]
    assert backend.get_serialized_multi([]) == []
    backend.delete("a")
    backend.delete_multi([])
    backend.delete_multi(["b", "c"])
    assert backend.get_serialized_multi(["a", "b"]) == [NO_VALUE, NO_VALUE]


def test_expired_values_are_deleted(backend: RedisBackend) -> None:
    backend.set_expiring("long", b"1", 60)
    backend.set_expiring("shortest", b"1", 0.0001)  # at least a millisecond: 0 would be refused
    backend.set_expiring("ever", b"2", None)
    backend.set_expiring("ever", b"2", 1e300)
    assert 0 < backend.client.pttl("long") <= 60_000
    time.sleep(0.01)
    assert backend.get_serialized_multi(["long", "shortest", "ever"]) == [b"1", NO_VALUE, b"2"]


@given(keys=st.sets(TEXT, max_size=8), prefix=TEXT)
def test_a_prefix_matches_exactly_the_keys_that_begin_with_it(
    redis_server: RedisServer, keys: set[str], prefix: str
) -> None:
    backend = RedisBackend({"url": redis_server.url})
    backend.client.flushdb()
    backend.set_serialized_multi(dict.fromkeys(keys, b"v"))
    within = {key for key in keys if key.startswith(prefix)}
    assert backend.count_prefix(prefix) == len(within)
    assert backend.clear_prefix(prefix) == len(within)
    left = sorted(keys)
    assert [value is not NO_VALUE for value in backend.get_serialized_multi(left)] == [
        key not in within for key in left
    ]
    backend.close()


def test_backends_for_one_server_share_connections(backend: RedisBackend, redis_url: str) -> None:
    same = RedisBackend({"url": redis_url, "timeout": 0.3})
    assert same.client is backend.client
    assert RedisBackend({"url": redis_url, "timeout": 0.4}).client is not backend.client
    assert RedisBackend({"url": redis_url, "timeout": 0.3, "options": {"db": 1}}).client is not backend.client


@pytest.mark.alone
def test_a_killed_server_is_an_error_at_once_and_is_used_again_after_its_restart(redis_server: RedisServer) -> None:
    backend = RedisBackend({"url": redis_server.url, "timeout": 0.3})
    backend.set_serialized("a", b"1")
    redis_server.kill()
    try:
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(redis.ConnectionError):
                backend.get_serialized("a")
            assert time.monotonic() - started < 0.25
    finally:
        redis_server.start()
    assert backend.get_serialized("a") is NO_VALUE
    backend.set_serialized("a", b"2")
    redis_server.kill()
    redis_server.start()
    assert backend.get_serialized("a") is NO_VALUE  # its pooled connection was dead
    backend.close()


@pytest.mark.alone
def test_a_server_that_does_not_reply_costs_one_timeout(redis_server: RedisServer) -> None:
    backend = RedisBackend({"url": redis_server.url, "timeout": 0.1})
    backend.set_serialized("a", b"1")
    redis_server.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            backend.get_serialized("a")
        assert 0.09 < time.monotonic() - started < 0.3
    finally:
        redis_server.thaw()
    assert backend.get_serialized("a") == b"1"
    backend.close()


def test_a_mutex_excludes_others_and_lapses(backend: RedisBackend, redis_url: str) -> None:
    other = RedisBackend({"url": redis_url, "timeout": 0.5, "lock_timeout": 0.05})
    mutex = backend.get_mutex("k")
    assert mutex.acquire(False)
    assert mutex.locked()
    assert not other.get_mutex("k").acquire(False)
    mutex.release()
    lapsing = other.get_mutex("k")
    assert lapsing.acquire(False)
    time.sleep(0.07)
    assert mutex.acquire(False)
    lapsing.release()  # another holder has it now
    assert not other.get_mutex("k").acquire(False)
    mutex.release()
    mutex.release()
    other.close()


@pytest.mark.parametrize(
    "url", ["http://x", "redis://:s3cret@host:notaport", "", "redis://user:s3cret@host/notadb?db=x"]
)
def test_the_error_for_a_malformed_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"invalid redis URL.*: use redis://") as caught:
        RedisBackend({"url": url})
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_error_without_redis_py_names_the_extra(tmp_path: Any) -> None:
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "redis": raise ModuleNotFoundError("No module named 'redis'", name="redis")
sys.meta_path.insert(0, Blocked())
import opero.cache.redis
from opero import Policy, MissingExtraError
try:
    Policy(cache={"backend": "redis", "ttl": None}).apply(len)
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("cache backend 'redis' requires an extra: pip install 'opero[redis]'")
