"""The workers of a dask cluster: by address, of the program's client, or on this machine."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, MissingExtraError, message_of
from opero.parallel.transport.worker import run_chunk
from opero.parallel.workers.pool import Death, Pool
from opero.runtime.forking import RenewedLock, at_fork
from opero.runtime.machine import cpu_limit

try:
    import dask
    import distributed
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise MissingExtraError("mode 'dask' needs the extra dask: pip install 'opero[dask]'") from error

# Registers the start method "loky" with multiprocessing, which `OwnNanny` uses.
import joblib.externals.loky  # noqa: F401

if TYPE_CHECKING:
    from opero.parallel.workers.pool import Task

LARGE = 1 << 16
"""Bytes of a setup above which it is sent to the cluster once, not with every chunk."""
PATIENCE = 10
"""Seconds in which a scheduler must answer."""
LOOK = 1.0
"""Seconds between counts of the cluster's workers."""
START = "distributed.worker.multiprocessing-method"

_lock = RenewedLock()
_clients: dict[str | None, Any] = {}
"""Clients that maps have opened, by address; None: of the cluster on this machine."""


class DaskPool(Pool):
    """The workers of a dask cluster.

    Args:
        address: the scheduler's; None: the client that the program has opened, else a cluster on this machine.
        workers: concurrent chunks; "auto": one for each thread of the cluster, as it grows and shrinks.
        setup: what the workers need, pickled.

    Raises:
        ConfigError: no scheduler answers at the address.
    """

    deaths = (distributed.scheduler.KilledWorker,)
    patience = LOOK
    what = "the dask cluster"
    way_out = "look at its scheduler's log, and call retry_failed() of this error once it is well"

    def __init__(self, address: str | None, workers: int | str, setup: bytes) -> None:
        self._client = _client(address, workers)
        self._sent: dict[Task, Any] = {}
        self._setup: Any = setup
        if len(setup) > LARGE:
            with warnings.catch_warnings():  # it is sent once because it is large
                warnings.simplefilter("ignore", UserWarning)
                # Not scattered: the result of a task is computed again if all workers that have it die.
                self._setup = self._client.submit(bytes, setup, pure=False)
        self._is_fixed = isinstance(workers, int)
        self._most = len(self._client.scheduler_info(n_workers=-1)["workers"])
        self.count = workers if isinstance(workers, int) else max(1, sum(self._client.nthreads().values()))
        self._looked = time.monotonic()

    def submit(self, task: Task) -> None:
        keep_going = task.chunk.keep_going
        self._sent[task] = self._client.submit(run_chunk, self._setup, task.payload, keep_going=keep_going, pure=False)
        self._client.loop.add_callback(self._await, task, self._sent[task])

    async def _await(self, task: Task, sent: Any) -> None:
        """In the client's event loop: post the outcome of a task."""
        try:
            result = await self._client.gather(sent, asynchronous=True)
        except (CancelledError, asyncio.CancelledError) as error:
            task.post(CancelledError(message_of(error)))
        except BaseException as error:  # noqa: BLE001  # raised where the results are read
            error.add_note("On the dask cluster:\n" + "".join(traceback.format_exception(error)))
            task.post(error)
        else:
            task.post(result)
        finally:
            del self._sent[task]
            sent.release()  # an exception's traceback may keep it for long

    def death(self, task: Task, error: BaseException) -> Death:
        # If dask itself has tried again, several workers have died of it; else another task may have killed this one's.
        is_own = getattr(error, "allowed_failures", 0) > 0
        return Death(f"{type(error).__name__}: {error}", is_own=is_own)

    def stop(self, tasks: Sequence[Task]) -> None:
        self._cancel(tasks[self.count :])  # dask does not say which run: those that were sent first

    def close(self, tasks: Sequence[Task]) -> None:
        self._cancel(tasks)

    def _cancel(self, tasks: Sequence[Task]) -> None:
        sent = [each for task in tasks if (each := self._sent.get(task)) is not None]
        if sent:
            self._client.loop.add_callback(self._client.cancel, sent, asynchronous=True)

    def watch(self) -> None:
        """Count the cluster's workers: some may have joined or left."""
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._client.loop.add_callback(self._look)

    async def _look(self) -> None:
        try:
            threads = await self._client.scheduler.ncores(workers=None)
        except OSError:  # the scheduler is gone, and the tasks that were sent will fail
            return
        if not self._is_fixed:
            self.count = max(1, sum(threads.values()))
        self._most = max(self._most, len(threads))
        cluster = self._client.cluster
        if not threads and isinstance(cluster, distributed.LocalCluster):
            # dask gives up a worker that dies while it starts; without any, no task would ever finish.
            cluster.scale(self._most)


# Clients


def _client(address: str | None, workers: int | str) -> Any:
    """The client of the scheduler at an address, the program's own, or that of a cluster on this machine."""
    if address is None:
        try:
            own = distributed.default_client()
        except ValueError:  # there is none
            pass
        else:
            if not own.asynchronous:  # a sync caller would block the client's own event loop
                return own
            address = own.scheduler.address
    with _lock:
        held = _clients.get(address)
        if held is None or held.status != "running":
            held = _clients[address] = _own_cluster(workers) if address is None else _connected(address)
            atexit.register(held.close)
        elif address is None:
            held.cluster.scale(max(len(held.cluster.worker_spec), workers if isinstance(workers, int) else 1))
        return held


def _connected(address: str) -> Any:
    problem = f"no dask scheduler answers at address={address!r}"
    cure = "start one with `dask scheduler`, or leave address out for a cluster on this machine"
    try:
        _knock(address)
        return distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except ValueError as error:
        raise ConfigError(
            f"address={address!r} is no dask scheduler's: {message_of(error)}; write 'tcp://host:port'"
        ) from error
    except OSError as error:
        raise ConfigError(f"{problem} ({message_of(error)}); {cure}") from error


def _knock(address: str) -> None:
    """Check that a server listens at an address: a client would try for long, and leave a thread behind.

    Raises:
        OSError: none does.
        ValueError: it is not an address.
    """
    scheme, _, _ = address.rpartition("://")
    host, port = distributed.comm.get_address_host_port(address, strict=True)
    if scheme in ("", "tcp", "tls"):
        socket.create_connection((host, port), timeout=PATIENCE).close()


def _own_cluster(workers: int | str) -> Any:
    # A worker's death fails what was sent to it at once: opero sends it again.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = distributed.LocalCluster(
            n_workers=workers if isinstance(workers, int) else cpu_limit(),
            threads_per_worker=1,
            dashboard_address=":0",
            worker_class=OwnNanny,
        )
    atexit.register(_end, cluster)
    return distributed.Client(cluster, set_as_default=False)


def _end(cluster: Any) -> None:
    """Close a cluster of our own, and kill its workers: dask would wait many seconds for what they run."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # else it logs their deaths
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(OSError, TypeError):  # it has ended, or has not started
            os.kill(nanny.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    cluster.close()


class OwnNanny(distributed.Nanny):  # type: ignore[misc]
    """Starts worker processes that do not run the program's main module again."""

    async def instantiate(self) -> Any:
        with _starting_as_loky():
            return await super().instantiate()


_starting = 0
_before: Any = None


@contextmanager
def _starting_as_loky() -> Iterator[None]:
    """Make dask start processes as loky does. All callers are in one event loop."""
    global _starting, _before  # noqa: PLW0603  # the option is global, too
    if not _starting:
        _before = dask.config.get(START)
        dask.config.set({START: "loky"})
    _starting += 1
    try:
        yield
    finally:
        _starting -= 1
        if not _starting:
            dask.config.set({START: _before})


def _forget() -> None:
    """In a forked child: the clients and the cluster are the parent's, also at the exit of the child."""
    for client in _clients.values():
        atexit.unregister(client.close)
        _inherited.append(client)
    atexit.unregister(_end)
    _clients.clear()


_inherited: list[Any] = []
"""Clients of a parent process. They are kept here, as one that is freed would wait for a thread of the parent."""

at_fork(in_child=_forget)
