"""Hosts: how coroutines that serve both sync and async callers sleep, wait and call functions.

Logic that waits is written once, as a coroutine that awaits only methods of its host. An async caller awaits the
coroutine. A sync caller runs it with a single `send`, on a host whose methods block instead of suspending, so a sync
call needs no event loop.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from opero.runtime.forking import at_fork
from opero.runtime.interruption import interruptible
from opero.runtime.log import log

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from concurrent.futures import Future, ThreadPoolExecutor

    from opero.runtime.clock import Clock

T = TypeVar("T")

MAX_HELPERS = 16
MAX_IN_BACKGROUND = 32

_background_tasks: set[Task[Any]] = set()
_background_slots = threading.BoundedSemaphore(MAX_IN_BACKGROUND)


def _failed_in_background(error: Exception) -> None:
    log("background_failed", "a task in the background failed: %r", error, error=error)


class Outcome:
    """The result or exception of an attempt. The exception is a value, as a coroutine cannot raise StopIteration."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error

    def get(self) -> Any:
        """Return the value or raise the exception, without creating a reference cycle."""
        error = self.error
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error, self


class Waiter(Protocol):
    """A caller that waits to be woken by another thread or task."""

    def wake(self) -> bool:
        """Wake the caller, from any thread; return False if its event loop is closed."""

    async def wait(self, seconds: float | None) -> bool:
        """Wait to be woken, at most for `seconds`, and return whether that happened."""


class Shared(Protocol):
    """Something that a coroutine does for several callers.

    Attributes:
        task: the task that does it; None if there is none, or it has been done.
    """

    task: Task[Any] | None

    def abandon(self) -> None:
        """Give it up: it will not be done."""


class Host(Protocol):
    """The operations that a coroutine for both kinds of callers may await."""

    async def sleep(self, seconds: float) -> None: ...

    async def turn(self) -> None:
        """Let other tasks of the event loop run, if there is one."""

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome: ...

    async def close(self, resource: Any) -> None:
        """Close something if it can be closed."""

    def waiter(self) -> Waiter: ...

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Return the result of a function that may block on a disk or network; never runs in an event loop's thread."""
        ...

    async def ensure(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function that may block, and wait for it, also if the caller is cancelled meanwhile, once."""

    async def shielded(self, coroutine: Coroutine[Any, Any, T], owner: Shared, is_wanted: Callable[[], bool]) -> T:
        """Run a coroutine whose result others may wait for as well.

        Args:
            coroutine: the coroutine to run.
            owner: what it does. Its `task` is set; it is abandoned if the task ends without having begun.
            is_wanted: called if the caller is cancelled; if it returns True, the coroutine continues.
        """
        ...

    def background(self, coroutine: Coroutine[Any, Any, object], owner: Shared) -> bool:
        """Run a coroutine without waiting for it; return False if too many are running already."""

    def loop(self) -> Any:
        """Return what identifies the event loop that runs, see `async_library.running_loop`; None for sync callers."""


class BlockingHost:
    """Serves sync callers: its methods block the thread and never suspend."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    @interruptible
    async def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    async def turn(self) -> None:
        pass

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome:
        try:
            return Outcome(function(*args))
        except Exception as error:  # noqa: BLE001  # returned as a value
            return Outcome(error=error)

    async def close(self, resource: Any) -> None:
        close = getattr(resource, "close", None)
        if close is not None:
            close()

    def waiter(self) -> Waiter:
        return _BlockingWaiter(self.clock)

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def ensure(self, function: Callable[..., object], *args: Any) -> None:
        function(*args)

    async def shielded(self, coroutine: Coroutine[Any, Any, T], owner: Shared, is_wanted: Callable[[], bool]) -> T:
        return await coroutine

    def background(self, coroutine: Coroutine[Any, Any, object], owner: Shared) -> bool:
        return run_in_background(coroutine)

    def loop(self) -> Any:
        return None


class AsyncHost:
    """Serves async callers, under asyncio or trio: its methods suspend the task and never block the thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float) -> None:
        await self.clock.async_sleep(seconds)

    async def turn(self) -> None:
        from opero.runtime.async_library import turn

        await turn()

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome:
        try:
            return Outcome(await function(*args))
        except Exception as error:  # noqa: BLE001  # returned as a value
            return Outcome(error=error)

    async def close(self, resource: Any) -> None:
        close = getattr(resource, "aclose", None) or getattr(resource, "close", None)
        closing: Any = None if close is None else close()
        if hasattr(closing, "__await__"):
            await closing

    def waiter(self) -> Waiter:
        from opero.runtime.async_library import AsyncWaiter, TrioWaiter, in_trio

        return TrioWaiter() if in_trio() else AsyncWaiter()

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        from asyncio import get_running_loop

        from opero.runtime.async_library import in_thread_of_trio, in_trio

        if in_trio():
            return await in_thread_of_trio(function, *args)
        return await get_running_loop().run_in_executor(helpers(), function, *args)

    async def ensure(self, function: Callable[..., object], *args: Any) -> None:
        from asyncio import CancelledError, shield, wait, wrap_future

        from opero.runtime.async_library import in_trio, shielded_in_trio

        if isinstance(sys.exception(), GeneratorExit):  # the event loop has ended: this coroutine is not continued
            run_later(function, *args)
        elif in_trio():
            await shielded_in_trio(function, *args)
        else:
            future = run_later(function, *args)
            if future is not None:
                waited = wrap_future(future)
                try:
                    await shield(waited)
                except CancelledError:
                    await wait([waited])  # unless it is cancelled again
                    raise

    async def shielded(self, coroutine: Coroutine[Any, Any, T], owner: Shared, is_wanted: Callable[[], bool]) -> T:
        from asyncio import CancelledError, get_running_loop, shield, wait

        from opero.runtime.async_library import in_trio

        if in_trio():  # no task outlives its caller there: if that is cancelled, another one begins anew
            return await coroutine
        task = _begin(get_running_loop(), coroutine, owner)
        try:
            return await shield(task)
        except (CancelledError, GeneratorExit) as error:
            _abandon_unbegun(task, owner)
            if isinstance(error, CancelledError) and not is_wanted() and not task.done():
                task.cancel()
                await wait([task])  # let it clean up before the caller continues
            raise

    def background(self, coroutine: Coroutine[Any, Any, object], owner: Shared) -> bool:
        from asyncio import get_running_loop

        from opero.runtime.async_library import in_background_of_trio, in_trio

        if in_trio():
            return in_background_of_trio(coroutine, MAX_IN_BACKGROUND, _failed_in_background)
        loop = get_running_loop()
        if _in_background(loop) >= MAX_IN_BACKGROUND:
            coroutine.close()
            return False
        task = _begin(loop, coroutine, owner)
        _background_tasks.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(_background_tasks.discard)
        _abandon_unbegun(task, owner)
        return True

    def loop(self) -> Any:
        from opero.runtime.async_library import running_loop

        return running_loop()


def _begin(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, T], owner: Shared) -> Task[T]:
    task = loop.create_task(coroutine)
    if not task.done():  # in a loop whose tasks begin at once
        owner.task = task
    return task


def _abandon_unbegun(task: Task[Any], owner: Shared) -> None:
    """Abandon something if its task ends without having ended it: one that is cancelled before its first step runs
    nothing of its coroutine, not even its `finally`."""
    task.add_done_callback(lambda _: owner.abandon() if owner.task is not None else None)


def _in_background(loop: AbstractEventLoop) -> int:
    """Return how many tasks run in the background of a loop, after ending those of loops that are closed."""
    count = 0
    for task in _background_tasks.copy():
        own = task.get_loop()
        count += own is loop
        if own.is_closed():
            from opero.runtime.ended_loops import close

            _background_tasks.discard(task)
            close(task)
    return count


def cancel(task: Task[Any]) -> None:
    """Cancel a task of any event loop, from any thread."""
    with suppress(RuntimeError):  # the event loop is closed
        task.get_loop().call_soon_threadsafe(task.cancel)


class _BlockingWaiter:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.event = threading.Event()

    def wake(self) -> bool:
        self.event.set()
        return True

    async def wait(self, seconds: float | None) -> bool:
        return self.clock.wait(self.event, seconds)


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a `BlockingHost` to its end, without an event loop, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        # Not assigned to a variable: an exception in the value refers to this frame by its traceback.
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a blocking host was suspended")  # pragma: no cover  # a bug in opero


@cache
def helpers() -> ThreadPoolExecutor:
    """Return the threads that run blocking functions for async callers."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(MAX_HELPERS, "opero-store")


def run_later(function: Callable[..., object], *args: Any) -> Future[Any] | None:
    """Run a function that may block in another thread, and return its future; here, and None, where that has come to
    its end with the program."""
    try:
        return helpers().submit(function, *args)
    except RuntimeError:
        function(*args)
        return None


def run_in_background(coroutine: Coroutine[Any, Any, object]) -> bool:
    """Run a coroutine on a `BlockingHost` in a new thread; return False if `MAX_IN_BACKGROUND` are running."""
    slots = _background_slots
    if not slots.acquire(blocking=False):
        coroutine.close()
        return False

    unbegun = [True]  # popped by the thread when it begins, or here if it will not

    def work() -> None:
        if unbegun.pop():
            try:
                run_blocking(coroutine)
            finally:
                slots.release()

    try:
        threading.Thread(target=copy_context().run, args=(work,), name="opero-refresh", daemon=True).start()
    except BaseException as error:  # the system has no thread left, or Ctrl-C
        if unbegun:
            unbegun[:] = [False]
            slots.release()
            coroutine.close()
        if isinstance(error, RuntimeError):
            return False
        raise
    return True


def _forget_threads() -> None:
    """In a forked child: there are no helper and no background threads yet."""
    global _background_slots  # noqa: PLW0603  # one per process
    _background_slots = threading.BoundedSemaphore(MAX_IN_BACKGROUND)
    helpers.cache_clear()


at_fork(in_child=_forget_threads)
