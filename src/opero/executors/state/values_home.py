"""Homes of what is remembered of the values of a fallback argument: their interface, and the one in this process."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from opero.executors.state.home import Home, Moved
from opero.executors.state.values import Memory, end, merge, take_least
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.executors.state.home import Owner
    from opero.executors.state.values import Chooser, Id

R = TypeVar("R")
Args = TypeVarTuple("Args")

NO_OWNER: Owner = (0, 0.0)
"""This process, where no other uses the same memory."""


class ValuesHome(Home):
    """Keeps a memory. Its values are the `Memory`.

    Attributes:
        version: that of the memory, which calls read without a lock; another one once the memory has moved.
        key: that of the memory.
    """

    if TYPE_CHECKING:  # a class attribute would make the access to an instance's own slower

        @property
        def version(self) -> int: ...

        @property
        def key(self) -> bytes: ...

    @property
    def owner(self) -> Owner:
        """This process, as far as this home has to tell it from others."""
        return NO_OWNER

    @abstractmethod
    def change(self, decide: Callable[[Memory, *Args], R], *args: *Args) -> R:
        """Run a decision on the memory, and return what it returns."""

    @abstractmethod
    def next_turn(self) -> int:
        """The number of a call, for orders that go round."""

    def take(self, values: Sequence[Id], positions: Sequence[int], chooser: Chooser | None = None) -> int:
        """As `take_least`."""
        return self.change(take_least, values, positions, self.next_turn(), self.owner, chooser)

    def give_back(self, value: Id, chooser: Chooser | None = None) -> None:
        """End an attempt with a value that `take` has chosen."""
        self.change(end, value, self.owner, chooser)

    def apply(self, policy: Any) -> None:
        """What a new policy says holds from the next call on."""


class LocalValues(ValuesHome):
    """Keeps the memory in this process."""

    version: int
    key: bytes

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.memory = Memory()
        self.turns = count()
        self._publish()
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Forget calls in flight: they are the parent's."""
        self.memory.running.clear()
        self.memory.probed.clear()

    def next_turn(self) -> int:
        return next(self.turns)

    def change(self, decide: Callable[[Memory, *Args], R], *args: *Args) -> R:
        with self.lock:
            if self.location.home is not self:
                raise Moved
            memory = self.memory
            result = decide(memory, *args)
            self.version = memory.version
            return result

    def take(self, values: Sequence[Id], positions: Sequence[int], chooser: Chooser | None = None) -> int:
        with self.lock:
            if self.version < 0:
                raise Moved
            return take_least(self.memory, values, positions, next(self.turns), NO_OWNER, chooser)

    def give_back(self, value: Id, chooser: Chooser | None = None) -> None:
        with self.lock:
            if self.version < 0:
                raise Moved
            end(self.memory, value, NO_OWNER, chooser)

    def values(self) -> Memory:
        return self.memory

    def receive(self, values: Memory) -> None:
        own, self.memory = self.memory, values
        merge(values, own)
        self._publish()

    def vacate(self) -> None:
        self.version = -1

    def _publish(self) -> None:
        self.version, self.key = self.memory.version, self.memory.key
