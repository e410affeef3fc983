"""The budget of a rate limit in a file that the processes of a machine share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.executors.state.budget import Budget, Terms, book, migrated, refund
from opero.executors.state.shared_home import FileHome

if TYPE_CHECKING:
    from opero.executors.state.budget import LocalBudget, Receipt
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.state_file import StateFile


class SharedBudget(FileHome, Budget):
    """Keeps the budget in a file: its number is `due`, and its state the terms of the newest policy.

    Args:
        file: the file. A new one has no terms yet: a budget moves there.
        own: the executor's budget in this process, on whose clock it is.
    """

    def __init__(self, file: StateFile, own: LocalBudget) -> None:
        super().__init__(file)
        self.monotonic = own.monotonic
        self._terms: Terms | None = None
        self._seen = -1

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock as file:
            self.check()
            due = file.number
            wait, file.number = book(due, now, cost, patience, self._newest_terms())
            return wait, (due, file.number)

    def refund(self, receipt: Receipt) -> None:
        with self.lock as file:
            self.check()
            file.number = refund(file.number, receipt)

    def apply(self, policy: RateLimitPolicy) -> None:
        terms = Terms.of(policy)
        with self.lock as file:
            file.number = migrated(file.number, self.monotonic(), self._newest_terms(), terms)
            self._write(terms)

    def values(self) -> tuple[float, Terms]:
        return self.file.number, self._newest_terms()

    def receive(self, values: tuple[float, Terms]) -> None:
        file, (due, terms) = self.file, values
        if not file.version:
            file.number = due
            self._write(terms)
        elif due:  # else no permit has ever been taken there
            file.number = max(file.number, migrated(due, self.monotonic(), terms, self._newest_terms()))

    def _newest_terms(self) -> Terms:
        """The terms in the file, which are read again when they have changed."""
        if self._terms is None or self._seen != self.file.version:
            self._seen = self.file.version
            self._terms = Terms(*self.file.read()[:3])  # what follows is of `SharedBudgets`
        return self._terms

    def _write(self, terms: Terms) -> None:
        self.file.write(tuple(terms))
        self.file.version += 1
