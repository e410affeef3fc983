"""For tests: a virtual clock, on which waits take no time at all."""

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
    """A clock that stands still until somebody sleeps, and then jumps.

        clock = VirtualClock()
        fetch = Policy(retry=5).apply(flaky, clock=clock)
        fetch()                          # the delays between attempts pass in no time
        clock.slept                      # → [0.1, 0.15, ...], the delays asked for
        clock.run(async_fetch())         # an event loop on the same virtual time

    Sync timeouts hold, too, for functions that wait by this clock's `sleep`. Sleeping threads advance the clock to
    their own wake-up time, each at once.

    Args:
        seed: seed of the random source. Default 0.
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
        """Let time pass."""
        self._reach(self.now + seconds)

    def run(self, main: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in an event loop that lives on this clock: its timers and sleeps take no real time."""
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(main)

    async def async_sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """In virtual time nothing sets an event meanwhile, unless a real thread is about to."""
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


MOST_TURNS = 1000
TICK = 1e-9
"""Seconds that pass when the loop has made so many turns in one moment: else code that tries again until the clock has
moved on would never end."""


class _VirtualSelector(selectors.DefaultSelector):
    """Where the loop would wait for its next timer, the clock jumps there instead."""

    clock: VirtualClock
    turns = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(None if timeout is None else 0)
        before = self.clock.now
        if not ready and timeout is not None:
            self.clock.advance(timeout if self.turns < MOST_TURNS else max(timeout, TICK))
        self.turns = 0 if self.clock.now > before else self.turns + 1
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        selector = _VirtualSelector()
        selector.clock = clock
        self._virtual_clock = clock
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual_clock.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncio's own
        """Wait for its threads however long they take: virtual time would be up before they have begun to end."""
        await super().shutdown_default_executor()
