"""The `redis` backend of dogpile.cache, on redis-py (extra `redis`): a store that processes and machines share."""

from __future__ import annotations

import contextlib
import itertools
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from dogpile.cache.api import NO_VALUE, BytesBackend

from opero.errors import message_of
from opero.runtime.forking import RenewedLock
from opero.runtime.interruption import interruptible

T = TypeVar("T")

BATCH = 1000
NEVER_EXPIRES = 1e10
"""Seconds (317 years) from which on a value is stored without expiry: redis refuses much longer times."""


class RedisBackend(BytesBackend):
    """Stores bytes in redis. Nothing is retried except once after a connection is lost, so an outage shows at once.

    Args:
        arguments: `url`: as for `redis.from_url`; `timeout`: seconds to connect and to wait for each reply, default 1;
            `lock_timeout`: seconds after which a computation lock lapses, default 60; `options`: more arguments for
            `redis.from_url`.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL is malformed; the message leaves it out if it may contain a password.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        import redis

        self.lock_timeout = float(arguments.get("lock_timeout", 60.0))
        self.connection_errors: tuple[type[Exception], ...] = (redis.ConnectionError,)
        self.timeout_errors: tuple[type[Exception], ...] = (redis.TimeoutError,)
        self.lock_errors: tuple[type[Exception], ...] = (redis.exceptions.LockError,)
        self.client = _client(
            arguments["url"], float(arguments.get("timeout", 1.0)), dict(arguments.get("options") or {})
        )

    # The interface of dogpile.cache

    def get_serialized(self, key: str) -> Any:
        value = self._run(self.client.get, key)
        return NO_VALUE if value is None else value

    def get_serialized_multi(self, keys: Iterable[str]) -> list[Any]:
        names = list(keys)
        if not names:
            return []
        return [NO_VALUE if value is None else value for value in self._run(self.client.mget, names)]

    def set_serialized(self, key: str, value: bytes) -> None:
        self._run(self.client.set, key, value)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        if mapping:
            self._run(self.client.mset, mapping)

    def delete(self, key: str) -> None:
        self._run(self.client.unlink, key)

    def delete_multi(self, keys: Iterable[str]) -> None:
        names = list(keys)
        if names:
            self._run(self.client.unlink, *names)

    def get_mutex(self, key: str) -> Any:
        """Return a mutex between processes on all machines for the key, which lapses after `lock_timeout`."""
        return _Mutex(self, self.client.lock(f"{key}:lock", timeout=self.lock_timeout, thread_local=False))

    # Extensions

    def set_expiring(self, key: str, value: bytes, seconds: float | None) -> None:
        """Store a value that expires after `seconds`; None for never."""
        milliseconds = None if seconds is None or seconds >= NEVER_EXPIRES else max(1, round(seconds * 1000))
        self._run(self.client.set, key, value, None, milliseconds)

    def clear_prefix(self, prefix: str) -> int:
        """Delete every key with this prefix, and return their number."""
        keys = iter(self._keys(prefix))
        deleted = 0
        while batch := list(itertools.islice(keys, BATCH)):
            deleted += self._run(self.client.unlink, *batch)
        return deleted

    def count_prefix(self, prefix: str) -> int:
        """Return the number of keys with this prefix."""
        return sum(not key.endswith(b":lock") for key in set(self._keys(prefix)))

    def close(self) -> None:
        """Close the connections; other backends for the same server share them, and connect again."""
        self.client.close()

    def _keys(self, prefix: str) -> Iterable[bytes]:
        pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", prefix) + "*"
        cursor = 0
        while True:
            cursor, keys = self._run(self.client.scan, cursor, pattern, BATCH)
            yield from keys
            if not cursor:
                return

    @interruptible
    def _run(self, operation: Callable[..., T], *args: Any) -> T:
        try:
            return operation(*args)
        except self.timeout_errors:
            raise
        except self.connection_errors:
            # If the server was restarted, all idle connections are dead, and a new one works.
            self.client.connection_pool.disconnect(inuse_connections=False)
            return operation(*args)


class _Mutex:
    """A redis-py lock that may be released after it has lapsed or been acquired by another process."""

    def __init__(self, backend: RedisBackend, lock: Any) -> None:
        self.backend = backend
        self.lock = lock

    def acquire(self, wait: bool = True) -> bool:  # the signature of dogpile.cache
        return bool(self.backend._run(self.lock.acquire, None, wait))

    def renew(self) -> None:
        """Let the time after which it lapses start anew, if it has not lapsed yet."""
        with contextlib.suppress(*self.backend.lock_errors):
            self.backend._run(self.lock.reacquire)

    def release(self) -> None:
        with contextlib.suppress(*self.backend.lock_errors):
            self.lock.release()

    def locked(self) -> bool:
        return bool(self.lock.locked())


_clients: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
_clients_lock = RenewedLock()


def _client(url: str, timeout: float, options: dict[str, Any]) -> Any:
    """Return the client, with its connection pool, that all functions with the same URL and options share."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with _clients_lock:
        key = url, timeout, repr(sorted(options.items()))
        client = _clients.get(key)
        if client is None:
            settings = {
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),
                **options,
            }
            try:
                client = redis.Redis.from_url(url, **settings)
            except ValueError as error:
                reason = (
                    f" ({message_of(error)})" if "@" not in url else ""
                )  # the error quotes the URL, which may have a password
                raise ValueError(
                    f"invalid redis URL{reason}: use redis://[[user]:password@]host[:port][/db], rediss://… or unix://…"
                ) from None
            _clients[key] = client
        return client
