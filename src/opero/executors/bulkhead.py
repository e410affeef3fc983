"""Letting only so many calls run at once: places, and a queue for them that threads and tasks share."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from opero.errors import BulkheadFullError, CallTimeoutError
from opero.executors.call import AsyncHost, BlockingHost, Call, Layer, Waiter, run_blocking
from opero.executors.generators import Started
from opero.policies.types import format_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.clock import Clock
    from opero.executors.call import Host
    from opero.policies.bulkhead import BulkheadPolicy

__all__ = ["BulkheadExecutor"]


class _Turn:
    """One caller in the queue, and whether a place has been handed to him."""

    __slots__ = ("served", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.served = False


class BulkheadExecutor:
    """One set of places, shared by all functions that are bound to its profile, from threads and event loops alike.

    A place that becomes free is handed to whoever has queued longest, so nobody overtakes.
    """

    def __init__(self, policy: BulkheadPolicy, clock: Clock, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.blocking = BlockingHost(clock)
        self._lock = threading.Lock()
        self._free = policy.max_concurrent
        self._queue: deque[_Turn] = deque()

    @property
    def running(self) -> int:
        """Calls that hold a place."""
        return self.policy.max_concurrent - self._free

    # Decisions

    def take(self) -> bool:
        """Take a free place, if there is one that nobody queues for."""
        with self._lock:
            if self._free and not self._queue:
                self._free -= 1
                return True
            return False

    def leave(self) -> None:
        """Give a place back, or hand it on to who has queued longest."""
        with self._lock:
            while self._queue:
                turn = self._queue.popleft()
                turn.served = turn.waiter.wake()
                if turn.served:
                    return
            self._free += 1

    def _line_up(self, turn: _Turn) -> bool:
        """Take a free place after all, or stand in the queue; whether it is a place."""
        with self._lock:
            if self._free and not self._queue:
                self._free -= 1
                return True
            self._queue.append(turn)
            return False

    def _step_out(self, turn: _Turn) -> bool:
        """Leave the queue; False if a place has been handed over meanwhile."""
        with self._lock:
            if turn in self._queue:
                self._queue.remove(turn)
            return not turn.served

    def refusal(self, call: Call, waited: float) -> Exception:
        """The error for a call that found no place in time."""
        call.turned_away = True
        limit = f"{self.name}: all {self.policy.max_concurrent} places of the bulkhead are taken"
        if self.policy.max_wait is None or waited < self.policy.max_wait:
            call.stats.timeouts += 1
            return CallTimeoutError(
                f"{limit}, and the total timeout leaves no time to queue", scope="total", waiting_for="bulkhead"
            )
        call.stats.rejections += 1
        queued = f" after {format_duration(self.policy.max_wait)} in the queue" if self.policy.max_wait else ""
        return BulkheadFullError(f"{limit}{queued}")

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        """Stand in the queue until a place is handed over."""
        started = self.clock.monotonic()
        left = call.time_left(started)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        turn, kind = _Turn(host.waiter()), type(self)
        if self._line_up(turn):
            return
        if type(self) is not kind and self._step_out(turn):  # its places are other processes', too, since a moment ago
            await self.queue(host, call)
            return
        call.stats.waits += 1
        try:
            woken = await turn.waiter.wait(None if patience == float("inf") else patience)
        except BaseException:
            if not self._step_out(turn):
                self.leave()  # the place came too late: hand it on
            raise
        finally:
            waited = self.clock.monotonic() - started
            call.stats.waited += waited
            call.waited += waited
        if not woken and self._step_out(turn):
            raise self.refusal(call, patience)

    # Around the function

    def wrap(self, layer: Layer) -> Layer:
        def placed(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if not self.take():
                run_blocking(self.queue(self.blocking, call))
            try:
                result = layer(call, args, kwargs)
            except BaseException:
                self.leave()
                raise
            if type(result) is Started:
                result.on_end(self.leave)  # a generator holds its place until it ends
            else:
                self.leave()
            return result

        return placed

    def wrap_async(self, layer: Layer) -> Layer:
        host = AsyncHost(self.clock)

        async def placed(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if not self.take():
                await self.queue(host, call)
            try:
                result = await layer(call, args, kwargs)
            except BaseException:
                self.leave()
                raise
            if type(result) is Started:
                result.on_end(self.leave)  # a generator holds its place until it ends
            else:
                self.leave()
            return result

        return placed
