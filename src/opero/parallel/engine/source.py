"""The items of a map: any iterable or async iterable, of known length or endless."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import Future, Task

AT_HAND = (list, tuple, range, str, set, frozenset, dict)
"""Types that are read without waiting."""
PATIENCE = 0.02
"""Seconds after which a read of a slow source returns what it has."""


def is_iterable(items: Any) -> bool:
    """Whether `iter` accepts something: by its class, as `iter` itself decides, and without a call of its code."""
    kind = type(items)
    if hasattr(kind, "__iter__"):
        return kind.__iter__ is not None
    return hasattr(kind, "__getitem__")


def length_of(items: Any) -> int | None:
    """What `len` says; None if it says nothing."""
    if not isinstance(items, Sized):
        return None
    try:
        return len(items)
    except Exception:  # noqa: BLE001  # it is longer than any list, or does not know its length
        return None


class Source:
    """Reads items in blocks. Items that were read before the source fails are not lost.

    Whatever `iter` or `aiter` accepts is a source. What `len` says of it is a guess, which may fail or prove wrong.

    Args:
        items: the items.
        again: items of an earlier run to be read first, with their indices.
        read: how many items an earlier run has read from the source.

    Attributes:
        index: the index of the next item that is not read `again`.
        error: what the source raised; nothing is read after it.
        is_async: `arriving` waits for its items, and `read` returns those that have arrived.
        is_slow: the last read waited for items.
    """

    def __init__(self, items: Any, again: Sequence[tuple[int, Any]] = (), read: int = 0) -> None:
        self.is_async = isinstance(items, AsyncIterable) and not is_iterable(items)
        self.again = deque(again)
        self.index = read
        self.error: Exception | None = None
        self._has_ended = False
        self.is_slow = False
        self._is_at_hand = isinstance(items, AT_HAND)
        self._left = length_of(items)
        self._items = items
        self._iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        self._reader: Task[None] | None = None
        self._some: Future[None] | None = None
        self._arrived: list[Any] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more can be read."""
        return self._has_ended and not self._arrived and not self.again

    @property
    def left(self) -> int | None:
        """How many items are left, if known."""
        return None if self._left is None else self._left + len(self._arrived) + len(self.again)

    def first(self) -> list[Any]:
        """The first item, without taking it, in a list; an empty list if none has arrived."""
        if self.again:
            return [self.again[0][1]]
        if not self._arrived and not self._has_ended and not self.is_async:
            self._arrived = self._take(1)
        return self._arrived[:1]

    def rest(self) -> Any:
        """The items that were not read, for another source."""
        if self._arrived:  # peeked at
            self.again.extend(enumerate(self._arrived, self.index))
            self.index += len(self._arrived)
            self._arrived = []
        if self._has_ended:
            return ()
        return self._items if self._iterator is None else self._iterator

    def read(self, most: int) -> tuple[Sequence[int], list[Any]]:
        """At most that many items, and their indices."""
        if self.again:
            taken = [self.again.popleft() for _ in range(min(most, len(self.again)))]
            return [index for index, _ in taken], [item for _, item in taken]
        items = self._arrived
        if len(items) > most:
            items, self._arrived = items[:most], items[most:]
        else:
            self._arrived = []
            if not self.is_async and len(items) < most and not self._has_ended:
                items += self._take(most - len(items))
        first = self.index
        self.index += len(items)
        return range(first, self.index), items

    def _take(self, most: int) -> list[Any]:
        items: list[Any] = []
        now = time.monotonic
        until = now() + PATIENCE
        is_cut_short = False
        try:
            if self._iterator is None:
                self._iterator = iter(self._items)
            iterator: Any = self._iterator
            if self._is_at_hand:
                items.extend(islice(iterator, most))
            else:
                for item in iterator:
                    items.append(item)
                    if len(items) >= most or now() > until:
                        is_cut_short = True
                        break
                self.is_slow = now() > until
            self._has_ended = len(items) < most and not is_cut_short
        except Exception as error:  # noqa: BLE001  # raised when the items before it have finished
            self.error = error
            self._has_ended = True
        self._count(len(items))
        return items

    def _count(self, taken: int) -> None:
        """Subtract what was read from what is left. If there is more or less than the length said, it was wrong."""
        if self._has_ended and self.error is None:
            self._left = 0
        elif self._left is not None:
            self._left = None if taken > self._left else self._left - taken

    # Async sources

    @property
    def has_arrived(self) -> bool:
        """Whether `read` returns without waiting."""
        return bool(self.again or self._arrived) or self._has_ended or not self.is_async

    def arriving(self, most: int) -> Future[None]:
        """A future that is done when there is something to read. At most that many items are fetched."""
        from asyncio import get_running_loop

        loop = get_running_loop()
        if self._some is None or self._some.done():
            self._some = loop.create_future()
        if self._reader is None or self._reader.done():
            self._reader = loop.create_task(self._fetch(most))
        return self._some

    async def _fetch(self, most: int) -> None:
        try:
            if self._iterator is None:
                self._iterator = aiter(self._items)
            iterator: Any = self._iterator
            for _ in range(most):
                item = await anext(iterator)
                self._arrived.append(item)  # after the await: `read` may have replaced the list meanwhile
                self._count(1)
                self._wake_reader()
        except StopAsyncIteration:
            self._has_ended = True
            self._count(0)
        except Exception as error:  # noqa: BLE001  # as above
            self.error = error
            self._has_ended = True
        finally:
            self._wake_reader()

    def _wake_reader(self) -> None:
        if self._some is not None and not self._some.done():
            self._some.set_result(None)

    async def close(self) -> None:
        """Stop waiting for items. The source itself is not closed: it belongs to the caller."""
        if self._reader is not None and not self._reader.done():
            from asyncio import wait

            self._reader.cancel()
            await wait([self._reader])
