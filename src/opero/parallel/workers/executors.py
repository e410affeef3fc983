"""Items over any executor of `concurrent.futures`: a user's own, or dask and ray behind the same face."""

from __future__ import annotations

import contextvars
from collections import deque
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.errors import ConfigError, WorkerDiedError
from opero.observe.logs import logger
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.pickling import dumps, opened, unsendable
from opero.parallel.transport.worker import run_chunk
from opero.parallel.workers.base import AHEAD, Workers
from opero.parallel.workers.work import STOP
from opero.runtime.machine import cpu_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.workers.work import Work

__all__ = ["FutureWorkers", "Pool", "UserPool", "shares_memory"]


class Pool:
    """Where chunks are sent.

    Attributes:
        count: how many run at a time.
        deaths: what a future raises when its worker has died.
        tells_running: its futures know whether they run, and are not cancelled then.
        patience: seconds after which to `watch`, though nothing has come; None: never.
        what, way_out: what it is and what to do, for messages that it cannot be used any more.
    """

    count: int
    deaths: tuple[type[BaseException], ...] = (BrokenExecutor,)
    tells_running: bool = True
    patience: float | None = None
    what: str = "the executor"
    way_out: str = (
        "give executor= a function that makes one, such as lambda: ProcessPoolExecutor(4): then each map has a new "
        "one, and another in its place when its workers die"
    )

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        """Send a chunk's pickled items."""
        raise NotImplementedError

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether it was the chunk's own worker that died, and not one of the whole pool."""
        return False

    def renew(self) -> bool:
        """Be usable after a death; False where that cannot be."""
        return True

    def watch(self) -> None:
        """Look after it."""

    def cancel(self, futures: Iterable[Future[Any]]) -> None:
        """Do not begin these."""
        for future in futures:
            future.cancel()

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
        self.executor: Executor = source if self.make is None else self._made()
        held = getattr(self.executor, "_max_workers", None)
        self.count = workers if isinstance(workers, int) else held if isinstance(held, int) else cpu_limit()
        self.setup = b""

    def _made(self) -> Executor:
        made = self.make()  # type: ignore[misc]
        if not isinstance(made, Executor):
            raise ConfigError(
                f"executor={self.make!r} must make a concurrent.futures.Executor, and made {made!r:.80}; return one, "
                "such as ProcessPoolExecutor(4)"
            )
        return made

    def submit(self, payload: bytes, *, keep_going: bool) -> Future[bytes]:
        return self.executor.submit(run_chunk, self.setup, payload, keep_going=keep_going)

    def submit_here(self, work: Work, chunk: Chunk, control: list[int], report: Report) -> Future[Report]:
        """Send a chunk to a thread of this process."""
        run = contextvars.copy_context().run
        return self.executor.submit(run, _run, work, chunk, control, report)

    def renew(self) -> bool:
        if self.make is None:
            return False
        end_executor(self.executor)
        self.executor = self._made()
        return True

    def close(self, *, is_done: bool) -> None:
        if self.make is not None:
            if is_done:
                self.executor.shutdown()
            else:
                end_executor(self.executor)


def _run(work: Work, chunk: Chunk, control: list[int], report: Report) -> Report:
    work.run(chunk.items, control, report, keep_going=chunk.keep_going)
    return report


def end_executor(executor: Executor) -> None:
    """Shut down an executor that was made here, though something may still run in it: its processes are killed."""
    processes = getattr(executor, "_processes", None)  # which has no public name before Python 3.14
    processes = list(processes.values()) if isinstance(processes, dict) else ()
    executor.shutdown(wait=False)
    for process in processes:
        process.terminate()


class Sent(NamedTuple):
    """A chunk on its way.

    Attributes:
        future: its future.
        positions: of what was sent, in the chunk; None: all of it.
        generation: how often the pool had been renewed when it was sent.
    """

    future: Future[Any]
    positions: list[int] | None
    generation: int


class FutureWorkers(Workers):
    """Sends chunks to a pool.

    When a worker dies, its pool may be broken, and with it every chunk that was sent, whichever was to blame. So each
    of them is sent again, alone; one that breaks it again, in parts; and an item that does so has failed.

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
        self.patience = pool.patience
        self.concurrency = concurrency
        self._pool = pool
        self._name = name
        self._inbox = inbox
        self._stats = stats
        self._work = work
        self._retries = retries
        self._control = [0, 0, 0]
        self._waiting: deque[Chunk] = deque()
        self._under_way: dict[Chunk, Sent] = {}
        self._reports: dict[Chunk, Report] = {}  # of those that run in this process
        self._has_suspect = False
        self._generation = 0
        self._end: BaseException | None = None

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self._pool.count * AHEAD

    def watch(self) -> None:
        self._pool.watch()

    # Sending

    def submit(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        self._send()

    def _send(self) -> None:
        while self._waiting and not self._has_suspect and self._end is None:
            if self._control[STOP]:
                self._inbox.put((self._waiting.popleft(), Report([])))
                continue
            if self._waiting[0].suspect and self._under_way:
                return
            self._send_one(self._waiting.popleft())

    def _send_one(self, chunk: Chunk) -> None:
        positions = None
        try:
            if self._work is not None:
                report = self._reports[chunk] = Report([])
                future: Future[Any] = self._pool.submit_here(self._work, chunk, self._control, report)  # type: ignore[attr-defined]
            else:
                payload, positions = self._payload(chunk)
                if payload is None:
                    return
                future = self._pool.submit(payload, keep_going=chunk.keep_going)
        except BrokenExecutor as error:
            future = Future()
            future.set_exception(error)
        except RuntimeError as error:
            raise self._ended(f"takes nothing more ({error})", error) from error
        self._has_suspect = bool(chunk.suspect)
        sent = self._under_way[chunk] = Sent(future, positions, self._generation)
        future.add_done_callback(lambda _: self._inbox.put((chunk, sent)))

    def _payload(self, chunk: Chunk) -> tuple[bytes | None, list[int] | None]:
        try:
            return dumps(chunk.items), None
        except Exception:  # noqa: BLE001  # one of them does not pickle: it alone fails
            good, report = unsendable(chunk, self._name)
            self._inbox.put((chunk, report))
            return (dumps([chunk.items[each] for each in good]) if good else None), good

    # What comes back

    def open(self, chunk: Chunk, message: Any) -> Report | BaseException:
        if isinstance(message, Report):
            return message
        sent: Sent = message
        del self._under_way[chunk]
        if chunk.suspect:
            self._has_suspect = False
        opened = self._opened(chunk, sent)
        if self._end is not None:
            return self._end if not self._under_way else opened if isinstance(opened, Report) else Report([])
        self._send()
        return opened

    def _opened(self, chunk: Chunk, sent: Sent) -> Report | BaseException:
        try:
            result = sent.future.result()
        except self._pool.deaths as error:
            return self._mourn(chunk, sent, error)
        except CancelledError as error:
            told = f"has cancelled what it was sent ({error or type(error).__name__})"
            return Report([]) if self._control[STOP] else self._ended(told, error)
        except BaseException as error:  # noqa: BLE001  # such as SystemExit of an item
            return error
        return result if isinstance(result, Report) else opened(result, self._name, self._stats, sent.positions)

    def _mourn(self, chunk: Chunk, sent: Sent, error: BaseException) -> Report:
        """What to do again after a worker's death."""
        report = Report([], positions=[])
        positions = range(len(chunk.items)) if sent.positions is None else sent.positions
        if sent.generation == self._generation:
            if not self._pool.renew():
                self._end = self._ended(f"is broken ({type(error).__name__}: {error})", error)
                return report
            self._generation += 1
        is_known = chunk.suspect > 0 or self._pool.is_to_blame(error)
        if len(positions) > 1:
            # Few parts, so that few workers die; each is to blame for those before it came to its own items.
            size = max(1, isqrt(len(positions))) if is_known else len(positions)
            report.again = [chunk.part(positions[at : at + size]) for at in range(0, len(positions), size)]
            for part in report.again:
                part.suspect = 1
            return report
        died = chunk.suspect + 1
        if died <= self._retries or not is_known:
            logger.warning("%s: a worker died of item %d; it is tried again", self._name, chunk.index(positions[0]))
            report.again = [chunk.part(positions)]
            report.again[0].suspect = died
            return report
        again = "" if died == 1 else f" {died} times"
        failure = WorkerDiedError(
            f"the worker of {self._name} died of item {chunk.index(positions[0])}{again}: "
            f"{type(error).__name__}: {error}",
            times=died,
        )
        self._stats.failures += 1
        self._stats.calls += 1
        self._stats.count_error(failure)
        return Report([failure], [positions[0]], positions=[positions[0]])

    def _ended(self, told: str, error: BaseException) -> WorkerDiedError:
        """Why the map cannot go on."""
        end = WorkerDiedError(f"{self._pool.what} of {self._name} {told}; {self._pool.way_out}")
        end.__cause__ = error
        return end

    def took(self, chunk: Chunk) -> None:
        self._reports.pop(chunk, None)
        self._send()

    # The end

    def stop(self) -> None:
        self._control[STOP] = 1
        futures = [sent.future for sent in self._under_way.values()]
        self._pool.cancel(futures if self._pool.tells_running else futures[self._pool.count :])
        self._send()

    def interrupt(self) -> None:
        for chunk, report in self._reports.items():
            self._inbox.put((chunk, report.so_far()))

    async def close(self) -> None:
        self.stop()
        is_done = not self._under_way
        self._pool.cancel([sent.future for sent in self._under_way.values()])
        self._pool.close(is_done=is_done)
