"""Keeps a store that does not answer from taking functions down, or from costing them more than now and then a try."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from opero.observe.events import emit
from opero.policies.types import approximate_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.runtime.clock import Clock

__all__ = ["Guard", "Limited"]

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class Guard:
    """Runs a store's operations. After a failure it lets none through for a while: 1 s, then 2, 4, up to 30.

    When the while is over, one operation tries; the others go on without the store until it has answered.

    Args:
        name: the store's, for messages.
        clock: where time comes from.
        limit: how an operation is ended that takes too long; None: the store sees to that itself.
    """

    def __init__(self, name: str, clock: Clock, limit: Callable[..., Any] | None = None) -> None:
        self.name = name
        self.clock = clock
        self.limit = limit
        self._lock = threading.Lock()
        self._closed_until = float("-inf")
        self._failures = 0
        self._lost = 0

    @property
    def is_up(self) -> bool:
        """Whether an operation would be let through now."""
        return self._failures == 0 or self._closed_until <= self.clock.monotonic()

    def __call__(self, default: T, operation: Callable[..., T], *args: Any) -> T:
        """The operation's result, or `default` where the store does not answer."""
        is_try = self._failures > 0
        if is_try and not self._may_try():
            return default
        try:
            result = operation(*args) if self.limit is None else self.limit(operation, *args)
        except Exception as error:  # noqa: BLE001  # whatever a store may raise
            self._failed(error, is_try=is_try)
            return default
        if self._failures:
            self._recovered()
        return result

    def _may_try(self) -> bool:
        with self._lock:
            now = self.clock.monotonic()
            if now < self._closed_until:
                self._lost += 1
                return False
            self._closed_until = now + self._pause()  # for everybody else
            return True

    def _pause(self) -> float:
        return float(min(FIRST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE))

    def _failed(self, error: Exception, *, is_try: bool) -> None:
        with self._lock:
            first = self._failures == 0
            if not first and not is_try:
                return  # it was under way when another found the store down
            self._failures += 1
            pause = self._pause()
            self._closed_until = self.clock.monotonic() + pause
        if first:
            emit(
                "cache_unavailable",
                self.name,
                f"the cache's store failed ({_told(error)}); functions run without it, and it is tried again "
                f"in {approximate_duration(pause)}",
                level=logging.WARNING,
                error=error,
                retry_in=pause,
            )

    def _recovered(self) -> None:
        with self._lock:
            if not self._failures:
                return
            self._failures = 0
            lost, self._lost = self._lost, 0
        emit(
            "cache_available",
            self.name,
            f"the cache's store answers again; {lost} operations went without it",
            level=logging.INFO,
            lost=lost,
        )


class Limited:
    """Reports one kind of mishap at most once a minute, with how many there were since."""

    EVERY = 60.0

    def __init__(self, event: str, subject: str, clock: Clock) -> None:
        self.event = event
        self.subject = subject
        self.clock = clock
        self._next = float("-inf")
        self._since = 0
        self._lock = threading.Lock()

    def report(self, message: str, error: BaseException | None = None) -> None:
        with self._lock:
            now = self.clock.monotonic()
            if now < self._next:
                self._since += 1
                return
            since, self._since = self._since, 0
            self._next = now + self.EVERY
        more = f" (and {since} times more since the last report)" if since else ""
        emit(self.event, self.subject, message + more, level=logging.WARNING, error=error, since=since)


def _told(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
