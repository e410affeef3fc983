"""The places of a bulkhead, and the queue for them."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Waiter

__all__ = ["MOVED", "Places", "Turn"]

MOVED = float("-inf")
"""So many places are free where they are elsewhere by now: whoever asks finds none, and looks further."""


class Turn:
    """One caller in the queue, and whether a place has been handed to him."""

    __slots__ = ("arrived", "served", "waiter")

    def __init__(self, waiter: Waiter, arrived: float) -> None:
        self.waiter = waiter
        self.arrived = arrived
        self.served = False


class Places:
    """So many places, which executors of old and new policies hand out together.

    A place that becomes free is handed to whoever has queued longest, so nobody overtakes.

    Attributes:
        most: how many there are, by the newest policy.
        queue: who waits for one.
    """

    def __init__(self, most: int) -> None:
        self.lock = threading.Lock()
        self.most = most
        self.queue: deque[Turn] = deque()
        self.heir: Places | None = None
        self._free: float = most  # less than none where there were more

    @property
    def running(self) -> int:
        """Calls that hold a place."""
        with self.lock:
            if self._free != MOVED:
                return int(self.most - self._free)
        return self.now().running

    def take(self) -> bool:
        """Take a free place, if there is one that nobody queues for."""
        with self.lock:
            if self._free > 0 and not self.queue:
                self._free -= 1
                return True
            if self._free != MOVED:
                return False
        return self.now().take()

    def leave(self) -> None:
        """Give a place back, or hand it on to who has queued longest."""
        with self.lock:
            self._free = free = self._free + 1
            if free > 0 and not self.queue:
                return
            self._serve()
        if free == MOVED:
            self.now().leave()

    def _serve(self) -> None:
        """Hand free places to those who have queued longest."""
        while self._free > 0 and self.queue:
            turn = self.queue.popleft()
            turn.served = turn.waiter.wake()
            self._free -= turn.served

    def now(self) -> Places:
        """Where the places are by now: elsewhere, or in a file, as this class changes then."""
        return self if self.heir is None else self.heir.now()

    def _give_up(self, heir: Places) -> int:
        """Let another set take these places in; how many are taken. With the lock held."""
        taken, self._free, self.heir = int(self.most - self._free), MOVED, heir
        return taken

    def take_in(self, other: Places, most: int) -> None:
        """Have from now on so many places, and those among them that are taken, or queued for, at another set."""
        with self.lock, other.lock:
            taken = other._give_up(self)
            self._line_up_first(other)
            self._free += most - self.most - taken
            self.most = most
            self._serve()

    def _line_up_first(self, other: Places) -> None:
        """Have those who wait there served first: they do so for places that are taken there."""
        self.queue.extendleft(reversed(other.queue))
        other.queue.clear()

    def resize(self, most: int) -> None:
        """Have from now on so many places."""
        with self.lock:
            self._free += most - self.most
            self.most = most
            self._serve()

    # What waits

    async def wait(self, host: Host, clock: Clock, patience: float) -> bool | None:
        """Stand in the queue until a place is handed over; whether it came in time, or None: there was one at once."""
        turn = Turn(host.waiter(), clock.monotonic())
        with self.lock:
            is_here = self._free != MOVED
            if is_here and self._free > 0 and not self.queue:
                self._free -= 1
                return None
            if is_here:
                self.queue.append(turn)
        if not is_here:
            return await self.now().wait(host, clock, patience)
        try:
            woken = await turn.waiter.wait(None if patience == float("inf") else patience)
        except BaseException:
            if not self._step_out(turn):
                self.leave()  # the place came too late: hand it on
            raise
        return woken or not self._step_out(turn)

    def _step_out(self, turn: Turn) -> bool:
        """Leave the queue; False if a place has been handed over meanwhile."""
        with self.lock:
            if self.heir is None:
                if turn in self.queue:
                    self.queue.remove(turn)
                return not turn.served
        return self.now()._step_out(turn)
