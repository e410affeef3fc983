"""Generators under a policy: an attempt runs to the first item; later items pass through unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable

__all__ = ["Started", "from_items", "from_items_async", "relaying", "relaying_async", "start", "start_async"]


class Started:
    """A generator that has run to its first item, or to its end if it has no items.

    Attributes:
        generator: the generator.
        first: the first item; if it has ended, its return value.
        ended: whether it has ended.
    """

    __slots__ = ("_at_end", "ended", "first", "generator")

    def __init__(self, generator: Any, first: Any = None, *, ended: bool = False) -> None:
        self.generator = generator
        self.first = first
        self.ended = ended
        self._at_end: list[Callable[[], None]] = []

    def on_end(self, action: Callable[[], None]) -> None:
        """Call an action when the generator ends, for whatever reason."""
        self._at_end.append(action)

    def end(self) -> None:
        """Call the actions registered with `on_end`."""
        while self._at_end:
            self._at_end.pop()()


def start(function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Started]:
    """Return a function that creates the generator and runs it to its first item."""

    def started(*args: Any, **kwargs: Any) -> Started:
        generator = function(*args, **kwargs)
        try:
            return Started(generator, next(generator))
        except StopIteration as stop:
            return Started(generator, stop.value, ended=True)

    return started


def start_async(function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Awaitable[Started]]:
    """Return an async function that creates the async generator and runs it to its first item."""

    async def started(*args: Any, **kwargs: Any) -> Started:
        generator = function(*args, **kwargs)
        try:
            return Started(generator, await generator.asend(None))
        except StopAsyncIteration:
            return Started(generator, ended=True)

    return started


def relaying(begin: Callable[..., Started]) -> Callable[..., Generator[Any, Any, Any]]:
    """Return a generator function that starts a generator and relays its items, and what is sent or thrown in."""

    def relayed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        started = begin(*args, **kwargs)
        try:
            generator, item = started.generator, started.first
            started.first = None
            if started.ended:
                return item
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    generator.close()
                    raise
                except BaseException as error:  # noqa: BLE001  # anything can be thrown in
                    proceed, message = generator.throw, error
                else:
                    proceed, message = generator.send, sent
                try:
                    item = proceed(message)
                except StopIteration as stop:
                    return stop.value
        finally:
            started.end()

    return relayed


def relaying_async(begin: Callable[..., Awaitable[Started]]) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return an async generator function that starts an async generator and relays its items, like `relaying`."""

    async def relayed(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        started = await begin(*args, **kwargs)
        try:
            generator, item = started.generator, started.first
            started.first = None
            while not started.ended:
                try:
                    sent = yield item
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  # anything can be thrown in
                    proceed = generator.athrow(error)
                else:
                    proceed = generator.asend(sent)
                try:
                    item = await proceed
                except StopAsyncIteration:
                    return
        finally:
            started.end()

    return relayed


def from_items(items: Iterable[Any]) -> Generator[Any, Any, None]:
    """Return a generator of the items of a fallback result."""
    yield from items


async def from_items_async(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncGenerator[Any, None]:
    """Return an async generator of the items of a fallback result."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
