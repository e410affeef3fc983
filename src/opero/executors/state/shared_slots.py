"""The slots of a bulkhead in a file that the processes of a machine share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from opero.executors.state.shared_home import FileHome, has_ended, this_process
from opero.executors.state.slots import ANYONE, FOREVER, QueuedCall, Slots, SlotValues, line_up
from opero.runtime import forking
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from opero.executors.state.home import Owner
    from opero.executors.state.slots import SlotHolder
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.hosts import Waiter
    from opero.runtime.state_file import StateFile

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.01
"""Seconds after which the first waiting call of a process looks again, as other processes cannot wake it."""
MANY_OWNERS = 64
"""With more processes than that, those that have ended are looked for at every change."""


class Table(NamedTuple):
    """What the file holds. Tables are never changed, only replaced.

    Attributes:
        taken: process → the slots that it has.
        waiting: process → since when the first of its calls that wait has done so.
    """

    taken: Mapping[Owner, int]
    waiting: Mapping[Owner, float]


# Decisions


def add_slots(table: Table, owner: Owner, slots: int) -> Table:
    """The table after a process has taken slots; a negative number gives some back."""
    taken = dict(table.taken)
    count = taken.pop(owner, 0) + slots
    if count > 0:
        taken[owner] = count
    return Table(taken, table.waiting)


def queue_as(table: Table, owner: Owner, since: float | None) -> Table:
    """The table with the moment since which a process's first call has waited; None: no call waits there."""
    waiting = dict(table.waiting)
    waiting.pop(owner, None)
    if since is not None:
        waiting[owner] = since
    return Table(table.taken, waiting)


def try_take(table: Table, limit: int, owner: Owner, arrived: float, following: float | None) -> Table | None:
    """Take a slot for a process, if one is free and no other process's call has waited for longer.

    Args:
        table: as it is.
        limit: how many slots there are.
        owner: the process.
        arrived: since when its call has waited; FOREVER for a new one, which is behind all others.
        following: since when the next call of the process has waited.

    Returns:
        The table afterwards, or None where the call gets no slot.
    """
    if sum(table.taken.values()) >= limit:
        return None
    if arrived == FOREVER:
        return add_slots(table, owner, 1) if not table.waiting else None
    if any(since < arrived for each, since in table.waiting.items() if each != owner):
        return None
    return add_slots(queue_as(table, owner, following), owner, 1)


def without(table: Table, gone: Collection[Owner]) -> Table:
    """The table without the slots and waiting calls of processes that have ended."""
    if not gone:
        return table
    return Table(
        {owner: count for owner, count in table.taken.items() if owner not in gone},
        {owner: since for owner, since in table.waiting.items() if owner not in gone},
    )


class SharedSlots(FileHome, Slots):
    """Keeps the slots in a file: its number is the limit, and its state a `Table`.

    A slot belongs to a process, and one that dies gives its slots back. The first waiting call of each process looks
    again every few milliseconds whether it may take a slot; the others of that process wait for it.
    """

    lock: AbstractContextManager[Any]  # type: ignore[assignment]  # of this process; the file is locked within

    def __init__(self, file: StateFile) -> None:
        super().__init__(file)
        self.lock = threading.RLock()
        self.queue: deque[QueuedCall] = deque()
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        self.queue.clear()  # its calls wait in threads of the parent

    @property
    def limit(self) -> int:
        return int(self.file.number)

    def running(self) -> int:
        with self.lock, self.file:
            self.check()
            return sum(_living(self._table()).taken.values())

    def take(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            return self.location.home is self and not self.queue and self._try(FOREVER, holder)

    def take_another(self, holder: SlotHolder = ANYONE) -> None:
        with self.lock, self.file:
            self.check()
            self._write(add_slots(self._table(), this_process(), 1))
            holder.slot = forking.generation

    def leave(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            if holder.slot != forking.generation:
                return True
            if self.location.home is not self:
                return False
            with self.file:
                self._write(add_slots(self._table(), this_process(), -1))
                holder.slot = None
            if self.queue:
                self.wake_first()
            return True

    def enter(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            line_up(self.queue, call)
            return self._take_turn(call)

    def look(self, call: QueuedCall, waiter: Waiter) -> bool:
        with self.lock:
            self.check()
            if not call.granted:  # else that was before the slots were shared
                call.waiter = waiter
                call.granted = self._take_turn(call)
            return call.granted

    def withdraw(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            if call in self.queue:
                was_first = self.queue[0] is call
                self.queue.remove(call)
                if was_first:
                    with self.file:
                        self._write(
                            queue_as(self._table(), this_process(), self.queue[0].arrived if self.queue else None)
                        )
                    self.wake_first()
            return not call.granted

    def pause(self, call: QueuedCall) -> float:
        if self.queue and self.queue[0] is not call:
            return FOREVER
        call.pause = min(LONGEST_PAUSE, call.pause * 1.5) if call.pause else FIRST_PAUSE
        return call.pause

    def apply(self, policy: BulkheadPolicy) -> None:
        with self.lock:
            self.file.number = policy.first_limit
            self.wake_first()

    def values(self) -> SlotValues:
        with self.file:
            return SlotValues(self.limit, self._table().taken.get(this_process(), 0), tuple(self.queue))

    def receive(self, values: SlotValues) -> None:
        limit, taken, queue = values
        self.queue.extendleft(reversed(queue))
        with self.file as file:
            file.number = file.number or limit
            table = add_slots(self._table(), this_process(), taken)
            self._write(queue_as(table, this_process(), self.queue[0].arrived if self.queue else None))
        self.wake_first()

    def vacate(self) -> None:
        self.queue.clear()
        with self.file:
            table = queue_as(self._table(), this_process(), None)
            self._write(add_slots(table, this_process(), -table.taken.get(this_process(), 0)))

    # With the lock held

    def _take_turn(self, call: QueuedCall) -> bool:
        """Take a slot for a call in the queue if it is the first, and one is free for it."""
        if not self.queue or self.queue[0] is not call or not self._try(call.arrived, call.holder):
            return False
        del self.queue[0]
        self.wake_first()
        return True

    def _try(self, arrived: float, holder: SlotHolder) -> bool:
        me, limit = this_process(), self.limit
        following = self.queue[1].arrived if len(self.queue) > 1 else None
        with self.file:
            before = table = self._table()
            if table.waiting or len(table.taken) > MANY_OWNERS or sum(table.taken.values()) >= limit:
                table = _living(table)
            after = try_take(table, limit, me, arrived, following)
            if after is not None:
                self._write(after)
                holder.slot = forking.generation
                return True
            if arrived != FOREVER:
                table = queue_as(table, me, arrived)
            if table != before:
                self._write(table)
            return False

    def _table(self) -> Table:
        return Table._make(self.file.read() or ({}, {}))

    def _write(self, table: Table) -> None:
        self.file.write(tuple(table))


def _living(table: Table) -> Table:
    """The table without processes that have ended."""
    return without(table, {owner for owner in (*table.taken, *table.waiting) if has_ended(owner)})
