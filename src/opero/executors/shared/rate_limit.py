"""A rate limit's budget that processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.executors.ledger import FOREVER, Ledger, LockedLedger

if TYPE_CHECKING:
    from opero.executors.rate_limit import RateLimitExecutor
    from opero.executors.shared.state_file import StateFile

__all__ = ["share_rate_limit"]


class _InFile:
    """Keeps the moment at which the next permit falls due in a file. Its own `_due` says never: `take` looks here."""

    __slots__ = ()

    _file: StateFile
    _booker: Ledger
    """Does the sums, under the file's lock: nobody else asks it."""

    def book(self, now: float, cost: float, patience: float) -> tuple[float, float]:
        with self._file:
            self._booker._due = self._file.number
            booked = self._booker.book(now, cost, patience)
            self._file.number = self._booker._due
        return booked

    def refund(self, receipt: float, cost: float) -> None:
        with self._file:
            self._booker._due = self._file.number
            self._booker.refund(receipt, cost)
            self._file.number = self._booker._due


class SharedLedger(_InFile, Ledger):
    __slots__ = ()


class SharedLockedLedger(_InFile, LockedLedger):
    __slots__ = ()


def share_rate_limit(limiter: RateLimitExecutor, file: StateFile, *, first: bool) -> None:
    ledger, policy = limiter.ledger, limiter.policy
    with file:  # whoever books meanwhile waits for it
        ledger._booker = Ledger(policy.rate, policy.burst, limiter.clock.monotonic)
        ledger._file = file
        ledger.__class__ = SharedLockedLedger if isinstance(ledger, LockedLedger) else SharedLedger
        due, ledger._due = ledger._due, FOREVER
        if first:
            file.number = due
