"""The budget of a rate limit in a file that the processes of a machine share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.executors.state.budget import Budget, Terms, book, migrated, refund
from opero.executors.state.pace import STEADY, Pace, due_after, paused
from opero.executors.state.shared_home import FileHome

if TYPE_CHECKING:
    from opero.executors.state.budget import LocalBudget, Receipt, Values
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.state_file import StateFile


class SharedBudget(FileHome, Budget):
    """Keeps the budget in a file: its number is `due`, and its state the terms of the newest policy and the latest pause.

    Args:
        file: the file. A new one has no terms yet: a budget moves there.
        own: the executor's budget in this process, on whose clock it is.
    """

    def __init__(self, file: StateFile, own: LocalBudget) -> None:
        super().__init__(file)
        self.monotonic = own.monotonic
        self._newest: tuple[Terms, Pace] | None = None
        self._seen = -1

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock as file:
            self.check()
            due = file.number
            wait, file.number = book(due, now, cost, patience, *self._in_force())
            return wait, (due, file.number)

    def refund(self, receipt: Receipt) -> None:
        with self.lock as file:
            self.check()
            file.number = refund(file.number, receipt)

    def pause(self, now: float, seconds: float) -> bool:
        with self.lock as file:
            self.check()
            terms, pace = self._in_force()
            new = paused(now + seconds, now)
            if new.resume <= pace.resume:
                return False
            file.number = due_after(new.resume, *terms)
            self._write(terms, new)
            return True

    def slow_down(self, now: float, seconds: float) -> None:
        with self.lock as file:
            self.check()
            file.number = max(file.number, due_after(now + seconds, *self._in_force()[0]))

    def resumes(self) -> float:
        with self.lock:
            self.check()
            return self._in_force()[1].resume

    def apply(self, policy: RateLimitPolicy) -> None:
        new = Terms.of(policy)
        with self.lock as file:
            terms, pace = self._in_force()
            file.number = migrated(file.number, self.monotonic(), terms, new)
            self._write(new, pace)

    def values(self) -> Values:
        return self.file.number, *self._in_force()

    def receive(self, values: Values) -> None:
        file, (due, terms, pace) = self.file, values
        if not file.version:
            file.number = due
            self._write(terms, pace)
            return
        newest, latest = self._in_force()
        if due:  # else no permit has ever been taken there
            file.number = max(file.number, migrated(due, self.monotonic(), terms, newest))
        if pace.resume > latest.resume:
            self._write(newest, pace)

    def _in_force(self) -> tuple[Terms, Pace]:
        """The terms and the pause in the file, which are read again when they have changed."""
        if self._newest is None or self._seen != self.file.version:
            self._seen = self.file.version
            terms, pace = self.file.read()
            self._newest = Terms(*terms), Pace(*pace)
        return self._newest

    def _write(self, terms: Terms, pace: Pace = STEADY) -> None:
        self.file.write((tuple(terms), tuple(pace)))
        self.file.version += 1
