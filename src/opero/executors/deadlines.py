"""Deadlines for users: `opero.deadline(2)` sets one for a block, and `opero.remaining()` tells how long that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from opero.errors import ConfigError, message_of
from opero.policies.quantities import parse_duration
from opero.runtime.clock import default_clock
from opero.runtime.deadlines import Deadline, current, restore, sooner

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opero.policies.quantities import DurationLike


def remaining() -> float | None:
    """Return the seconds until the deadline of the code that runs, at least 0; None if it has none.

    Within an attempt of a bound function that is the rest of its `timeout.attempt` or `timeout.total`, whichever is
    less, unless the code that called it has less.
    """
    deadline = current.get()
    return None if deadline is None else max(0.0, deadline.left())


class deadline:  # noqa: N801  # used like a function
    """Give the bound functions that are called within a block a deadline, for sync and async code alike.

        with opero.deadline(2):          # or "2s", or a timedelta; also `async with`
            user = get_user("ada")
            orders = get_orders(user)    # has what get_user has left

    After it no attempt begins; a wait for a permit, a slot, a retry or a running computation that cannot end before it
    is refused at once, by a `CallTimeoutError` whose `scope` is "deadline"; a function with a timeout is ended by it.
    It ends nothing else: what is under way and has no timeout may take longer.

    Tasks that are created within the block inherit the deadline, and so do maps with their threads and worker
    processes. A block within another one has the sooner of both deadlines, but for `deadline(None)`: code in that has
    no deadline, as work that is to go on in the background.

    Args:
        seconds: from the beginning of the block, a number of seconds, a text such as "2s", or a timedelta; or None.

    Raises:
        ConfigError: this is no duration.
    """

    __slots__ = ("_seconds", "_token")

    def __init__(self, seconds: DurationLike | None) -> None:
        self._token: Token[Deadline | None] | None = None
        try:
            self._seconds = None if seconds is None else parse_duration(seconds)
        except ValueError as error:
            raise ConfigError(f"opero.deadline: {message_of(error)}") from None
        if self._seconds is not None and self._seconds < 0:
            raise ConfigError(f"opero.deadline: {seconds!r} is negative; use at least 0, or None for no deadline")

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError("this deadline has begun already; call opero.deadline() again for another block")
        if self._seconds is None:
            self._token = current.set(None)
        else:
            monotonic = default_clock().monotonic
            self._token = current.set(sooner(Deadline(monotonic() + self._seconds, monotonic)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            restore(self._token)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)
