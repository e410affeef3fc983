"""The budget of a rate limit in redis, which the processes of all machines share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from opero.executors.state.budget import AGAIN, FOREVER, LATER, Budget, Terms, migrated
from opero.executors.state.home import Moved
from opero.executors.state.measured_share import Claim, Turns, period_of
from opero.executors.state.pace import STEADY, Pace, due_after, paused
from opero.executors.state.redis_scripts import BOOK, PAUSE, REFUND, SECOND
from opero.executors.state.redis_store import Command
from opero.policies.quantities import LONGEST
from opero.runtime.forking import renew_in_child
from opero.runtime.hosts import run_later
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.state.budget import LocalBudget, Receipt, Values
    from opero.executors.state.home import Home
    from opero.executors.state.redis_store import RedisStore
    from opero.policies.rate_limit import RateLimitPolicy

NONE: Receipt = (0.0, 0.0)
"""The receipt of permits that are not given back."""
RECENT = 0.05
"""Seconds for which what the server has said of a pause is relied upon."""


class RedisBudget(Budget):
    """Keeps the budget in redis, or what this process may use of it while redis cannot be used.

    Nothing is sent until the first permit is booked. The server's clock decides, and says how long to wait.

    Args:
        store: the redis.
        key: the name of the budget there.
        policy: what it is for.
        own: the executor's budget in this process, on whose clock it is.
        name: what messages begin with.
    """

    is_shared: ClassVar[bool] = True

    def __init__(self, store: RedisStore, key: str, policy: RateLimitPolicy, own: LocalBudget, name: str) -> None:
        super().__init__()
        self.blocks = True
        self.lock = threading.RLock()
        self.store = store
        self.name = name
        self.own = own
        self.monotonic = own.monotonic
        self.keys = (f"opero:{{{key}}}:due".encode(), f"opero:{{{key}}}:used".encode())
        self._refund = Command(REFUND, self.keys[:1], (), 2)
        self.terms = _terms(policy)
        self._since = 0
        self._owed = 0.0  # the moment, on this clock, before which no permit may fall due by what has moved here
        self._seen = (0, 0, 0.0)  # what the server said last: its clock, `due`, and when, on this clock
        self._paused = (0, STEADY)  # when the latest pause ends, by the server's clock, and the same by this one
        self._lost: float | None = None  # since when this process goes on by itself
        self._has_told = False
        self._forget()
        self.apply(policy)
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Leave the claim to the parent."""
        self._forget()

    def _forget(self) -> None:
        self._turns: Turns | None = None
        self._claim: tuple[Claim | None, float] = (None, 0.0)  # and until when it may be used
        self._used = 0.0  # permits that have not been reported
        self._next_report = 0.0
        self._counted: dict[int, int] = {}  # period → permits reported

    # The interface of all budgets

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock:
            self.check()
            if patience < 0:  # nothing is to be booked
                due = self._seen[1] / SECOND
                return self.expected(cost), (due, due)
            ahead, news = self.news()
        asked, batch = self.monotonic(), self.own.batch(cost)
        arguments = (repr(cost), int(min(patience, LONGEST) * SECOND), ahead, repr(batch))
        if news is None:
            reply = self.store.ask(self._command, self._probe, *arguments)
        else:
            reply = self.store.ask(self._telling, self._probe, *arguments, *news)
        with self.lock:
            if reply is None:
                self.check()
                return self._book_without(cost, patience)
            wait, due, after, clock = reply[:4]
            receipt = (due / SECOND, after / SECOND)
            if batch and (calls := round((after - due) / (cost * self.in_force.interval * SECOND))) > 1:
                self.own.grant(calls - 1, asked)
                receipt = (after - (after - due) // calls) / SECOND, after / SECOND
            if self.location.home is not self:
                run_later(self._give_back, receipt)
                raise Moved
            self.note(clock, due, after, news)
            if len(reply) > 4:
                self._heed(reply[6] or 0)
            if len(reply) > 4 or self.in_force is not self.terms:
                self.heed_reply(reply, news)
            return wait / SECOND, receipt

    def note(self, clock: int, due: int, after: int, news: _News | None) -> None:
        """Note what the server has said: its clock, and `due` before and after it has booked."""
        if clock >= self._seen[0]:
            self._seen = (clock, after, self.monotonic())
        if after != due:
            self._used += (after - due) / (self.in_force.interval * SECOND)
        if news is not None:
            self._lost = self._turns = None
            self._owed = 0.0 if news.is_owed else self._owed

    def refund(self, receipt: Receipt) -> None:
        self.check()
        self._give_back(receipt)

    def pause(self, now: float, seconds: float) -> bool:
        with self.lock:
            self.check()
            if now + seconds <= self._paused[1].resume:
                return False
        self.own.drop()
        is_longer = self._put_off("pause", seconds)
        if is_longer is not None:
            return is_longer
        with self.lock:  # the server cannot be used
            self._paused = (self._paused[0], paused(now + seconds, now))
            self._owed = max(self._owed, due_after(now + seconds, *self.in_force))
            if self._turns is not None:
                self._turns.skip(self._moment(now) + seconds * SECOND)
        return True

    def slow_down(self, now: float, seconds: float) -> None:
        self.check()
        self._put_off("slow_down", seconds)

    def _put_off(self, what: str, seconds: float = 0.0) -> bool | None:
        """Have the server put off permits, as `PAUSE` does. Return whether a pause is longer than one that is in force;
        None if the server cannot be used."""
        unit = self.terms.unit or 1.0
        reply = self.store.ask(self._pause, self._probe, repr(unit), int(seconds * SECOND), what)
        if reply is None:
            return None
        is_longer, clock, due, resume = reply
        with self.lock:
            if clock >= self._seen[0]:
                self._seen = (clock, due, self.monotonic())
            self._heed(resume)
        return bool(is_longer)

    def _heed(self, resume: int) -> None:
        """Remember when a pause ends, as the server says."""
        if resume != self._paused[0]:
            self.own.drop()
            self._paused = (resume, Pace(self._local(resume)))

    def resumes(self, *, is_fresh: bool = True) -> float:
        """As in `Budget`. The server is asked, unless it has just answered or nothing fresh is needed."""
        self.check()
        if is_fresh and self.monotonic() - self._seen[2] > RECENT:
            self._put_off("look")
        return self._paused[1].resume

    def _give_back(self, receipt: Receipt) -> None:
        before, after = (round(each * SECOND) for each in receipt)
        if before != after and self.store.ask(self._refund, self._probe, after, before):
            with self.lock:
                clock, due, at = self._seen
                self._seen = (clock, before if due == after else due, at)

    def apply(self, policy: RateLimitPolicy) -> None:
        with self.lock:
            self.policy = policy
            terms = _terms(policy)
            if self._owed:
                self._owed = migrated(self._owed, self.monotonic(), self.terms, terms)
            self.terms = self.in_force = terms
            self._since = max(self._since + 1, time.time_ns() // 1000)
            self._period = period_of(terms.interval)
            constant = (self._since, repr(terms.interval * SECOND), terms.burst, int(self._period * SECOND))
            self.constant = constant
            self._command, self._telling = (Command(BOOK, self.keys, constant, count) for count in (4, 10))
            self._pause = Command(PAUSE, self.keys[:1], constant, 3)

    def values(self) -> Values:
        return max(self._owed, self._local(self._seen[1])), self.terms, self._paused[1], None

    def receive(self, values: Values) -> None:
        due, terms, *_ = values  # no permit falls due before a pause ends; what the ramp would add is left out
        if due:  # else no permit has ever been taken there
            self._owed = max(self._owed, migrated(due, self.monotonic(), terms, self.terms))

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        if isinstance(target, RedisBudget) and (target.store, target.keys) == (self.store, self.keys):
            self.refer_to(target)  # it is the same budget
        else:
            super()._pass(target, receive)

    @property
    def trouble(self) -> str:
        """Why the server cannot be used, in one line; "" while it can."""
        return self.store.trouble

    # What is sent, and what is learned from the reply

    def _local(self, moment: float) -> float:
        """A moment of the server's clock on this one."""
        clock, _, at = self._seen
        return at + (moment - clock) / SECOND if clock else 0.0

    def expected(self, cost: float) -> float:
        """The wait for a permit by what is known, without asking the server."""
        interval, burst, _ = self.terms
        due = max(0.0, self.values()[0] - self.monotonic())
        return due if cost >= burst else max(0.0, due - (burst - cost) * interval)

    def news(self) -> tuple[int, _News | None]:
        """Microseconds from now until `due`, by what is known here, and what the script has to be told besides."""
        now, owed = self.monotonic(), self._owed
        ahead = max(0, int(((owed or self._local(self._seen[1])) - now) * SECOND))
        if self._lost is None and not owed and now < self._next_report:
            return ahead, None
        lost, debt = -1, 0
        if self._lost is not None:
            lost = int((now - self._lost) * SECOND)
            debt = 0 if self._turns is None else self._turns.booked_ahead(self._moment(now))
        used = last = own = 0
        if now >= self._next_report:
            self._next_report = now + self._period / 10
            used, self._used = int(self._used), self._used % 1
            last = max(self._counted, default=0)
            own = self._counted.get(last, 0)
        return ahead, _News(int(bool(owed)), lost, debt, used, last, own)

    def heed_reply(self, reply: list[Any], news: _News | None) -> None:
        """Learn from a reply which terms are in force, and what this process may claim."""
        others, part = reply[4:6] or (None, None)
        if part and news is not None:
            number, before, total = part
            if total and news.own:
                self._claim = Claim.of(before, news.own, total), self.monotonic() + 2 * self._period
            counted = {each: used for each, used in self._counted.items() if each >= number - 1}
            self._counted = {**counted, number: counted.get(number, 0) + news.used}
        self.in_force = self.terms if others is None else Terms(*_numbers(others), self.terms.unit)
        if others is not None and not self._has_told:
            self._has_told = True
            text = (
                "%s: its rate limit differs between the processes that share it: %.6g/s with burst %d is in force, "
                "which has been configured later than %.6g/s with burst %d"
            )
            both = (each for terms in (self.in_force, self.terms) for each in (1 / terms.interval, terms.burst))
            log("limit_differs", text, self.name, *both, policy=self.name)

    # Without the server

    def _book_without(self, cost: float, patience: float) -> tuple[float, Receipt]:
        return {"local": self._book_alone, "open": _open, "closed": _closed}[self.policy.on_store_error](cost, patience)

    def _book_alone(self, cost: float, patience: float) -> tuple[float, Receipt]:
        """Book permits of this process's share."""
        wait = self.book_turn(cost, min(patience, AGAIN))
        return wait, LATER if wait > AGAIN else NONE

    def book_turn(self, cost: float, patience: float) -> float:
        """Book permits of this process's share if they fall due within `patience`: the seconds until then."""
        now = self.monotonic()
        if self._lost is None:
            self._lost = now
        moment = self._moment(now)
        if self._turns is None:
            self._turns = self._new_turns(now)
        return self._turns.book(moment, cost, patience * SECOND) / SECOND

    def _new_turns(self, now: float) -> Turns:
        claim, until = self._claim
        if claim is None or now > until:
            claim = Claim.unknown()
        start = max(self._seen[1], self._moment(now) + (self._owed - now) * SECOND)
        return Turns(claim, self.in_force.interval * SECOND, start)

    def _moment(self, now: float) -> float:
        """The server's clock; that of this machine, if the server has never answered."""
        clock, _, at = self._seen
        return clock + (now - at) * SECOND if clock else time.time() * SECOND

    def _probe(self) -> None:
        """Find out whether the server can be used again: write what would be written, but book nothing."""
        self.store.run(self._telling, 0, 0, 0, 0, *_News(lost=self.lost_for()))

    def lost_for(self) -> int:
        """Return the microseconds for which this process has gone on by itself; -1 if it does not."""
        return -1 if self._lost is None else int((self.monotonic() - self._lost) * SECOND)


class _News(NamedTuple):
    """What the script is told when there is something to tell.

    Attributes:
        is_owed: whether what it is told of `due` has moved here, so that it counts not only where the server has lost
            its own.
        lost: microseconds since this process began to use permits by itself; -1 if it does not.
        debt: microseconds of the limit for permits that it has booked then and that have not fallen due yet.
        used: permits booked since the last report.
        last, own: the period of the last report, and the permits reported in it.
    """

    is_owed: int = 0
    lost: int = -1
    debt: int = 0
    used: int = 0
    last: int = 0
    own: int = 0


def _terms(policy: RateLimitPolicy) -> Terms:
    """The terms by which the server keeps the budget: what may be reserved ahead is no part of the burst there."""
    terms = Terms.of(policy)
    return terms._replace(burst=terms.burst - policy.reserve)


def _numbers(texts: list[bytes]) -> tuple[float, float]:
    interval, burst = map(float, texts)
    return interval / SECOND, burst


def _open(cost: float, patience: float) -> tuple[float, Receipt]:
    return 0.0, NONE


def _closed(cost: float, patience: float) -> tuple[float, Receipt]:
    return FOREVER, NONE
