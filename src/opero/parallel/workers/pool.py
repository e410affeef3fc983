"""What a kind of remote workers implements: a pool, to which tasks are sent, and which reports deaths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from opero.dataclass import dataclass
from opero.parallel.workers.base import AHEAD

if TYPE_CHECKING:
    from concurrent.futures import Future

    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.engine.inbox import Inbox


@dataclass(slots=True, eq=False)
class Task:
    """A chunk that was sent.

    Attributes:
        chunk: the chunk.
        positions: of the items that were sent, in the chunk.
        payload: the items, encoded; None if the workers share this process's memory.
        inbox: where its messages go.
        generation: how often its pool had been renewed.
        number: of all chunks that this process has sent.
        finished: the positions whose results have been received.
        seconds: what they took.
    """

    chunk: Chunk
    positions: Sequence[int]
    payload: bytes | None
    inbox: Inbox
    generation: int
    number: int = field(default_factory=lambda: next(Task.numbers))
    finished: set[int] = field(default_factory=set)
    seconds: float = 0.0
    numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def post(self, outcome: Any, *, is_last: bool = True) -> None:
        """Hand in a message of its worker, a report, or an exception. Can be called in any thread."""
        self.inbox.put((self.chunk, (self, outcome, is_last)))

    def post_future(self, future: Future[Any]) -> None:
        """Hand in the outcome of a future."""
        if future.cancelled():
            self.post(CancelledError())
        else:
            self.post(future.exception() or future.result())

    def unfinished(self) -> list[int]:
        return [each for each in self.positions if each not in self.finished]


@dataclass(frozen=True, slots=True)
class Death:
    """A worker's death, and what its pool knows about it.

    Attributes:
        cause: what to say of it in an error.
        has_begun: the task may have run; if not, it is sent again and nothing is suspected.
        is_own: the task's own worker has died, and not just another one of its pool.
        place: of the item that ran, in what was sent; None if that is unknown.
        is_innocent: the worker was killed for a reason that has nothing to do with the item; it is sent again.
        alone: it is sent again with nothing running beside it.
        failure: what the item fails with at once.
    """

    cause: str
    has_begun: bool = True
    is_own: bool = True
    place: int | None = None
    is_innocent: bool = False
    alone: bool = False
    failure: Exception | None = None


class Pool:
    """Where tasks are sent.

    Attributes:
        count: how many run at a time.
        deaths: the exceptions that stand for a worker's death.
        patience: seconds after which to `watch` even if nothing was received; None: never.
        shares_memory: its workers are threads of this process: nothing is pickled.
        worker, what, way_out: what a worker and the pool are called, and what to do if it cannot be used any more.
    """

    count: int
    deaths: tuple[type[BaseException], ...] = (BrokenExecutor,)
    patience: float | None = None
    shares_memory: bool = False
    worker: str = "worker"
    what: str = "the executor"
    way_out: str = ""

    @property
    def slots(self) -> int:
        """How many chunks may be under way."""
        return self.count * AHEAD

    def accepts(self, chunk: Chunk, under_way: Iterable[Chunk]) -> bool:
        """Whether a chunk can be sent now. One that may have killed a worker is alone in the pool by default."""
        return not any(each.suspect for each in under_way) and (not chunk.suspect or not under_way)

    def submit(self, task: Task) -> None:
        """Send a task, which gets its outcome by `post`.

        Raises:
            BrokenExecutor: a worker has died.
            RuntimeError: the pool takes nothing more.
        """
        raise NotImplementedError

    def death(self, task: Task, error: BaseException) -> Death:
        """What is known of the death of a task's worker."""
        return Death(f"{type(error).__name__}: {error}", is_own=False)

    def renew(self) -> bool:
        """Become usable again after a death; False if that is impossible."""
        return True

    def watch(self) -> None:
        """Look after the workers."""

    def received(self, task: Task) -> None:
        """The last message of a task was read."""

    def pids(self) -> list[int]:
        return []

    def relieve(self, *, busy: bool) -> None:
        """See `Workers.relieve`."""

    def stop(self, tasks: Sequence[Task]) -> None:
        """Begin no further item of these tasks."""

    def resume(self) -> None:
        """After `stop`, when all tasks have come back: begin items again."""

    def interrupt(self, tasks: Sequence[Task]) -> None:
        """Do not wait for the items that run: have the others' results posted."""

    def close(self, tasks: Sequence[Task]) -> None:
        """Nothing more is sent, and these tasks are not waited for."""
