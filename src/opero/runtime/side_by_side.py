"""Functions that run side by side for one caller, who needs the result of only one: as tasks, or in helper threads.

    async with runs_of(host) as runs:
        first = runs.begin(function, 1)
        await runs.wait(0.2)  # until one of them has ended, at most 0.2 s
        second = runs.begin(function, 2)
        ...

At the end of the block those that still run are cancelled, and their cleanup is awaited; a thread is left behind, where
the function runs to its end. The same code serves both, see `opero.runtime.hosts`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol, Self

from opero.runtime.async_library import in_trio
from opero.runtime.helper_threads import Helper, helper_for, set_changed
from opero.runtime.hosts import BlockingHost, Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

    Kind = type[BaseException] | None


class Run:
    """A function that runs, or has.

    Attributes:
        ended: whether it has ended, as far as its caller has looked.
        outcome: its result or exception; None while it runs, and if it was cancelled or left behind.
        error: what it raised, if that is no `Exception`.
        context: the context variables as it has left them.
        task: what runs it.
    """

    __slots__ = ("context", "ended", "error", "outcome", "task")

    def __init__(self) -> None:
        self.ended = False
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.context: Context | None = None
        self.task: Any = None

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Return one that has ended, in the context of its caller."""
        run = cls()
        run.ended, run.outcome = True, outcome
        return run

    def keep_context(self) -> None:
        """Set the context variables that it has set for the caller as well."""
        if self.context is not None:
            set_changed(self.context)


class Runs(Protocol):
    """Runs functions side by side, within a block."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: Kind, error: BaseException | None, traceback: TracebackType | None) -> None: ...

    def begin(self, function: Callable[..., Any], *args: Any) -> Run:
        """Begin to run a function, in a copy of the caller's context.

        Raises:
            RejectedError: too many functions that were left behind are still running in threads.
        """
        ...

    async def wait(self, seconds: float | None) -> None:
        """Wait until another one has ended, at most for `seconds`, and note which have."""


def runs_of(host: Host) -> Runs:
    """Return what runs functions side by side for the callers of a host."""
    if isinstance(host, BlockingHost):
        return Threads(host.clock)
    return TrioTasks(host) if in_trio() else Tasks(host)


class Threads:
    """Runs functions in helper threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._woken = threading.Event()
        self._runs: list[tuple[Run, Helper]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._note()
        for run, helper in self._runs:
            if not run.ended and not helper.abandon(run.task):
                self._end(run, helper)  # it has ended just now

    def begin(self, function: Callable[..., Any], *args: Any) -> Run:
        run, helper = Run(), helper_for(function)
        run.task = helper.begin(function, args, self._woken)
        self._runs.append((run, helper))
        return run

    async def wait(self, seconds: float | None) -> None:
        self._clock.wait(self._woken, seconds)
        self._woken.clear()
        self._note()

    def _note(self) -> None:
        for run, helper in self._runs:
            if not run.ended and run.task.finished.is_set():
                self._end(run, helper)

    def _end(self, run: Run, helper: Helper) -> None:
        task, run.ended, run.context = run.task, True, run.task.context
        if task.error is None or isinstance(task.error, Exception):
            run.outcome = Outcome(task.result, task.error)
        else:
            run.error = task.error
        task.error = None
        helper.release()


class Tasks:
    """Runs coroutine functions in tasks of asyncio."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._runs: list[Run] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, traceback: TracebackType | None) -> None:
        running = [run.task for run in self._runs if not run.task.done()]
        for task in running:
            with suppress(RuntimeError):  # the event loop is closed
                task.cancel()
        if kind is GeneratorExit:  # the event loop has ended: nothing is awaited any more
            return
        if running:
            await asyncio.wait(running)
        self._note()

    def begin(self, function: Callable[..., Any], *args: Any) -> Run:
        run = Run()
        run.task = asyncio.get_running_loop().create_task(_run(self._host, function, args))
        self._runs.append(run)
        return run

    async def wait(self, seconds: float | None) -> None:
        running = [run.task for run in self._runs if not run.ended]
        await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._note()

    def _note(self) -> None:
        for run in self._runs:
            if run.ended or not run.task.done():
                continue
            run.ended = True
            if run.task.cancelled():
                run.error = asyncio.CancelledError()
            elif (error := run.task.exception()) is not None:
                run.error = error
            else:
                run.outcome, run.context = run.task.result()


# The frames of these refer to nothing that has the outcome, whose exception may refer to them by its traceback.


async def _run(host: Host, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Outcome, Context]:
    return await host.attempt(function, *args), copy_context()


class TrioTasks:
    """Runs coroutine functions in tasks of trio."""

    def __init__(self, host: Host) -> None:
        import trio

        self._trio: Any = trio
        self._host = host
        self._manager = self._trio.open_nursery()
        self._woken = self._trio.Event()

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, kind: Kind, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(kind, error, traceback)

    def begin(self, function: Callable[..., Any], *args: Any) -> Run:
        run = Run()
        self._nursery.start_soon(self._run, run, function, args)
        return run

    async def wait(self, seconds: float | None) -> None:
        with self._trio.move_on_after(float("inf") if seconds is None else seconds):
            await self._woken.wait()
        self._woken = self._trio.Event()

    async def _run(self, run: Run, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            run.outcome = await self._host.attempt(function, *args)
        except self._trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  # raised for the caller, outside of the nursery
            run.error = error
        finally:
            run.ended, run.context = True, copy_context()
            self._woken.set()
            del self, run
