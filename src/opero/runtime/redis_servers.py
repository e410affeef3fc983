"""Clients of redis, with their connection pools: for one server, for one that sentinels know, and for a cluster."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from opero.runtime.forking import RenewedLock, renew_in_child
from opero.runtime.redis_address import Address, read_address


class Server:
    """One server: always the same one, or the one that sentinels name.

    Attributes:
        address: where it is.
        client: the client of redis-py.
    """

    def __init__(self, address: Address) -> None:
        import redis

        self.address = address
        options = {"retry": _once(), **address.options}
        if address.kind == "sentinel":
            import redis.sentinel

            module: Any = redis.sentinel
            is_tls = issubclass(address.connection_class, redis.SSLConnection)
            of_sentinels = {"retry": _once(), **address.of_sentinels, "ssl": is_tls}
            sentinel = module.Sentinel(address.nodes, sentinel_kwargs=of_sentinels)
            options["connection_class"] = (
                module.SentinelManagedSSLConnection if is_tls else module.SentinelManagedConnection
            )
            for name in ("host", "port"):
                options.pop(name, None)
            self.client: Any = sentinel.master_for(address.service, **options)
        else:
            make: Any = redis.ConnectionPool
            if options.get("max_connections"):  # callers wait for one of them, as for a reply
                make = partial(redis.BlockingConnectionPool, timeout=options["socket_timeout"])
            pool = make(connection_class=address.connection_class, **options)
            self.client = redis.Redis.from_pool(pool)

    def get_many(self, names: Sequence[str]) -> Sequence[Any]:
        found: Sequence[Any] = self.client.mget(names)
        return found

    def set_many(self, mapping: Mapping[str, bytes]) -> None:
        self.client.mset(mapping)

    def delete_many(self, names: Sequence[Any]) -> int:
        deleted: int = self.client.unlink(*names)
        return deleted

    def pool_for(self, key: bytes) -> Any:
        """Return the connection pool for operations on a key."""
        return self.client.connection_pool

    def scans(self) -> list[dict[str, Any]]:
        """Return arguments for `scan`, one for each node that has keys of its own."""
        return [{}]

    def drop_idle(self) -> None:
        """Close the connections that are not in use: after a restart of the server, all of them are dead."""
        self.client.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        self.client.close()


class Cluster:
    """A cluster. Its client asks for the nodes when it is created, and so is created by the first operation."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client: Any = None
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    @property
    def client(self) -> Any:
        """The client of redis-py.

        Raises:
            redis.RedisError: no node answers, or one that does is not part of a cluster.
        """
        with self._lock:
            if self._client is None:
                import redis.cluster

                module: Any = redis.cluster
                options = {"require_full_coverage": False, **self.address.options}
                for name in ("host", "port"):
                    options.pop(name, None)
                if self._is_tls:
                    options["ssl"] = True
                nodes = [module.ClusterNode(*each) for each in self.address.nodes]
                self._client = module.RedisCluster(startup_nodes=nodes, retry=_once(), **options)
            return self._client

    @property
    def _is_tls(self) -> bool:
        import redis

        return issubclass(self.address.connection_class, redis.SSLConnection)

    def get_many(self, names: Sequence[str]) -> Sequence[Any]:
        found: Sequence[Any] = self.client.mget_nonatomic(names)
        return found

    def set_many(self, mapping: Mapping[str, bytes]) -> None:
        self.client.mset_nonatomic(mapping)

    def delete_many(self, names: Sequence[Any]) -> int:
        with self.client.pipeline() as pipeline:
            for each in names:
                pipeline.unlink(each)
            return sum(pipeline.execute())

    def pool_for(self, key: bytes) -> Any:
        client = self.client
        return client.get_redis_connection(client.nodes_manager.get_node_from_slot(client.keyslot(key))).connection_pool

    def scans(self) -> Iterator[dict[str, Any]]:
        return ({"target_nodes": node} for node in self.client.get_primaries())

    def drop_idle(self) -> None:
        """Ask for the nodes anew: one of them may have been replaced."""
        self.client.nodes_manager.initialize()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _once() -> Any:
    """Have redis-py try each operation once, so that an outage shows at once."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Retry(NoBackoff(), 0)


_servers: weakref.WeakValueDictionary[Any, Server | Cluster] = weakref.WeakValueDictionary()
_servers_lock = RenewedLock()


def new_server(url: str, timeout: float, arguments: Mapping[str, Any]) -> Server | Cluster:
    """Return clients of one's own.

    Raises:
        ImportError, ValueError: as `server_at`.
    """
    address = read_address(url, timeout, arguments)
    return Cluster(address) if address.kind == "cluster" else Server(address)


def server_at(url: str, timeout: float, arguments: Mapping[str, Any]) -> Server | Cluster:
    """Return the clients that all functions with the same URL, timeout and arguments share.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL or an argument is invalid.
    """
    with _servers_lock:
        key = url, timeout, repr(sorted(arguments.items(), key=lambda each: each[0]))
        found = _servers.get(key)
        if found is None:
            found = _servers[key] = new_server(url, timeout, arguments)
        return found
