"""A virtual clock, on which waits take no real time, and event loops on it."""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from opero.dataclass import dataclass
from opero.runtime.async_library import in_trio, turn
from opero.runtime.clock import Clock
from opero.runtime.forking import renew_in_child
from opero.runtime.interruption import Expired, Interruption
from opero.runtime.time_limits import Here, Place
from opero.testing.sleepers import Sleepers

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Limit:
    """The time limit of a function: when it is due, what it raises, and whether it has."""

    due: float
    interruption: Interruption
    fired: bool = False


class VirtualClock(Clock):
    """A clock whose time passes only when something sleeps or `advance` is called.

        clock = VirtualClock()
        fetch = Policy(retry=5).apply(flaky, clock=clock)
        fetch()                          # the delays between attempts take no real time
        clock.slept                      # → [0.1, 0.15, ...], the delays
        clock.run(async_fetch())         # an event loop on the same virtual time

    Sync timeouts apply to functions that wait with this clock's `sleep`. If several threads sleep, the
    clock goes to the moment of the first of them, once all others wait for something as well.

    Args:
        seed: the seed of the random generator. Default: 0.

    Attributes:
        now: the current time, in seconds.
        slept: the delays of all sleeps so far, in seconds.
    """

    __slots__ = ("__weakref__", "_limits", "_lock", "_sleepers", "now", "slept")

    EPOCH = 1_700_000_000.0

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.now = 1000.0
        self.slept: list[float] = []
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")
        self._limits = threading.local()
        self._sleepers = Sleepers()
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
        if in_trio():  # whose clock is another one
            self.advance(seconds)
            await turn()
        elif not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):  # uvloop, whose timers are in C
            self.advance(seconds)
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait for an event: in real time while threads that may set it run, then by advancing the clock."""
        if seconds is None:
            return event.wait()
        due = self.now + seconds
        if not self.wait_until(due, event.is_set):
            self._reach(due)
        return event.is_set()

    def wait_until(self, due: float, is_done: Callable[[], bool] | None = None, at_least: int = 0) -> bool:
        """Wait as `Sleepers.wait` does; the caller has to move the clock if nothing has happened."""
        return self._sleepers.wait(due, self.monotonic, is_done, at_least)

    def run_within(self, seconds: float, function: Callable[..., R], *args: Any) -> R:
        limits = self._limits.__dict__.setdefault("stack", [])
        limit = _Limit(self.now + seconds, Interruption(f"interrupted after {seconds:g} s"))
        limits.append(limit)
        try:
            result = function(*args)
            if self.now > limit.due:
                raise Expired
            return result
        except Interruption as caught:
            if caught is limit.interruption:
                raise Expired from None
            raise
        except Expired:
            raise
        except Exception as error:
            if limit.fired:
                raise Expired from error
            raise
        finally:
            limits.remove(limit)
            del limit

    def place(self) -> Place:
        return Here(self.run_within, self.monotonic)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wake = self.now + seconds
        stack: list[_Limit] = self._limits.__dict__.get("stack", [])
        first = min(stack, key=lambda limit: limit.due, default=None)
        if first is not None and wake > first.due:
            self.wait_until(first.due)
            self._reach(first.due)
            first.fired = True
            raise first.interruption
        if seconds > 0:
            self.wait_until(wake)
        self._reach(wake)

    def _reach(self, moment: float) -> None:
        with self._lock:
            self.now = max(self.now, moment)


MAX_ITERATIONS = 1000
TICK = 1e-9
"""Seconds that pass after `MAX_ITERATIONS` of the event loop without progress, so that code that polls the clock
ends."""


IN_FLIGHT = 20
"""How often an event loop with connections looks at them, in about 0.01 s, before it goes to its next timer."""


class _Steps:
    """What an event loop does instead of waiting for its next timer: it moves the clock there.

    Args:
        clock: the clock.
        select: waits, for at most the given seconds, for what the loop's selector watches.
        watched: returns how many files that is; one of them wakes the loop.
    """

    def __init__(
        self, clock: VirtualClock, select: Callable[[float | None], Any], watched: Callable[[], int] = lambda: 1
    ) -> None:
        self.clock = clock
        self._select = select
        self._watched = watched
        self._iterations = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = self._select(None if timeout is None else 0)
        clock = self.clock
        before = clock.now
        if not ready and timeout is not None:
            seconds = timeout if self._iterations < MAX_ITERATIONS else max(timeout, TICK)
            found: list[Any] = []

            def is_ready() -> bool:
                found[:] = self._select(0)
                return bool(found)

            if seconds > 0 and clock.wait_until(before + seconds, is_ready, IN_FLIGHT if self._watched() > 1 else 0):
                return found
            clock._reach(before + seconds)
        self._iterations = 0 if clock.now > before else self._iterations + 1
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        selector = selectors.DefaultSelector()
        self._virtual_clock = clock
        super().__init__(selector)
        selector.select = _steps(clock, selector).select  # type: ignore[method-assign]

    def time(self) -> float:
        return self._virtual_clock.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncio's signature
        """Wait for the threads without a timeout, which in virtual time would end at once."""
        await super().shutdown_default_executor()


def _steps(clock: VirtualClock, selector: Any) -> _Steps:
    files = getattr(selector, "get_map", None)
    select = partial(type(selector).select, selector)
    return _Steps(clock, select, (lambda: 1) if files is None else lambda: len(files() or ()))


_RUN_ONCE: Any = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]


@contextmanager
def all_loops_on(clock: VirtualClock) -> Iterator[None]:
    """Have every event loop of asyncio tell the time of a clock, and move it instead of waiting."""
    base: Any = asyncio.BaseEventLoop
    before = base.time, base._run_once
    changed: dict[int, tuple[Any, Any]] = {}

    def run_once(loop: Any) -> None:
        selector = getattr(loop, "_selector", None)
        if selector is not None and id(selector) not in changed and not isinstance(loop, _VirtualLoop):
            changed[id(selector)] = selector, vars(selector).get("select")
            selector.select = _steps(clock, selector).select
        _RUN_ONCE(loop)

    base.time, base._run_once = lambda _: clock.now, run_once
    try:
        yield
    finally:
        base.time, base._run_once = before
        for selector, select in changed.values():
            del selector.select
            if select is not None:  # that of a surrounding block
                selector.select = select
