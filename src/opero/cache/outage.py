"""Circuit breaker for stores: after a failure, it probes the store, or its writes, with exponential backoff."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from opero.errors import describe
from opero.events import CacheFailed, CacheRestored
from opero.observe.hooks import Emitter
from opero.observe.subscriptions import emit
from opero.policies.types import approximate_duration
from opero.runtime.forking import RenewedLock, renew_in_child
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.events import Event
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


class Words(NamedTuple):
    """How failures of a store are told.

    Attributes:
        failed, restored: texts about the failure, with the reason, and about the recovery.
        next: what comes after the pause.
        store: the field of records and events that has the store's name.
        what: the kind of failure, as in `CacheFailed`; None where the events have no such field.
        records: the names of the records.
        events: the classes of the events.
    """

    failed: str
    restored: str
    next: str = "probe"
    store: str = "cache"
    what: str | None = None
    records: tuple[str, str] = ("cache_failed", "cache_restored")
    events: tuple[type[Event], type[Event]] = (CacheFailed, CacheRestored)

    def fields(self, name: str) -> dict[str, Any]:
        return {self.store: name} if self.what is None else {self.store: name, "what": self.what}


UNAVAILABLE = Words(
    "cache store failed ({}); functions run without it", "cache store is available again", what="unavailable"
)
READ_ONLY = Words(
    "cache store accepts no writes ({}); results are read from it, but not stored",
    "cache store accepts writes again",
    next="try",
    what="read_only",
)


class Rest:
    """When a kind of operations is tried again after a failure: by default in 1 s, then in 2, 4, … up to 30 s.

    Args:
        words: how its failures are told.
        first, longest: seconds of the first pause, and of the longest one.

    Attributes:
        failures: how many tries have failed in a row; 0 while operations are not at rest.
        skipped: how many operations have been left out since the first failure.
        reason: the last failure, in one line; "" while operations are not at rest.
    """

    def __init__(self, words: Words, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self.words = words
        self.first = first
        self.longest = longest
        self.failures = 0
        self.skipped = 0
        self.reason = ""
        self.until = float("-inf")
        self.is_probing = False

    @property
    def pause(self) -> float:
        return float(min(self.first * 2 ** min(self.failures - 1, 10), self.longest))

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


class Breaker(Emitter):
    """Tells of the failures of a store, once, and of its recovery.

    Args:
        name: the store's name, for messages.
        clock: the source of time.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def failed(self, rest: Rest, error: Exception, *, is_probe: bool) -> None:
        """Let operations rest after a failure, and tell of it if it is the first one."""
        with self._lock:
            first = rest.failures == 0
            if not first and not is_probe:
                return  # it was running when another operation failed
            rest.begin(describe(error), self.clock.monotonic())
            pause = rest.pause
        if first:
            words = rest.words
            text = f"{words.failed.format(rest.reason)}, next {words.next} in {approximate_duration(pause)}"
            fields = words.fields(self.name) | {"error": error}
            log(words.records[0], "%s: %s", self.name, text, clock=self.clock, **fields)
            emit(words.events[0], self.hooks, message=text, **fields)

    def restored(self, rest: Rest) -> None:
        """Let operations rest no longer, and tell of it if they did."""
        with self._lock:
            if not rest.failures:
                return
            skipped = rest.end()
        text = f"{rest.words.restored}; {skipped} operations were skipped"
        fields = rest.words.fields(self.name) | {"skipped": skipped}
        log(rest.words.records[1], "%s: %s", self.name, text, clock=self.clock, **fields)
        emit(rest.words.events[1], self.hooks, message=text, **fields)


class StoreBreaker(Breaker):
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
        super().__init__(name, clock)
        self.limit = limit
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self._refused = ThrottledFailure("refused", name, clock)
        self._all, self._writes = Rest(UNAVAILABLE), Rest(READ_ONLY)

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
                self.failed(self._all, error, is_probe=is_probe)
                return default
            self._refuse(error)
            result = default
        if self._all.failures:
            self.restored(self._all)
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
                self.failed(self._all, error, is_probe=is_probe)
                return default
            if not self._accepts_writes(error):
                self.restored(self._all)
                self.failed(self._writes, error, is_probe=tries)
                return default
            self._refuse(error)
            result = default
        if self._all.failures or self._writes.failures:
            self.restored(self._all)
            self.restored(self._writes)
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
                self.failed(self._all, error, is_probe=is_probe)
                return default
            self._refuse(error)
            result = default
        self.restored(self._all)
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
