"""The slots of a bulkhead, and the calls that wait for one."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from opero.executors.state.home import Home
from opero.runtime import forking
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.hosts import Waiter

FOREVER = float("inf")
NOWHERE = float("-inf")
"""Free slots of a home that the state has left: no call takes one there."""


# Decisions


def has_room(free: float, waiting: int) -> bool:
    """Whether a new call gets a slot at once: one is free, and no other call waits for it."""
    return free > 0 and not waiting


def line_up(queue: deque[QueuedCall], call: QueuedCall) -> None:
    """Add a call to a queue: behind all that arrived no later, as priorities have it."""
    arrived, place = call.arrived, len(queue)
    while place and queue[place - 1].arrived > arrived:  # some have a lower priority
        place -= 1
    queue.insert(place, call)


def grants(free: float, waiting: int) -> int:
    """How many of the calls that wait, the first ones, get a slot now. Fewer than no slots may be free: after the limit
    was lowered."""
    return int(max(0, min(waiting, free)))


class SlotHolder(Protocol):
    """Who may have a slot: a call.

    A slot is taken and given back together with this note of it, between two moments at which Python runs signal
    handlers. So whatever interrupts a call, such as Ctrl-C, it is known what it has.

    Attributes:
        slot: the `forking.generation` of the process in which it has a slot; None if it has none.
    """

    slot: int | None


class _Anyone:
    """Takes and gives back slots without a call, and notes nothing."""

    @property
    def slot(self) -> int | None:
        return forking.generation

    @slot.setter
    def slot(self, value: int | None) -> None:
        pass


ANYONE = _Anyone()


class QueuedCall:
    """A call that waits for a slot.

    Attributes:
        waiter: wakes it.
        arrived: the clock's reading when it began to wait; with a priority another one (see
            `opero.runtime.priorities`). The least is served first.
        holder: gets the slot.
        granted: it has a slot now.
        pause: seconds after which it last looked again by itself.
    """

    __slots__ = ("arrived", "granted", "holder", "pause", "waiter")

    def __init__(self, waiter: Waiter, arrived: float, holder: SlotHolder = ANYONE) -> None:
        self.waiter = waiter
        self.arrived = arrived
        self.holder = holder
        self.granted = False
        self.pause = 0.0


class SlotValues(NamedTuple):
    """What moves from home to home.

    Attributes:
        limit: how many slots there are.
        taken: how many of them this process has.
        queue: its calls that wait.
    """

    limit: int
    taken: int
    queue: tuple[QueuedCall, ...]


class Slots(Home):
    """Keeps the slots of a bulkhead. Its values are `SlotValues`.

    A slot that becomes free goes to the call that has waited longest, of those with the highest priority.

    Attributes:
        limit: how many there are, by the newest policy.
        queue: the calls of this process that wait, in their order.
    """

    queue: deque[QueuedCall]

    if TYPE_CHECKING:  # a class attribute would make the access to an instance's own slower

        @property
        def limit(self) -> int: ...

    @abstractmethod
    def running(self) -> int:
        """How many slots are taken."""

    @abstractmethod
    def take(self, holder: SlotHolder = ANYONE) -> bool:
        """Take a slot if one is free and no call waits for it. False also where the state has moved."""

    @abstractmethod
    def take_another(self, holder: SlotHolder = ANYONE) -> None:
        """Take a slot though none is free, so that more are taken than there are."""

    @abstractmethod
    def leave(self, holder: SlotHolder = ANYONE) -> bool:
        """Give a slot back, if the holder has one in this process; False where the state has moved, so that it has to
        be given back there."""

    @abstractmethod
    def enter(self, call: QueuedCall) -> bool:
        """Take a slot if one is free, else wait in the queue; whether the call has one."""

    @abstractmethod
    def look(self, call: QueuedCall, waiter: Waiter) -> bool:
        """Whether a call has a slot by now. If not, it can be woken by that waiter, unless it has left the queue."""

    @abstractmethod
    def withdraw(self, call: QueuedCall) -> bool:
        """Leave the queue; False if the call has got a slot meanwhile."""

    def pause(self, call: QueuedCall) -> float:
        """Seconds after which a waiting call has to look again although nothing has woken it."""
        return FOREVER

    def wake_first(self) -> None:
        """Have the first call of this process that waits look again."""
        with self.lock:
            while self.queue and not self.queue[0].waiter.wake():
                self.queue.popleft()  # its event loop has been closed


class LocalSlots(Slots):
    """Keeps the slots in this process. A slot is handed to a waiting call by the one that gives it back."""

    limit: int

    def __init__(self, policy: BulkheadPolicy) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.limit = policy.first_limit
        self.queue = deque()
        self._free: float = self.limit  # below 0 after the limit was lowered; NOWHERE where the state has moved
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Free all slots: the calls that have or await one are the parent's."""
        if self._free != NOWHERE:
            self._free = self.limit
        self.queue.clear()

    def running(self) -> int:
        with self.lock:
            self.check()
            return int(self.limit - self._free)

    # Python runs signal handlers where a function begins, after a call of a function written in C, and where a loop
    # goes back. Statements that belong together have none of these in between: all of them happen, or none.

    def take(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            if self._free > 0 and not self.queue:  # as `has_room`
                self._free -= 1
                holder.slot = forking.generation
                return True
            return False

    def take_another(self, holder: SlotHolder = ANYONE) -> None:
        with self.lock:
            self.check()
            self._free -= 1
            holder.slot = forking.generation

    def leave(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            free = self._free
            if not self.queue and free >= 0 and holder.slot == forking.generation:  # the usual case of what follows
                self._free = free + 1
                holder.slot = None
                return True
            if holder.slot != forking.generation:
                return True
            while self.queue and self._free >= 0:  # else fewer are free than none, after the limit was lowered
                call = self.queue[0]
                if call.waiter.wake():
                    call.holder.slot, call.granted, holder.slot = forking.generation, True, None
                    del self.queue[0]
                    return True
                del self.queue[0]  # its event loop has been closed
            if self._free == NOWHERE:
                return False
            self._free += 1
            holder.slot = None
            return True

    def enter(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            if has_room(self._free, len(self.queue)):
                self._free -= 1
                call.holder.slot = forking.generation
                return True
            line_up(self.queue, call)
            return False

    def look(self, call: QueuedCall, waiter: Waiter) -> bool:
        with self.lock:
            self.check()
            call.waiter = waiter
            return call.granted

    def withdraw(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            if call in self.queue:
                self.queue.remove(call)
            return not call.granted

    def apply(self, policy: BulkheadPolicy) -> None:
        with self.lock:
            self._set_limit(policy.first_limit)

    def _set_limit(self, limit: int) -> None:
        """Have another number of slots. With the lock held."""
        self._free += limit - self.limit
        self.limit = limit
        self._grant()

    def _grant(self) -> None:
        while grants(self._free, len(self.queue)):
            call = self.queue[0]
            if call.waiter.wake():  # False where its event loop has been closed
                self._free -= 1
                call.holder.slot = forking.generation
                call.granted = True
            del self.queue[0]

    def values(self) -> SlotValues:
        return SlotValues(self.limit, int(self.limit - self._free), tuple(self.queue))

    def receive(self, values: SlotValues) -> None:
        if self._free == NOWHERE:
            self._free = self.limit
        self._free -= values.taken
        self.queue.extendleft(reversed(values.queue))  # they come first: they wait for slots that are taken there
        self._grant()

    def vacate(self) -> None:
        self._free = NOWHERE
        self.queue.clear()
