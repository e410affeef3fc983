"""Generators under a policy: an attempt runs to the first item; later items pass through unchanged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from typing import Any

from opero.runtime.interruption import interruptible
from opero.runtime.tracebacks import trim


class Started:
    """A generator that has run to its first item, or to its end if it has no items.

    Attributes:
        generator: the generator.
        first: the first item; if it has ended, its return value.
        ended: whether it has ended.
        on_failure: called instead of the function's own, see `relaying`; None if that is to be called.
        steps: runs it from item to item, and closes it; None if nothing but itself does.
        receipt: what is recorded of the call; None if nothing is.
    """

    __slots__ = ("_at_end", "ended", "first", "generator", "on_failure", "receipt", "steps")

    def __init__(self, generator: Any, first: Any = None, *, ended: bool = False) -> None:
        self.generator = generator
        self.first = first
        self.ended = ended
        self.steps: Any = None
        self.on_failure: Callable[..., object] | None = None
        self.receipt: Any = None
        self._at_end: list[Callable[[BaseException | None], object]] = []

    def on_end(self, action: Callable[[BaseException | None], object]) -> None:
        """Call an action when the generator ends, for whatever reason.

        It receives what the generator raised of its own after its first item; None if it came to its end, or its reader
        has ended it. An exception that is no `Exception` says that it was cancelled.
        """
        self._at_end.append(action)

    def end(self, error: BaseException | None = None) -> None:
        """Call the actions registered with `on_end`, if they have not been called."""
        while self._at_end:
            action = self._at_end[-1]
            try:
                action(error)
            except Exception:
                self._has_called(action)
                raise
            self._has_called(action)  # not before: if it was interrupted, it is called again

    def _has_called(self, action: Callable[..., object]) -> None:
        if self._at_end and self._at_end[-1] is action:
            del self._at_end[-1]

    def __del__(self) -> None:
        """End it as cancelled: it has lost its reader, by a timeout or the end of its event loop."""
        if self._at_end:
            self.end(GeneratorExit())


def start(function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Started]:
    """Return a function that creates the generator and runs it to its first item."""

    @interruptible
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


def relaying(
    begin: Callable[..., Started], on_failure: Callable[[Exception, Any], object]
) -> Callable[..., Generator[Any, Any, Any]]:
    """Return a generator function that starts a generator and relays its items, and what is sent or thrown in.

    Args:
        begin: starts the generator.
        on_failure: called with an exception that the generator raises after its first item, unless the exception was
            thrown into it; and with the receipt of the call, or None.
    """

    @interruptible
    def relayed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        try:
            started = begin(*args, **kwargs)
        except Exception as error:
            trim(error)
            raise
        try:
            generator, item, steps = started.generator, started.first, started.steps
            started.first = None
            if started.ended:
                return item
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    (generator if steps is None else steps).close()
                    raise
                except BaseException as error:  # noqa: BLE001  # anything can be thrown in
                    proceed, message = generator.throw, error
                else:
                    proceed, message = generator.send, sent
                try:
                    item = proceed(message) if steps is None else steps.run(proceed, message)
                except StopIteration as stop:
                    return stop.value
                except BaseException as error:
                    if error is not message:
                        started.end(error)
                        if isinstance(error, Exception):
                            (started.on_failure or on_failure)(error, started.receipt)
                    raise
        finally:
            started.end()

    return relayed


def relaying_async(
    begin: Callable[..., Awaitable[Started]], on_failure: Callable[[Exception, Any], object]
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Return an async generator function that starts an async generator and relays its items, like `relaying`."""

    async def relayed(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        try:
            started = await begin(*args, **kwargs)
        except Exception as error:
            trim(error)
            raise
        try:
            generator, item, steps = started.generator, started.first, started.steps
            started.first = None
            while not started.ended:
                try:
                    sent = yield item
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  # anything can be thrown in
                    proceed, message = generator.athrow(error), error
                else:
                    proceed, message = generator.asend(sent), sent
                try:
                    item = await (proceed if steps is None else steps.run(proceed))
                except StopAsyncIteration:
                    return
                except BaseException as error:
                    if error is not message:
                        started.end(error)
                        if isinstance(error, Exception):
                            (started.on_failure or on_failure)(error, started.receipt)
                    raise
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
