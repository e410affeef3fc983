"""How to map a function over many items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import PlainSerializer

from opero.policies.base import BasePolicy
from opero.policies.quantities import without_password
from opero.policies.types import (
    Count,
    CountOrAuto,
    ExecutorLike,
    Flag,
    FlagOrAuto,
    Function,
    MostFailures,
    PositiveCount,
    PositiveDuration,
    Size,
    one_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from opero.policies.types import DurationLike

__all__ = ["Mode", "ParallelPolicy"]

Mode = Literal["auto", "thread", "process", "async", "async_process", "dask", "ray"]
Address = Annotated[str, PlainSerializer(without_password, when_used="json")]
OnError = Literal["raise", "return", "skip"]


class ParallelPolicy(BasePolicy):
    """Call a function for many items, several at a time.

    A short form: `parallel: process` means `parallel: {mode: process}`.

    Attributes:
        mode: "thread", "process", "async" (for async functions), "async_process" (event loops in worker processes),
            "dask", "ray", or "auto": async for an async function; else the first items run in the caller, and whether
            they spent their time computing or waiting decides between process and thread. Default "auto".
        workers: items at a time, or "auto": all cores but one in processes, 32 at most in threads (4 and 1 a core),
            100 in an event loop; of cores, as many as this process may use. Default "auto".
        concurrency: calls of an async function at a time in each worker of "async_process", "dask" and "ray".
            Default 100.
        ordered: results come in the order of their items. Default true.
        progress: show a progress bar, and where there is no terminal a line every ten seconds; "auto": only the bar,
            and only of maps that take longer than half a second. A call may say otherwise, or have a callback:
            `f.map(items, progress=...)`. Default "auto".
        batch: whether one call receives a list of items and returns as many results. Default None: what the
            function's annotation says.
        batch_size: items in one such list. Default None: chosen from the number of items and workers.
        on_error: "raise" `MapError`, which carries every result so far; "return" the exception in its item's place;
            "skip" the item. Default "raise".
        max_failures: end the map with `MapError` when more items than this have failed: a count, or a share of those
            that are finished (0.05, "5%"; it counts from 20 items on, and at the end). With "raise" it says how many
            failures do not stop the map yet, which still ends with `MapError`. Default None: with "raise" the first
            failure stops it, else none does.
        worker_retries: how often an item is tried again, on a new worker process, when its worker has died of it.
            Default 1.
        window: the most items that are read ahead of what has been consumed of a stream; "auto": some for each worker.
            Default "auto".
        deadline: the longest that the whole map may take; then it ends with `MapError`. Default None.
        max_memory: the most memory that this process may use together with the map's worker processes; bytes or text
            such as "2GB". Workers of "dask", "ray" and an `executor` look after themselves and do not count. Fewer and
            fewer items run at a time; one that does not fit even alone fails with `MemoryError`, and where nothing fits
            the map ends with `MemoryLimitError`, which carries every result so far. Default None.
        executor: a `concurrent.futures.Executor` to use instead of `mode`'s own workers, or what makes one, or where
            to import either from ("app.pools:make"). One that is given is not shut down; one that is made, is.
            Default None.
        initializer: is called without arguments in each process before its first item, once, in whatever mode; may be
            named ("app.setup:connect"). Default None.
        address: the scheduler of "dask", or the cluster of "ray". Default None: the one that is connected to already,
            else one on this machine.
    """

    short: ClassVar[str | None] = "mode"
    kind: ClassVar[str] = "parallel"

    mode: Annotated[Mode, one_of(Mode)] = "auto"
    workers: CountOrAuto = "auto"
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
    initializer: Function | None = None
    address: Address | None = None

    if TYPE_CHECKING:  # what code may write is wider than what the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            mode: Mode = "auto",
            workers: int | Literal["auto"] = "auto",
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
            initializer: Callable[[], object] | str | None = None,
            address: str | None = None,
        ) -> None: ...
