"""Test helpers: a virtual clock, on which waits take no real time."""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from opero.runtime.clock import Clock
from opero.runtime.interruption import Expired, Interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["VirtualClock"]

R = TypeVar("R")


class VirtualClock(Clock):
    """A clock whose time passes only when something sleeps or `advance` is called.

        clock = VirtualClock()
        fetch = Policy(retry=5).apply(flaky, clock=clock)
        fetch()                          # the delays between attempts take no real time
        clock.slept                      # → [0.1, 0.15, ...], the delays
        clock.run(async_fetch())         # an event loop on the same virtual time

    Sync timeouts apply to functions that wait with this clock's `sleep`. If several threads sleep, each of them
    advances the clock to its own wake-up time immediately.

    Args:
        seed: the seed of the random generator. Default: 0.

    Attributes:
        now: the current time, in seconds.
        slept: the delays of all sleeps so far, in seconds.
    """

    __slots__ = ("_limits", "_lock", "now", "slept")

    EPOCH = 1_700_000_000.0

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.now = 1000.0
        self.slept: list[float] = []
        self._lock = threading.Lock()
        self._limits = threading.local()
        self.monotonic = lambda: self.now
        self.time = lambda: self.EPOCH + self.now
        self.sleep = self._sleep
        self.random = random.Random(seed)

    def advance(self, seconds: float) -> None:
        """Let some seconds pass."""
        self._reach(self.now + seconds)

    def run(self, main: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in an event loop on this clock, whose timers and sleeps take no real time."""
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(main)

    async def async_sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait for an event: briefly in real time for threads to set it, then by advancing the clock."""
        if not event.wait(None if seconds is None else 0.05):
            self.advance(seconds or 0.0)
        return event.is_set()

    def run_within(self, seconds: float, function: Callable[..., R], *args: Any) -> R:
        limits = self._limits.__dict__.setdefault("stack", [])
        limit = (self.now + seconds, Interruption(f"interrupted after {seconds:g} s"))
        limits.append(limit)
        try:
            result = function(*args)
            if self.now > limit[0]:
                raise Expired
            return result
        except Interruption as caught:
            if caught is limit[1]:
                raise Expired from None
            raise
        finally:
            limits.remove(limit)
            del limit

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wake = self.now + seconds
        first: tuple[float, Interruption] | None = min(
            self._limits.__dict__.get("stack", ()), key=lambda limit: limit[0], default=None
        )
        if first is not None and wake > first[0]:
            self._reach(first[0])
            raise first[1]
        self._reach(wake)

    def _reach(self, moment: float) -> None:
        with self._lock:
            self.now = max(self.now, moment)


MAX_ITERATIONS = 1000
TICK = 1e-9
"""Seconds that pass after `MAX_ITERATIONS` of the event loop without progress, so that code that polls the clock
ends."""


class _VirtualSelector(selectors.DefaultSelector):
    """Advances the clock to the next timer instead of waiting for it."""

    clock: VirtualClock
    iterations = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(None if timeout is None else 0)
        before = self.clock.now
        if not ready and timeout is not None:
            self.clock.advance(timeout if self.iterations < MAX_ITERATIONS else max(timeout, TICK))
        self.iterations = 0 if self.clock.now > before else self.iterations + 1
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        selector = _VirtualSelector()
        selector.clock = clock
        self._virtual_clock = clock
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual_clock.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncio's signature
        """Wait for the threads without a timeout, which in virtual time would end at once."""
        await super().shutdown_default_executor()
