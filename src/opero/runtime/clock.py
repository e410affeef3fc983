"""The source of time and randomness, which tests replace with a virtual clock."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from opero.runtime.forking import renew_in_child
from opero.runtime.interruption import interruptible

if TYPE_CHECKING:
    from opero.runtime.time_limits import Place

R = TypeVar("R")


class _Random(random.Random):
    """A random generator whose sequence goes on differently in each forked child."""

    def __init__(self) -> None:
        super().__init__()
        renew_in_child(self)

    def after_fork(self) -> None:
        self.seed()


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
        self.random: random.Random = _Random()

    async def async_sleep(self, seconds: float) -> None:
        """Suspend the current task for some seconds."""
        from opero.runtime.async_library import sleep

        await sleep(seconds)

    @interruptible
    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Block the calling thread until an event is set, for at most `seconds`, and return whether it is set."""
        return event.wait(seconds if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def run(self, main: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in a new event loop on this clock, and return its result."""
        import asyncio

        return asyncio.run(main)

    def run_within(self, seconds: float, function: Callable[..., R], *args: Any) -> R:
        """Return the result of `function(*args)`; see `opero.runtime.time_limits`.

        Raises:
            Expired: the function takes longer than `seconds`.
        """
        from opero.runtime.time_limits import run_within

        return run_within(seconds, function, *args)

    def place(self) -> Place:
        """Return where a generator runs whose steps have a time limit."""
        from opero.runtime.time_limits import place

        return place()

    def __reduce__(self) -> Any:
        # Unpickled in another process, it becomes that process's clock.
        return (_system, ()) if type(self) is Clock else (type(self), ())


SYSTEM = Clock()

_default: Clock = SYSTEM


def default_clock() -> Clock:
    """Return the clock of functions that are bound now without one of their own: the system's, outside of tests."""
    return _default


def set_default_clock(clock: Clock) -> Clock:
    """Use another clock for functions that are bound from now on, and return the previous one."""
    global _default  # one per process
    before, _default = _default, clock
    return before


def _system() -> Clock:
    return SYSTEM
