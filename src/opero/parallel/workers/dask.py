"""Items on a dask cluster: a scheduler's, the client's that is there, or one on this machine."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import socket
import threading
import time
import traceback
import warnings
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, MissingExtraError
from opero.parallel.transport.worker import run_chunk
from opero.parallel.workers.executors import Pool
from opero.runtime.machine import cpu_limit

try:
    import dask
    import distributed
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise MissingExtraError("mode 'dask' needs the extra dask: pip install 'opero[dask]'") from error

# It makes its way of starting processes known to multiprocessing: `OwnNanny` uses it.
import joblib.externals.loky  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["DaskPool"]

LARGE = 1 << 16
"""Bytes of a setup, from which on it is sent to the workers once, and not with every chunk."""
PATIENCE = 10
"""Seconds that a scheduler has to answer."""
LOOK = 1.0
"""Seconds between looks at how many workers there are."""
START = "distributed.worker.multiprocessing-method"

_lock = threading.Lock()
_clients: dict[str | None, Any] = {}
"""Clients that maps have opened, by address, kept for the next; None: that of the cluster on this machine."""


class DaskPool(Pool):
    """A dask cluster's workers.

    Args:
        address: the scheduler's; None: the client that the program has opened, else a cluster on this machine.
        workers: how many chunks at a time; "auto": a chunk for each thread of the cluster, as it grows and shrinks.
        setup: what the workers have to know.

    Raises:
        ConfigError: no scheduler answers there.
    """

    deaths = (distributed.scheduler.KilledWorker,)
    tells_running = False
    patience = LOOK
    what = "the dask cluster"
    way_out = "look at its scheduler's log, and call retry_failed() of this error once it is well"

    def __init__(self, address: str | None, workers: int | str, setup: bytes) -> None:
        self._client = _client(address, workers)
        self._sent: dict[Future[bytes], Any] = {}
        self._setup: Any = setup
        if len(setup) > LARGE:
            with warnings.catch_warnings():  # that it is large is why it is sent once
                warnings.simplefilter("ignore", UserWarning)
                # Not scattered: what a task gives is computed again where all workers that have it die.
                self._setup = self._client.submit(bytes, setup, pure=False)
        self._is_fixed = isinstance(workers, int)
        self._most = len(self._client.scheduler_info(n_workers=-1)["workers"])
        self.count = workers if isinstance(workers, int) else max(1, sum(self._client.nthreads().values()))
        self._looked = time.monotonic()

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        future: Future[bytes] = Future()
        sent = self._client.submit(run_chunk, self._setup, payload, keep_going=keep_going, pure=False)
        self._sent[future] = sent
        self._client.loop.add_callback(self._pass_on, sent, future)
        return future

    async def _pass_on(self, sent: Any, future: Future[bytes]) -> None:
        """In the client's event loop: whatever a task comes to, its future comes to."""
        try:
            result = await self._client.gather(sent, asynchronous=True)
        except (CancelledError, asyncio.CancelledError) as error:
            future.set_exception(CancelledError(str(error)))
        except BaseException as error:  # noqa: BLE001  # whoever reads the results raises it
            error.add_note("On the dask cluster:\n" + "".join(traceback.format_exception(error)))
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del self._sent[future]
            sent.release()  # an exception's traceback may keep it for long

    def is_to_blame(self, error: BaseException) -> bool:
        # Where dask itself has tried again, several workers have died of it; else it may have been beside another.
        return getattr(error, "allowed_failures", 0) > 0

    def cancel(self, futures: Iterable[Future[Any]]) -> None:
        sent = [each for future in futures if (each := self._sent.get(future)) is not None]
        if sent:
            self._client.loop.add_callback(self._client.cancel, sent, asynchronous=True)

    def watch(self) -> None:
        """See how many workers there are: they may have come since, or gone."""
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._client.loop.add_callback(self._look)

    async def _look(self) -> None:
        try:
            threads = await self._client.scheduler.ncores(workers=None)
        except OSError:  # the scheduler is gone; what was sent will tell
            return
        if not self._is_fixed:
            self.count = max(1, sum(threads.values()))
        self._most = max(self._most, len(threads))
        cluster = self._client.cluster
        if not threads and isinstance(cluster, distributed.LocalCluster):
            # dask gives a worker up for good that dies while it starts; without any, nothing would ever come back.
            cluster.scale(self._most)


# Clients


def _client(address: str | None, workers: int | str) -> Any:
    """The client of the scheduler at an address, of the program's own, or of a cluster on this machine."""
    if address is None:
        try:
            own = distributed.default_client()
        except ValueError:  # there is none
            pass
        else:
            if not own.asynchronous:  # it is where a sync caller blocks the client's own event loop
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
    told = f"no dask scheduler answers at address={address!r}"
    cure = "start one with `dask scheduler`, or leave address out for a cluster on this machine"
    try:
        _knock(address)
        return distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except ValueError as error:
        raise ConfigError(f"address={address!r} is no dask scheduler's: {error}; write 'tcp://host:port'") from error
    except OSError as error:
        raise ConfigError(f"{told} ({error}); {cure}") from error


def _knock(address: str) -> None:
    """Try whether anybody is there: a client would try for long, and leave a thread behind.

    Raises:
        OSError: nobody is.
        ValueError: it is no address.
    """
    scheme, _, _ = address.rpartition("://")
    host, port = distributed.comm.get_address_host_port(address, strict=True)
    if scheme in ("", "tcp", "tls"):
        socket.create_connection((host, port), timeout=PATIENCE).close()


def _own_cluster(workers: int | str) -> Any:
    # A worker's death ends what was sent to it at once: whoever was not to blame is sent again.
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
    """Close a cluster of our own. Its workers may still run what nobody waits for: dask would wait for many seconds."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # else it tells of their ends
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(OSError, TypeError):  # it has ended, or has not begun
            os.kill(nanny.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    cluster.close()


class OwnNanny(distributed.Nanny):  # type: ignore[misc]
    """Starts worker processes that do not run the program's main module once more."""

    async def instantiate(self) -> Any:
        with _starting_as_loky():
            return await super().instantiate()


_starting = 0
_before: Any = None


@contextmanager
def _starting_as_loky() -> Iterator[None]:
    """Have dask start processes as loky does. All who are here at a time are in one event loop."""
    global _starting, _before  # noqa: PLW0603  # the option itself is one a process
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clients.clear)
