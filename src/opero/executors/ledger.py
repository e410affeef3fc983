"""The moments at which permits fall due."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.executors.shared import StateFile

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
    __slots__ = ("_booker", "_due", "_file", "_interval", "_monotonic", "_saved", "_step", "burst")

    # Only a ledger that processes share has these.
    _booker: Ledger
    _file: StateFile

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float], cost: float = 1.0) -> None:
        self._monotonic = monotonic
        self._interval = 1.0 / rate
        self.burst = burst
        self._due = 0.0
        # For `take`: how long before it falls due a permit can be used out of the burst, and what taking it moves.
        self._saved = (burst - min(cost, burst)) * self._interval
        self._step = cost * self._interval

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
        if due == FOREVER:  # it has moved to a file while this was on its way
            return self.book(now, cost, patience)
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


def new_ledger(rate: float, burst: float, monotonic: Callable[[], float], cost: float = 1.0) -> Ledger:
    """A ledger that is exact under this interpreter's threads."""
    return (Ledger if HAS_GLOBAL_LOCK else LockedLedger)(rate, burst, monotonic, cost)
