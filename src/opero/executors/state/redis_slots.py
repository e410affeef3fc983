"""The slots of a bulkhead in redis, which the processes of all machines share."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from opero.executors.state.redis_scripts import LASTS, SECOND
from opero.executors.state.redis_state_scripts import SLOTS
from opero.executors.state.redis_store import Command
from opero.executors.state.slots import ANYONE, FOREVER, QueuedCall, Slots, SlotValues, line_up
from opero.runtime import forking
from opero.runtime.forking import renew_in_child
from opero.runtime.hosts import run_later
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.state.home import Home
    from opero.executors.state.redis_store import RedisStore
    from opero.executors.state.slots import SlotHolder
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.hosts import Waiter

LEASE, RENEWED = 3.0, 1.0
"""Seconds after which the slots of a process that has died are free, and after which a living one renews them."""
RECOUNT = LEASE
"""Seconds after a restart of an empty server until which each process keeps to its share: by then, each has told it
how many slots it has."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.05
"""Seconds after which the first waiting call of a process asks again."""
SHIFT = 1e5
"""Added to the seconds for which calls have waited, which priorities make negative; negative numbers mean no call."""
NOTHING, TAKE, GIVE_BACK, TAKE_ANOTHER = 0, 1, -1, 2
"""What a process asks for."""


class Part(NamedTuple):
    """What a process may use by itself.

    Attributes:
        processes: how many processes share the slots.
        rank: which of them it is, from 0.
    """

    processes: int
    rank: int

    def of(self, limit: int) -> int:
        """How many of the slots it may use; those of all processes add up to the limit."""
        return limit // self.processes + (self.rank < limit % self.processes)


class RedisSlots(Slots):
    """Keeps the slots in redis, where each process has a number of them for as long as it says that it lives.

    The first waiting call of each process asks again every few milliseconds; the others of that process wait for it.
    A free slot goes to the process whose call has waited longest. While redis cannot be used, each process uses an
    equal part of the slots.

    Args:
        store: the redis.
        key: the name of the slots there.
        policy: what they are for.
        monotonic: tells the time.
        name: what messages begin with.
    """

    is_shared: ClassVar[bool] = True

    def __init__(
        self, store: RedisStore, key: str, policy: BulkheadPolicy, monotonic: Callable[[], float], name: str
    ) -> None:
        super().__init__()
        self.blocks = True
        self.lock = threading.RLock()
        self.store = store
        self.name = name
        self.monotonic = monotonic
        self.keys = tuple(f"opero:{{{key}}}:{each}".encode() for each in ("slots", "alive", "waiting"))
        self.queue: deque[QueuedCall] = deque()
        self._told = 0
        self._has_warned = False
        self._begin()
        self.apply(policy)
        renew_in_child(self, "lock")

    def _begin(self) -> None:
        self.owner = uuid.uuid4().hex
        self._taken = 0  # by calls of this process
        self._changing = 0  # threads that are about to change that, here and on the server
        self._total = 0  # taken by all processes, when that was heard last
        self._renewed = float("-inf")
        self._heard = 0  # the server's clock when it last answered
        self._part: Part | None = None
        self._alone_until = 0.0  # FOREVER while the server cannot be used

    def after_fork(self) -> None:
        """Leave the slots and the waiting calls to the parent."""
        self.queue.clear()
        self._begin()
        self._pack()

    # The interface of all slots

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def trouble(self) -> str:
        """Why the server cannot be used, in one line; "" while it can."""
        trouble: str = self.store.trouble
        return trouble

    def running(self) -> int:
        with self.lock:
            self.check()
            return self._taken if self._alone_until else max(self._taken, self._total)

    def take(self, holder: SlotHolder = ANYONE) -> bool:
        if self.location.home is not self or self.queue:
            return False
        return bool(self._take(holder, TAKE))

    def take_another(self, holder: SlotHolder = ANYONE) -> None:
        self._take(holder, TAKE_ANOTHER)
        with self.lock:
            self.check()

    def leave(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            if holder.slot != forking.generation:
                return True
            if self.location.home is not self:
                return False
            self._changing += 1
            self._taken -= 1
            holder.slot = None
        try:
            self._ask(GIVE_BACK)
        finally:
            self._changed()
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
            if call.granted:  # that was before the slots were shared
                return True
            call.waiter = waiter
        call.granted = self._take_turn(call)
        return call.granted

    def withdraw(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            was_first = bool(self.queue) and self.queue[0] is call
            if call in self.queue:
                self.queue.remove(call)
        if was_first:
            self._ask(NOTHING)
            self.wake_first()
        return not call.granted

    def pause(self, call: QueuedCall) -> float:
        if self.queue and self.queue[0] is not call:
            return FOREVER
        call.pause = min(LONGEST_PAUSE, call.pause * 1.5) if call.pause else FIRST_PAUSE
        return call.pause

    def apply(self, policy: BulkheadPolicy) -> None:
        with self.lock:
            self.policy = policy
            self._limit = policy.first_limit
            self._told = max(self._told + 1, time.time_ns() // 1000)
            self._pack()
        self.wake_first()

    def _pack(self) -> None:
        constant = (self.owner, int(LEASE * SECOND), self._told, self.policy.first_limit)
        self._command = Command(SLOTS, self.keys, constant, 4)

    def values(self) -> SlotValues:
        return SlotValues(self._limit, self._taken, tuple(self.queue))

    def receive(self, values: SlotValues) -> None:
        self._taken += values.taken
        self.queue.extendleft(reversed(values.queue))
        self._renewed = float("-inf")
        if self._taken or self.queue:
            self.store.beat.want(self)
        self.wake_first()

    def vacate(self) -> None:
        self.queue.clear()
        if self._taken:
            self._taken = 0
            run_later(self._tell)

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        if isinstance(target, RedisSlots) and (target.store, target.keys) == (self.store, self.keys):
            target.owner, target._part, target._alone_until = self.owner, self._part, self._alone_until
            target._pack()
            receive(self.values())
            self.refer_to(target)
            self.queue.clear()
            self._taken = 0
        else:
            super()._pass(target, receive)

    # Slots for calls of this process

    def _take(self, holder: SlotHolder, how: int, call: QueuedCall | None = None) -> bool:
        with self.lock:
            self._changing += 1
        try:
            has_slot = self._ask(how, call)
            with self.lock:
                if has_slot is None:
                    has_slot = how == TAKE_ANOTHER or self._may_alone()
                if not has_slot:
                    return False
                if self.location.home is self and (call is None or (self.queue and self.queue[0] is call)):
                    self._taken += 1
                    holder.slot = forking.generation
                    if call is not None:
                        del self.queue[0]
                    if self._taken == 1:
                        self.store.beat.want(self)
                    return True
            self._ask(GIVE_BACK)  # the slots have moved, or the call has left the queue, meanwhile
            return False
        finally:
            self._changed()

    def _changed(self) -> None:
        with self.lock:
            self._changing -= 1

    def _take_turn(self, call: QueuedCall) -> bool:
        """Take a slot for a call in the queue if it is the first, and one is free for it."""
        with self.lock:
            if not self.queue or self.queue[0] is not call:
                return False
        if not self._take(call.holder, TAKE, call):
            return False
        self.wake_first()
        return True

    def _may_alone(self) -> bool:
        """Whether a call may have a slot though the server was not asked, or not to decide."""
        if self._alone_until == FOREVER and self.policy.on_store_error != "local":
            return bool(self.policy.on_store_error == "open")
        return self._taken < (1 if self._part is None else self._part.of(self._limit))

    # The server

    def update(self) -> bool:
        """Tell the server that this process lives, and how many slots it has; whether it has any."""
        with self.lock:
            if self.location.home is not self or not (self._taken or self.queue):
                return False
            if self.monotonic() - self._renewed < RENEWED and self._alone_until == 0:
                return True
        self._tell()
        return True

    def _tell(self) -> None:
        """Tell the server how many slots this process has, unless that is just changing."""
        with self.lock:  # over the network: a change that the server hears of earlier would be undone
            self._ask(NOTHING, exact=-1 if self._changing else self._taken)

    def _ask(self, how: int, call: QueuedCall | None = None, exact: int = -1) -> bool | None:
        """Ask the server for a slot, give one back, or only renew what it knows of this process.

        Args:
            how: one of the constants.
            call: the first in the queue, if the slot is for it.
            exact: how many slots this process has, before that; negative if that is not known exactly.

        Returns:
            Whether a slot has been taken; None if that is not the server's to decide now.
        """
        with self.lock:
            now = self.monotonic()
            alone = how == TAKE and now < self._alone_until
            waits = [int((now - each.arrived + SHIFT) * SECOND) for each in list(self.queue)[:2]]
        first, second = (*waits, -1, -1)[:2]
        reply = self.store.ask(self._command, self._probe, exact, NOTHING if alone else how, first, second)
        with self.lock:
            now = self.monotonic()
            if reply is None:
                self._alone_until = FOREVER
                return None
            has_slot, limit, self._total, processes, rank, born, heard = reply
            # Else the server has forgotten this process because none has asked for long.
            was_emptied = 0 < self._heard < born and heard - self._heard < LASTS * 1000
            self._heard = heard
            if self._alone_until == FOREVER or was_emptied:
                alone = alone or (was_emptied and how == TAKE)
                self._alone_until, self._renewed = now + RECOUNT, float("-inf")
                self.store.beat.want(self)
            elif now >= self._alone_until:
                self._alone_until = 0.0
            if rank >= 0:
                self._renewed = now
                if self._part is None or not self._alone_until:  # else it does not know of all of them yet
                    self._part = Part(processes, rank)
            self._learn(limit)
            return None if alone else bool(has_slot)

    def _learn(self, limit: int) -> None:
        self._limit = limit
        if limit != self.policy.first_limit and not self._has_warned:
            self._has_warned = True
            text = (
                "%s: its bulkhead differs between the processes that share it: max_concurrent %d is in force, which "
                "has been configured later than %d"
            )
            log("limit_differs", text, self.name, limit, self.policy.first_limit, policy=self.name)

    def _probe(self) -> None:
        self.store.run(self._command, -1, NOTHING, -1, -1)
