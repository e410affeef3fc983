"""What a bound function has done so far."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Stats"]


_lock = threading.Lock()
"""For the counts that are no plain number: they change only where something has failed."""


class Stats:
    """Counts of one bound function, over all its callers. Read them at any time; `as_dict()` takes them all at once.

    Attributes:
        calls: calls of the bound function by its users.
        failures: calls that ended in an exception.
        retries: rounds of attempts after the first.
        recoveries: calls that succeeded after a failed attempt.
        fallbacks: attempts with another value of the fallback argument, and calls that a fallback result answered.
        cache_hits, cache_misses: calls that the cache answered, or did not.
        waits, waited: waits for a rate-limit permit or a bulkhead's place, and their seconds in all.
        rejections: times that an open circuit, the rate limit or a full bulkhead turned an attempt away.
        timeouts: attempts and calls that a timeout ended.
        errors: name of an exception's type → failed attempts with it.
    """

    # Plain `+= 1` on an attribute is one step under CPython's global lock: no other thread runs between its read and
    # its write, as no call and no backward jump lies there. A success can so be counted without taking a lock.
    __slots__ = (
        "_bare_since",
        "cache_hits",
        "cache_misses",
        "calls",
        "errors",
        "executed",
        "failures",
        "fallbacks",
        "recoveries",
        "rejections",
        "retries",
        "timeouts",
        "waited",
        "waits",
    )

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.retries = 0
        self.recoveries = 0
        self.fallbacks = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.waits = 0
        self.waited = 0.0
        self.rejections = 0
        self.timeouts = 0
        self.errors: dict[str, int] = {}
        # Attempts that the layers counted. A call without layers is itself its first attempt, so the calls from
        # `_bare_since` on count as such.
        self.executed = 0
        self._bare_since: int | None = None

    @property
    def attempts(self) -> int:
        """Executions of the function."""
        return self.executed + (0 if self._bare_since is None else self.calls - self._bare_since)

    def count_bare(self, bare: bool) -> None:  # the one thing it is about
        """From now on each call is itself an attempt (`bare`), or the layers count them."""
        self.executed = self.attempts
        self._bare_since = self.calls if bare else None

    def count_error(self, error: BaseException) -> None:
        """Count a failed attempt by its exception's type."""
        name = type(error).__name__
        with _lock:
            self.errors[name] = self.errors.get(name, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """All counts, as plain data."""
        counts = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("executed", "_bare_since", "errors")
        }
        return {"attempts": self.attempts, **counts, "errors": dict(self.errors)}

    def drain(self) -> dict[str, Any]:
        """All counts, as plain data, and begin again at 0. Only for one thread at a time."""
        counts = self.as_dict()
        bare = self._bare_since is not None
        self.__init__()  # type: ignore[misc]
        self.count_bare(bare)
        return counts

    def add(self, counts: dict[str, Any]) -> None:
        """Add counts that `as_dict` took elsewhere, such as in a worker process."""
        for name, value in counts.items():
            if name == "attempts":
                # The calls are added, too; where each counts as an attempt, that is so many of these already.
                self.executed += value - (counts["calls"] if self._bare_since is not None else 0)
            elif name == "errors":
                for kind, count in value.items():
                    self.errors[kind] = self.errors.get(kind, 0) + count
            else:
                setattr(self, name, getattr(self, name) + value)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.as_dict().items() if value}
        return f"Stats({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
