"""Pauses of a rate limit, for which the service has asked, and how calls come back after one: gradually."""

from __future__ import annotations

import math
from typing import NamedTuple

from opero.policies.rate_limit import UNLIMITED

RAMP = 5.0
"""The most seconds after a pause in which permits fall due less often than at the rate; a shorter pause has a shorter
ramp."""
FIRST = 0.1
"""The share of the rate with which a ramp begins, and from which it grows exponentially. Where nothing but the service
limits the rate, it begins with one permit a second."""


class Pace(NamedTuple):
    """A pause, and the ramp after it.

    Attributes:
        resume: the moment at which the pause ends; 0 if there has been none.
        ramp: seconds after it until permits fall due at the full rate again.
    """

    resume: float = 0.0
    ramp: float = 0.0

    @property
    def ends(self) -> float:
        """When the ramp ends."""
        return self.resume + self.ramp

    def step(self, moment: float, seconds: float, interval: float) -> float:
        """Return how long it takes from a moment until as many permits fall due as the full rate has in some seconds.

        Args:
            moment: when that begins.
            seconds: the time at the full rate.
            interval: the seconds between permits at the full rate.
        """
        into = moment - self.resume
        if self.ramp <= 0 or into >= self.ramp:
            return seconds
        first = min(FIRST, interval) if interval <= 1 / UNLIMITED else FIRST
        # At `into` seconds the share of the rate is first ** (1 - into / ramp); this is its integral, and the inverse.
        growth = -math.log(first) / self.ramp
        done = math.exp(growth * max(0.0, into)) + seconds * growth / first
        after = math.log(done) / growth
        if after > self.ramp:
            after = self.ramp + seconds - (1 / first - math.exp(growth * max(0.0, into))) * first / growth
        return after - into


STEADY = Pace()


def paused(until: float, now: float) -> Pace:
    """Return the pace of a limit that is paused from now until a moment."""
    return Pace(until, min(RAMP, until - now))


def due_after(resume: float, interval: float, burst: float, unit: float) -> float:
    """Return the `due` of a budget whose next permit falls due at a moment, with none saved up."""
    return resume + (burst - min(unit or 1.0, burst)) * interval
