"""Scripts on a redis that keeps the state of limits: each runs in one round trip, or the server is left alone."""

from __future__ import annotations

import hashlib
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from opero.cache.outage import Breaker, Rest, Words
from opero.errors import ConfigError, MissingExtraError, message_of
from opero.events import StoreFailed, StoreRestored
from opero.executors.state.redis_beat import Beat
from opero.runtime.clock import SYSTEM
from opero.runtime.forking import RenewedLock, renew_in_child
from opero.runtime.general_settings import REDIS_URL, GeneralSettings
from opero.runtime.hosts import run_later
from opero.runtime.interruption import interruptible
from opero.runtime.redis_address import place_of
from opero.runtime.redis_servers import Cluster, Server, new_server

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.25
"""Seconds between probes of a server that has failed."""
WORDS = Words(
    "the store of shared limits failed ({}); each limit does what its on_store_error says",
    "the store of shared limits is available again",
    store="store",
    records=("store_failed", "store_restored"),
    events=(StoreFailed, StoreRestored),
)


class Command:
    """A script with its keys, packed for sending except for the arguments that differ each time.

    Args:
        script: the script.
        keys: its keys.
        constant: its first arguments.
        count: how many more arguments it takes.
    """

    def __init__(self, script: str, keys: Sequence[bytes], constant: Sequence[object], count: int) -> None:
        self.script = script
        self.keys = tuple(keys)
        self.constant = tuple(_encoded(each) for each in constant)
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()
        first = (b"EVALSHA", digest, b"%d" % len(keys), *self.keys, *self.constant)
        self.start = b"*%d\r\n" % (len(first) + count) + b"".join(map(_packed, first))


def _encoded(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _packed(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class RedisStore:
    """A redis that keeps the state of limits. All limits of this process with the same address and timeout use it.

    After a failure nothing waits for the server: a thread probes it, at most every quarter of a second.

    Args:
        url: the address, which may have a password.
        timeout: seconds to connect, and to wait for a reply.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL is invalid.
    """

    def __init__(self, url: str, timeout: float) -> None:
        import redis

        self.url = url
        self.server = new_server(url, timeout, {})
        self.beat = Beat()
        self.breaker = Breaker(f"redis at {place_of(url)}", SYSTEM)
        self.rest = Rest(WORDS, FIRST_PAUSE, LONGEST_PAUSE)
        errors: Any = redis.exceptions
        self._lost: tuple[type[Exception], ...] = (redis.ConnectionError, OSError)
        self._late: type[Exception] = redis.TimeoutError
        self._unknown: tuple[type[Exception], ...] = (errors.NoScriptError, errors.MovedError, errors.AskError)
        # A connection from redis-py's pool costs more than the rest of an operation; where their number is limited,
        # they have to go back there.
        self._keeps = not self.server.address.options.get("max_connections")
        self._idle: dict[Any, deque[Any]] = {}
        weakref.finalize(self, _close, self.server, self._idle)
        renew_in_child(self)

    def after_fork(self) -> None:
        """Leave the connections to the parent, and let another thread probe the server."""
        self._idle.clear()
        self.rest.is_probing = False
        self.rest.until = float("-inf")

    @property
    def trouble(self) -> str:
        """Why the server cannot be used, in one line; "" while it can."""
        return self.rest.reason

    def ask(self, command: Command, probe: Callable[[], object], *args: object) -> Any:
        """Return the reply to a command; None if the server cannot be used.

        Args:
            command: the command.
            probe: asks the server something as well, to find out whether it can be used again; raises if it cannot.
            args: the arguments that are not in the command.
        """
        if self.rest.failures:
            if not self.rest.skips(SYSTEM.monotonic()):
                run_later(self._probe, probe)
            return None
        try:
            return self.run(command, *args)
        except Exception as error:  # noqa: BLE001  # all of redis-py's, and of what is below
            self.breaker.failed(self.rest, error, is_probe=False)
            return None

    def _probe(self, probe: Callable[[], object]) -> None:
        try:
            probe()
        except Exception as error:  # noqa: BLE001  # as above
            self.breaker.failed(self.rest, error, is_probe=True)
        else:
            self.breaker.restored(self.rest)

    def run(self, command: Command, *args: object) -> Any:
        """Return the reply to a command.

        Raises:
            redis.RedisError, OSError: the server does not answer, or does not do it.
        """
        values = tuple(map(_encoded, args))
        try:
            return self._evaluate(command, values)
        except self._late:
            raise
        except self._lost:  # after a restart of the server, all idle connections are dead, and new ones work
            _give_back(self._idle)
            self.server.drop_idle()
            return self._evaluate(command, values)

    def _evaluate(self, command: Command, values: tuple[bytes, ...]) -> Any:
        try:
            return self._send(command.keys[0], command.start + b"".join(map(_packed, values)))
        except self._unknown:  # the server has been started anew, or the keys have moved to another one
            arguments = (*command.keys, *command.constant, *values)
            return self.server.client.eval(command.script, len(command.keys), *arguments)

    @interruptible
    def _send(self, key: bytes, packed: bytes) -> Any:
        pool = self.server.pool_for(key)
        idle = self._idle.get(pool)
        if idle is None:
            idle = self._idle.setdefault(pool, deque())
        try:
            connection = idle.pop()
        except IndexError:
            connection = pool.get_connection()
        try:
            connection.send_packed_command([packed])
            reply = connection.read_response()
        except BaseException:  # it has been closed, unless the server has replied with an error
            pool.release(connection)
            raise
        if self._keeps:
            idle.append(connection)
        else:
            pool.release(connection)
        return reply


def _give_back(idle: dict[Any, deque[Any]]) -> None:
    """Give idle connections back to the pools that they are from."""
    for pool, connections in list(idle.items()):
        while connections:
            with suppress(IndexError):  # another thread has taken the last one
                pool.release(connections.pop())


def _close(server: Server | Cluster, idle: dict[Any, deque[Any]]) -> None:
    _give_back(idle)
    server.close()


_stores: weakref.WeakValueDictionary[tuple[str, float], RedisStore] = weakref.WeakValueDictionary()
_stores_lock = RenewedLock()


def store_of(policy: Any, name: str) -> RedisStore:
    """Return the redis of a policy with `share: redis`, without connecting to it.

    Args:
        policy: the policy.
        name: what messages begin with, before the name of an option.

    Raises:
        ConfigError: the URL is invalid; the message does not show what may be a password.
        MissingExtraError: the extra is not installed.
    """
    url = policy.url.get_secret_value() if policy.url is not None else GeneralSettings()(REDIS_URL) or "redis://"
    with _stores_lock:
        found = _stores.get((url, policy.store_timeout))
        if found is not None:
            return found
        try:
            found = RedisStore(url, policy.store_timeout)
        except ImportError as error:
            raise MissingExtraError(f"{name}.share 'redis' requires an extra: pip install 'opero[redis]'") from error
        except ValueError as error:
            raise ConfigError(f"{name}.url: {message_of(error)}") from None
        _stores[url, policy.store_timeout] = found
        return found
