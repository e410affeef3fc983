"""A rate limit's budget that processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.executors.state.budget import FOREVER, Ledger, LockedLedger, _Line, new_ledger

if TYPE_CHECKING:
    from opero.executors.rate_limit import RateLimitExecutor
    from opero.runtime.state_file import StateFile

__all__ = ["share_rate_limit"]


class _InFile:
    """Keeps the moment at which the next permit falls due in a file. Its own `_due` says never: `take` looks here.

    The file also holds the terms of the newest policy, by which permits are given to all, and their version.
    """

    __slots__ = ()

    _file: StateFile
    _booker: Ledger
    """Does the sums, under the file's lock: nobody else asks it."""

    def book(self, now: float, cost: float, patience: float) -> tuple[float, float]:
        with self._file:
            _load(self)
            booked = self._booker.book(now, cost, patience)
            self._file.number = self._booker._due
        return booked

    def refund(self, receipt: float, cost: float) -> None:
        with self._file:
            _load(self)
            self._booker.refund(receipt, cost)
            self._file.number = self._booker._due

    def hand_over(self, new: Ledger, unit: float) -> None:
        with self._file as file:
            _load(self)
            self._booker.hand_over(booker := Ledger(new.rate, new.burst, new._monotonic), unit)
            _link(self, new)
            due = _join(new, file)
            file.number = max(booker._due, due) if due != FOREVER else booker._due
            _write_terms(file, new)


class SharedLedger(_InFile, Ledger):
    __slots__ = ()


class SharedLockedLedger(_InFile, LockedLedger):
    __slots__ = ()


def share_rate_limit(limiter: RateLimitExecutor, file: StateFile, *, first: bool) -> None:
    ledger = limiter.ledger.head
    with file:  # whoever books meanwhile waits for it
        due = _join(ledger, file)
        if first:
            file.number = due
            _write_terms(file, ledger)


def _load(ledger: Any) -> None:
    """Take over what the file says, and the terms in it, where they have changed."""
    file = ledger._file
    if ledger._seen != file.version:
        ledger._seen = file.version
        rate, burst = file.read()
        ledger._booker = Ledger(rate, burst, ledger._monotonic)
    ledger._booker._due = file.number


def _link(ledger: Any, new: Ledger) -> None:
    line = ledger._line or _Line()
    line.head = new
    ledger._line = new._line = line


def joined(ledger: Ledger, other: Ledger, unit: float) -> Ledger:
    """What goes on with a ledger's debts in the file that another one has already."""
    file = other._file
    heir = new_ledger(other.rate, other.burst, other._monotonic)
    ledger.hand_over(heir, unit)
    with file:
        file.number = max(file.number, _join(heir, file))
    return heir


def _join(ledger: Ledger, file: StateFile) -> float:
    """Have a ledger look at a file; what it had for itself."""
    ledger._booker = Ledger(ledger.rate, ledger.burst, ledger._monotonic)
    ledger._file = file
    ledger._seen = -1
    ledger.__class__ = SharedLockedLedger if isinstance(ledger, LockedLedger) else SharedLedger
    due, ledger._due = ledger._due, FOREVER
    return due


def _write_terms(file: StateFile, ledger: Ledger) -> None:
    file.write((ledger.rate, ledger.burst))
    file.version += 1
