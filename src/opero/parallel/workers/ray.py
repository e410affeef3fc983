"""Items on a ray cluster: the one that is connected to, the one at an address, or one on this machine."""

from __future__ import annotations

import re
import socket
import threading
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, MissingExtraError
from opero.parallel.transport.worker import run_chunk
from opero.parallel.workers.executors import Pool

try:
    import ray
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise MissingExtraError("mode 'ray' needs the extra ray: pip install 'opero[ray]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RayPool"]

PATIENCE = 10
"""Seconds that a cluster has to answer."""
ADDRESS = re.compile(r"(ray://)?(?P<host>[^/]+):(?P<port>\d+)")

_lock = threading.Lock()
_address: str | None = None
"""Where a map has connected to."""


class RayPool(Pool):
    """A ray cluster's workers, as tasks. What ray itself tries again after a death is not counted.

    Args:
        address: the cluster's; None: the one that the program is connected to, else one on this machine.
        workers: how many chunks at a time; "auto": one for each CPU of the cluster.
        setup: what the workers have to know; they get it once.

    Raises:
        ConfigError: no cluster answers there, or the program is connected to another.
    """

    deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    tells_running = False
    what = "the ray cluster"
    way_out = "look at its logs, and call retry_failed() of this error once it is well"

    def __init__(self, address: str | None, workers: int | str, setup: bytes) -> None:
        with _lock:
            _connect(address, workers)
        self.count = workers if isinstance(workers, int) else max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._setup = ray.put(setup)
        self._run = ray.remote(max_retries=0)(run_chunk)
        self._sent: dict[Future[bytes], Any] = {}

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        reference = self._run.remote(self._setup, payload, keep_going=keep_going)
        future: Future[bytes] = Future()
        self._sent[future] = reference
        reference.future().add_done_callback(lambda done: self._pass_on(done, future))
        return future

    def _pass_on(self, done: Future[bytes], future: Future[bytes]) -> None:
        """Whatever a task comes to, its future comes to."""
        self._sent.pop(future, None)
        error = done.exception()
        if isinstance(error, ray.exceptions.TaskCancelledError):
            future.set_exception(CancelledError(str(error)))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())

    def is_to_blame(self, error: BaseException) -> bool:
        return isinstance(error, ray.exceptions.WorkerCrashedError)  # a worker has one task at a time

    def cancel(self, futures: Iterable[Future[Any]]) -> None:
        for future in futures:
            reference = self._sent.get(future)
            if reference is not None:
                ray.cancel(reference, force=True)  # else it may go on, as where an event loop runs


def _connect(address: str | None, workers: int | str) -> None:
    global _address  # noqa: PLW0603  # a process has one connection
    if ray.is_initialized():
        if address in (None, "auto", _address):
            return
        connected = ray.get_runtime_context().gcs_address
        if address != connected:
            raise ConfigError(
                f"address={address!r} is not the ray cluster that this process is connected to ({connected}), and it "
                "can be connected to one only: leave address out, or call ray.shutdown() first"
            )
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        cpus = {"num_cpus": workers} if isinstance(workers, int) else {}
        ray.init(include_dashboard=False, **cpus, **quiet)
        return
    try:
        if told := ADDRESS.fullmatch(address):
            socket.create_connection((told["host"], int(told["port"])), PATIENCE).close()  # ray would try for minutes
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        with suppress(Exception):
            ray.shutdown()
        raise ConfigError(
            f"no ray cluster answers at address={address!r} ({error}); start one with `ray start --head`, or leave "
            "address out for the one that is connected to, or one on this machine"
        ) from error
    _address = address
