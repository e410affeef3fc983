"""Hosts: how coroutines that serve both sync and async callers sleep, wait and call functions.

Logic that waits is written once, as a coroutine that awaits only methods of its host. An async caller awaits the
coroutine. A sync caller runs it with a single `send`, on a host whose methods block instead of suspending, so a sync
call needs no event loop.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Callable, Coroutine
    from concurrent.futures import ThreadPoolExecutor

    from opero.runtime.clock import Clock

__all__ = ["AsyncHost", "BlockingHost", "Host", "Outcome", "Waiter", "helpers", "run_blocking"]

T = TypeVar("T")

MAX_HELPERS = 16
MAX_IN_BACKGROUND = 32

_background_tasks: set[Task[Any]] = set()
_background_slots = threading.BoundedSemaphore(MAX_IN_BACKGROUND)


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


class Cancellable(Protocol):
    """Something that runs for several callers, and can be cancelled if it runs in a task."""

    cancel: Callable[[], object] | None


class Host(Protocol):
    """The operations that a coroutine for both kinds of callers may await."""

    async def sleep(self, seconds: float) -> None: ...
    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome: ...
    def waiter(self) -> Waiter: ...

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Return the result of a function that may block on a disk or network; never runs in an event loop's thread."""
        ...

    async def shielded(self, coroutine: Coroutine[Any, Any, T], owner: Cancellable, is_wanted: Callable[[], bool]) -> T:
        """Run a coroutine whose result others may wait for as well.

        Args:
            coroutine: the coroutine to run.
            owner: its `cancel` is set to a function that cancels the coroutine.
            is_wanted: called if the caller is cancelled; if it returns True, the coroutine continues.
        """
        ...

    def background(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        """Run a coroutine without waiting for it; return False if too many are running already."""


class BlockingHost:
    """Serves sync callers: its methods block the thread and never suspend."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome:
        try:
            return Outcome(function(*args))
        except Exception as error:  # noqa: BLE001  # returned as a value
            return Outcome(error=error)

    def waiter(self) -> Waiter:
        return _BlockingWaiter(self.clock)

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def shielded(self, coroutine: Coroutine[Any, Any, T], owner: Cancellable, is_wanted: Callable[[], bool]) -> T:
        return await coroutine

    def background(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        return run_in_background(coroutine)


class AsyncHost:
    """Serves async callers: its methods suspend the task and never block the thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float) -> None:
        await self.clock.async_sleep(seconds)

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome:
        try:
            return Outcome(await function(*args))
        except Exception as error:  # noqa: BLE001  # returned as a value
            return Outcome(error=error)

    def waiter(self) -> Waiter:
        return _AsyncWaiter()

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        from asyncio import get_running_loop

        return await get_running_loop().run_in_executor(helpers(), function, *args)

    async def shielded(self, coroutine: Coroutine[Any, Any, T], owner: Cancellable, is_wanted: Callable[[], bool]) -> T:
        from asyncio import CancelledError, get_running_loop, shield, wait

        loop = get_running_loop()
        task = loop.create_task(coroutine)
        owner.cancel = partial(_cancel, loop, task)
        try:
            return await shield(task)
        except CancelledError:
            if not is_wanted() and not task.done():
                task.cancel()
                await wait([task])  # let it clean up before the caller continues
            raise

    def background(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        from asyncio import get_running_loop

        task = get_running_loop().create_task(coroutine)
        _background_tasks.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(_background_tasks.discard)
        return True


def _cancel(loop: AbstractEventLoop, task: Task[Any]) -> None:
    with suppress(RuntimeError):  # the event loop is closed
        loop.call_soon_threadsafe(task.cancel)


class _BlockingWaiter:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.event = threading.Event()

    def wake(self) -> bool:
        self.event.set()
        return True

    async def wait(self, seconds: float | None) -> bool:
        return self.clock.wait(self.event, seconds)


class _AsyncWaiter:
    def __init__(self) -> None:
        from asyncio import get_running_loop

        self.loop = get_running_loop()
        self.woken = self.loop.create_future()

    def wake(self) -> bool:
        try:
            self.loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the event loop is closed
            return False
        return True

    def _set(self) -> None:
        if not self.woken.done():
            self.woken.set_result(True)

    async def wait(self, seconds: float | None) -> bool:
        from asyncio import timeout

        try:
            async with timeout(seconds):
                return bool(await self.woken)
        except TimeoutError:
            return False


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


def run_in_background(coroutine: Coroutine[Any, Any, object]) -> bool:
    """Run a coroutine on a `BlockingHost` in a new thread; return False if `MAX_IN_BACKGROUND` are running."""
    if not _background_slots.acquire(blocking=False):
        coroutine.close()
        return False

    def work() -> None:
        try:
            run_blocking(coroutine)
        finally:
            _background_slots.release()

    threading.Thread(target=copy_context().run, args=(work,), name="opero-refresh", daemon=True).start()
    return True
