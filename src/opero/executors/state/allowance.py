"""The allowance of a retry budget: how many retries the calls of a profile have paid for, and which are still allowed.

A retry is paid for by the calls of the last `WINDOW` seconds, of which a share may be retries; or else by a reserve of
at least `RESERVE` retries, which fills up by `FLOOR` a second. So in any time

    retries <= share * calls + RESERVE + FLOOR * seconds

Calls are not counted here: who asks for a retry tells how many calls there were since it last asked.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Self

from opero.executors.state.home import Home
from opero.executors.state.shared_home import FileHome
from opero.policies.types import DEFAULT_BUDGET
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.policies.retry import RetryPolicy

WINDOW = 10.0
"""Seconds for which a call pays for retries."""
RESERVE = 60.0
"""Retries that are allowed whatever the number of calls; more if a single call may retry more often."""
FLOOR = 1.0
"""Retries a second by which the reserve fills up."""


class Terms(NamedTuple):
    """What a policy says: the share of the calls that may be retries, and the size of the reserve."""

    share: float
    reserve: float

    @classmethod
    def of(cls, policy: RetryPolicy) -> Self:
        return cls(policy.budget or DEFAULT_BUDGET, max(RESERVE, float(policy.retries)))


class Account(NamedTuple):
    """Calls and retries of two consecutive periods of `WINDOW` seconds, and the reserve.

    Attributes:
        since: when the current period began.
        calls, retries: in the current period; the retries that they have paid for.
        calls_before, retries_before: in the period before.
        reserve: the retries that are left in it.
        filled: when it was last filled up.
    """

    since: float
    calls: float
    retries: float
    calls_before: float
    retries_before: float
    reserve: float
    filled: float


# Decisions


def opened(now: float, terms: Terms) -> Account:
    """Return an account with nothing but a full reserve."""
    return Account(now, 0.0, 0.0, 0.0, 0.0, terms.reserve, now)


def draw(account: Account, now: float, terms: Terms, calls: float, retries: float) -> tuple[bool, Account]:
    """Return whether this many retries are allowed, and the account from then on.

    Args:
        account: the account.
        now: the clock's reading.
        terms: those of the policy in force.
        calls: calls since this was last asked.
        retries: retries that are about to begin.
    """
    since, calls_now, retries_now, calls_before, retries_before, reserve, filled = account
    reserve = min(terms.reserve, reserve + max(0.0, now - filled) * FLOOR)
    calls_now += calls
    passed = now - since
    if passed >= 2 * WINDOW:  # there were no retries for a while, and the calls came at any time
        calls_before, retries_before = calls_now * WINDOW / passed, 0.0
        since, calls_now, retries_now = now, 0.0, 0.0
    elif passed >= WINDOW:
        calls_before, retries_before = calls_now * WINDOW / passed, retries_now
        since, calls_now, retries_now = since + WINDOW, calls_now * (1 - WINDOW / passed), 0.0
    rest = 1 - (now - since) / WINDOW
    paid = terms.share * (calls_now + rest * calls_before) - (retries_now + rest * retries_before)
    is_allowed = True
    if paid >= retries:
        retries_now += retries
    elif reserve >= retries:
        reserve -= retries
    else:
        is_allowed = False
    return is_allowed, Account(since, calls_now, retries_now, calls_before, retries_before, reserve, now)


def merged(one: Account, other: Account) -> Account:
    """Return the account of those who have used two accounts until now. The reserve is that of the poorer one."""
    return Account(
        max(one.since, other.since),
        one.calls + other.calls,
        one.retries + other.retries,
        one.calls_before + other.calls_before,
        one.retries_before + other.retries_before,
        min(one.reserve, other.reserve),
        max(one.filled, other.filled),
    )


class Allowance(Home):
    """Keeps an account. Its values are the account and the `Terms`."""

    @abstractmethod
    def draw(self, now: float, calls: float, retries: float) -> bool:
        """As the function `draw`."""


class LocalAllowance(Allowance):
    """Keeps the account in this process."""

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.terms = Terms.of(policy)
        self.account = opened(now, self.terms)
        renew_in_child(self, "lock")

    def draw(self, now: float, calls: float, retries: float) -> bool:
        with self.lock:
            self.check()
            is_allowed, self.account = draw(self.account, now, self.terms, calls, retries)
            return is_allowed

    def apply(self, policy: RetryPolicy) -> None:
        self.terms = Terms.of(policy)

    def values(self) -> tuple[Account, Terms]:
        return self.account, self.terms

    def receive(self, values: tuple[Account, Terms]) -> None:
        self.account = values[0]

    def add(self, values: tuple[Account, Terms]) -> None:
        self.account = merged(self.account, values[0])


class SharedAllowance(FileHome, Allowance):
    """Keeps the account in a file, with the newest terms."""

    def draw(self, now: float, calls: float, retries: float) -> bool:
        with self.lock as file:
            self.check()
            account, terms = file.read()
            is_allowed, account = draw(Account(*account), now, Terms(*terms), calls, retries)
            file.write((tuple(account), tuple(terms)))
            return is_allowed

    def apply(self, policy: RetryPolicy) -> None:
        with self.lock as file:
            account, _ = file.read()
            file.write((account, tuple(Terms.of(policy))))

    def values(self) -> tuple[Account, Terms]:
        account, terms = self.file.read()
        return Account(*account), Terms(*terms)

    def receive(self, values: tuple[Account, Terms]) -> None:
        account, terms = values
        held = self.file.read()
        if held is not None:
            account, terms = merged(Account(*held[0]), account), Terms(*held[1])
        self.file.write((tuple(account), tuple(terms)))
