"""The parallel policy: how to map a function over many items."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import PlainSerializer, model_validator

from opero.policies.base import BasePolicy
from opero.policies.names import ExecutorLike, FunctionOfNothing
from opero.policies.quantities import (
    Count,
    CountOrAuto,
    PositiveCount,
    PositiveDuration,
    Size,
    WorkerCount,
    without_password,
)
from opero.policies.types import Flag, FlagOrAuto, MostFailures, one_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from opero.policies.quantities import DurationLike

Mode = Literal["auto", "thread", "process", "async", "async_process", "dask", "ray"]
Address = Annotated[str, PlainSerializer(without_password, when_used="json")]
OnError = Literal["raise", "return", "skip"]


class ParallelPolicy(BasePolicy):
    """Call a function for many items in parallel.

    A short form: `parallel: process` means `parallel: {mode: process}`.

    Attributes:
        mode: "thread", "process", "async" (for async functions), "async_process" (event loops in worker processes),
            "dask", "ray", or "auto": async for an async function; otherwise the first items run in the caller, and
            "process" is chosen if they mostly compute, "thread" if they mostly wait. Default "auto".
        workers: the number of concurrent items, or "auto": one process per core but one; 4 threads plus one per core,
            at most 32; 100 in an event loop. Only cores available to this process count. Or "adaptive": the number for
            which the service that the items call answers most of them a second, found by what items take and followed
            when it changes; from 1 to 64 threads, or 500 in an event loop. Default "auto".
        concurrency: concurrent calls of an async function in each worker of "async_process", "dask" and "ray".
            Default 100.
        ordered: return results in the order of their items. Default true.
        progress: show a progress bar, or without a terminal a line every ten seconds; "auto": only the bar, and only
            for maps that take longer than half a second. A call can override it or pass a callback:
            `f.map(items, progress=...)`. Default "auto".
        batch: whether one call receives a list of items and returns a list of results of the same length. Default
            None: decided by the function's annotation.
        batch_size: the number of items in such a list. Default None: chosen from the number of items and workers.
        on_error: "raise" `MapError`, which has all results so far; "return" the exception in place of the result;
            "skip" the item. Default "raise".
        max_failures: end the map with `MapError` when more items than this have failed: a count, or a share of the
            finished items (0.05, "5%"; evaluated from 20 items on, and at the end). With "raise", the map continues
            after up to this many failures and then ends with `MapError`. Default None: with "raise" the first failure
            stops the map, otherwise none does.
        worker_retries: how often an item is retried on a new worker process after its worker process has died. Default
            1.
        window: how many items may be read ahead of the consumed results of a stream; "auto": some for each worker.
            Default "auto".
        deadline: the maximum duration of the whole map; then it ends with `MapError`. Default None.
        max_memory: the memory limit for this process and the map's worker processes together; bytes or text such as
            "2GB". Workers of "dask", "ray" and an `executor` do not count. Near the limit, fewer items run at once; an
            item that does not fit even alone fails with `MemoryError`, and if nothing fits the map ends with
            `MemoryLimitError`, which has all results so far. Default None.
        executor: a `concurrent.futures.Executor` to use instead of the workers of `mode`, a function that returns one,
            or the import path of either ("app.pools:make"). An executor that is passed stays open; one that a
            function returns is shut down. Default None.
        inner_threads: how many threads BLAS and OpenMP may start in each worker process of "process" and
            "async_process"; "auto": its share of the processors, unless the program has set `OMP_NUM_THREADS` and the
            like. Default "auto".
        initializer: called once in each process, without arguments, before its first item, in any mode; may be an
            import path ("app.setup:connect"). Default None.
        address: the scheduler of "dask", or the cluster of "ray". Default None: the current connection, else a cluster
            on this machine.
    """

    short: ClassVar[str | None] = "mode"
    kind: ClassVar[str] = "parallel"
    no_shadow: ClassVar[str] = "it says how a map runs, and there is no other way to compare it with"

    mode: Annotated[Mode, one_of(Mode)] = "auto"
    workers: WorkerCount = "auto"
    ordered: Flag = True
    progress: FlagOrAuto = "auto"
    batch: Flag | None = None
    batch_size: PositiveCount | None = None
    on_error: Annotated[OnError, one_of(OnError)] = "raise"
    max_failures: MostFailures | None = None
    worker_retries: Count = 1
    concurrency: PositiveCount = 100
    window: CountOrAuto = "auto"
    deadline: PositiveDuration | None = None
    max_memory: Size | None = None
    executor: ExecutorLike | None = None
    inner_threads: CountOrAuto = "auto"
    initializer: FunctionOfNothing | None = None
    address: Address | None = None

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            mode: Mode = "auto",
            workers: int | Literal["auto", "adaptive"] = "auto",
            ordered: bool = True,
            progress: bool | Literal["auto"] = "auto",
            batch: bool | None = None,
            batch_size: int | None = None,
            on_error: OnError = "raise",
            max_failures: float | str | None = None,
            worker_retries: int = 1,
            concurrency: int = 100,
            window: int | Literal["auto"] = "auto",
            deadline: DurationLike | None = None,
            max_memory: int | str | None = None,
            executor: Executor | Callable[[], Executor] | str | None = None,
            inner_threads: int | Literal["auto"] = "auto",
            initializer: Callable[[], object] | str | None = None,
            address: str | None = None,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.workers == "adaptive" and (self.mode not in ("auto", "thread", "async") or self.executor is not None):
            other = f"mode: {self.mode}" if self.executor is None else "an executor"
            raise ValueError(
                f"workers: adaptive is for items that wait for a service, in threads or an event loop, not {other}; "
                "set a number or auto, as processes are best as many as the processors, or mode: thread"
            )
        return self
