"""Statistics of bound functions."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Stats"]


_lock = threading.Lock()
"""Protects `errors`, which change only at failures."""


class Stats:
    """Counts of one bound function, over all its callers.

    Attributes:
        calls: calls of the bound function.
        failures: calls that raised an exception.
        retries: rounds of attempts after the first.
        recoveries: calls that succeeded after a failed attempt.
        fallbacks: attempts with another value of the fallback argument, and calls answered by a fallback result.
        cache_hits: calls that the cache answered.
        cache_misses: calls that the cache could not answer.
        waits: waits for a rate-limit permit or a bulkhead slot.
        waited: seconds of these waits in total.
        rejections: attempts rejected by an open circuit, the rate limit or a full bulkhead.
        timeouts: attempts and calls ended by a timeout.
        errors: exception type's name → failed attempts with it.
    """

    # `+= 1` on an attribute is atomic under CPython's global lock: there is no call and no backward jump between its
    # read and its write, where another thread could run. So a success is counted without a lock.
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
        # Attempts counted by layers. Without layers every call is an attempt, so calls after `_bare_since` are added.
        self.executed = 0
        self._bare_since: int | None = None

    @property
    def attempts(self) -> int:
        """The number of executions of the function."""
        return self.executed + (0 if self._bare_since is None else self.calls - self._bare_since)

    def count_bare(self, bare: bool) -> None:  # the positional argument is unambiguous here
        """Count every call as an attempt from now on; if not `bare`, layers count the attempts."""
        self.executed = self.attempts
        self._bare_since = self.calls if bare else None

    def count_error(self, error: BaseException) -> None:
        """Count a failed attempt under the type of its exception."""
        name = type(error).__name__
        with _lock:
            self.errors[name] = self.errors.get(name, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """Return all counts as plain data."""
        counts = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("executed", "_bare_since", "errors")
        }
        return {"attempts": self.attempts, **counts, "errors": dict(self.errors)}

    def drain(self) -> dict[str, Any]:
        """Return all counts as plain data, and reset them. Not thread-safe."""
        counts = self.as_dict()
        bare = self._bare_since is not None
        self.__init__()  # type: ignore[misc]
        self.count_bare(bare)
        return counts

    def add(self, counts: dict[str, Any]) -> None:
        """Add counts that `as_dict` returned elsewhere, such as in a worker process."""
        for name, value in counts.items():
            if name == "attempts":
                # If calls count as attempts here, the calls that are added include as many of these attempts.
                self.executed += value - (counts["calls"] if self._bare_since is not None else 0)
            elif name == "errors":
                for kind, count in value.items():
                    self.errors[kind] = self.errors.get(kind, 0) + count
            else:
                setattr(self, name, getattr(self, name) + value)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.as_dict().items() if value}
        return f"Stats({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
