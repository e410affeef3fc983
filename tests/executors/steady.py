"""Randomness without chance, for tests in which a circuit has to stay open for exactly `open_for`."""

from __future__ import annotations

import random
from typing import TypeVar

from opero.testing import VirtualClock

C = TypeVar("C", bound=VirtualClock)


class Middle(random.Random):
    """Always draws the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def steady(clock: C) -> C:
    """The clock, which draws no jitter from now on."""
    clock.random = Middle()
    return clock
