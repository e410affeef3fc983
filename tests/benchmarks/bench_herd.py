"""How many of 10,000 clients that fail together retry together: a simulation, in which no time passes."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import tenacity
from tests.benchmarks.harness import Row

from opero import RetryPolicy
from opero.executors.backoff import Backoff, Progress
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS, AIM = 10_000, 300
BIN = 0.01


def busiest(delay: Callable[[Any], float], herds: int) -> float:
    """Return the number of clients, as an average of several herds, whose third retry falls into the busiest 10 ms.

    Args:
        delay: returns a delay, given an object with an `attempt_number`.
        herds: the number of herds. In a single one, some bins are above the law's by chance.
    """
    moments: collections.Counter[int] = collections.Counter()
    progress = Progress()
    for _ in range(CLIENTS * herds):
        moment = 0.0
        for progress.attempt_number in (1, 2, 3):
            moment += delay(progress)
        moments[int(moment / BIN)] += 1
    return max(moments.values()) / herds


def run(rounds: int) -> list[Row]:
    herds = max(10, rounds // 4)
    error = ConnectionError()
    policy = RetryPolicy()
    backoff = Backoff(policy, VirtualClock())
    ours = busiest(lambda progress: backoff.after(error, progress)[0], herds)
    random_exponential: Any = tenacity.wait_random_exponential(
        multiplier=policy.min_delay, exp_base=policy.backoff_factor, max=policy.max_delay
    )
    theirs = busiest(random_exponential, herds)
    name = f"third retries of {CLIENTS:,}, the busiest 10 ms"
    return [
        Row(name, ours, "the aim", AIM, ours / AIM, 1.0, unit=""),
        Row(name, ours, "tenacity, random", theirs, ours / theirs, unit=""),
    ]
