"""Hosts: how a coroutine that serves both sync and async callers sleeps, waits and calls on.

Logic that waits is written once, as a coroutine that awaits nothing but its host. An async caller awaits the
coroutine. A sync caller drives it with one `send`, on a host whose methods block and never suspend, so a sync call
needs no event loop.
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

MOST_HELPERS = 16
MOST_IN_BACKGROUND = 32

_in_background: set[Task[Any]] = set()
_room_in_background = threading.BoundedSemaphore(MOST_IN_BACKGROUND)


class Outcome:
    """What an attempt came to. An exception is carried as a value, as a coroutine cannot raise StopIteration."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error

    def get(self) -> Any:
        """Return the value, or raise the exception, leaving no reference cycle behind."""
        error = self.error
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error, self


class Waiter(Protocol):
    """A place in a queue: `wake` may be called from any thread."""

    def wake(self) -> bool:
        """Wake who waits; False if nobody can be woken any more."""

    async def wait(self, seconds: float | None) -> bool:
        """Wait to be woken; False if that did not happen in time."""


class Shared(Protocol):
    """What runs for several callers: `cancel` ends it, where it runs in a task of its own."""

    cancel: Callable[[], object] | None


class Host(Protocol):
    """What a coroutine that serves both kinds of callers may await."""

    async def sleep(self, seconds: float) -> None: ...
    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome: ...
    def waiter(self) -> Waiter: ...

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that may block, such as for a disk or a network: never in an event loop's thread."""
        ...

    async def apart(self, coroutine: Coroutine[Any, Any, T], shared: Shared, is_wanted: Callable[[], bool]) -> T:
        """Run what others may wait for, too. A cancelled caller leaves it to them, if `is_wanted` says so."""
        ...

    def background(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        """Run what nobody waits for; False if too much of that is running already."""


class BlockingHost:
    """Serves sync callers: everything blocks the thread, nothing suspends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome:
        try:
            return Outcome(function(*args))
        except Exception as error:  # noqa: BLE001  # carried as a value
            return Outcome(error=error)

    def waiter(self) -> Waiter:
        return _BlockingWaiter(self.clock)

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def apart(self, coroutine: Coroutine[Any, Any, T], shared: Shared, is_wanted: Callable[[], bool]) -> T:
        return await coroutine

    def background(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        return run_in_background(coroutine)


class AsyncHost:
    """Serves async callers: everything suspends the task, nothing blocks the thread."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def sleep(self, seconds: float) -> None:
        await self.clock.async_sleep(seconds)

    async def attempt(self, function: Callable[..., Any], *args: Any) -> Outcome:
        try:
            return Outcome(await function(*args))
        except Exception as error:  # noqa: BLE001  # carried as a value
            return Outcome(error=error)

    def waiter(self) -> Waiter:
        return _AsyncWaiter()

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        from asyncio import get_running_loop

        return await get_running_loop().run_in_executor(helpers(), function, *args)

    async def apart(self, coroutine: Coroutine[Any, Any, T], shared: Shared, is_wanted: Callable[[], bool]) -> T:
        from asyncio import CancelledError, get_running_loop, shield, wait

        loop = get_running_loop()
        task = loop.create_task(coroutine)
        shared.cancel = partial(_cancel, loop, task)
        try:
            return await shield(task)
        except CancelledError:
            if not is_wanted() and not task.done():
                task.cancel()
                await wait([task])  # what it has to tidy up comes before its caller goes on
            raise

    def background(self, coroutine: Coroutine[Any, Any, object]) -> bool:
        from asyncio import get_running_loop

        task = get_running_loop().create_task(coroutine)
        _in_background.add(task)  # the loop itself would let go of it
        task.add_done_callback(_in_background.discard)
        return True


def _cancel(loop: AbstractEventLoop, task: Task[Any]) -> None:
    with suppress(RuntimeError):  # its loop has been closed, and the task with it
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
        except RuntimeError:  # its loop has been closed
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
    """Run a coroutine whose host blocks: it comes to its end at once, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        # No name for it here: an exception in it leads back to this frame by its traceback.
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a blocking host was suspended")  # pragma: no cover  # a bug in opero


@cache
def helpers() -> ThreadPoolExecutor:
    """The threads in which async callers' stores are asked."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(MOST_HELPERS, "opero-store")


def run_in_background(coroutine: Coroutine[Any, Any, object]) -> bool:
    """Run a coroutine whose host blocks in a thread of its own; False where `MOST_IN_BACKGROUND` are running."""
    if not _room_in_background.acquire(blocking=False):
        coroutine.close()
        return False

    def work() -> None:
        try:
            run_blocking(coroutine)
        finally:
            _room_in_background.release()

    threading.Thread(target=copy_context().run, args=(work,), name="opero-refresh", daemon=True).start()
    return True
