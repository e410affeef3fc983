"""How to map a function over many items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from opero.policies.base import BasePolicy
from opero.policies.types import PositiveCount, PositiveDuration, Size, one_of

if TYPE_CHECKING:
    from opero.policies.types import DurationLike

__all__ = ["Mode", "ParallelPolicy"]

Mode = Literal["auto", "thread", "process", "async", "async_process", "dask", "ray"]
OnError = Literal["raise", "return", "skip"]


class ParallelPolicy(BasePolicy):
    """Call a function for many items, several at a time.

    A short form: `parallel: process` means `parallel: {mode: process}`.

    Attributes:
        mode: "thread", "process", "async" (for async functions), "async_process", "dask", "ray", or "auto": async for
            an async function; else the first items run in the caller, and whether they spent their time computing or
            waiting decides between process and thread. Default "auto".
        workers: items at a time, or "auto": all cores but one in processes, 32 at most in threads (4 and 1 a core),
            100 in an event loop. Default "auto".
        ordered: results come in the order of their items. Default true.
        progress: show a progress bar; "auto": on a terminal. Default "auto".
        batch: whether one call receives a list of items and returns as many results. Default None: what the
            function's annotation says.
        batch_size: items in one such list. Default None: chosen from the number of items and workers.
        on_error: "raise" `MapError`, which carries every result so far; "return" the exception in its item's place;
            "skip" the item. Default "raise".
        deadline: the longest that the whole map may take. Default None.
        max_memory: the most memory that the map may use with its workers; bytes or text such as "2GB". Default None.
    """

    short: ClassVar[str | None] = "mode"
    kind: ClassVar[str] = "parallel"

    mode: Annotated[Mode, one_of(Mode)] = "auto"
    workers: PositiveCount | Literal["auto"] = "auto"
    ordered: bool = True
    progress: bool | Literal["auto"] = "auto"
    batch: bool | None = None
    batch_size: PositiveCount | None = None
    on_error: Annotated[OnError, one_of(OnError)] = "raise"
    deadline: PositiveDuration | None = None
    max_memory: Size | None = None

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
            deadline: DurationLike | None = None,
            max_memory: int | str | None = None,
        ) -> None: ...
