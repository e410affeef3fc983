"""One run of a map: its items, who works on them, and what its caller gets."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from opero.errors import (
    CallTimeoutError,
    MapError,
    WorkerDiedError,
)
from opero.parallel.engine.batching import BatchRule
from opero.parallel.engine.inbox import AsyncInbox, BlockingInbox
from opero.parallel.engine.memory_limit import LOOK as MEMORY_LOOK
from opero.parallel.engine.memory_limit import MemoryGuard
from opero.parallel.engine.progress import Display
from opero.parallel.engine.results import Outcomes
from opero.parallel.engine.source import Source
from opero.parallel.engine.window import Window
from opero.parallel.workers.choose import Staff
from opero.parallel.workers.work import FixedArguments
from opero.policies.types import approximate_duration
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.engine.mapper import Mapper
    from opero.parallel.engine.window import Stage
    from opero.parallel.journal.journal import Journal
    from opero.runtime.hosts import Host
    from opero.values import Progress

__all__ = ["Options", "Run"]

LOOK = 0.05
"""Seconds between looks at the deadline."""
LAST_MOMENT = 0.1
"""Seconds that what runs at the deadline has to come back."""


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
        self.pipeline = self.binding.resolved()
        self.policy = mapper.parallel(self.pipeline)
        self.rule = BatchRule(self.binding.function, mapper.position, self.policy.batch)
        self.options = options
        rest = dict(kwargs)
        items = self._items(args, rest)
        self.fixed = FixedArguments(args[: mapper.position], args[mapper.position + 1 :], rest)
        mapper.check_arguments(self.fixed.before, self.fixed.after, rest)
        self.source = Source(items)
        self.before: dict[int, Any] = {}
        self.window: Window
        self.keeps = True
        self.reason: Exception | None = None
        self.journal: Journal | None = None
        self.journal_name: str | None = None  # kept for `retry_failed`: what a closure holds may have changed by then
        self.staff, self.outcomes = Staff(self), Outcomes(self)

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
        run.reason = None
        run.staff, run.outcomes = Staff(run), Outcomes(run)
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
            return self.outcomes.results()

    def stream(self) -> Iterator[Any]:
        """Results as they come, for sync callers."""
        self.keeps = False
        opened = self._opened(BlockingHost(self.binding.clock), BlockingInbox())
        window = run_blocking(opened.__aenter__())
        try:
            while pieces := run_blocking(window.step()):
                for piece in pieces:
                    yield from self.outcomes.given(piece)
            self.outcomes.raise_if_failed()
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
                    for value in self.outcomes.given(piece):
                        yield value
            self.outcomes.raise_if_failed()

    # The run

    @asynccontextmanager
    async def _opened(self, host: Host, inbox: Inbox) -> AsyncIterator[Window]:
        """The window while the run lasts."""
        source = self.source
        while not source.has_arrived:
            await source.arriving(1)
        first = source.first()
        stages = self._stages()
        try:
            workers = await self.staff.hire(host, inbox, first)
        except BaseException:
            await self._close_journal(host)
            raise
        self.window = window = Window(
            source,
            workers,
            inbox,
            host,
            grain=self.staff.batch_size or 1,
            ordered=self.policy.ordered,
            keeps=self.keeps,
            stages=stages,
            judge=self.outcomes.goes_on,
            keep_going=self.outcomes.goes_on_at_failures,
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
            raise self.outcomes.error(str(error)) from error
        except BaseException as error:
            if isinstance(error, MapError):
                raise
            await window.end()
            if error is self.reason:
                raise self.outcomes.error(str(error)) from error
            if error.__cause__ is None:
                error.__cause__ = self.outcomes.error(f"it was ended by {type(error).__name__}")
            raise
        finally:
            try:
                display.close(*self._progress())
            finally:  # whatever interrupts a drawing
                try:
                    await window.workers.close()
                    await source.close()
                finally:
                    await self._close_journal(host)

    async def _close_journal(self, host: Host) -> None:
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
            from opero.parallel.journal.stage import JournalStage, journal_name

            if self.journal_name is None:
                self.journal_name = journal_name(self.binding.function, self.fixed)
            stage = JournalStage(
                self.options.journal,
                self.journal_name,
                failed_only=self.options.failed_only,
                is_blocking=self.binding.is_async,
            )
            self.journal = stage.journal
            self.journal.open()
            stages.append(stage)
        if self.pipeline.cache is not None:
            from opero.parallel.engine.cache_stage import CacheStage

            is_blocking = self.pipeline.cache.is_shared and self.binding.is_async
            stages.append(CacheStage(self.pipeline.cache, self.fixed, self.binding.stats, is_blocking=is_blocking))
        return stages

    # Watching

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
        if self.staff.samples:
            self.staff.is_sampling = True
            checks.append(self.staff.choose)
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
