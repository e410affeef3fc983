"""The budget of a rate limit in a file that the processes of a machine share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.executors.state.adaptive import (
    Flow,
    Found,
    after_accepted,
    after_pause,
    after_refused,
    capped,
    started,
)
from opero.executors.state.budget import FOREVER, Budget, Terms, book, migrated, refund
from opero.executors.state.pace import Pace, due_after, paused
from opero.executors.state.shared_home import FileHome, releasing

if TYPE_CHECKING:
    from opero.executors.state.budget import LocalBudget, Receipt, Values
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.runtime.state_file import StateFile


class SharedBudget(FileHome, Budget):
    """Keeps the budget in a file: its number is `due`, and its state the terms of the newest policy, the
    latest pause, and where the rate is found, the flow of permits, of which `due` is a number then.

    Args:
        file: the file. A new one has no terms yet: a budget moves there.
        own: the executor's budget in this process, on whose clock it is.
    """

    def __init__(self, file: StateFile, own: LocalBudget) -> None:
        super().__init__(file)
        self.monotonic = own.monotonic
        self._newest: tuple[Terms, Pace, Flow | None] | None = None
        self._seen = -1
        self._most: float = getattr(own, "most", FOREVER)

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock as file:
            self.check()
            due = file.number
            terms, pace, flow = self._in_force()
            if flow is None:
                wait, file.number = book(due, now, cost, patience, terms, pace)
            else:
                wait, file.number = flow.book(due, now, patience, terms.burst)
            return wait, (due, file.number)

    def refund(self, receipt: Receipt) -> None:
        with self.lock as file:
            self.check()
            file.number = refund(file.number, receipt)

    def pause(self, now: float, seconds: float) -> bool:
        with self.lock as file:
            self.check()
            terms, pace, flow = self._in_force()
            if now + seconds <= (pace.resume if flow is None else flow.moment):
                return False
            if flow is None:
                pace = paused(now + seconds, now)
                file.number = due_after(pace.resume, *terms)
            else:
                flow = after_pause(flow, now, seconds)
            self._write(terms, pace, flow)
            return True

    def slow_down(self, now: float, seconds: float) -> None:
        with self.lock as file:
            self.check()
            terms, pace, flow = self._in_force()
            if flow is None:
                file.number = max(file.number, due_after(now + seconds, *terms))
            else:
                self._write(terms, pace, flow.held(now, seconds))

    def resumes(self, *, is_fresh: bool = True) -> float:
        with self.lock:
            self.check()
            _, pace, flow = self._in_force()
            return pace.resume if flow is None else flow.moment

    def left(self, receipt: Receipt, now: float) -> float:
        with self.lock:
            self.check()
            terms, _, flow = self._in_force()
            return FOREVER if flow is None else flow.left(receipt[1], now, terms.burst)

    def learn(self, sent: float, now: float, *, is_accepted: bool) -> tuple[float, float]:
        with self.lock:
            self.check()
            terms, pace, flow = self._in_force()
            if flow is None:
                return 0.0, 0.0
            before = flow.found
            found = after_accepted(before, sent, now, self._most) if is_accepted else after_refused(before, sent, now)
            self._write(terms, pace, flow.learned(now, found))
            return before.rate, found.rate

    @property
    @releasing
    def rate(self) -> float:
        with self.lock:
            flow = self._in_force()[2] if self.file.version else None
            return 0.0 if flow is None else flow.found.rate

    def apply(self, policy: RateLimitPolicy) -> None:
        self._most = policy.fastest
        with self.lock:
            due, terms, pace, flow = self.values()
            now, new = self.monotonic(), Terms.of(policy)
            if policy.is_adaptive:
                flow = started(policy, max(now, pace.resume)) if flow is None else capped(flow, now, self._most)
                new = new._replace(interval=1 / flow.found.rate)
            else:
                flow = None
            self._put(migrated(due, now, terms, new), new, pace, flow)

    def values(self) -> Values:
        due, (terms, pace, flow) = self.file.number, self._in_force()
        if flow is not None:
            now = self.monotonic()
            terms = terms._replace(interval=1 / flow.found.rate)
            due, pace = now + flow.until(due, now) if due else 0.0, Pace(max(flow.moment, pace.resume))
        return due, terms, pace, flow

    def receive(self, values: Values) -> None:
        due, terms, pace, flow = values
        if not self.file.version:
            self._put(due, terms, pace, flow)
            return
        latest, newest, paused, flowing = self.values()
        if due:  # else no permit has ever been taken there
            latest = max(latest, migrated(due, self.monotonic(), terms, newest))
        if due or pace.resume > paused.resume:
            self._put(latest, newest, max(pace, paused), flowing)

    def _put(self, due: float, terms: Terms, pace: Pace, flow: Flow | None) -> None:
        """Write values, with a moment as `due`."""
        if flow is not None and due:
            now = self.monotonic()
            due = flow.at(now) + (due - max(now, flow.moment)) * flow.found.rate
        self.file.number = due
        self._write(terms, pace, flow)

    def _in_force(self) -> tuple[Terms, Pace, Flow | None]:
        """What the file says, which is read again when it has changed."""
        if self._newest is None or self._seen != self.file.version:
            self._seen = self.file.version
            terms, pace, flow, *_ = self.file.read()  # what follows is of `SharedBudgets`
            self._newest = Terms(*terms), Pace(*pace), flow and Flow(flow[0], flow[1], Found(*flow[2]))
        return self._newest

    def _write(self, terms: Terms, pace: Pace, flow: Flow | None) -> None:
        packed = flow and (flow.permits, flow.moment, tuple(flow.found))
        self.file.write((tuple(terms), tuple(pace), packed))
        self.file.version += 1
