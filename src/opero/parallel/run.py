"""One run of a map: its items, who works on them, and what its caller gets."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import chain as chained
from typing import TYPE_CHECKING, Any, Literal

import opero.parallel
from opero.errors import (
    CallTimeoutError,
    ConfigError,
    Failure,
    MapError,
    MemoryLimitError,
    OperoError,
    WorkerDiedError,
    text_of,
)
from opero.executors.call import AsyncHost, BlockingHost, run_blocking
from opero.logs import logger
from opero.parallel.batch import BatchRule
from opero.parallel.blocks import Piece
from opero.parallel.folder import private_folder
from opero.parallel.inbox import AsyncInbox, BlockingInbox
from opero.parallel.machine import cpu_limit, workers_that_fit
from opero.parallel.memory import LOOK as MEMORY_LOOK
from opero.parallel.memory import MemoryGuard
from opero.parallel.progress import Display, Progress
from opero.parallel.source import Source
from opero.parallel.tuning import PROCESSES, Cost
from opero.parallel.window import Window
from opero.parallel.work import Rest, Work
from opero.policies.policy import Policy
from opero.policies.types import approximate_duration

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from opero.executors.call import Host
    from opero.parallel.futures import Pool
    from opero.parallel.inbox import Inbox
    from opero.parallel.journal import Journal
    from opero.parallel.mapping import Mapper
    from opero.parallel.window import Stage
    from opero.parallel.worker import Setup
    from opero.parallel.workers import Workers

__all__ = ["Options", "Run", "worker_count"]

BATCHES_A_WORKER = 4
LARGEST_BATCH = 1000
USUAL_BATCH = 100
"""Items in a batch where nobody says, and the number of items is not known."""
SAMPLE_SECONDS = 0.02
SAMPLE_ITEMS = 16
WORTH_PROCESSES = 0.5
"""Seconds of computing still to do, from which on starting worker processes pays."""
LONG = 0.005
"""Seconds of computing an item, from which on that is so where nobody knows how many there are."""
LOOK = 0.05
"""Seconds between looks at the deadline."""
LAST_MOMENT = 0.1
"""Seconds that what runs at the deadline has to come back."""
JUDGED_FROM = 20
"""Finished items from which on a ratio of failures says something."""


def worker_count(workers: int | str, mode: str) -> int:
    """How many items at a time: the number itself, or what suits the mode and what this process may use."""
    if isinstance(workers, int):
        return workers
    cores = cpu_limit()
    if mode == "async":
        return 100
    if mode in PROCESSES:
        return workers_that_fit(max(1, cores - 1) if mode == "process" else cores)
    return min(32, cores + 4)


@dataclass(frozen=True, slots=True)
class Options:
    """What one call of a map says beside the policy.

    Attributes:
        journal: the file in which finished items are recorded, and those of an earlier run found.
        failed_only: run only what the journal has as failed.
        progress: as in the policy, or what to call with each `Progress`; None: as the policy says.
    """

    journal: str | os.PathLike[str] | None = None
    failed_only: bool = False
    progress: bool | Literal["auto"] | Callable[[Progress], object] | None = None


class Run:
    """One run of a map: its items, who works on them, and what its caller gets.

    Raises:
        TypeError: the items cannot be mapped.
        ConfigError: the mode does not serve the function.
    """

    def __init__(self, mapper: Mapper, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> None:
        self.mapper = mapper
        self.binding = mapper.binding
        self.chain = self.binding.resolved()
        self.policy = mapper.parallel(self.chain)
        self.mode = mapper.mode_for(self.chain)
        self.rule = BatchRule(self.binding.function, mapper.position, self.policy.batch)
        self.options = options
        rest = dict(kwargs)
        items = self._items(args, rest)
        self.rest = Rest(args[: mapper.position], args[mapper.position + 1 :], rest)
        mapper.check_arguments(self.rest.before, self.rest.after, rest)
        self.source = Source(items)
        self.before: dict[int, Any] = {}
        self.window: Window
        self.keeps = True
        self.held: list[Piece] = []
        self.workers: int | Literal["auto"] = self.policy.workers
        self.reason: Exception | None = None
        self.is_sampling = False
        self.journal: Journal | None = None
        self.journal_name: str | None = None  # kept for `retry_failed`: what a closure holds may have changed by then

    def _items(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        position, name = self.mapper.position, self.rule.parameter.name if self.rule.parameter is not None else "items"
        if len(args) > position:
            items = args[position]
        elif name in kwargs:
            items = kwargs.pop(name)
        else:
            raise TypeError(f"{self.binding.name} is mapped over items and got none: pass an iterable")
        if isinstance(items, str | bytes | bytearray):
            raise TypeError(
                f"{self.binding.name} is mapped over items and got the bare {type(items).__name__} {items!r:.60}; "
                "wrap it in a list, or pass list(text) for its characters"
            )
        if isinstance(items, Iterable):
            return items
        if isinstance(items, AsyncIterable):
            if self.binding.kind == "async":
                return items
            raise TypeError(
                f"{self.binding.name} is a sync function and cannot wait for the async iterable {items!r:.60}; "
                "collect its items first, or map an async function"
            )
        raise TypeError(f"{self.binding.name} is mapped over items, and {items!r:.60} is not iterable; pass a list")

    def again(self, items: Sequence[tuple[int, Any]], rest: Any, results: dict[int, Any]) -> Run:
        """A run of items that are left of this one, whose results it adds to these."""
        run = object.__new__(Run)
        run.__dict__.update(self.__dict__)
        run.source = Source(rest, items, self.source.index)
        run.before = results
        run.keeps = True
        run.held = []
        run.reason = None
        return run

    # What callers get

    def run(self) -> list[Any]:
        """All results, for sync callers."""
        return run_blocking(self._listed(BlockingHost(self.binding.clock), BlockingInbox()))

    async def run_async(self) -> list[Any]:
        """All results, for async callers."""
        return await self._listed(AsyncHost(self.binding.clock), AsyncInbox())

    async def _listed(self, host: Host, inbox: Inbox) -> list[Any]:
        async with self._opened(host, inbox) as window:
            while await window.step():
                pass
            return self._results()

    def stream(self) -> Iterator[Any]:
        """Results as they come, for sync callers."""
        self.keeps = False
        opened = self._opened(BlockingHost(self.binding.clock), BlockingInbox())
        window = run_blocking(opened.__aenter__())
        try:
            while pieces := run_blocking(window.step()):
                for piece in pieces:
                    yield from self._given(piece)
            self._raise_if_failed()
        except BaseException as error:
            if not run_blocking(opened.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            run_blocking(opened.__aexit__(None, None, None))

    async def stream_async(self) -> AsyncIterator[Any]:
        """Results as they come, for async callers."""
        self.keeps = False
        async with self._opened(AsyncHost(self.binding.clock), AsyncInbox()) as window:
            while pieces := await window.step():
                for piece in pieces:
                    for value in self._given(piece):
                        yield value
            self._raise_if_failed()

    # The run

    @asynccontextmanager
    async def _opened(self, host: Host, inbox: Inbox) -> AsyncIterator[Window]:
        """The window while the run lasts."""
        self.inbox = inbox
        source = self.source
        while not source.has_arrived:
            await source.arriving(1)
        first = source.first()
        self.in_batches = bool(first) and self.rule.applies(first[0])
        self._recall()
        self.batch_size = self._batch_size() if self.in_batches else None
        self.window = window = Window(
            source,
            await self._first_workers(host, first),
            inbox,
            host,
            grain=self.batch_size or 1,
            ordered=self.policy.ordered,
            keeps=self.keeps,
            stages=self._stages(),
            judge=self._goes_on,
            keep_going=self._goes_on_at_failures,
            size=None if self.policy.window == "auto" else self.policy.window,
        )
        display = self._display()
        self._watch(display)
        try:
            yield window
            for stage in window.stages:
                await self._settled(host, stage)
            if self.journal is not None and source.is_exhausted and not window.is_stopped:
                self.journal.finished(source.index)
        except GeneratorExit:
            raise
        except WorkerDiedError as error:  # there are no workers any more
            self.reason = error
            raise self._map_error(str(error)) from error
        except BaseException as error:
            if isinstance(error, MapError):
                raise
            await window.end()
            if error is self.reason:
                raise self._map_error(str(error)) from error
            if error.__cause__ is None:
                error.__cause__ = self._map_error(f"it was ended by {type(error).__name__}")
            raise
        finally:
            try:
                display.close(*self._progress())
            finally:  # whatever interrupts a drawing
                try:
                    await window.workers.close()
                    await source.close()
                finally:
                    if self.journal is not None:
                        await host.offload(self.journal.close)

    async def _settled(self, host: Host, stage: Stage) -> None:
        if stage.is_blocking:
            await host.offload(stage.settle)
        else:
            stage.settle()

    def _stages(self) -> list[Stage]:
        stages: list[Stage] = []
        if self.options.journal is not None:
            from opero.parallel.journaled import JournalStage, journal_name

            if self.journal_name is None:
                self.journal_name = journal_name(self.binding.function, self.rest)
            stage = JournalStage(
                self.options.journal,
                self.journal_name,
                failed_only=self.options.failed_only,
                is_blocking=self.binding.is_async,
            )
            self.journal = stage.journal
            self.journal.open()
            stages.append(stage)
        if self.chain.cache is not None:
            from opero.parallel.cached import CacheStage

            is_blocking = self.chain.cache.is_shared and self.binding.is_async
            stages.append(CacheStage(self.chain.cache, self.rest, self.binding.stats, is_blocking=is_blocking))
        return stages

    # Watching

    def _recall(self) -> None:
        """Use what is known of the function from `tune`, or from an earlier map."""
        tuning, cost, left = self.binding.tuning, self.mapper.cost, self.source.left
        if self.policy.executor is not None:
            return
        if tuning is not None and self.policy.mode in ("auto", tuning.mode):
            is_auto = self.policy.mode == "auto"
            if is_auto and tuning.mode in PROCESSES and left is not None and tuning.seconds * left <= WORTH_PROCESSES:
                self.mode = "async" if self.binding.is_async else "thread"
                return
            self.mode = "thread" if tuning.mode == "sequential" else tuning.mode
            if self.policy.workers == "auto":
                self.workers = tuning.workers
        elif self.mode == "auto" and cost is not None:
            self.mode = self._suitable_mode(cost)

    @property
    def _samples(self) -> bool:
        """Whether the first items show which mode suits them."""
        return self.mode == "auto" and self.policy.executor is None

    def _display(self) -> Display:
        wanted = self.options.progress
        stats = self.binding.stats
        self.counted = stats.retries, stats.cache_hits
        return Display(self.policy.progress if wanted is None else wanted, self.binding.name, self.source.left)

    def _progress(self) -> tuple[int, int, int, int]:
        """Items finished and failed, retries and cache hits so far."""
        stats, (retries, hits) = self.binding.stats, self.counted
        return self.window.finished, self.window.failed, stats.retries - retries, stats.cache_hits - hits

    def _watch(self, display: Display) -> None:
        """Have the window look at what may end the map, or change its mode, and tell how far it has come."""
        checks: list[Callable[[], None]] = []
        self.window.patience = display.patience
        if self._samples:
            self.is_sampling = True
            checks.append(self._choose)
        if self.policy.deadline is not None:
            self.ends_at = self.binding.clock.monotonic() + self.policy.deadline
            self.window.patience = min(self.policy.deadline, LOOK, self.window.patience or LOOK)
            checks.append(self._end_in_time)

        if self.policy.max_memory is not None:
            self.guard = MemoryGuard(self.policy.max_memory, self.window, self.binding.name)
            self._keep_in_memory()
            self.window.patience = min(self.window.patience or MEMORY_LOOK, MEMORY_LOOK)
            checks.append(self._keep_in_memory)

        def watch() -> None:
            if display.is_due():
                display.update(*self._progress())
            for check in checks:
                check()

        self.window.watch = watch

    def _keep_in_memory(self) -> None:
        wrong = self.guard.check()
        if wrong is not None:
            self.window.stop()
            self.reason = self.reason or MemoryError(f"{self.binding.name}: {wrong}")

    def _end_in_time(self) -> None:
        """At the deadline begin nothing more, and give what runs a moment to come back."""
        late = self.binding.clock.monotonic() - self.ends_at
        if late >= 0 and (self.window.under_way or not self.window.is_over):
            self.window.stop()
            seconds = self.policy.deadline or 0.0
            self.reason = self.reason or CallTimeoutError(
                f"{self.binding.name}: the map's deadline of {approximate_duration(seconds)} has passed",
                scope="deadline",
                seconds=seconds,
            )
            if late >= LAST_MOMENT and self.window.under_way:
                raise self.reason

    def _batch_size(self) -> int:
        if self.policy.batch_size is not None:
            return self.policy.batch_size
        left, tuning = self.source.left, self.binding.tuning
        workers = worker_count(self.workers, self.mode)
        if tuning is not None and tuning.batch_size is not None:
            return tuning.batch_size if left is None else max(1, min(tuning.batch_size, -(-left // workers)))
        if left is None:
            return USUAL_BATCH
        return max(1, min(LARGEST_BATCH, -(-left // (workers * BATCHES_A_WORKER))))

    async def _first_workers(self, host: Host, first: list[Any]) -> Workers:
        if self._samples:
            return self._workers("inline", first)
        if self.policy.executor is None and self.mode in ("dask", "ray") and not self._is_nested:
            from opero.parallel.wire import pickled_setup

            setup = pickled_setup(self._setup(), self.binding.name, first)
            return self._over(await host.offload(copy_context().run, self._cluster, setup))  # it may have to start
        return self._suitable_workers(first)

    @property
    def _is_nested(self) -> bool:
        return opero.parallel.is_worker or opero.parallel.is_in_worker.get()

    def _workers(self, mode: str, first: list[Any]) -> Workers:
        if self.policy.executor is not None and mode != "inline":
            return self._executor_workers(first)
        count = worker_count(self.workers, mode)
        if self.source.left is not None:
            count = max(1, min(count, self.source.left))
        in_processes = mode in PROCESSES or mode in ("dask", "ray")
        if in_processes and not self._is_nested:  # a map within a worker makes no processes of its own
            from opero.parallel.processes import ProcessWorkers

            return ProcessWorkers(
                self._setup(),
                self.binding.name,
                count,
                self.inbox,
                self.binding.stats,
                first=first,
                retries=self.policy.worker_retries,
            )
        context = self._prepared()
        if self.binding.is_async:
            from opero.parallel.event_loop import LoopWorkers

            count = self.policy.concurrency if in_processes else count
            return LoopWorkers(self._work(), count, self.inbox, context)  # type: ignore[arg-type]
        from opero.parallel.threads import InlineWorkers, ThreadWorkers

        if mode == "inline" or in_processes:
            return InlineWorkers(self._work(), self.inbox, context)
        return ThreadWorkers(self._work(), count, self.inbox, context)

    def _prepared(self) -> Context:
        """The context for calls in this process, once it is made ready for them, as a worker process would be."""
        context = copy_context()
        if self.policy.initializer is not None:
            from opero.parallel.wire import reference
            from opero.parallel.worker import NotReady, initialize

            try:
                initialize(reference(self.policy.initializer), context)
            except NotReady as error:
                cause: Any = error.__cause__
                told = f"{self.binding.name}: {error}: {type(cause).__name__}: {text_of(cause)}"
                raise OperoError(told) from cause
        return context

    def _executor_workers(self, first: list[Any]) -> Workers:
        from opero.parallel.futures import UserPool, shares_memory
        from opero.parallel.wire import pickled_setup

        pool = UserPool(self.policy.executor, self.workers)
        work = None
        try:
            if shares_memory(pool.executor):
                self.mapper.refuse_threads()
                self._prepared()
                work = self._work()
            else:
                pool.setup = pickled_setup(self._setup(), self.binding.name, first)
        except BaseException:
            pool.close(is_done=True)
            raise
        return self._over(pool, work)

    def _cluster(self, setup: bytes) -> Pool:
        if self.mode == "dask":
            from opero.parallel.dask import DaskPool

            return DaskPool(self.policy.address, self.workers, setup)
        from opero.parallel.ray import RayPool

        return RayPool(self.policy.address, self.workers, setup)

    def _over(self, pool: Pool, work: Work | None = None) -> Workers:
        from opero.parallel.futures import FutureWorkers

        return FutureWorkers(
            pool,
            self.binding.name,
            self.inbox,
            self.binding.stats,
            work=work,
            concurrency=self.policy.concurrency if self.binding.is_async else 1,
            retries=self.policy.worker_retries,
        )

    def _work(self) -> Work:
        return Work(self.binding, self.rest, self.rule, self.batch_size, beside_cache=self.chain.cache is not None)

    def _setup(self) -> Setup:
        from opero.parallel.surroundings import Surroundings
        from opero.parallel.wire import reference
        from opero.parallel.worker import Setup

        kinds = ("retry", "timeout", "fallback", "rate_limit", "circuit_breaker", "bulkhead")
        limits = None
        if self.mapper.shared_kinds(self.chain):
            from opero.executors.shared import share_limits

            limits = share_limits(self.chain.executors, self.binding.name, private_folder())
        initializer = self.policy.initializer
        return Setup(
            reference=reference(self.binding.function),
            policy=Policy(**{kind: getattr(self.chain.policy, kind) for kind in kinds}),
            rest=self.rest,
            position=self.mapper.position,
            batch=self.policy.batch,
            batch_size=self.batch_size,
            beside_cache=self.chain.cache is not None,
            concurrency=self.policy.concurrency if self.binding.is_async else 1,
            initializer=None if initializer is None else reference(initializer),
            surroundings=Surroundings(),
            limits=limits,
        )

    def _choose(self) -> None:
        """End the sample in the caller's thread, and choose the mode by whether it computed or waited."""
        if not self.is_sampling or self.window.under_way:
            return
        sample: Any = self.window.workers
        if sample.done < SAMPLE_ITEMS * (self.batch_size or 1) and sample.seconds < SAMPLE_SECONDS:
            return
        self.is_sampling = False
        if sample.done:
            self.mapper.cost = Cost(sample.seconds / sample.done, sample.computed / sample.done)
        self.mode = self._suitable_mode(self.mapper.cost or Cost(0, 0))
        if not self.window.is_over:
            self.window.workers = self._suitable_workers(self.source.first())

    def _suitable_mode(self, cost: Cost) -> str:
        left = self.source.left
        is_worth_it = cost.computed > LONG if left is None else cost.computed * left > WORTH_PROCESSES
        return "process" if cost.share > 1 / 2 and is_worth_it else "thread"

    def _suitable_workers(self, first: list[Any]) -> Workers:
        """Workers of the mode that suits; in threads, where the function cannot be sent to processes."""
        try:
            return self._workers(self.mode, first)
        except ConfigError as error:
            if self.mode not in PROCESSES or self.policy.mode != "auto":
                raise
            logger.info("%s would be mapped in processes, but: %s", self.binding.name, error)
            self.mode = "async" if self.binding.is_async else "thread"
            self.workers = self.policy.workers
            return self._workers(self.mode, first)

    # Failures

    @property
    def _goes_on_at_failures(self) -> bool:
        return self.policy.on_error != "raise" or self.policy.max_failures is not None

    @property
    def _has_too_many_failures(self) -> bool:
        most, failed = self.policy.max_failures, self.window.failed
        if most is None:
            return failed > 0 and self.policy.on_error == "raise"
        return failed > (most if isinstance(most, int) else most * self.window.finished)

    def _goes_on(self) -> bool:
        """Whether the map goes on after the failures so far."""
        if isinstance(self.policy.max_failures, float) and self.window.finished < JUDGED_FROM:
            return True
        return not self._has_too_many_failures

    def _raise_if_failed(self) -> None:
        window = self.window
        if self.source.error is not None:
            error = self.source.error
            if error.__cause__ is None:
                error.__cause__ = self._map_error("the source of its items failed")
            raise error
        if self._has_too_many_failures or window.is_stopped or (window.failed and self.policy.on_error == "raise"):
            told = "" if self.reason is None else str(self.reason)
            if self.policy.max_failures is not None and self._has_too_many_failures:
                told = f"more than max_failures={self.policy.max_failures:g} allows"
            raise self._map_error(told)

    def _map_error(self, reason: str) -> MapError:
        """All that is known of the items, but for those that a stream has handed out."""
        results, failures, left = dict(self.before), [], []
        blocks = self.window.blocks.values()
        if self.keeps:
            pieces = [Piece(block, block.finished()) for block in blocks]
        else:
            pieces = [Piece(block, [each for each in block.finished() if each not in block.given]) for block in blocks]
            pieces += self.held + self.window.pieces
        for piece in pieces:
            for position, index, value, failed in piece.outcomes():
                if failed:
                    failures.append(Failure(index, piece.block.items[position], value))
                    left.append((index, piece.block.items[position]))
                else:
                    results[index] = value
        for block in blocks:
            left += [(block.indices[position], block.items[position]) for position in block.unfinished()]
        failures.sort(key=lambda failure: failure.index)
        rest = self.source.rest()
        count, unread = self.source.index, self.source.left
        if unread is not None:
            unread -= len(self.source.again)
        left += self.source.again
        left.sort(key=lambda item: item[0])
        missing = len(left) - len(failures) + (unread or 0)
        told = f"{self.binding.name}: {len(failures)} of {count + (unread or 0)} items failed, {len(results)} succeeded"
        if missing:
            told += f", {missing} were not {'finished' if self.window.under_way else 'begun'}"
        elif unread is None and not self.source.is_exhausted:
            told += ", and there may be more"
        if reason:
            told += f"; {reason}"
        if failures:
            first = failures[0]
            told += f"; item {first.index}: {type(first.exception).__name__}: {text_of(first.exception)}"
        again = self.again(left, rest, dict(sorted(results.items())))
        retry = again.run_async if self.binding.is_async else again.run
        out_of_memory = isinstance(self.reason, MemoryError) or (
            self.policy.max_memory is not None and any(isinstance(each.exception, MemoryError) for each in failures)
        )
        kind = MemoryLimitError if out_of_memory else MapError
        return kind(told, dict(sorted(results.items())), failures, self.reason, retry=retry)

    # Results

    def _results(self) -> list[Any]:
        self._raise_if_failed()
        window = self.window
        blocks = window.blocks.values()
        if self.before:
            outcomes = {index: (value, False) for index, value in self.before.items()}
            for block in blocks:
                outcomes.update({index: (value, failed) for _, index, value, failed in Piece(block).outcomes()})
            skip = self.policy.on_error == "skip"
            order = sorted(outcomes) if self.policy.ordered else outcomes
            return [outcomes[index][0] for index in order if not (skip and outcomes[index][1])]
        pieces = [Piece(block) for block in blocks] if self.policy.ordered else window.pieces
        if len(pieces) == 1:
            return self._values(pieces[0])
        return list(chained.from_iterable(map(self._values, pieces)))

    def _values(self, piece: Piece) -> list[Any]:
        """What a list of the results, or a stream that no failure ends, has of a piece."""
        if self.policy.on_error == "return" or not piece.has_failures:
            return piece.values()
        return [value for _, _, value, failed in piece.outcomes() if not failed]

    def _given(self, piece: Piece) -> list[Any]:
        """What the reader of a stream gets of a piece. What he cannot have is held for the error at the end.

        Where the first failure ends the stream, an ordered one has nothing after it; else all that succeeds is given.
        """
        if self.policy.on_error != "raise" or not (self.held or piece.has_failures):
            return self._values(piece)
        block, positions = piece.block, piece.all_positions
        if self.policy.ordered and self.policy.max_failures is None:
            first = next((at for at, each in enumerate(positions) if each in block.failures), 0)
            first = 0 if self.held else first
            good, rest = positions[:first], positions[first:]
        else:
            good = [each for each in positions if each not in block.failures]
            rest = [each for each in positions if each in block.failures]
        if rest:
            self.held.append(Piece(block, rest).without_the_rest())
        return Piece(block, good).values()
