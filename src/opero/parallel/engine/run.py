"""One run of a map: reads items, hands them to workers, and gives results to the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from opero.errors import CallTimeoutError, MapError, WorkerDiedError
from opero.events import MapFinished, MapItemFailed, MapStarted
from opero.parallel.engine.inbox import AsyncInbox, BlockingInbox
from opero.parallel.engine.memory_limit import LOOK as MEMORY_LOOK
from opero.parallel.engine.memory_limit import MemoryGuard
from opero.parallel.engine.progress import Display
from opero.parallel.engine.results import Results
from opero.parallel.engine.source import Source
from opero.parallel.engine.window import Window
from opero.parallel.workers.choose import WorkerSelection
from opero.policies.quantities import approximate_duration
from opero.runtime.deadlines import Deadline, current, sooner
from opero.runtime.hosts import AsyncHost, BlockingHost, run_blocking
from opero.runtime.log import log
from opero.runtime.tracebacks import TRIMMED

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Piece
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.engine.settings import MapSettings
    from opero.parallel.engine.stage import Stage
    from opero.parallel.journal.journal import Journal
    from opero.parallel.workers.base import Workers
    from opero.runtime.hosts import Host

LOOK = 0.05
"""Seconds between checks of the deadline."""
SHORTEST_LOOK = 0.005
"""The same just before it."""
LAST_MOMENT = 0.1
"""Seconds that items have to finish after the deadline."""


class Run:
    """One run of a map. Use it once, by one of `run`, `run_async`, `stream` and `stream_async`.

    Args:
        settings: the settings of the map.
        items: any iterable, or an async one for an async function.
        consume: see `Mapper.new_run`.
    """

    def __init__(
        self, settings: MapSettings, items: Any, consume: Callable[[Piece], Iterable[Any]] | None = None
    ) -> None:
        self.settings = settings
        self.binding, self.policy = settings.binding, settings.policy
        self._journal: Journal | None = None
        self._journal_name: str | None = None
        self._consume = consume
        self._prepare(Source(items), {})

    def _prepare(self, source: Source, earlier: dict[int, Any]) -> None:
        self.source = source
        self.workers = WorkerSelection(self.settings, source)
        self.results = Results(self.settings, source, earlier, retry=self._retry)
        self.window: Window

    def _retry(self, items: Sequence[tuple[int, Any]], unread: Any, results: dict[int, Any]) -> Callable[[], Any]:
        """What runs the items that this run has left, and adds their results to these."""
        run = object.__new__(Run)
        run.__dict__.update(self.__dict__)  # with the journal's name: what a closure holds may have changed by then
        run._prepare(Source(unread, items, self.source.index), results)
        return run.run_async if self.binding.is_async else run.run

    # For callers

    def run(self) -> list[Any]:
        """All results, for sync callers."""
        with TRIMMED:
            return run_blocking(self._listed(BlockingHost(self.binding.clock), BlockingInbox()))

    async def run_async(self) -> list[Any]:
        """All results, for async callers."""
        with TRIMMED:
            return await self._listed(AsyncHost(self.binding.clock), AsyncInbox())

    async def _listed(self, host: Host, inbox: Inbox) -> list[Any]:
        async with self._opened(host, inbox) as window:
            while await window.step():
                pass
            return self.results.all()

    def stream(self) -> Iterator[Any]:
        """Results as they finish, for sync callers."""
        with TRIMMED:
            self.results.keeps = False
            opened = self._opened(BlockingHost(self.binding.clock), BlockingInbox())
            window = run_blocking(opened.__aenter__())
            try:
                while pieces := run_blocking(window.step()):
                    for piece in pieces:
                        yield from self._delivered(piece)
                self.results.raise_if_failed()
            except BaseException as error:
                if not run_blocking(opened.__aexit__(type(error), error, error.__traceback__)):
                    raise
            else:
                run_blocking(opened.__aexit__(None, None, None))

    async def stream_async(self) -> AsyncIterator[Any]:
        """Results as they finish, for async callers."""
        with TRIMMED:
            self.results.keeps = False
            async with self._opened(AsyncHost(self.binding.clock), AsyncInbox()) as window:
                while pieces := await window.step():
                    for piece in pieces:
                        for value in self._delivered(piece):
                            yield value
                self.results.raise_if_failed()

    def _delivered(self, piece: Piece) -> Iterable[Any]:
        """What the reader gets of a piece. Nothing here keeps a result once it has been handed out."""
        if self._consume is not None:
            return self._consume(piece)
        values = self.results.deliver(piece)
        values.reverse()
        return map(list.pop, repeat(values, len(values)))

    # The run

    @asynccontextmanager
    async def _opened(self, host: Host, inbox: Inbox) -> AsyncIterator[Window]:
        """The window of this run, from its start to its end."""
        source = self.source
        while not source.has_arrived:
            await source.arriving(1)
        workers: Workers | None = None
        display: Display | None = None
        has_begun = False
        failure: BaseException | None = None
        try:
            stages = self._stages()
            self.workers.deadline = self._deadline()
            workers = await self.workers.start(host, inbox)
            self.window = self.results.window = window = Window(
                source,
                workers,
                inbox,
                host,
                grain=self.workers.batch_size or 1,
                ordered=self.policy.ordered,
                keeps=self.results.keeps,
                stages=stages,
                continues=self.results.continues,
                keep_going=self.results.continues_after_failures,
                completes=self.results.completes,
                size=None if self.policy.window == "auto" else self.policy.window,
            )
            display = self._display()
            self._watch(display)
            with self._reported(display):
                has_begun = True
                try:
                    self.binding.stats.emit(MapStarted, mode=self.workers.mode, total=source.left, map=display.number)
                    yield window
                    await window.settle()
                    if self._journal is not None and source.is_exhausted and not window.is_stopped:
                        self._journal.finished(source.index)
                    await self._close_journal(host)  # here, so that an error of it has the results
                except GeneratorExit:
                    raise
                except WorkerDiedError as error:  # there are no workers left
                    failure = self.results.reason = error
                    raise self.results.error(str(error)) from None  # which is in the group
                except BaseException as error:
                    failure = error
                    if isinstance(error, MapError):
                        raise
                    with suppress(Exception):  # such as a disk that is full; it is reported when the journal is closed
                        await window.end()
                    if error is self.results.reason:
                        raise self.results.error(str(error)) from None  # which is in the group
                    if self.source.error is not error:  # which has them already
                        self.results.attach(error, f"ended by {type(error).__name__}", was_ended=True)
                    raise
                finally:
                    if not window.is_inherited:
                        try:
                            await self._close(host, display, failure)
                        except BaseException as error:
                            if not isinstance(error, Exception):  # Ctrl-C may have come before any step of it
                                await self._close(host, display, failure)
                            raise
                        finally:
                            del failure
        except BaseException:
            if has_begun:
                raise
            if display is not None:  # interrupted before the part that gives everything back has begun
                await self._close(host, display)
            elif workers is not None:
                await workers.close()
            await self._close_journal(host)
            raise

    @contextmanager
    def _reported(self, display: Display) -> Iterator[None]:
        """Report the end of this run to the handlers of `MapFinished`."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            if not self.window.is_inherited:
                self.binding.stats.emit(MapFinished, progress=display.last, error=error, map=display.number)
            del error  # its traceback refers to this frame: break the reference cycle

    async def _close(self, host: Host, display: Display, failure: BaseException | None = None) -> None:
        """Give back what this run has. A second time it does what an interruption has left."""
        try:
            display.close(*self._progress())
        finally:
            try:
                await self.window.workers.close()
                await self.source.close()
            finally:
                await self._close_journal(host, failure)

    async def _close_journal(self, host: Host, failure: BaseException | None = None) -> None:
        """Close the journal. An error of it is logged if the map has failed for another reason."""
        if self._journal is None:
            return
        try:
            await host.ensure(self._journal.close)
        except OSError as error:
            if failure is None:
                raise
            if not (isinstance(failure, OSError) and failure.filename == error.filename):
                log("journal_not_closed", "%s", error, path=self._journal.path, error=error)

    def _stages(self) -> list[Stage]:
        options = self.settings.options
        stages: list[Stage] = [] if options.stage is None else [options.stage]
        if options.journal is not None:
            from opero.cache.settings import CacheSettings
            from opero.parallel.journal.journal import Journal
            from opero.parallel.journal.stage import JournalStage, journal_name

            if self._journal_name is None:
                self._journal_name = journal_name(self.binding.function, self.settings.fixed)
            policy = self.binding.policy.cache
            secret = (policy.secret if policy is not None else None) or CacheSettings.read().secret
            key = None if secret is None else secret.get_secret_value().encode("utf-8", "surrogatepass")
            self._journal = Journal(options.journal, self._journal_name, key)
            self._journal.open()
            stage = JournalStage(self._journal, failed_only=options.failed_only, is_blocking=self.binding.is_async)
            stages.append(stage)
        cache = self.settings.pipeline.cache
        if cache is not None:
            from opero.parallel.engine.cache_stage import CacheStage

            stages.append(CacheStage(cache, self.settings))
        if MapItemFailed.handlers:
            from opero.parallel.engine.events_stage import EventsStage

            stages.insert(0, EventsStage(self.binding.stats))  # the last to see what became of an item
        return stages

    # Watching

    def _display(self) -> Display:
        wanted = self.settings.options.progress
        stats = self.binding.stats
        self._counted = stats.retries, stats.cache_hits
        return Display(
            self.policy.progress if wanted is None else wanted, self.settings.name, self.source.left, stats=stats
        )

    def _progress(self) -> tuple[int, int, int, int]:
        """Items finished and failed, retries and cache hits so far."""
        stats, (retries, hits) = self.binding.stats, self._counted
        return self.window.finished, self.window.failed, stats.retries - retries, stats.cache_hits - hits

    def _watch(self, display: Display) -> None:
        """Have the window run the checks of this map between reports, and update the display."""
        checks: list[Callable[[], None]] = []
        window, policy = self.window, self.policy
        window.patience = display.patience
        if self.workers.is_sampling:
            checks.append(lambda: self.workers.choose(window))
        deadline = self.workers.deadline
        if deadline is not None:
            window.patience = min(max(deadline.left(), SHORTEST_LOOK), LOOK, window.patience or LOOK)
            checks.append(partial(self._check_deadline, deadline))
        if policy.max_memory is not None:
            self._guard = MemoryGuard(policy.max_memory, window, self.settings.name)
            self._check_memory()
            window.patience = min(window.patience or MEMORY_LOOK, MEMORY_LOOK)
            checks.append(self._check_memory)

        def watch() -> None:
            if display.is_due():
                display.update(*self._progress())
            for check in checks:
                check()

        window.watch = watch

    def _check_memory(self) -> None:
        problem = self._guard.check()
        if problem is not None:
            self.window.stop()
            self.results.reason = self.results.reason or MemoryError(f"{self.settings.name}: {problem}")

    def _deadline(self) -> Deadline | None:
        """The deadline of this run: its own, or that of its caller if that comes first."""
        if self.policy.deadline is None:
            return current.get()
        monotonic = self.binding.clock.monotonic
        return sooner(Deadline(monotonic() + self.policy.deadline, monotonic))

    def _check_deadline(self, deadline: Deadline) -> None:
        """At the deadline start nothing more, and let running items finish for a moment."""
        late = -deadline.left()
        if late >= 0 and (self.window.under_way or not self.window.is_over):
            self.window.stop()
            seconds = 0.0 if deadline is current.get() else self.policy.deadline or 0.0
            own = f"the map's deadline of {approximate_duration(seconds)}"
            whose = own if seconds else "the deadline of its caller"
            self.results.reason = self.results.reason or CallTimeoutError(
                f"{self.settings.name}: {whose} has passed", scope="deadline", seconds=seconds
            )
            if late >= LAST_MOMENT and self.window.under_way:
                raise self.results.reason
