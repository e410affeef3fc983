"""Items over any executor of `concurrent.futures`: a user's own, dask's, or ray behind the same face."""

from __future__ import annotations

import contextvars
from collections import deque
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from opero.errors import WorkerDiedError
from opero.logs import logger
from opero.parallel.blocks import Report
from opero.parallel.wire import dumps, opened, unsendable
from opero.parallel.work import STOP
from opero.parallel.worker import run_chunk
from opero.parallel.workers import AHEAD, Workers

if TYPE_CHECKING:
    from concurrent.futures import Future

    from opero.parallel.blocks import Chunk
    from opero.parallel.inbox import Inbox
    from opero.parallel.work import Work
    from opero.stats import Stats

__all__ = ["FutureWorkers", "Pool", "UserPool", "shares_memory"]


class Pool:
    """Where chunks are sent.

    Attributes:
        count: how many run at a time.
        deaths: what a future raises when its worker has died.
    """

    count: int
    deaths: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        """Send a chunk's pickled items."""
        raise NotImplementedError

    def renew(self) -> bool:
        """Be usable after a death; False where that cannot be."""
        return True

    def close(self, *, is_done: bool) -> None:
        """Nobody sends any more; unless `is_done`, nobody waits either."""


def shares_memory(executor: Any) -> bool:
    """Whether an executor's workers are threads of this interpreter."""
    names = {kind.__name__ for kind in type(executor).__mro__}
    return isinstance(executor, ThreadPoolExecutor) and "InterpreterPoolExecutor" not in names


class UserPool(Pool):
    """A user's executor: one that is given is used as it is; of a function that makes one, a new one each map."""

    def __init__(self, source: Any, workers: int | str) -> None:
        self.make = None if isinstance(source, Executor) else source
        self.executor: Executor = source if self.make is None else source()
        if not isinstance(self.executor, Executor):
            raise TypeError(f"executor={source!r} gave {self.executor!r:.80}, which is no concurrent.futures.Executor")
        held = getattr(self.executor, "_max_workers", None)
        self.count = workers if isinstance(workers, int) else held if isinstance(held, int) else _cores()
        self.setup = b""

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        return self.executor.submit(run_chunk, self.setup, payload, keep_going=keep_going)

    def submit_here(self, work: Work, chunk: Chunk, control: list[int], report: Report) -> Future[Report]:
        """Send a chunk to a thread of this process."""
        run = contextvars.copy_context().run
        return self.executor.submit(run, _run, work, chunk, control, report)

    def renew(self) -> bool:
        if self.make is None:
            return False
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = self.make()
        return True

    def close(self, *, is_done: bool) -> None:
        if self.make is not None:
            self.executor.shutdown(wait=is_done, cancel_futures=True)


def _run(work: Work, chunk: Chunk, control: list[int], report: Report) -> Report:
    work.run(chunk.items, control, report, keep_going=chunk.keep_going)
    return report


def _cores() -> int:
    from joblib import cpu_count

    return int(cpu_count())


class FutureWorkers(Workers):
    """Sends chunks to a pool.

    When a worker dies, its pool may be broken, and with it every chunk that was sent, whichever was to blame. So each
    of them is sent again, alone; one that breaks it again, item by item; and an item that does so has failed.

    Args:
        pool: where chunks go.
        name: the function's, for messages.
        inbox: where the reports go.
        stats: what the workers count is added here.
        work: what to do, where the pool's workers share this process's memory; else None.
        concurrency: calls of an async function at a time.
        retries: how often an item that may have killed its worker is tried again.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        inbox: Inbox,
        stats: Stats,
        *,
        work: Work | None = None,
        concurrency: int = 1,
        retries: int = 1,
    ) -> None:
        self.slots = pool.count * AHEAD
        self.concurrency = concurrency
        self._pool = pool
        self._name = name
        self._inbox = inbox
        self._stats = stats
        self._work = work
        self._retries = retries
        self._control = [0, 0, 0]
        self._waiting: deque[Chunk] = deque()
        self._futures: dict[Future[Any], Chunk] = {}
        self._reports: dict[Chunk, Report] = {}  # of those that run in this process
        self._has_suspect = False
        self._is_broken = False

    def submit(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        self._send()

    def _send(self) -> None:
        while self._waiting and not self._has_suspect:
            if self._control[STOP]:
                self._inbox.put((self._waiting.popleft(), Report([])))
                continue
            if self._waiting[0].suspect and self._futures:
                return
            chunk = self._waiting.popleft()
            self._has_suspect = bool(chunk.suspect)
            self._send_one(chunk)

    def _send_one(self, chunk: Chunk) -> None:
        try:
            if self._is_broken:
                self._pool.renew()
                self._is_broken = False
            if self._work is not None:
                report = self._reports[chunk] = Report([])
                future: Future[Any] = self._pool.submit_here(self._work, chunk, self._control, report)  # type: ignore[attr-defined]
            else:
                payload, positions = self._payload(chunk)
                if payload is None:
                    return
                future = self._pool.submit(payload, keep_going=chunk.keep_going)
        except BrokenExecutor as error:
            self._has_suspect = False
            self._inbox.put((chunk, error))
            return
        sent = future, None if self._work is not None else positions
        self._futures[future] = chunk
        future.add_done_callback(lambda _: self._inbox.put((chunk, sent)))

    def _payload(self, chunk: Chunk) -> tuple[bytes | None, list[int] | None]:
        try:
            return dumps(chunk.items), None
        except Exception:  # noqa: BLE001  # one of them does not pickle: it alone fails
            good, report = unsendable(chunk, self._name)
            self._inbox.put((chunk, report))
            self._has_suspect = False
            return (dumps([chunk.items[each] for each in good]), good) if good else (None, good)

    def open(self, chunk: Chunk, message: Any) -> Report | BaseException:
        if isinstance(message, Report):
            return message
        if isinstance(message, BrokenExecutor):
            return self._mourn(chunk, message)
        future, positions = message
        self._futures.pop(future, None)
        self._has_suspect = False
        try:
            result = future.result()
            return result if isinstance(result, Report) else opened(result, self._name, self._stats, positions)
        except CancelledError:
            return Report([])
        except BaseException as error:  # noqa: BLE001  # such as SystemExit of an item
            return self._mourn(chunk, error) if isinstance(error, self._pool.deaths) else error
        finally:
            if not self._futures:
                self._send()

    def _mourn(self, chunk: Chunk, error: BaseException) -> Report | BaseException:
        """What to do again after a worker's death."""
        if not self._is_broken:
            self._is_broken = True
            if not self._pool.renew():
                return error
            self._is_broken = False
        report = Report([], positions=[])
        if not chunk.suspect or len(chunk.items) > 1:
            parts = [[each] for each in range(len(chunk.items))] if chunk.suspect else [[*range(len(chunk.items))]]
            report.again = [chunk.part(part) for part in parts]
            for each in report.again:
                each.suspect = 1
        elif chunk.suspect <= self._retries:
            logger.warning("%s: a worker died of item %d; it is tried again", self._name, chunk.index(0))
            report.again = [chunk.part([0])]
            report.again[0].suspect = chunk.suspect + 1
        else:
            failure = WorkerDiedError(
                f"the worker of {self._name} died of item {chunk.index(0)} {chunk.suspect} times: "
                f"{type(error).__name__}: {error}",
                times=chunk.suspect,
            )
            report = Report([failure], [0], positions=[0])
        return report

    def took(self, chunk: Chunk) -> None:
        self._reports.pop(chunk, None)
        self._send()

    def stop(self) -> None:
        self._control[STOP] = 1
        for future in list(self._futures):
            future.cancel()
        self._send()

    def interrupt(self) -> None:
        for chunk, report in self._reports.items():
            self._inbox.put((chunk, report.so_far()))

    async def close(self) -> None:
        is_done = not self._futures
        self.stop()
        self._pool.close(is_done=is_done)
