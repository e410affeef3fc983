"""The chunk runner: calls a function for the items of a chunk, in any kind of worker."""

from __future__ import annotations

import threading
import time
from asyncio import CancelledError, TaskGroup, current_task, sleep
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

import opero.parallel
from opero.binding.invocation import Entry
from opero.binding.observed import begun, ended, settle
from opero.dataclass import dataclass
from opero.errors import FailedResponseError, RejectedError
from opero.executors.call import abandon
from opero.parallel.engine.blocks import interrupted
from opero.parallel.engine.settings import spread
from opero.runtime.tracebacks import is_of_library, is_own_file, trim

if TYPE_CHECKING:
    from types import FrameType

    from opero.binding.binding import Binding
    from opero.binding.invocation import Pipeline
    from opero.parallel.engine.batching import BatchRule
    from opero.parallel.engine.blocks import Report
    from opero.parallel.engine.settings import FixedArguments

STOP, POSITION, BEGUN = range(3)
"""Places in a control: start nothing more; the position of the item that runs; when its attempt began, in ns."""

LONGEST_CHUNK = 0.1
"""Seconds after which a chunk comes back unfinished: its items take longer than expected."""
LOOP_SECONDS = 0.01
"""Seconds for which tasks that never wait may block an event loop."""


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Holds the pipeline that a map started with, even if it is replaced meanwhile."""

    pipeline: Pipeline

    @property
    def direct_pipeline(self) -> Pipeline:
        return self.pipeline


class ChunkRunner:
    """Runs a function for items one by one or in batches, and reports their outcomes.

    Args:
        binding: the function under the policies that run in the worker.
        fixed: the arguments that all calls share.
        rule: checks what a batch returns.
        batch_size: items in one call; None: each call receives one item, not a list.
        has_cache: the map has a cache, and must know which results came from a fallback.
        pipeline: the layers that the map started with. Default: the binding's.
    """

    def __init__(
        self,
        binding: Binding,
        fixed: FixedArguments,
        rule: BatchRule,
        batch_size: int | None,
        *,
        has_cache: bool,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.fixed = fixed
        self.rule = rule
        self.batch_size = batch_size
        self._stats = binding.stats
        pipeline = pipeline or binding.resolved()
        self._pipeline, self._whole = pipeline, pipeline.whole
        has_fallback, retry = "fallback" in pipeline.executors, pipeline.policy.in_force("retry")
        may_fall_back = has_fallback or (retry is not None and retry.retry_if_result is not None)
        # A binding without layers counts its calls as attempts, which `whole` counts, too.
        self.reports_fallbacks = pipeline.cache is not None or (has_cache and may_fall_back)
        self._counts_errors = not has_fallback and "retry" not in pipeline.executors
        # The map keeps these, even if they are replaced meanwhile.
        single = Entry(binding.target, _Fixed(pipeline), is_exact=pipeline.is_exact).function
        before, after, kwargs = fixed.before, fixed.after, fixed.kwargs or {}
        self.call: Callable[[Any], Any]
        if fixed.spreads:
            self.call = lambda item: single(*before, *spread(item), *after, **kwargs)
        elif before or after or kwargs:
            self.call = lambda item: single(*before, item, *after, **kwargs)
        else:
            self.call = single
        if not binding.is_checked:
            self._check_first(binding)

    def _check_first(self, binding: Binding) -> None:
        """Check the result of the first call, as a call of the bound function does."""
        call, whole = self.call, self._whole

        def checked(result: Any) -> Any:
            binding.accept(result)
            self.call, self._whole = call, whole
            return result

        self.call = lambda item: checked(call(item))
        self._whole = lambda *args: checked(whole(*args))

    def units(self, items: Sequence[Any]) -> Iterable[tuple[int, Any]]:
        """The argument of each call, and the position of its first item."""
        size = self.batch_size
        if size is None:
            return enumerate(items)
        return ((first, items[first : first + size]) for first in range(0, len(items), size))

    def _failure(self, error: Exception | KeyboardInterrupt) -> Exception:
        """The failure of an item that raised an exception.

        Raises:
            KeyboardInterrupt: this is the main thread of the program, which Ctrl-C interrupts.
        """
        if not isinstance(error, KeyboardInterrupt):
            trim(error)
            return error
        if not opero.parallel.is_worker and threading.current_thread() is threading.main_thread():
            raise error
        failure = interrupted(error)
        self._stats.count_error(failure)
        self._stats.count_failure(failure)
        return failure

    # Sync functions

    def run(
        self, items: Sequence[Any], control: MutableSequence[int], report: Report, *, keep_going: bool = True
    ) -> None:
        """Call the function for the items, and add their outcomes to the report.

        Nothing more is started after a failure, unless `keep_going`; once the control says so; or when the items take
        longer than expected: other workers may be free.
        """
        started = time.perf_counter()
        try:
            if self.batch_size is not None or self.reports_fallbacks:
                self._run_units(items, control, report, keep_going=keep_going)
            else:
                self._run_items(items, control, report, keep_going=keep_going)
        finally:
            report.seconds = time.perf_counter() - started
            # The frame of a failed item refers to this one: it would keep all results of the chunk. So it is below.
            del items, report

    def _run_items(
        self, items: Sequence[Any], control: MutableSequence[int], report: Report, *, keep_going: bool
    ) -> None:
        append, call, position = report.values.append, self.call, 0
        now, until = time.perf_counter, time.perf_counter() + LONGEST_CHUNK
        waiting: Iterator[tuple[int, Any]] = enumerate(items)
        try:
            while not control[STOP]:
                try:
                    for position, item in waiting:
                        control[POSITION] = position
                        append(call(item))
                        if control[STOP] or now() > until:
                            break
                    break
                except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # reported as a value
                    failure = self._failure(error)
                    report.failures.append(position)
                    append(failure)
                    del failure
                    if not keep_going or now() > until:
                        break
        finally:
            del append, waiting, items, report

    def _run_units(
        self, items: Sequence[Any], control: MutableSequence[int], report: Report, *, keep_going: bool
    ) -> None:
        now, until = time.perf_counter, time.perf_counter() + LONGEST_CHUNK
        value: Any = None
        try:
            for position, argument in self.units(items):
                if control[STOP] or now() > until:
                    break
                control[POSITION] = position
                try:
                    value = self._call_unit(argument, position, report)
                except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # reported as a value
                    self._settle(report, position, argument, self._failure(error), failed=True)
                else:
                    self._settle(report, position, argument, value, failed=False)
                if report.failures and not keep_going:
                    break
        finally:
            del value, items, report

    def _call_unit(self, argument: Any, position: int, report: Report) -> Any:
        """Call the function; through all layers inside the cache, if fallbacks are reported."""
        if not self.reports_fallbacks:
            return self.call(argument)
        self._stats.count_calls(1)
        call = begun(self._pipeline)
        try:
            return ended(call, self._whole(call, *self.fixed.around(argument)))
        except FailedResponseError as failed:
            self._stats.count_failure(failed, call, self._pipeline.classifier)
            return failed.result
        except Exception as error:
            if self._counts_errors and not isinstance(error, RejectedError):
                self._stats.count_error(error, self._pipeline.classifier, call)
            self._stats.count_failure(error, call, self._pipeline.classifier)
            raise
        except BaseException:
            abandon(call, self._pipeline.executors)
            raise
        finally:
            settle(call)
            self._note(call, argument, position, report)
            del report

    def _note(self, call: Any, argument: Any, position: int, report: Report) -> None:
        if call.fell_back:
            report.fell_back.extend(range(position, position + (len(argument) if self.batch_size else 1)))

    def _settle(self, report: Report, position: int, argument: Any, value: Any, *, failed: bool) -> None:
        """Add the outcome of a call to the report, for its item or its batch."""
        count = 1
        values = [value]
        if self.batch_size is not None:
            count = len(argument)
            if not failed:
                try:
                    values = self.rule.check(value, argument)
                except ValueError as error:
                    value, failed = error, True
            if failed:
                values = [value] * count
        positions = range(position, position + count)
        if failed:
            report.failures.extend(positions)
        if report.positions is not None:
            report.positions.extend(positions)
        report.values.extend(values)

    # Async functions

    async def run_unit(self, position: int, argument: Any, report: Report) -> bool:
        """Await the function for one item or batch, and add the outcome to the report; whether it succeeded."""
        try:
            value = await (
                self._call_inside_cache_async(argument, position, report)
                if self.reports_fallbacks
                else self.call(argument)
            )
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # reported as a value
            self._settle(report, position, argument, self._failure(error), failed=True)
            return False
        except CancelledError as error:
            task = current_task()
            if task is not None and task.cancelling():
                raise
            self._settle(report, position, argument, _from_within(error), failed=True)
            return False
        if self.batch_size is not None:
            before = len(report.failures)
            self._settle(report, position, argument, value, failed=False)
            return len(report.failures) == before
        report.values.append(value)
        report.positions.append(position)  # type: ignore[union-attr]
        return True

    async def _call_inside_cache_async(self, argument: Any, position: int, report: Report) -> Any:
        self._stats.count_calls(1)
        call = begun(self._pipeline)
        try:
            return ended(call, await self._whole(call, *self.fixed.around(argument)))
        except FailedResponseError as failed:
            self._stats.count_failure(failed, call, self._pipeline.classifier)
            return failed.result
        except Exception as error:
            if self._counts_errors and not isinstance(error, RejectedError):
                self._stats.count_error(error, self._pipeline.classifier, call)
            self._stats.count_failure(error, call, self._pipeline.classifier)
            raise
        except BaseException:
            abandon(call, self._pipeline.executors)
            raise
        finally:
            settle(call)
            self._note(call, argument, position, report)

    async def run_async(
        self,
        items: Sequence[Any],
        control: MutableSequence[int],
        report: Report,
        concurrency: int,
        *,
        keep_going: bool = True,
    ) -> None:
        """Like `run`, with that many concurrent calls."""
        whole = current_task()
        started = time.perf_counter()
        waiting = iter(self.units(items))
        pause = Pause()

        async def share() -> None:
            for position, argument in waiting:
                if control[STOP] or (report.failures and not keep_going):
                    return
                try:
                    await self.run_unit(position, argument, report)
                except CancelledError as error:
                    if whole is None or whole.cancelling():
                        raise
                    self._settle(report, position, argument, _from_within(error), failed=True)
                if pause.is_due():
                    await sleep(0)

        try:
            async with TaskGroup() as group:
                for _ in range(min(concurrency, len(items))):
                    group.create_task(share())
        finally:
            report.seconds = time.perf_counter() - started


_CALLERS = {each.__code__ for each in (ChunkRunner._run_items, ChunkRunner._run_units, ChunkRunner.run_unit)}


def runs_item(frame: FrameType | None) -> bool | None:
    """Return whether a frame is that of an item's function, or of what it has called; None if opero's own code runs for
    the item, for example between two attempts."""
    is_users: bool | None = None
    while frame is not None:
        if frame.f_code in _CALLERS:
            return is_users or None
        if is_users is None and not is_of_library(frame.f_code.co_filename):
            is_users = not is_own_file(frame.f_code.co_filename)
        frame = frame.f_back
    return False


def _from_within(error: CancelledError) -> Exception:
    """The failure of an item that cancelled itself."""
    failure = RuntimeError("the item cancelled itself: nothing else cancelled it")
    failure.__cause__ = error
    return failure


class Pause:
    """Decides when tasks that never wait yield to the event loop."""

    __slots__ = ("_count", "_since")

    def __init__(self) -> None:
        self._count = 0
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Whether to yield now; called after each item."""
        self._count += 1
        if self._count & 31:
            return False
        now = time.monotonic()
        if now - self._since < LOOP_SECONDS:
            return False
        self._since = now
        return True
