"""A user's own executor of `concurrent.futures`, as a pool."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.setup import packed_setup, pickled_setup
from opero.parallel.transport.worker import run_chunk
from opero.parallel.workers.chunk_runner import STOP
from opero.parallel.workers.pool import Pool
from opero.runtime.machine import cpu_limit

if TYPE_CHECKING:
    from concurrent.futures import Future

    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.transport.parcel import Packed, Parcel
    from opero.parallel.transport.setup import Setup
    from opero.parallel.workers.chunk_runner import ChunkRunner
    from opero.parallel.workers.pool import Task


def shares_memory(executor: Any) -> bool:
    """Whether an executor's workers are threads of this interpreter."""
    names = {kind.__name__ for kind in type(executor).__mro__}
    return isinstance(executor, ThreadPoolExecutor) and "InterpreterPoolExecutor" not in names


def is_local(executor: Any) -> bool:
    """Whether an executor's workers are known to be processes of this machine: the standard library's, or loky's."""
    modules = {kind.__module__ for kind in type(executor).__mro__}
    return isinstance(executor, ProcessPoolExecutor) or any("loky." in f"{module}." for module in modules)


def refuse_threads(executor: Any, name: str) -> None:
    """Check that an executor can run an async function.

    Raises:
        ConfigError: its workers are threads of this process.
    """
    if shares_memory(executor):
        raise ConfigError(
            f"{name} is an async function, which the threads of an executor cannot run; leave executor out for "
            "mode='async', or give an executor of processes, each of which runs an event loop"
        )


class UserPool(Pool):
    """An executor that is given is used as it is; a function that makes executors is called for each map.

    Attributes:
        setup: what the workers need, pickled or packed; `work` is used instead if they share this process's memory.
        packed: to be closed at the end, if the setup is packed.
        context: a copy of it surrounds each chunk's calls, if the workers share this process's memory.
    """

    way_out = (
        "give executor= a function that makes one, such as lambda: ProcessPoolExecutor(4): then each map has a new "
        "one, and another in its place when its workers die"
    )

    def __init__(self, source: Any, workers: int | str) -> None:
        self.make = None if isinstance(source, Executor) else source
        self.executor: Executor = source if self.make is None else self._made()
        own_count = getattr(self.executor, "_max_workers", None)
        self.count = workers if isinstance(workers, int) else own_count if isinstance(own_count, int) else cpu_limit()
        self.shares_memory = shares_memory(self.executor)
        self.setup: bytes | Parcel = b""
        self.packed: Packed | None = None
        self.work: ChunkRunner | None = None
        self.context = contextvars.Context()
        self._control = [0, 0, 0]
        self._sent: dict[Task, tuple[Future[Any], Report]] = {}

    def _made(self) -> Executor:
        made = self.make()  # type: ignore[misc]
        if not isinstance(made, Executor):
            raise ConfigError(
                f"executor={self.make!r} must make a concurrent.futures.Executor, and made {made!r:.80}; return one, "
                "such as ProcessPoolExecutor(4)"
            )
        return made

    def submit(self, task: Task) -> None:
        report = Report([])
        future: Future[Any]
        if self.work is None:
            payload, keep_going = task.payload or b"", task.chunk.keep_going
            future = self.executor.submit(run_chunk, self.setup, payload, keep_going=keep_going)
        else:
            future = self.executor.submit(self.context.copy().run, _run, self.work, task.chunk, self._control, report)
        self._sent[task] = future, report
        future.add_done_callback(task.post_future)

    def received(self, task: Task) -> None:
        self._sent.pop(task, None)

    def renew(self) -> bool:
        if self.make is None:
            return False
        end_executor(self.executor)
        self.executor = self._made()
        return True

    def stop(self, tasks: Sequence[Task]) -> None:
        self._control[STOP] = 1
        for task in tasks:
            self._sent[task][0].cancel()  # unless it runs

    def resume(self) -> None:
        self._control[STOP] = 0

    def interrupt(self, tasks: Sequence[Task]) -> None:
        if self.work is not None:
            for task in tasks:
                task.post(self._sent[task][1].so_far())

    def pack(self, setup: Setup, name: str) -> None:
        """Pickle what the workers need; what is large is shared with processes of this machine."""
        if is_local(self.executor):
            self.packed = packed_setup(setup, name)
            self.setup = self.packed.contents
        else:
            self.setup = pickled_setup(setup, name)

    def close(self, tasks: Sequence[Task]) -> None:
        try:
            self._close(tasks)
        finally:
            if self.packed is not None:
                self.packed.close()

    def _close(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._sent[task][0].cancel()
        if self.make is None:
            return
        if tasks:
            end_executor(self.executor)
        else:
            self.executor.shutdown()


def _run(work: ChunkRunner, chunk: Chunk, control: list[int], report: Report) -> Report:
    try:
        work.run(chunk.items, control, report, keep_going=chunk.keep_going)
        return report
    finally:
        del chunk, report  # see `ChunkRunner.run`


def end_executor(executor: Executor) -> None:
    """Shut down an executor that was made here without waiting for what it runs: its processes are killed."""
    processes = getattr(executor, "_processes", None)  # no public name before Python 3.14
    processes = list(processes.values()) if isinstance(processes, dict) else ()
    executor.shutdown(wait=False)
    for process in processes:
        process.terminate()
