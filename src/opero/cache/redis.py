"""The `redis` backend of dogpile.cache, on redis-py (extra `redis`): a store that processes and machines share."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from dogpile.cache.api import NO_VALUE, BytesBackend

from opero.runtime.interruption import interruptible
from opero.runtime.redis_servers import server_at

T = TypeVar("T")

BATCH = 1000
NEVER_EXPIRES = 1e10
"""Seconds (317 years) from which on a value is stored without expiry: redis refuses much longer times."""


class RedisBackend(BytesBackend):
    """Stores bytes in redis. Nothing is retried except once after a connection is lost, so an outage shows at once.

    Args:
        arguments: `url`: that of a server, as for `redis.from_url`, or of sentinels or a cluster, as
            `redis+sentinel://host,host/service` and `redis+cluster://host,host`; `timeout`: seconds to connect and to
            wait for each reply, default 1; `lock_timeout`: seconds after which a computation lock lapses, default 60;
            `options`: more arguments for redis-py.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL or an option is invalid; the message does not show what may be a password.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        import redis

        self.lock_timeout = float(arguments.get("lock_timeout", 60.0))
        self.connection_errors: tuple[type[Exception], ...] = (redis.ConnectionError,)
        self.timeout_errors: tuple[type[Exception], ...] = (redis.TimeoutError,)
        self.elsewhere: tuple[type[Exception], ...] = (
            redis.exceptions.MovedError,
            redis.exceptions.ClusterCrossSlotError,
        )
        self.lock_errors: tuple[type[Exception], ...] = (redis.exceptions.LockError,)
        timeout, options = float(arguments.get("timeout", 1.0)), dict(arguments.get("options") or {})
        self.server = server_at(arguments["url"], timeout, options)

    @property
    def client(self) -> Any:
        """The client of redis-py. That of a cluster connects when it is first asked for, and may fail."""
        return self.server.client

    # The interface of dogpile.cache

    def get_serialized(self, key: str) -> Any:
        value = self._run(self.client.get, key)
        return NO_VALUE if value is None else value

    def get_serialized_multi(self, keys: Iterable[str]) -> list[Any]:
        names = list(keys)
        if not names:
            return []
        return [NO_VALUE if value is None else value for value in self._run(self.server.get_many, names)]

    def set_serialized(self, key: str, value: bytes) -> None:
        self._run(self.client.set, key, value)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        if mapping:
            self._run(self.server.set_many, mapping)

    def delete(self, key: str) -> None:
        self._run(self.client.unlink, key)

    def delete_multi(self, keys: Iterable[str]) -> None:
        names = list(keys)
        if names:
            self._run(self.server.delete_many, names)

    def get_mutex(self, key: str) -> Any:
        """Return a mutex between processes on all machines for the key, which lapses after `lock_timeout`."""
        return _Mutex(self, f"{key}:lock")

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
            deleted += self._run(self.server.delete_many, batch)
        return deleted

    def count_prefix(self, prefix: str) -> int:
        """Return the number of keys with this prefix."""
        return sum(not key.endswith(b":lock") for key in set(self._keys(prefix)))

    def close(self) -> None:
        """Close the connections; other backends for the same server share them, and connect again."""
        self.server.close()

    def _keys(self, prefix: str) -> Iterable[bytes]:
        pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", prefix) + "*"
        for where in self._run(self.server.scans):
            cursor: Any = 0
            while True:
                cursor, keys = self._run(partial(self.client.scan, cursor, pattern, BATCH, **where))
                yield from keys
                # Of one node of a cluster, it is by the name of the node.
                cursor = next(iter(cursor.values())) if isinstance(cursor, dict) else cursor
                if not cursor:
                    break

    @interruptible
    def _run(self, operation: Callable[..., T], *args: Any) -> T:
        try:
            return operation(*args)
        except self.timeout_errors:
            raise
        except self.elsewhere:
            raise OSError("it is part of a cluster: use a URL that begins with redis+cluster://") from None
        except self.connection_errors:
            # If the server was restarted, all idle connections are dead, and a new one works.
            self.server.drop_idle()
            return operation(*args)


class _Mutex:
    """A redis-py lock that may be released after it has lapsed or been acquired by another process."""

    def __init__(self, backend: RedisBackend, name: str) -> None:
        self.backend = backend
        self.name = name
        self._lock: Any = None

    @property
    def lock(self) -> Any:
        """The lock of redis-py, which needs the client: that of a cluster may not be there yet."""
        if self._lock is None:
            timeout = self.backend.lock_timeout
            self._lock = self.backend.client.lock(self.name, timeout=timeout, thread_local=False)
        return self._lock

    def acquire(self, wait: bool = True) -> bool:  # the signature of dogpile.cache
        return bool(self.backend._run(lambda: self.lock.acquire(blocking=wait)))

    def renew(self) -> None:
        """Let the time after which it lapses start anew, if it has not lapsed yet."""
        with contextlib.suppress(*self.backend.lock_errors):
            self.backend._run(self.lock.reacquire)

    def release(self) -> None:
        with contextlib.suppress(*self.backend.lock_errors):
            self.lock.release()

    def locked(self) -> bool:
        return bool(self.lock.locked())
