"""Blocks in which all bound functions run on another clock or without policies, and how their state begins anew."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from opero.binding.disabled import suspend
from opero.binding.roster import all_bindings
from opero.errors import ConfigError
from opero.registry.profile_state import forget_shared_state
from opero.runtime.async_library import turn
from opero.runtime.clock import Clock, set_default_clock
from opero.runtime.forking import renew_in_child
from opero.runtime.log import limiter
from opero.testing.clock import VirtualClock, all_loops_on

if TYPE_CHECKING:
    from opero.binding.binding import Binding


def fresh_state() -> None:
    """Begin anew: every breaker, throttle, limiter, bulkhead, memory cache, memory of fallback values, and all counts.

    What is kept outside of this process (caches on disk and in Redis, files of limits) is not touched. Calls under way
    finish with the state that they began with.
    """
    _forget()
    for binding in all_bindings():
        if not binding.is_late:
            _renew(binding)
        for stats in binding.all_stats:
            if stats.calls:
                stats.drain()


def _renew(binding: Binding, clock: Clock | None = None) -> None:
    """Renew a binding, unless what it shares with other processes is gone: a map has ended, and its files with it."""
    with suppress(ConfigError):
        binding.renew(clock)


def _forget() -> None:
    forget_shared_state()
    limiter.forget()
    stores = sys.modules.get("opero.cache.open_shared")
    if stores is not None:
        stores.forget_breakers()


@contextmanager
def _on_clock(clock: Clock) -> Iterator[None]:
    """Have every bound function that has no clock of its own run on this one, with fresh state at both ends."""
    before = set_default_clock(clock)
    _move(before, clock)
    try:
        yield
    finally:
        set_default_clock(before)
        _move(clock, before)


def _move(here: Clock, there: Clock) -> None:
    _forget()
    for binding in all_bindings():
        if binding.clock is here:
            _renew(binding, there)


@contextmanager
def virtual_clock(seed: int = 0) -> Iterator[VirtualClock]:
    """Have all bound functions, and all event loops of asyncio, run in virtual time within a block.

        with virtual_clock() as clock:
            fetch()                  # bound before; the delays between attempts take no real time
        clock.slept                  # → [0.1, 0.15, ...]

    It holds for functions bound before and within the block, sync and async, in all threads. Time moves by itself when
    all threads and tasks wait, or by `clock.advance(seconds)`. Breakers, limiters, memory caches and the like begin
    anew with the block, and again after it. A function that was bound with a clock of its own keeps it.

    Not covered: worker processes, gevent, and what the code under test waits for itself, such as `time.sleep` or an
    answer from a socket: timers may go off meanwhile. `asyncio.sleep` and `asyncio.timeout` are covered. Under trio
    and uvloop opero's delays are, and the library's own timers are not. A thread that computes holds time for 0.2 s.

    Args:
        seed: the seed of the random generator, for jitter.
    """
    clock = VirtualClock(seed)
    clock.now = began = time.monotonic()  # so timers of running loops keep their times
    epoch = time.time()
    clock.time = lambda: epoch + clock.now - began
    with _on_clock(clock), all_loops_on(clock):
        yield clock


class NoWaits(Clock):
    """A clock on which waits take no time: it is ahead of the system's by all that was not waited for.

    Attributes:
        slept: the delays and waits for permits so far, in seconds.
    """

    __slots__ = ("__weakref__", "_ahead", "_lock", "slept")

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self._ahead = 0.0
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")
        system, epoch = self.monotonic, self.time
        self.monotonic = lambda: system() + self._ahead
        self.time = lambda: epoch() + self._ahead
        self.sleep = self._pass

    def _pass(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self._ahead += max(0.0, seconds)

    async def async_sleep(self, seconds: float) -> None:
        self._pass(seconds)
        await turn()


@contextmanager
def no_waits() -> Iterator[NoWaits]:
    """Have all bound functions skip the delays between attempts and the waits for permits within a block.

        with no_waits() as waits:
            fetch()
        waits.slept                  # → [0.1, 0.15, ...], what it would have waited

    Time that is skipped has passed for opero: permits come back, results expire, limits of a whole call run out.
    Everything else takes the time that it takes, such as a timeout of a function that hangs, and a full bulkhead until
    a slot is given back. State begins anew as in `virtual_clock`. Not covered: worker processes.
    """
    clock = NoWaits()
    with _on_clock(clock):
        yield clock


@contextmanager
def disabled() -> Iterator[None]:
    """Call all bound functions without their policies within a block, as under `OPERO_ENABLED=false`.

    A fallback result still answers, as it does there. State that functions of a profile share continues after the
    block; that of a single function begins anew.
    """
    before = suspend(suspended=True)
    _rebuild()
    try:
        yield
    finally:
        suspend(suspended=before)
        _rebuild()


def _rebuild() -> None:
    for binding in all_bindings():
        if not binding.is_late:
            _renew(binding)
