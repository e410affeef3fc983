"""Items on a dask cluster: a scheduler's, the client's that is there, or one on this machine."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from opero.errors import MissingExtraError
from opero.parallel.futures import Pool
from opero.parallel.worker import run_chunk

try:
    import distributed
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise MissingExtraError("mode 'dask' needs the extra dask: pip install 'opero[dask]'") from error

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["DaskPool"]

LARGE = 1 << 16
"""Bytes of a setup, from which on it is scattered to the workers once, and not sent with every chunk."""

_clients: dict[tuple[str | None, int | None], Any] = {}
"""Clients that maps have opened, kept for the next."""


class DaskPool(Pool):
    """A dask cluster's workers.

    Args:
        address: the scheduler's; None: the client that the program has opened, else a cluster on this machine.
        workers: how many chunks at a time; "auto": a chunk for each thread of the cluster.
        setup: what the workers have to know.

    Raises:
        OSError: no scheduler answers there.
    """

    deaths = (distributed.scheduler.KilledWorker,)

    def __init__(self, address: str | None, workers: int | str, setup: bytes) -> None:
        self._client = _client(address, workers if isinstance(workers, int) else None)
        self.count = workers if isinstance(workers, int) else max(1, sum(self._client.nthreads().values()))
        self._setup: Any = self._client.scatter(setup, broadcast=True, hash=False) if len(setup) > LARGE else setup
        self._executor = self._client.get_executor(pure=False)

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        return self._executor.submit(run_chunk, self._setup, payload, keep_going=keep_going)  # type: ignore[no-any-return]

    def close(self, *, is_done: bool) -> None:
        self._executor.shutdown(wait=is_done)


def _client(address: str | None, workers: int | None) -> Any:
    if address is None:
        try:
            return distributed.default_client()
        except ValueError:  # there is none
            pass
    key = address, None if address is not None else workers
    held = _clients.get(key)
    if held is None or held.status != "running":
        if address is not None:
            held = distributed.Client(address, set_as_default=False)
        else:
            cluster = distributed.LocalCluster(n_workers=workers, dashboard_address=None)
            held = distributed.Client(cluster, set_as_default=False)
            atexit.register(cluster.close)
        atexit.register(held.close)
        _clients[key] = held
    return held
