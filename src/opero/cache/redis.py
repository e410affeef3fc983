"""The `redis` backend of dogpile.cache, over redis-py (extra `redis`): a store that processes and machines share."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from dogpile.cache.api import NO_VALUE, BytesBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["RedisBackend"]

T = TypeVar("T")

BATCH = 1000
LONGEST = 1e10
"""Seconds; redis refuses a time that is much longer, and nobody will miss the value."""


class RedisBackend(BytesBackend):
    """Keeps bytes in redis. A server that is down is found so at once: nothing is tried again, but for a connection
    that has died since it was last used.

    Args:
        arguments: `url`, as `redis.from_url` takes it; `timeout`: seconds for connecting and for each answer, default
            1; `lock_timeout`: seconds after which a computation's lock lapses, default 60; `options`: further
            arguments of `redis.from_url`.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL is malformed; the message does not show it, as it may hold a password.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        import redis

        self.lock_timeout = float(arguments.get("lock_timeout", 60.0))
        self.lost: tuple[type[Exception], ...] = (redis.ConnectionError,)
        self.slow: tuple[type[Exception], ...] = (redis.TimeoutError,)
        self.lock_errors: tuple[type[Exception], ...] = (redis.exceptions.LockError,)
        self.client = _client(
            arguments["url"], float(arguments.get("timeout", 1.0)), dict(arguments.get("options") or {})
        )

    # dogpile's interface

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
        """Excludes all others who compute the key, on any machine, for `lock_timeout` at most."""
        return _Mutex(self, self.client.lock(f"{key}:lock", timeout=self.lock_timeout, thread_local=False))

    # Beyond it

    def set_expiring(self, key: str, value: bytes, seconds: float | None) -> None:
        """Keep bytes, for so many seconds; None: for ever."""
        self._run(self.client.set, key, value, None, _milliseconds(float("inf") if seconds is None else seconds))

    def clear_prefix(self, prefix: str) -> int:
        """Delete every key that begins so; how many."""
        found = iter(self._keys(prefix))
        gone = 0
        while batch := list(itertools.islice(found, BATCH)):
            gone += self._run(self.client.unlink, *batch)
        return gone

    def count_prefix(self, prefix: str) -> int:
        """How many keys begin so."""
        return sum(not key.endswith(b":lock") for key in set(self._keys(prefix)))

    def close(self) -> None:
        """Close the connections, which other backends for the same server may use; they connect again."""
        self.client.close()

    def _keys(self, prefix: str) -> Iterable[bytes]:
        pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", prefix) + "*"
        cursor = 0
        while True:
            cursor, keys = self._run(self.client.scan, cursor, pattern, BATCH)
            yield from keys
            if not cursor:
                return

    def _run(self, operation: Callable[..., T], *args: Any) -> T:
        try:
            return operation(*args)
        except self.slow:
            raise
        except self.lost:
            # Perhaps only this connection, as the server has been restarted since. Then all others are dead, too.
            self.client.connection_pool.disconnect(inuse_connections=False)
            return operation(*args)


class _Mutex:
    """A redis-py lock, whose release never disturbs: it may have lapsed, or belong to another by now."""

    def __init__(self, backend: RedisBackend, lock: Any) -> None:
        self.backend = backend
        self.lock = lock

    def acquire(self, wait: bool = True) -> bool:  # dogpile's own
        return bool(self.backend._run(self.lock.acquire, None, wait))

    def release(self) -> None:
        with contextlib.suppress(*self.backend.lock_errors):
            self.lock.release()

    def locked(self) -> bool:
        return bool(self.lock.locked())


def _milliseconds(seconds: float) -> int | None:
    return max(1, round(seconds * 1000)) if seconds < LONGEST else None


_clients: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
_clients_lock = threading.Lock()


def _client(url: str, timeout: float, options: dict[str, Any]) -> Any:
    """One client, and so one pool of connections, for all functions that use a server in the same way."""
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
                told = f" ({error})" if "@" not in url else ""  # else it may hold a password
                raise ValueError(
                    f"the URL of redis is malformed{told}; write redis://[[user]:password@]host[:port][/db], or "
                    f"rediss:// "
                    "or unix://"
                ) from None
            _clients[key] = client
        return client
