"""Generators: an attempt is their start, up to the first item; from then on the items pass through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable

__all__ = ["Started", "from_items", "from_items_async", "relaying", "relaying_async", "start", "start_async"]


class Started:
    """A generator that has come to its first item, or to its end without one.

    Attributes:
        generator: the generator itself.
        first: its first item; or what it returned, where it has ended.
        ended: whether it has ended.
    """

    __slots__ = ("_at_end", "ended", "first", "generator")

    def __init__(self, generator: Any, first: Any = None, *, ended: bool = False) -> None:
        self.generator = generator
        self.first = first
        self.ended = ended
        self._at_end: list[Callable[[], None]] = []

    def on_end(self, action: Callable[[], None]) -> None:
        """Do this when the generator ends, however it does."""
        self._at_end.append(action)

    def end(self) -> None:
        """Do what was left for the end."""
        while self._at_end:
            self._at_end.pop()()


def start(function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Started]:
    """A function that starts the generator that `function` makes."""

    def started(*args: Any, **kwargs: Any) -> Started:
        generator = function(*args, **kwargs)
        try:
            return Started(generator, next(generator))
        except StopIteration as stop:
            return Started(generator, stop.value, ended=True)

    return started


def start_async(function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Awaitable[Started]]:
    """An async function that starts the async generator that `function` makes."""

    async def started(*args: Any, **kwargs: Any) -> Started:
        generator = function(*args, **kwargs)
        try:
            return Started(generator, await generator.asend(None))
        except StopAsyncIteration:
            return Started(generator, ended=True)

    return started


def relaying(begin: Callable[..., Started]) -> Callable[..., Generator[Any, Any, Any]]:
    """A generator function that begins so and relays all items, and what is sent or thrown in."""

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
                except BaseException as error:  # noqa: BLE001  # whatever was thrown in
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
    """The same, for async generators."""

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
                except BaseException as error:  # noqa: BLE001  # whatever was thrown in
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
    """A fallback result as a generator."""
    yield from items


async def from_items_async(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncGenerator[Any, None]:
    """A fallback result as an async generator."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
