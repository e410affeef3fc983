"""Where a map's items come from: any iterable or async iterable, of known length or without end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, Iterable, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import AsyncIterator, Iterator, Sequence

__all__ = ["Source"]

AT_HAND = (list, tuple, range, str, set, frozenset, dict)
"""What is read without waiting for anything."""
PATIENCE = 0.02
"""Seconds after which a read ends with what has come, where a source is slow."""


class Source:
    """Reads items in blocks. What it has read when the source fails is not lost.

    Args:
        items: the items.
        again: items that were read before and are to be read first, with their numbers.
        read: how many items were read of the source before.

    Attributes:
        index: the number of the next item that is not read `again`.
        error: what the source raised; it ends there.
        is_async: its items are waited for with `arriving`, and `read` gives what has come.
        is_slow: the last read waited for items.
    """

    def __init__(self, items: Any, again: Sequence[tuple[int, Any]] = (), read: int = 0) -> None:
        self.is_async = isinstance(items, AsyncIterable) and not isinstance(items, Iterable)
        self.again = deque(again)
        self.index = read
        self.error: Exception | None = None
        self._has_ended = False
        self.is_slow = False
        self._is_at_hand = isinstance(items, AT_HAND)
        self._left = len(items) if isinstance(items, Sized) else None
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
        """How many items are left, as far as that is known."""
        return None if self._left is None else max(self._left, 0) + len(self._arrived) + len(self.again)

    def first(self) -> list[Any]:
        """The first item without taking it, in a list; an empty one where none has come."""
        if self.again:
            return [self.again[0][1]]
        if not self._arrived and not self._has_ended and not self.is_async:
            self._arrived = self._take(1)
        return self._arrived[:1]

    def rest(self) -> Any:
        """What has not been read, for another source."""
        if self._arrived:  # peeked at
            self.again.extend(enumerate(self._arrived, self.index))
            self.index += len(self._arrived)
            self._arrived = []
        if self._has_ended:
            return ()
        return self._items if self._iterator is None else self._iterator

    def read(self, most: int) -> tuple[Sequence[int], list[Any]]:
        """At most so many items, and their numbers."""
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
        except Exception as error:  # noqa: BLE001  # raised when what came before it is done
            self.error = error
            self._has_ended = True
        if self._left is not None:
            self._left -= len(items)
        return items

    # Async sources

    @property
    def has_arrived(self) -> bool:
        """Whether `read` gives something at once, or never will."""
        return bool(self.again or self._arrived) or self._has_ended or not self.is_async

    def arriving(self, most: int) -> Future[None]:
        """What is done when there is something to read; so many items are fetched, and no more."""
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
                self._arrived.append(item)  # not before: what had arrived may have been read meanwhile
                self._tell()
        except StopAsyncIteration:
            self._has_ended = True
        except Exception as error:  # noqa: BLE001  # as above
            self.error = error
            self._has_ended = True
        finally:
            self._tell()

    def _tell(self) -> None:
        if self._some is not None and not self._some.done():
            self._some.set_result(None)

    async def close(self) -> None:
        """End what waits for an item. The source itself is its owner's."""
        if self._reader is not None and not self._reader.done():
            from asyncio import wait

            self._reader.cancel()
            await wait([self._reader])
