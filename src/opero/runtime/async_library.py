"""What coroutines await, under asyncio and under trio: sleeps, time limits, locks, threads, and tasks that go on.

A coroutine asks which library runs it when it has to wait, as the same function may be called under either. trio is not
imported here: where it runs a task, it has been imported.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from opero.runtime.interruption import Expired

T = TypeVar("T")


def in_trio() -> bool:
    """Return whether the code that runs is in a task of trio. It takes next to no time where trio is not imported."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        return bool(trio.lowlevel.in_trio_task())
    except AttributeError:  # trio is being imported
        return False


def _trio() -> Any:
    return sys.modules["trio"]


async def sleep(seconds: float) -> None:
    """Suspend the task for some seconds."""
    await (_trio().sleep(seconds) if in_trio() else asyncio.sleep(seconds))


async def turn() -> None:
    """Let other tasks run."""
    await (_trio().lowlevel.checkpoint() if in_trio() else asyncio.sleep(0))


# Time limits


async def await_within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Return the result of an awaitable.

    Raises:
        Expired: it was cancelled, as it took longer than `seconds`.
    """
    if in_trio():
        return await _await_within_trio(seconds, awaitable)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            result = await awaitable
    except Exception as error:
        if not limit.expired():
            raise  # raised by the function itself
        is_limit = isinstance(error, TimeoutError) and isinstance(error.__cause__, asyncio.CancelledError)
        raise Expired from (None if is_limit else error)  # what the function has raised in place of the cancellation
    if limit.expired():  # the function has swallowed the cancellation and returned late
        raise Expired
    return result


async def _await_within_trio(seconds: float, awaitable: Awaitable[T]) -> T:
    scope = _trio().move_on_after(seconds)
    try:
        with scope:
            result = await awaitable
    except Exception as error:
        if not scope.cancel_called:
            raise
        raise Expired from error
    if scope.cancelled_caught or scope.cancel_called:
        raise Expired
    return result


async def await_or_abandon(seconds: float, awaitable: Awaitable[T]) -> T:
    """As `await_within`, but without waiting for what swallows its cancellation or is slow to clean up.

    trio has no tasks that outlive their caller, so it waits for them.
    """
    if in_trio():
        return await _await_within_trio(seconds, awaitable)
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except BaseException:  # the caller was cancelled
        task.cancel()
        raise
    if not task.done():
        task.cancel()
        task.add_done_callback(lambda late: late.cancelled() or late.exception())  # which is not logged then
        raise Expired
    if task.cancelled():
        raise RuntimeError("it was cancelled")  # not the caller
    return task.result()


async def together(*coroutines: Coroutine[Any, Any, T]) -> list[T]:
    """Run coroutines side by side, and return their results in their order."""
    if not in_trio():
        return list(await asyncio.gather(*coroutines))
    results: dict[int, T] = {}

    async def keep(number: int, coroutine: Coroutine[Any, Any, T]) -> None:
        results[number] = await coroutine

    async with _trio().open_nursery() as nursery:
        for number, each in enumerate(coroutines):
            nursery.start_soon(keep, number, each)
    return [results[number] for number in range(len(coroutines))]


# Locks and queues


def new_lock() -> Any:
    """Return a lock for the tasks of the event loop that runs; the first to come is the first to get it."""
    return _trio().Lock() if in_trio() else asyncio.Lock()


def running_loop() -> Any:
    """Return what identifies the event loop that runs; it is hashable."""
    return _trio().lowlevel.current_trio_token() if in_trio() else asyncio.get_running_loop()


def is_closed(loop: Any) -> bool:
    """Return whether an event loop, identified by `running_loop`, has ended."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_closed()
    try:
        loop.run_sync_soon(int)
    except _trio().RunFinishedError:
        return True
    return False


class AsyncWaiter:
    """A task that waits to be woken by another thread or task."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
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
        try:
            async with asyncio.timeout(seconds):
                return bool(await self.woken)
        except TimeoutError:
            return False


class TrioWaiter:
    """The same under trio."""

    def __init__(self) -> None:
        self.token = _trio().lowlevel.current_trio_token()
        self.event = _trio().Event()

    def wake(self) -> bool:
        try:
            self.token.run_sync_soon(self.event.set)
        except _trio().RunFinishedError:
            return False
        return True

    async def wait(self, seconds: float | None) -> bool:
        with _trio().move_on_after(float("inf") if seconds is None else seconds):
            await self.event.wait()
        return bool(self.event.is_set())


# Threads and tasks of trio


async def in_thread_of_trio(function: Callable[..., T], *args: Any) -> T:
    """Return the result of a function that blocks. If the task is cancelled, the function continues in its thread."""
    result: T = await _trio().to_thread.run_sync(partial(function, *args), abandon_on_cancel=True)
    return result


async def shielded_in_trio(function: Callable[..., object], *args: Any) -> None:
    """Run a function that blocks, and wait for it, even if the task is cancelled meanwhile."""
    with _trio().CancelScope(shield=True):
        await _trio().to_thread.run_sync(partial(function, *args))


def in_background_of_trio(
    coroutine: Coroutine[Any, Any, object], most: int, failed: Callable[[Exception], object]
) -> bool:
    """Run a coroutine without waiting for it; trio's main task ends it. Return False if `most` are running.

    `failed` receives its exception.
    """
    token = _trio().lowlevel.current_trio_token()
    if _in_background.get(token, 0) >= most:
        coroutine.close()
        return False

    async def run() -> None:
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001  # it would end the whole program
            failed(error)
        finally:
            _in_background[token] -= 1

    _in_background[token] = _in_background.get(token, 0) + 1
    _trio().lowlevel.spawn_system_task(run, name="opero-refresh", context=copy_context())
    return True


_in_background: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How many tasks run in the background of each run of trio."""
