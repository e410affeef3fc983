"""The result of a health check, and the history from which its rates come."""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from opero.dataclass import dataclass

State = Literal["healthy", "degraded", "unhealthy"]
MOST_KEPT = 100
"""Results that are kept of each check."""


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """The result of one run of a health check.

    Attributes:
        name: the name of the check.
        status: "healthy", "degraded" (it works, but not as it should) or "unhealthy".
        response_time: seconds that this run took; 0.0 for what opero knows without running anything.
        error_rate: the share of unhealthy results among the last 100 of this check, this one included: from 0.0 to 1.0.
        last_error: why this result is not "healthy"; None if it is.
        uptime: seconds from the first of the unbroken row of results that are not "unhealthy" to this result; 0.0 if
            this one is "unhealthy". What happens between two runs is not seen.
    """

    name: str
    status: State
    response_time: float
    error_rate: float
    last_error: str | None = None
    uptime: float = 0.0


class Finding(NamedTuple):
    """What a check has found.

    Attributes:
        status: as of `HealthStatus`.
        error: as `HealthStatus.last_error`.
    """

    status: State = "healthy"
    error: str | None = None


class History:
    """The last results of one check. Not thread-safe."""

    def __init__(self) -> None:
        self.results: deque[HealthStatus] = deque(maxlen=MOST_KEPT)
        self._up_since: float | None = None

    @property
    def latest(self) -> HealthStatus | None:
        """The newest result, or None."""
        return self.results[-1] if self.results else None

    def add(self, name: str, finding: Finding, seconds: float, now: float) -> HealthStatus:
        """Add a result that took some seconds, and return it with its rates."""
        kept = [*(each.status for each in self.results), finding.status][-MOST_KEPT:]
        if finding.status == "unhealthy":
            self._up_since = None
        elif self._up_since is None:
            self._up_since = now
        uptime = 0.0 if self._up_since is None else now - self._up_since
        rate = kept.count("unhealthy") / len(kept)
        status = HealthStatus(name, finding.status, seconds, rate, finding.error, uptime)
        self.results.append(status)
        return status
