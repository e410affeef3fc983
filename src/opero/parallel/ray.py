"""Items on a ray cluster: the one that is connected to, the one at an address, or one on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.errors import MissingExtraError
from opero.parallel.futures import Pool
from opero.parallel.worker import run_chunk

try:
    import ray
except ImportError as error:  # pragma: no cover  # the tests' environment has it
    raise MissingExtraError("mode 'ray' needs the extra ray: pip install 'opero[ray]'") from error

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["RayPool"]


class RayPool(Pool):
    """A ray cluster's workers, as tasks. What ray itself tries again after a death is not counted.

    Args:
        address: the cluster's; None: the one that the program is connected to, else one on this machine.
        workers: how many chunks at a time; "auto": one for each CPU of the cluster.
        setup: what the workers have to know; they get it once.
    """

    deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)

    def __init__(self, address: str | None, workers: int | str, setup: bytes) -> None:
        if not ray.is_initialized():
            options: dict[str, Any] = {} if address is not None else {"include_dashboard": False}
            ray.init(address=address, log_to_driver=False, logging_level="warning", **options)
        self.count = workers if isinstance(workers, int) else max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._setup = ray.put(setup)
        self._run = ray.remote(max_retries=0)(run_chunk)
        self._under_way: set[Any] = set()

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        reference = self._run.remote(self._setup, payload, keep_going=keep_going)
        self._under_way.add(reference)
        future: Future[bytes] = reference.future()
        future.add_done_callback(lambda _: self._under_way.discard(reference))
        return future

    def close(self, *, is_done: bool) -> None:
        if not is_done:
            for reference in list(self._under_way):
                ray.cancel(reference, force=True)
