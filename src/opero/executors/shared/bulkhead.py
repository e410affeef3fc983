"""A bulkhead whose places processes share."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from opero.executors.bulkhead import BulkheadExecutor, _Turn
from opero.executors.ledger import FOREVER
from opero.parallel.machine import started

if TYPE_CHECKING:
    from opero.executors.call import Call, Host, Waiter
    from opero.executors.shared.state_file import StateFile

__all__ = ["SharedBulkhead", "share_bulkhead"]

LOOK, LONGEST_LOOK = 0.001, 0.01
"""Seconds between looks at a bulkhead that others may leave."""
MANY_OWNERS = 64
"""From so many processes with places on, those that are gone are looked for at each change."""

Owner = tuple[int, float]
"""A process: its number, and when it began, as numbers are used again."""


class _Looking(_Turn):
    """A caller who queues for places that processes share. The first of a process looks whether it is his turn."""

    __slots__ = ("arrived",)

    def __init__(self, waiter: Waiter, arrived: float) -> None:
        super().__init__(waiter)
        self.arrived = arrived


class SharedBulkhead(BulkheadExecutor):
    """Places that processes share: a place belongs to a process, and one that dies gives its places back.

    The file holds how many places each process has, and since when its first caller has queued. That one looks again
    every few milliseconds, and takes a place when none has queued for longer; the others of its process wait for him.
    """

    _file: StateFile
    _all: ClassVar[weakref.WeakSet[SharedBulkhead]] = weakref.WeakSet()

    @classmethod
    def renew_all(cls) -> None:
        """In a forked child: who queued were threads of its parent."""
        for bulkhead in list(cls._all):
            bulkhead._lock = threading.Lock()
            bulkhead._queue.clear()

    @property
    def running(self) -> int:
        with self._file:
            return sum(_living(self._file.read())[0].values())

    def take(self) -> bool:
        with self._lock:
            return not self._queue and self._try(FOREVER)

    def leave(self) -> None:
        with self._lock:
            while self._queue and type(self._queue[0]) is _Turn:  # he queued before the places were shared
                turn = self._queue.popleft()
                turn.served = turn.waiter.wake()
                if turn.served:
                    self._wake_first()
                    return
            self._give_back()

    def _step_out(self, turn: _Turn) -> bool:
        stepped_out = super()._step_out(turn)
        with self._lock:
            self._wake_first()
        return stepped_out

    # Under the lock

    @property
    def _free(self) -> int:
        """None of its own any more; who has waited for the lock since before that may still give one back."""
        return 0

    @_free.setter
    def _free(self, free: int) -> None:
        if free:
            self._give_back()

    def _give_back(self) -> None:
        me = _me()
        with self._file:
            places, queue = self._file.read()
            left = places.pop(me, 0) - 1
            self._file.write(({**places, me: left} if left > 0 else places, queue))
        self._wake_first()

    def _try(self, arrived: float) -> bool:
        """Take a place, if there is one that nobody has queued for since before that moment; else queue from then."""
        me, most = _me(), self.policy.max_concurrent
        with self._file:
            state = places, queue = self._file.read()
            if queue or sum(places.values()) >= most or len(places) > MANY_OWNERS:
                places, queue = _living(state)
            free = sum(places.values()) < most and all(since >= arrived for each, since in queue.items() if each != me)
            if arrived == FOREVER:  # a newcomer, behind all who queue
                free = free and not queue
            if free:
                queue = {each: since for each, since in queue.items() if each != me}
                if len(self._queue) > 1:
                    queue[me] = getattr(self._queue[1], "arrived", 0.0)
                places = {**places, me: places.get(me, 0) + 1}
            elif arrived != FOREVER:
                queue = {**queue, me: arrived}
            if (places, queue) != state:
                self._file.write((places, queue))
            return free

    def _look(self, turn: _Looking, waiter: Waiter) -> bool:
        """Take a place, if it is this caller's turn; else `waiter` will be woken when that may be."""
        with self._lock:
            turn.waiter = waiter
            if self._queue[0] is not turn or not self._try(turn.arrived):
                return False
            self._queue.popleft()
            self._wake_first()
            return True

    def _wake_first(self) -> None:
        while self._queue and type(self._queue[0]) is _Looking and not self._queue[0].waiter.wake():
            self._queue.popleft()  # his event loop has been closed

    def _leave_queue(self, turn: _Turn) -> None:
        with self._lock:
            if turn not in self._queue:
                return
            was_first = self._queue[0] is turn
            self._queue.remove(turn)
            if was_first:
                me = _me()
                with self._file:
                    places, queue = self._file.read()
                    queue.pop(me, None)
                    if self._queue:
                        queue[me] = getattr(self._queue[0], "arrived", 0.0)
                    self._file.write((places, queue))
                self._wake_first()

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        began = self.clock.monotonic()
        left = call.time_left(began)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        call.stats.waits += 1
        pause = LOOK
        turn = _Looking(host.waiter(), began)
        with self._lock:
            self._queue.append(turn)
        try:
            while not self._look(turn, waiter := host.waiter()):
                rest = patience - (self.clock.monotonic() - began)
                if rest <= 0:
                    raise self.refusal(call, patience)
                if self._queue[0] is turn:
                    rest = min(pause, rest)
                    pause = min(LONGEST_LOOK, pause * 1.5)
                await waiter.wait(None if rest == FOREVER else rest)
        finally:
            self._leave_queue(turn)
            waited = self.clock.monotonic() - began
            call.stats.waited += waited
            call.waited += waited


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


def share_bulkhead(bulkhead: Any, file: StateFile, *, first: bool) -> None:
    with bulkhead._lock:
        if first:
            held = bulkhead.policy.max_concurrent - bulkhead._free
            with file:
                file.write(({_me(): held} if held else {}, {}))
        bulkhead._file = file
        bulkhead.__class__ = SharedBulkhead
        SharedBulkhead._all.add(bulkhead)
