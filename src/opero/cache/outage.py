"""Circuit breaker for cache stores: after a failure, it probes the store with exponential backoff."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from opero.errors import describe
from opero.events import CacheFailed, CacheRestored
from opero.observe.hooks import Emitter
from opero.observe.subscriptions import emit
from opero.policies.types import approximate_duration
from opero.runtime.forking import RenewedLock, renew_in_child
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.runtime.clock import Clock

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
OUTAGES = frozenset({"OSError", "TimeoutError", "OperationalError", "RejectedError"})
"""Names of exceptions that no request causes by what it brings, whichever client has them: for timeouts, for locks."""

_reporting = RenewedLock()
"""Protects the counts of all throttled events."""


class User(Protocol):
    """A user of a store."""

    def ask(self) -> object:
        """Read a few bytes; fails if the store does not answer."""


class StoreBreaker(Emitter):
    """Runs a store's operations, and skips them for a while after a failure: 1 s, then 2, 4, … up to 30 s.

    After each pause one operation probes the store; all others are skipped until a probe succeeds.

    What a single request brings, such as a value that is too large for the store, is no failure of the store: an
    operation that fails is forgiven if the store answers right afterwards.

    Args:
        name: the store's name, for messages.
        clock: the source of time.
        limit: runs an operation with a timeout; None if the store has timeouts of its own.

    Attributes:
        users: who uses the store; any of them can ask whether it answers.
        trouble: why functions run without the store, in one line; "" while it works.
    """

    def __init__(self, name: str, clock: Clock, limit: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.clock = clock
        self.limit = limit
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self.trouble = ""
        self._refused = ThrottledFailure("refused", name, clock)
        self._lock = threading.RLock()
        self._open_until = float("-inf")
        self._failures = 0
        self._skipped = 0
        self._is_probing = False
        renew_in_child(self, "_lock")

    def after_fork(self) -> None:
        """Let another operation probe the store, if a thread of the parent is doing so."""
        if self._is_probing:
            self._is_probing = False
            self._open_until = float("-inf")

    def __call__(self, default: T, operation: Callable[..., T], *args: Any) -> T:
        """Return the operation's result, or `default` if the store is down or fails."""
        is_probe = self._failures > 0
        if is_probe and not self._may_probe():
            return default
        try:
            result = operation(*args) if self.limit is None else self.limit(operation, *args)
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            if not self._answers(error):
                self._failed(error, is_probe=is_probe)
                return default
            self._refused.report(f"the store refused an operation, which was left out: {describe(error)}", error)
            result = default
        if self._failures:
            self._recovered()
        return result

    def _answers(self, error: Exception) -> bool:
        """Return whether the store works nevertheless. One that was too slow, locked or full is not asked."""
        if any(each.__name__ in OUTAGES for each in type(error).__mro__):
            return False
        try:
            user = next(iter(list(self.users)), None)
            if user is None:
                return False
            _ = user.ask() if self.limit is None else self.limit(user.ask)
        except Exception:  # noqa: BLE001  # as above
            return False
        return True

    def _may_probe(self) -> bool:
        with self._lock:
            now = self.clock.monotonic()
            if now < self._open_until:
                self._skipped += 1
                return False
            self._open_until = now + self._pause()  # other callers skip while this probe runs
            self._is_probing = True
            return True

    def _pause(self) -> float:
        return float(min(FIRST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE))

    def _failed(self, error: Exception, *, is_probe: bool) -> None:
        with self._lock:
            first = self._failures == 0
            if not first and not is_probe:
                return  # it was running when another operation opened the breaker
            self._failures += 1
            self.trouble = describe(error)
            self._is_probing = False
            pause = self._pause()
            self._open_until = self.clock.monotonic() + pause
        if first:
            message = (
                f"cache store failed ({describe(error)}); functions run without it, next probe in "
                f"{approximate_duration(pause)}"
            )
            log("cache_failed", "%s: %s", self.name, message, cache=self.name, what="unavailable", error=error)
            emit(CacheFailed, self.hooks, cache=self.name, what="unavailable", message=message, error=error)

    def _recovered(self) -> None:
        with self._lock:
            if not self._failures:
                return
            self._failures = 0
            self.trouble = ""
            self._is_probing = False
            skipped, self._skipped = self._skipped, 0
        message = f"cache store is available again; {skipped} operations were skipped"
        log("cache_restored", "%s: %s", self.name, message, clock=self.clock, cache=self.name, skipped=skipped)
        emit(CacheRestored, self.hooks, cache=self.name, message=message, skipped=skipped)


class ThrottledFailure:
    """Reports one kind of failure of a cache at most once a minute, with the number of occurrences in between.

    Args:
        what: the kind, as in `CacheFailed`.
        cache: the name of the function's cache, or of the store.
        clock: the source of time.

    Attributes:
        stats: those of the function, for its events; None if there is none.
    """

    INTERVAL = 60.0

    def __init__(self, what: str, cache: str, clock: Clock) -> None:
        self.what = what
        self.cache = cache
        self.clock = clock
        self.stats: Stats | None = None
        self._next = float("-inf")
        self._since = 0

    def report(self, message: str, error: BaseException | None = None) -> None:
        """Report a failure as a warning and an event, or only count it if the last one is less than a minute ago."""
        with _reporting:
            now = self.clock.monotonic()
            if now < self._next:
                self._since += 1
                return
            since, self._since = self._since, 0
            self._next = now + self.INTERVAL
        more = f" (and {since} more since the last report)" if since else ""
        about: dict[str, Any] = {"about": self.stats, "cache": self.cache, "what": self.what, "error": error}
        log("cache_failed", "%s: %s", self.cache, message + more, clock=self.clock, **about)
        deliver = emit if self.stats is None else self.stats.emit
        deliver(CacheFailed, cache=self.cache, what=self.what, message=message + more, error=error, since=since)
