"""Inboxes: workers put reports in, and the reader of the results waits for them."""

from __future__ import annotations

import queue
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from opero.runtime.interruption import interruptible

if TYPE_CHECKING:
    from asyncio import Future

    from opero.parallel.engine.blocks import Chunk

    Message = tuple[Chunk, Any]
    """A chunk, and what `Workers.open` turns into a report."""


class Inbox(Protocol):
    """Receives reports. `put` can be called in any thread."""

    def put(self, message: Message) -> None: ...

    @property
    def has_some(self) -> bool:
        """Whether `get` would return at once."""
        ...

    async def get(self, seconds: float | None, *others: Future[None]) -> list[Message]:
        """The messages that have arrived. Waits for the first, that many seconds at most, or for one of `others`."""
        ...


class BlockingInbox:
    """For sync callers: `get` blocks the thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.put = self._queue.put

    @property
    def has_some(self) -> bool:
        return not self._queue.empty()

    @interruptible
    async def get(self, seconds: float | None, *others: Future[None]) -> list[Message]:
        messages: list[Message] = []
        with suppress(queue.Empty):
            messages.append(self._queue.get(timeout=seconds))
            while True:
                messages.append(self._queue.get_nowait())
        return messages


class AsyncInbox:
    """For async callers: `get` suspends the task.

    Raises:
        RuntimeError: the task is one of trio.
    """

    def __init__(self) -> None:
        from asyncio import get_running_loop

        from opero.runtime.async_library import in_trio

        if in_trio():
            raise RuntimeError(
                "an async function is mapped over items by asyncio only, and this is a task of trio: call the function "
                "for each item in a nursery"
            )
        self._loop = get_running_loop()
        self._messages: deque[Message] = deque()
        self._woken: Future[None] = self._loop.create_future()

    def put(self, message: Message) -> None:
        self._messages.append(message)
        with suppress(RuntimeError):  # its loop is closed, and nothing waits any more
            self._loop.call_soon_threadsafe(self.wake)

    @property
    def has_some(self) -> bool:
        return bool(self._messages)

    def put_here(self, message: Message) -> None:
        """Like `put`, in the loop's own thread."""
        self._messages.append(message)
        self.wake()

    def wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    async def get(self, seconds: float | None, *others: Future[None]) -> list[Message]:
        if not self._messages:
            if self._woken.done():  # or cancelled with the task that awaited it
                self._woken = self._loop.create_future()
            timer = None if seconds is None else self._loop.call_later(seconds, self.wake)
            for each in others:
                each.add_done_callback(self._wake_for)
            try:  # not `asyncio.wait`, which logs an error if it is cancelled just when a message arrives
                await self._woken
            finally:
                if timer is not None:
                    timer.cancel()
                for each in others:
                    each.remove_done_callback(self._wake_for)
        messages = []
        while self._messages:
            messages.append(self._messages.popleft())
        return messages

    def _wake_for(self, _: Future[None]) -> None:
        self.wake()
