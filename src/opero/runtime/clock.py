"""The source of time and randomness, which tests replace with a virtual clock."""

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
    """The system clock, with a random generator.

    Attributes:
        monotonic: returns monotonic seconds, for measuring and waiting.
        time: returns seconds since the epoch, for times that outlive the process or come from elsewhere (HTTP dates).
        sleep: blocks the calling thread for some seconds.
        random: the random generator for jitter.
    """

    __slots__ = ("monotonic", "random", "sleep", "time")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic
        self.time: Callable[[], float] = time.time
        self.sleep: Callable[[float], None] = time.sleep
        self.random = random.Random()

    async def async_sleep(self, seconds: float) -> None:
        """Suspend the current task for some seconds."""
        from asyncio import sleep

        await sleep(seconds)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Block the calling thread until an event is set, for at most `seconds`, and return whether it is set."""
        return event.wait(seconds)

    def run_within(self, seconds: float, function: Callable[..., R], *args: Any) -> R:
        """Return the result of `function(*args)`; see `opero.runtime.interruption`.

        Raises:
            Expired: the function takes longer than `seconds`.
        """
        from opero.runtime.interruption import run_within

        return run_within(seconds, function, *args)

    def __reduce__(self) -> Any:
        # Unpickled in another process, it becomes that process's clock.
        return (_system, ()) if type(self) is Clock else (type(self), ())


SYSTEM = Clock()


def _system() -> Clock:
    return SYSTEM
