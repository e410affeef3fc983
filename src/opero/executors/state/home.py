"""Homes: where the state of a limit is kept, and how it moves from one home to another.

The state of a rate limit (its budget), of a circuit breaker (its circuit) and of a bulkhead (its slots) is kept in a
home: in this process, in a file that the processes of a machine share, or in redis. An executor is a `Holder`: it
applies one policy to one state, asks the home that has the state now, and does not know what kind of home that is.

State moves in three situations, each of them one operation of `Holder`:

- a policy is replaced: the executor of the new policy continues with the state of the old one (`migrate_from`). From
  then on both hold the same state, and what calls under way report to the old one counts for both;
- a map starts worker processes: the state moves to a home that they share (`move_to`);
- a worker process starts: its executors join the home that has a state already (`join`).

A home that the state has left knows its successor. Nothing is lost in between: an operation that comes too late raises
`Moved`, and its caller repeats it at the successor.

Adding a kind of home takes one class for each kind of state: a subclass of `Budget`, `CircuitHome` or `Slots` that
implements their operations. Executors stay as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, TypeVarTuple

from opero.observe.hooks import Emitter
from opero.runtime.forking import RenewedLock
from opero.runtime.hosts import run_later

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Self

    from opero.runtime.hosts import Host

H = TypeVar("H", bound="Home")
R = TypeVar("R")
Args = TypeVarTuple("Args")
Owner = tuple[int, float]
"""A process: its number and when it began, as numbers are used again."""

migrating = RenewedLock()
"""Held while state moves: one move at a time in a process. Nothing waits while it is held."""


class Moved(Exception):  # noqa: N818  # a signal between a home and its holder, never shown to users
    """The state has moved: repeat the operation at the home's `successor`."""


class _Location:
    """Refers to the home that has a state now. All homes that the state has had share it, so none keeps another."""

    __slots__ = ("home",)

    home: Any


class Home(ABC):
    """Keeps the state of one limit.

    Operations are atomic, do not wait for other calls, and raise `Moved` once the state is kept elsewhere.

    Attributes:
        is_shared: other processes use the same state, so it stays where it is when a policy is replaced.
        stated: if the policy of its executor says that the state is here: the fields of the policy that say so, with
            nothing left to defaults. An executor of another policy does not leave the state here.
        blocks: an operation may take so long, for example over a network, that it must not run in an event loop's
            thread. Attributes that calls read without a lock must not block.
        lock: held while the state moves into or out of this home.
    """

    is_shared: ClassVar[bool] = False
    lock: AbstractContextManager[Any]

    def __init__(self) -> None:
        self.location = _Location()
        self.location.home = self
        self.stated: dict[str, Any] = {}
        self.blocks = False  # a class attribute takes longer to read

    @property
    def trouble(self) -> str:
        """Why the state cannot be reached, in one line; "" while it can."""
        return ""

    @property
    def successor(self) -> Self:
        """The home that has the state now: this one, or the last of those that the state has moved to."""
        home = self
        while (found := home.location.home) is not home:
            home = found
        return home

    def check(self) -> None:
        """Raise `Moved` if the state is kept elsewhere by now. To be called with the lock held."""
        if self.location.home is not self:
            raise Moved

    def move_to(self, target: Home) -> None:
        """Move the state to another home, which continues with it."""
        self._move(target, target.receive)

    def merge_into(self, target: Home) -> None:
        """Add this state to the one that another home has already."""
        self._move(target, target.add)

    def _move(self, target: Home, receive: Callable[[Any], None]) -> None:
        try:
            with self.lock, target.lock:
                self._pass(target, receive)
        except BaseException:
            self.release()
            target.release()
            raise

    def release(self) -> None:  # noqa: B027  # a lock of this process is always released
        """Release the lock if this thread still has it, as an interruption has kept it from releasing it."""

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        receive(self.values())
        self.refer_to(target)
        self.vacate()

    def refer_to(self, target: Home) -> None:
        """Send callers to the home that the state has moved to."""
        location = self.location
        location.home = target
        target.location = location

    # What each kind of home implements. All of it is called with the lock held.

    @abstractmethod
    def values(self) -> Any:
        """The state as values, for `receive` or `add` of another home."""

    @abstractmethod
    def receive(self, values: Any) -> None:
        """Continue with the state of a home that was there before this one."""

    def add(self, values: Any) -> None:
        """Add the state of a home that began later than this one."""
        self.receive(values)

    def vacate(self) -> None:  # noqa: B027  # nothing to do where every operation begins with `check`
        """The state has moved: have operations that do not call `check` answer as if nothing were available."""

    @abstractmethod
    def apply(self, policy: Any) -> None:
        """Use a new policy for the state from now on. Called without the lock."""


class Holder(Emitter, Generic[H]):
    """What an executor is with regard to its state.

    Args:
        policy: what the executor applies.
        own: a home in this process for the policy, where the state is unless it moves.

    Attributes:
        home: the home that had the state when it was last asked.
        origin: the fields of its events that say what they concern: `policy`, and `function` if it serves only one.
    """

    origin: Mapping[str, str] = MappingProxyType({})

    def __init__(self, policy: Any, own: H) -> None:
        self.policy = policy
        self.own = own
        self.home = own

    def ask(self, operation: Callable[[H], R]) -> R:
        """The result of an operation at the home that has the state now."""
        while True:
            try:
                return operation(self.home)
            except Moved:
                self.follow()

    async def run(self, host: Host, operation: Callable[[], R], undo: Callable[[R], object]) -> R:
        """Run an operation on the state for a coroutine, whose event loop does not wait for a home that blocks.

        Args:
            host: the coroutine's.
            operation: returns a result or raises.
            undo: is called with the result if the coroutine has been cancelled and will not get it.
        """
        if not self.home.blocks:
            return operation()
        results: list[R] = []
        unclaimed = [True]  # popped by the operation when it ends, or by the cancelled coroutine before that

        def run() -> R:
            result = operation()
            results.append(result)
            if not _pop(unclaimed):
                undo(result)
            return result

        try:
            return await host.offload(run)
        except BaseException:
            if not _pop(unclaimed):
                self.run_later(undo, results[0])
            raise

    def run_later(self, operation: Callable[[*Args], object], *args: *Args) -> None:
        """Run an operation that a coroutine does not wait for, since it is ending."""
        if self.home.blocks:
            run_later(operation, *args)
        else:
            operation(*args)

    def follow(self) -> bool:
        """Use the home that has the state now; whether it has moved since it was last asked."""
        home = self.home.successor
        has_moved = home is not self.home
        self.home = home
        return has_moved

    def migrate_from(self, old: Holder[H]) -> None:
        """Continue with the state of an executor whose policy this one's replaces (see `opero.executors.state`)."""
        with migrating:
            theirs, mine = old.home.successor, self.own.successor
            if mine.stated:
                if theirs is not mine:
                    theirs.merge_into(mine)
            elif theirs.stated:
                theirs.move_to(mine)
            elif theirs.is_shared:
                if mine is not theirs:
                    mine.merge_into(theirs)
            elif mine.is_shared:
                theirs.move_to(mine)
            else:
                for home in (mine, theirs):
                    if home.successor is not self.own:
                        home.move_to(self.own)
            self.follow()
            self.home.apply(self.policy)

    def move_to(self, home: H) -> None:
        """Move the state to another home, for example to one that worker processes share."""
        with migrating:
            self.home.successor.move_to(home)
            self.follow()

    def join(self, home: H) -> None:
        """Use a state that another home has already: what this executor has counted so far is added to it."""
        with migrating:
            self.home.successor.merge_into(home)
            self.follow()


def _pop(tokens: list[bool]) -> bool:
    """Take the only token; False if another thread has done so."""
    try:
        return tokens.pop()
    except IndexError:
        return False
