"""The share of a rate limit that a process uses by itself while the server that keeps the budget cannot be used.

The moments at which the limit has a permit, one an interval since 1970, are numbered. While the server works, each
process reports how many permits it has used, period by period, and claims as much of the next period as it had of the
last one: a part of the range from 0 to 1 that no other process has. Without the server, a process uses the moments
whose number, multiplied by the golden ratio, has a fraction within its part. So no moment is used by two processes, and
those of each are spread evenly, whatever the shares are.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

WHOLE = 1 << 32
GOLDEN = 2654435769
"""The golden ratio's fraction of `WHOLE`."""
KNOWN = WHOLE * 9 // 10
"""What processes with a claim share. The rest is for those without one, so that they can go on as well."""
UNKNOWN = WHOLE // 50
"""What a process without a claim uses: a fiftieth, at random in what is left for such processes."""
RARE = WHOLE >> 12
LEAST_PERIOD, LONGEST_PERIOD = 5.0, 600.0
PERMITS = 100
"""How many permits a period should have, to measure shares by."""


class Claim(NamedTuple):
    """A part of the moments.

    Attributes:
        low, high: the range, of `WHOLE`.
    """

    low: int
    high: int

    @classmethod
    def of(cls, before: int, own: int, total: int) -> Claim | None:
        """The claim of a process that used `own` of `total` permits, those before it having claimed `before`."""
        low, high = KNOWN * before // total, KNOWN * (before + own) // total
        return cls(low, high) if high > low else None

    @classmethod
    def unknown(cls) -> Claim:
        """The claim of a process that has not used any."""
        low = random.randrange(KNOWN, WHOLE - UNKNOWN + 1)  # not for security
        return cls(low, low + UNKNOWN)

    def first(self, number: int) -> int:
        """The first moment from this number on that is claimed."""
        width = self.high - self.low
        if width < RARE:  # too long to look for; such moments hardly ever coincide with those of others
            return number + -(number + self.low) % (WHOLE // width)
        while not self.low <= number * GOLDEN % WHOLE < self.high:
            number += 1
        return number


def period_of(interval: float) -> float:
    """Seconds of a period, for a limit with that many seconds between permits."""
    return min(max(LEAST_PERIOD, PERMITS * interval), LONGEST_PERIOD)


class Turns:
    """The moments that a process uses by itself.

    Args:
        claim: which of them.
        interval: microseconds from one moment of the limit to the next.
        start: microseconds of the server's clock until which others may have permits still.
    """

    def __init__(self, claim: Claim, interval: float, start: float) -> None:
        self.claim = claim
        self.interval = interval
        self.number = math.ceil(start / interval)

    def booked_ahead(self, now: float) -> int:
        """Microseconds in which the limit has as many permits as have been booked here and are not due yet."""
        return max(0, int((self.number * self.interval - now) * (self.claim.high - self.claim.low) / WHOLE))

    def skip(self, moment: float) -> None:
        """Leave out the moments before this one."""
        self.number = max(self.number, math.ceil(moment / self.interval))

    def book(self, now: float, cost: float, patience: float) -> float:
        """Use the next moments for permits, if the first comes within `patience`; microseconds until then."""
        number = self.claim.first(max(self.number, math.ceil(now / self.interval)))
        wait = max(0.0, number * self.interval - now)
        if wait <= patience:
            width = self.claim.high - self.claim.low
            self.number = number + 1 if cost <= 1 else number + math.ceil(cost * WHOLE / width)
        return wait
