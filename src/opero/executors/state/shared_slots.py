"""A bulkhead whose places processes share."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, ClassVar

from opero.executors.state.budget import FOREVER
from opero.executors.state.slots import MOVED, Places, Turn
from opero.runtime.machine import started

if TYPE_CHECKING:
    from opero.executors.bulkhead import BulkheadExecutor
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host, Waiter
    from opero.runtime.state_file import StateFile

__all__ = ["SharedPlaces", "share_bulkhead"]

LOOK, LONGEST_LOOK = 0.001, 0.01
"""Seconds between looks at a bulkhead that others may leave."""
MANY_OWNERS = 64
"""From so many processes with places on, those that are gone are looked for at each change."""

Owner = tuple[int, float]
"""A process: its number, and when it began, as numbers are used again."""


class _Looking(Turn):
    """A caller who queues for places that processes share. The first of a process looks whether it is his turn."""

    __slots__ = ()


class SharedPlaces(Places):
    """Places that processes share: a place belongs to a process, and one that dies gives its places back.

    The file holds how many there are, how many of them each process has, and since when its first caller has queued.
    That one looks again every few milliseconds, and takes a place when none has queued for longer; the others of its
    process wait for him.
    """

    file: StateFile
    _all: ClassVar[weakref.WeakSet[SharedPlaces]] = weakref.WeakSet()

    @classmethod
    def renew_all(cls) -> None:
        """In a forked child: who queued were threads of its parent."""
        for places in list(cls._all):
            places.lock = threading.Lock()
            places.queue.clear()

    @property
    def most(self) -> int:
        return int(self.file.number)

    @most.setter
    def most(self, most: int) -> None:
        self.file.number = most

    @property
    def running(self) -> int:
        with self.file:
            return sum(_living(self.file.read())[0].values())

    def take(self) -> bool:
        with self.lock:
            return not self.queue and self._try(FOREVER)

    def leave(self) -> None:
        with self.lock:
            while self.queue and type(self.queue[0]) is Turn:  # he queued before the places were shared
                if self._is_crowded():
                    break
                turn = self.queue.popleft()
                turn.served = turn.waiter.wake()
                if turn.served:
                    self._wake_first()
                    return
            self._give_back()

    def _serve(self) -> None:
        """Hand free places to those who queued before the places were shared, and wake who looks for them himself."""
        me = _me()
        with self.file:
            places, queue = self.file.read()
            while self.queue and type(self.queue[0]) is Turn and sum(places.values()) < self.most:
                turn = self.queue.popleft()
                turn.served = turn.waiter.wake()
                if turn.served:
                    places = {**places, me: places.get(me, 0) + 1}
            self.file.write((places, queue))
        self._wake_first()

    def _step_out(self, turn: Turn) -> bool:
        stepped_out = super()._step_out(turn)
        with self.lock:
            self._wake_first()
        return stepped_out

    def take_in(self, other: Places, most: int) -> None:
        me = _me()
        with self.lock, other.lock:
            taken = other._give_up(self)
            self._line_up_first(other)
            with self.file:
                places, queue = self.file.read()
                self.file.write(({**places, me: places.get(me, 0) + taken} if taken else places, queue))
                self.most = most
            self._serve()

    def resize(self, most: int) -> None:
        with self.lock:
            with self.file:
                self.most = most
            self._serve()

    # Under the lock

    def _is_crowded(self) -> bool:
        """Whether there are fewer places now than are taken, and others here who will leave and serve the queue."""
        with self.file:
            places = self.file.read()[0]
        return bool(sum(places.values()) > self.most and places.get(_me(), 0) > 1)

    def _give_back(self) -> None:
        me = _me()
        with self.file:
            places, queue = self.file.read()
            left = places.pop(me, 0) - 1
            self.file.write(({**places, me: left} if left > 0 else places, queue))
        self._wake_first()

    def _try(self, arrived: float) -> bool:
        """Take a place, if there is one that nobody has queued for since before that moment; else queue from then."""
        me, most = _me(), self.most
        with self.file:
            state = places, queue = self.file.read()
            if queue or sum(places.values()) >= most or len(places) > MANY_OWNERS:
                places, queue = _living(state)
            free = sum(places.values()) < most and all(since >= arrived for each, since in queue.items() if each != me)
            if arrived == FOREVER:  # a newcomer, behind all who queue
                free = free and not queue
            if free:
                queue = {each: since for each, since in queue.items() if each != me}
                if len(self.queue) > 1:
                    queue[me] = self.queue[1].arrived
                places = {**places, me: places.get(me, 0) + 1}
            elif arrived != FOREVER:
                queue = {**queue, me: arrived}
            if (places, queue) != state:
                self.file.write((places, queue))
            return free

    def _look(self, turn: _Looking, waiter: Waiter) -> bool:
        """Take a place, if it is this caller's turn; else `waiter` will be woken when that may be."""
        with self.lock:
            turn.waiter = waiter
            if self.queue[0] is not turn or not self._try(turn.arrived):
                return False
            self.queue.popleft()
            self._wake_first()
            return True

    def _wake_first(self) -> None:
        while self.queue and type(self.queue[0]) is _Looking and not self.queue[0].waiter.wake():
            self.queue.popleft()  # his event loop has been closed

    def _leave_queue(self, turn: Turn) -> None:
        with self.lock:
            if turn not in self.queue:
                return
            was_first = self.queue[0] is turn
            self.queue.remove(turn)
            if was_first:
                me = _me()
                with self.file:
                    places, queue = self.file.read()
                    queue.pop(me, None)
                    if self.queue:
                        queue[me] = self.queue[0].arrived
                    self.file.write((places, queue))
                self._wake_first()

    # What waits

    async def wait(self, host: Host, clock: Clock, patience: float) -> bool | None:
        began = clock.monotonic()
        pause = LOOK
        turn = _Looking(host.waiter(), began)
        with self.lock:
            self.queue.append(turn)
        try:
            while not self._look(turn, waiter := host.waiter()):
                rest = patience - (clock.monotonic() - began)
                if rest <= 0:
                    return False
                if self.queue[0] is turn:
                    rest = min(pause, rest)
                    pause = min(LONGEST_LOOK, pause * 1.5)
                await waiter.wait(None if rest == FOREVER else rest)
        finally:
            self._leave_queue(turn)
        return True


def _living(state: tuple[dict[Owner, int], dict[Owner, float]]) -> tuple[dict[Owner, int], dict[Owner, float]]:
    """The places and the queue, without those of processes that are gone."""
    places, queue = state
    gone = {owner for owner in (*places, *queue) if started(owner[0]) != owner[1]}
    if not gone:
        return state
    return (
        {owner: count for owner, count in places.items() if owner not in gone},
        {owner: since for owner, since in queue.items() if owner not in gone},
    )


_own: dict[int, Owner] = {}


def _me() -> Owner:
    pid = os.getpid()
    if pid not in _own:
        _own[pid] = pid, started(pid)
    return _own[pid]


def share_bulkhead(bulkhead: BulkheadExecutor, file: StateFile, *, first: bool) -> None:
    places = bulkhead.places.now()
    with places.lock:
        held = int(places.most - places._free)
        with file:
            if first:
                file.number = places.most
                file.write(({}, {}))
            taken, queue = file.read()
            file.write(({**taken, _me(): taken.get(_me(), 0) + held} if held else taken, queue))
        places.__dict__["file"] = file
        places._free = MOVED
        places.__class__ = SharedPlaces
        SharedPlaces._all.add(places)  # type: ignore[arg-type]  # it is one now
