"""Where time and chance come from: one place, so that tests can drive the very same engine on a virtual clock."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

__all__ = ["SYSTEM", "Clock"]

R = TypeVar("R")


class Clock:
    """The system's time, and a random source.

    Attributes:
        monotonic: seconds that never go back, for measuring and waiting.
        time: seconds since 1970, for what outlives a process or comes from elsewhere (an HTTP date).
        sleep: block the calling thread for some seconds.
        random: the random source that jitter is drawn from.
    """

    __slots__ = ("monotonic", "random", "sleep", "time")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic
        self.time: Callable[[], float] = time.time
        self.sleep: Callable[[float], None] = time.sleep
        self.random = random.Random()

    async def async_sleep(self, seconds: float) -> None:
        """Suspend the running task for some seconds."""
        from asyncio import sleep

        await sleep(seconds)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Block the calling thread until `event` is set, or for so many seconds; whether it is set."""
        return event.wait(seconds)

    def run_within(self, seconds: float, function: Callable[..., R], *args: Any) -> R:
        """The result of `function(*args)`; raises `Expired` if it takes longer than that (see `interruption`)."""
        from opero.runtime.interruption import run_within

        return run_within(seconds, function, *args)

    def __reduce__(self) -> Any:
        # A clock is this process's own; the other side of a pickle has its own.
        return (_system, ()) if type(self) is Clock else (type(self), ())


SYSTEM = Clock()


def _system() -> Clock:
    return SYSTEM
