"""Circuit breaker for cache stores: after a failure, it probes the store with exponential backoff."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from opero.errors import describe
from opero.observe.events import emit
from opero.policies.types import approximate_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.runtime.clock import Clock

__all__ = ["StoreBreaker", "ThrottledEvent"]

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class StoreBreaker:
    """Runs a store's operations, and skips them for a while after a failure: 1 s, then 2, 4, … up to 30 s.

    After each pause one operation probes the store; all others are skipped until a probe succeeds.

    Args:
        name: the store's name, for messages.
        clock: the source of time.
        limit: runs an operation with a timeout; None if the store has timeouts of its own.
    """

    def __init__(self, name: str, clock: Clock, limit: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.clock = clock
        self.limit = limit
        self._lock = threading.Lock()
        self._open_until = float("-inf")
        self._failures = 0
        self._skipped = 0

    def __call__(self, default: T, operation: Callable[..., T], *args: Any) -> T:
        """Return the operation's result, or `default` if the store is down or fails."""
        is_probe = self._failures > 0
        if is_probe and not self._may_probe():
            return default
        try:
            result = operation(*args) if self.limit is None else self.limit(operation, *args)
        except Exception as error:  # noqa: BLE001  # a store may raise anything
            self._failed(error, is_probe=is_probe)
            return default
        if self._failures:
            self._recovered()
        return result

    def _may_probe(self) -> bool:
        with self._lock:
            now = self.clock.monotonic()
            if now < self._open_until:
                self._skipped += 1
                return False
            self._open_until = now + self._pause()  # other callers skip while this probe runs
            return True

    def _pause(self) -> float:
        return float(min(FIRST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE))

    def _failed(self, error: Exception, *, is_probe: bool) -> None:
        with self._lock:
            first = self._failures == 0
            if not first and not is_probe:
                return  # it was running when another operation opened the breaker
            self._failures += 1
            pause = self._pause()
            self._open_until = self.clock.monotonic() + pause
        if first:
            emit(
                "cache_unavailable",
                self.name,
                f"cache store failed ({describe(error)}); functions run without it, next probe in "
                f"{approximate_duration(pause)}",
                level=logging.WARNING,
                error=error,
                retry_in=pause,
            )

    def _recovered(self) -> None:
        with self._lock:
            if not self._failures:
                return
            self._failures = 0
            skipped, self._skipped = self._skipped, 0
        emit(
            "cache_available",
            self.name,
            f"cache store is available again; {skipped} operations were skipped",
            level=logging.INFO,
            lost=skipped,
        )


class ThrottledEvent:
    """Emits one kind of event at most once a minute, with the number of occurrences in between.

    Args:
        event: the event's name.
        subject: the name of the function or store that it concerns.
        clock: the source of time.
    """

    INTERVAL = 60.0

    def __init__(self, event: str, subject: str, clock: Clock) -> None:
        self.event = event
        self.subject = subject
        self.clock = clock
        self._next = float("-inf")
        self._since = 0
        self._lock = threading.Lock()

    def report(self, message: str, error: BaseException | None = None) -> None:
        """Emit the event as a warning, or only count it if the last one is less than a minute ago."""
        with self._lock:
            now = self.clock.monotonic()
            if now < self._next:
                self._since += 1
                return
            since, self._since = self._since, 0
            self._next = now + self.INTERVAL
        more = f" (and {since} more since the last report)" if since else ""
        emit(self.event, self.subject, message + more, level=logging.WARNING, error=error, since=since)
