"""The moments at which permits fall due."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.runtime.state_file import StateFile

__all__ = ["FOREVER", "Ledger", "LockedLedger", "new_ledger"]

FOREVER = float("inf")
HAS_GLOBAL_LOCK: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class Ledger:
    """The moments at which permits fall due, as one number (the generic cell rate algorithm).

    A permit is reserved first and waited for afterwards, outside the lock: callers are served in the order in which
    they reserve, and one that wakes late delays nobody behind it.

    Args:
        rate: permits a second.
        burst: how many may be saved up.
        monotonic: tells the time.
        cost: what `take` takes.
    """

    # Between the reading of `_due` and its writing lies no call and no backward jump, so under CPython's global lock no
    # other thread runs in between, nor a signal's handler. A lock of its own would cost more than all the rest, and an
    # interruption just after taking it would leave it taken. `LockedLedger` is for where there is no global lock.
    __slots__ = (
        "_booker",
        "_due",
        "_file",
        "_interval",
        "_line",
        "_monotonic",
        "_saved",
        "_seen",
        "_step",
        "burst",
        "rate",
    )

    # Only a ledger that processes share has these.
    _booker: Ledger
    _file: StateFile
    _seen: int

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float], cost: float = 1.0) -> None:
        self._monotonic = monotonic
        self._interval = 1.0 / rate
        self.rate = rate
        self.burst = burst
        self._due = 0.0
        # For `take`: how long before it falls due a permit can be used out of the burst, and what taking it moves.
        self._saved = (burst - min(cost, burst)) * self._interval
        self._step = cost * self._interval
        self._line: _Line | None = None

    def take(self) -> bool:
        """Take the permits for a call of the usual cost if they are due: what a call does that need not wait."""
        now = self._monotonic()
        due = self._due
        if due - self._saved > now:
            return False
        self._due = (due if due > now else now) + self._step  # noqa: FURB136  # max() is a call
        return True

    def reserve(self, now: float, cost: float = 1.0, patience: float = FOREVER) -> float:
        """Seconds until permits for `cost` fall due. They are reserved if that is no longer than `patience`."""
        return self.book(now, cost, patience)[0]

    def book(self, now: float, cost: float, patience: float) -> tuple[float, float]:
        """As `reserve`, and the receipt that `refund` takes."""
        saved = (self.burst - min(cost, self.burst)) * self._interval
        due = self._due
        if due == FOREVER:  # it has moved, to a file or to the ledger of a new policy
            return self.head.book(now, cost, patience)
        if due < now:  # max() is a call
            due = now
        wait = due - saved - now
        if wait < 0.0:
            wait = 0.0
        if wait <= patience:
            due += cost * self._interval
            self._due = due
        return wait, due

    def refund(self, receipt: float, cost: float) -> None:
        """Give back a reservation that will not be used, unless others have reserved behind it."""
        if self._due == receipt:
            self._due = receipt - cost * self._interval

    @property
    def head(self) -> Ledger:
        """The ledger that counts for this one, since a new policy has replaced that of this one; else itself."""
        return self if self._line is None else self._line.head

    def hand_over(self, new: Ledger, unit: float) -> None:
        """Let a ledger with other terms go on with this one's debts; this one's callers go there from now on.

        The moment at which the next permit falls due stays, and so nobody passes those to whom permits are promised.
        Permits that are saved up stay as many, if the burst holds them.

        Args:
            new: the ledger.
            unit: how many permits are what falls due next: the least that a call takes.
        """
        line, now, unit = self._line or _Line(), self._monotonic(), min(unit, self.burst, new.burst)
        interval, burst, before, held = new._interval, new.burst, self._interval, self.burst
        due = self._due  # from here on nothing is called
        saved = held - (due - now) / before if due > now else held
        if saved >= unit:
            due = now + (burst - saved) * interval  # before `now` where the burst holds fewer: then it is full
        else:
            due += (burst - unit) * interval - (held - unit) * before
        if due > new._due or new._due == FOREVER:  # it may have been asked already
            new._due = due
        line.head = new
        self._line = new._line = line
        self._due = FOREVER


class _Line:
    """The ledgers of policies that have replaced one another. They hold only the last of them, which counts for all."""

    __slots__ = ("head",)

    head: Ledger


class LockedLedger(Ledger):
    """The same, for an interpreter without a global lock."""

    __slots__ = ("_lock",)

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float], cost: float = 1.0) -> None:
        super().__init__(rate, burst, monotonic, cost)
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            return super().take()

    def book(self, now: float, cost: float, patience: float) -> tuple[float, float]:
        with self._lock:
            return super().book(now, cost, patience)

    def refund(self, receipt: float, cost: float) -> None:
        with self._lock:
            super().refund(receipt, cost)

    def hand_over(self, new: Ledger, unit: float) -> None:
        assert isinstance(new, LockedLedger)
        with self._lock, new._lock:
            super().hand_over(new, unit)


def new_ledger(rate: float, burst: float, monotonic: Callable[[], float], cost: float = 1.0) -> Ledger:
    """A ledger that is exact under this interpreter's threads."""
    return (Ledger if HAS_GLOBAL_LOCK else LockedLedger)(rate, burst, monotonic, cost)
