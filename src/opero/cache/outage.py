"""Circuit breaker for cache stores: after a failure, it probes the store, or its writes, with exponential backoff."""

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
SLOW = frozenset({"TimeoutError", "RejectedError"})
"""Names of exceptions of a store that hangs, whichever client has them. To ask it anything would hang, too."""
OUTAGES = SLOW | {"OSError", "OperationalError"}
"""Names of exceptions that no request causes by what it brings: also for locked and broken files, and lost servers."""

_reporting = RenewedLock()
"""Protects the counts of all throttled events."""


class User(Protocol):
    """A user of a store."""

    def ask(self) -> object:
        """Read a few bytes; fails if the store does not answer."""

    def ask_to_write(self) -> object:
        """Write a few bytes; fails if the store accepts no writes."""


class _Rest:
    """When a kind of operations is tried again after a failure: in 1 s, then in 2, 4, … up to 30 s.

    Attributes:
        failures: how many tries have failed in a row; 0 while operations are not at rest.
        skipped: how many operations have been left out since the first failure.
        reason: the last failure, in one line; "" while operations are not at rest.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.skipped = 0
        self.reason = ""
        self.until = float("-inf")
        self.is_probing = False

    @property
    def pause(self) -> float:
        return float(min(FIRST_PAUSE * 2 ** min(self.failures - 1, 10), LONGEST_PAUSE))

    def skips(self, now: float) -> bool:
        """Return whether to leave an operation out, and count it; otherwise it is the next try."""
        if now < self.until:
            self.skipped += 1
            return True
        self.until = now + self.pause  # other callers skip while this one tries
        self.is_probing = True
        return False

    def begin(self, reason: str, now: float) -> None:
        """Rest after a failure, for longer after each one."""
        self.failures += 1
        self.reason = reason
        self.is_probing = False
        self.until = now + self.pause

    def end(self) -> int:
        """Rest no longer, and return the number of operations that were left out."""
        skipped = self.skipped
        self.failures = self.skipped = 0
        self.reason = ""
        self.is_probing = False
        return skipped


class StoreBreaker(Emitter):
    """Runs a store's operations, and leaves them out for a while after a failure: 1 s, then 2, 4, … up to 30 s.

    After each pause one operation probes the store; all others are left out until a probe succeeds.

    A store that answers, but accepts no writes, such as one that is full or read-only, is still read: only writes rest.

    What a single request brings, such as a value that is too large for the store, is no failure of the store: an
    operation that fails is forgiven if the store answers right afterwards, and accepts a small write.

    Args:
        name: the store's name, for messages.
        clock: the source of time.
        limit: runs an operation with a timeout; None if the store has timeouts of its own.

    Attributes:
        users: who uses the store; any of them can ask whether it answers.
    """

    def __init__(self, name: str, clock: Clock, limit: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.clock = clock
        self.limit = limit
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self._refused = ThrottledFailure("refused", name, clock)
        self._lock = threading.RLock()
        self._all, self._writes = _Rest(), _Rest()
        renew_in_child(self, "_lock")

    @property
    def trouble(self) -> str:
        """Why functions run without the store, in one line; "" while it works."""
        return self._all.reason

    @property
    def refusal(self) -> str:
        """Why results are read from the store, but not written to it, in one line; "" while it accepts writes."""
        return self._writes.reason

    def after_fork(self) -> None:
        """Let another operation probe the store, if a thread of the parent is doing so."""
        for rest in (self._all, self._writes):
            if rest.is_probing:
                rest.is_probing = False
                rest.until = float("-inf")

    def __call__(self, default: T, operation: Callable[..., T], *args: Any) -> T:
        """Return the result of an operation that reads, or `default` if the store is down or fails."""
        is_probe = self._all.failures > 0
        if is_probe and self._skips(writes=False):
            return default
        try:
            result = operation(*args) if self.limit is None else self.limit(operation, *args)  # a call less, for hits
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            if not self._answers(error, OUTAGES):
                self._failed(error, is_probe=is_probe)
                return default
            self._refuse(error)
            result = default
        if self._all.failures:
            self._recovered()
        return result

    def write(self, default: T, operation: Callable[..., T], *args: Any) -> T:
        """Return the result of an operation that writes, or `default` if the store is down, refuses writes or fails."""
        is_probe, tries = self._all.failures > 0, self._writes.failures > 0
        if (is_probe or tries) and self._skips(writes=True):
            return default
        try:
            result = self._run(operation, args)
        except Exception as error:  # noqa: BLE001  # as above
            if not self._answers(error, SLOW):
                self._failed(error, is_probe=is_probe)
                return default
            if not self._accepts_writes(error):
                self._recovered()
                self._failed_to_write(error, is_probe=tries)
                return default
            self._refuse(error)
            result = default
        if self._all.failures or self._writes.failures:
            self._recovered()
            self._writes_recovered()
        return result

    def delete(self, default: T, operation: Callable[..., T], *args: Any) -> T:
        """Return the result of an operation that deletes, or `default`. While only writes rest, it is tried.

        Deletions are rare, and full stores accept them; one that is not accepted says nothing about writes or reads.
        """
        is_probe = self._all.failures > 0
        if is_probe and self._skips(writes=False):
            return default
        try:
            result = self._run(operation, args)
        except Exception as error:  # noqa: BLE001  # as above
            if not self._answers(error, SLOW):
                self._failed(error, is_probe=is_probe)
                return default
            self._refuse(error)
            result = default
        self._recovered()
        return result

    def _run(self, operation: Callable[..., T], args: tuple[Any, ...] = ()) -> T:
        return operation(*args) if self.limit is None else self.limit(operation, *args)

    def _refuse(self, error: Exception) -> None:
        self._refused.report(f"the store refused an operation, which was left out: {describe(error)}", error)

    def _answers(self, error: Exception, outages: frozenset[str]) -> bool:
        """Return whether the store can be read nevertheless. After some exceptions it is not asked."""
        if any(each.__name__ in outages for each in type(error).__mro__):
            return False
        return self._can(lambda user: user.ask())

    def _accepts_writes(self, error: Exception) -> bool:
        """Return whether a store that can be read accepts small writes. For a locked file, that would take too long."""
        if any(each.__name__ == "OperationalError" for each in type(error).__mro__):
            return False
        return self._can(lambda user: user.ask_to_write())

    def _can(self, ask: Callable[[User], object]) -> bool:
        user = next(iter(list(self.users)), None)
        if user is None:
            return False
        try:
            _ = self._run(ask, (user,))
        except Exception:  # noqa: BLE001  # as above
            return False
        return True

    def _skips(self, *, writes: bool) -> bool:
        """Return whether to leave an operation out, and count it."""
        with self._lock:
            now = self.clock.monotonic()
            if writes and self._writes.failures and now < self._writes.until:
                self._writes.skipped += 1
                return True
            if self._all.failures and self._all.skips(now):
                return True
            return writes and self._writes.failures > 0 and self._writes.skips(now)

    def _failed(self, error: Exception, *, is_probe: bool) -> None:
        pause = self._rest(self._all, error, is_probe=is_probe)
        if pause is not None:
            text = f"cache store failed ({describe(error)}); functions run without it"
            self._report("unavailable", text, "probe", pause, error)

    def _failed_to_write(self, error: Exception, *, is_probe: bool) -> None:
        pause = self._rest(self._writes, error, is_probe=is_probe)
        if pause is not None:
            text = f"cache store accepts no writes ({describe(error)}); results are read from it, but not stored"
            self._report("read_only", text, "try", pause, error)

    def _rest(self, rest: _Rest, error: Exception, *, is_probe: bool) -> float | None:
        """Let operations rest, and return for how long if this is the first failure."""
        with self._lock:
            first = rest.failures == 0
            if not first and not is_probe:
                return None  # it was running when another operation failed
            rest.begin(describe(error), self.clock.monotonic())
            return rest.pause if first else None

    def _report(self, what: str, text: str, next_: str, pause: float, error: Exception) -> None:
        message = f"{text}, next {next_} in {approximate_duration(pause)}"
        log("cache_failed", "%s: %s", self.name, message, clock=self.clock, cache=self.name, what=what, error=error)
        emit(CacheFailed, self.hooks, cache=self.name, what=what, message=message, error=error)

    def _recovered(self) -> None:
        self._end(self._all, "unavailable", "cache store is available again")

    def _writes_recovered(self) -> None:
        self._end(self._writes, "read_only", "cache store accepts writes again")

    def _end(self, rest: _Rest, what: str, text: str) -> None:
        with self._lock:
            if not rest.failures:
                return
            skipped = rest.end()
        message = f"{text}; {skipped} operations were skipped"
        fields: dict[str, Any] = {"cache": self.name, "what": what, "skipped": skipped}
        log("cache_restored", "%s: %s", self.name, message, clock=self.clock, **fields)
        emit(CacheRestored, self.hooks, message=message, **fields)


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
