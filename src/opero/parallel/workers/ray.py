"""The workers of a ray cluster: the connected one, by address, or on this machine."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, MissingExtraError, message_of
from opero.parallel.transport.worker import run_chunk
from opero.parallel.workers.pool import Death, Pool
from opero.runtime.forking import RenewedLock

try:
    import ray
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise MissingExtraError("mode 'ray' needs the extra ray: pip install 'opero[ray]'") from error

if TYPE_CHECKING:
    from concurrent.futures import Future

    from opero.parallel.workers.pool import Task

PATIENCE = 10
"""Seconds in which a cluster must answer."""
ADDRESS = re.compile(r"(ray://)?(?P<host>[^/]+):(?P<port>\d+)")

_lock = RenewedLock()
_address: str | None = None
"""The address to which a map has connected."""


class RayPool(Pool):
    """The workers of a ray cluster, as tasks. Attempts that ray itself makes after a death are not counted.

    Args:
        address: the cluster's; None: the one that the program is connected to, else one on this machine.
        workers: concurrent chunks; "auto": one for each CPU of the cluster.
        setup: what the workers need, pickled; it is sent once.

    Raises:
        ConfigError: no cluster answers at the address, or the program is connected to another one.
    """

    deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    what = "the ray cluster"
    way_out = "look at its logs, and call retry_failed() of this error once it is well"

    def __init__(self, address: str | None, workers: int | str, setup: bytes) -> None:
        with _lock:
            _connect(address, workers)
        self.count = workers if isinstance(workers, int) else max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._setup = ray.put(setup)
        self._run = ray.remote(max_retries=0)(run_chunk)
        self._sent: dict[Task, Any] = {}

    def submit(self, task: Task) -> None:
        reference = self._sent[task] = self._run.remote(self._setup, task.payload, keep_going=task.chunk.keep_going)
        reference.future().add_done_callback(lambda future: self._post(task, future))

    def _post(self, task: Task, future: Future[bytes]) -> None:
        """Post the outcome of a task."""
        self._sent.pop(task, None)
        error = future.exception()
        if isinstance(error, ray.exceptions.TaskCancelledError):
            error = CancelledError(str(error))
        task.post(error or future.result())

    def death(self, task: Task, error: BaseException) -> Death:
        is_own = isinstance(error, ray.exceptions.WorkerCrashedError)  # a worker runs one task at a time
        return Death(f"{type(error).__name__}: {error}", is_own=is_own)

    def stop(self, tasks: Sequence[Task]) -> None:
        self._cancel(tasks[self.count :])  # ray does not say which run: those that were sent first

    def close(self, tasks: Sequence[Task]) -> None:
        self._cancel(tasks)

    def _cancel(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            reference = self._sent.get(task)
            if reference is not None:
                ray.cancel(reference, force=True)  # else it may continue, as in an event loop


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
        if match := ADDRESS.fullmatch(address):
            socket.create_connection((match["host"], int(match["port"])), PATIENCE).close()  # ray would try for minutes
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        with suppress(Exception):
            ray.shutdown()
        raise ConfigError(
            f"no ray cluster answers at address={address!r} ({message_of(error)}); start one with `ray start --head`, "
            "or leave address out for the one that is connected to, or one on this machine"
        ) from error
    _address = address
