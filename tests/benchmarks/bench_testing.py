"""How fast the virtual clock is."""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.harness import Row

from opero import opero
from opero.testing import virtual_clock

CALLS, SECONDS = 1000, 0.3


def unavailable() -> None:
    raise ConnectionError


def run(rounds: int) -> list[Row]:
    fetch: Any = opero(retries=3, min_delay=30, max_delay=30, jitter=False)(unavailable)
    times = []
    for _ in range(max(3, rounds // 20)):
        with virtual_clock() as clock:
            started = time.perf_counter()
            for _ in range(CALLS):
                try:
                    fetch()
                except Exception:
                    continue
            times.append(time.perf_counter() - started)
        assert sum(clock.slept) == CALLS * 3 * 30
    best = min(times)  # the only thread does not wait: all else is time of other programs
    return [
        Row("1,000 calls with three retries after 30 s each", best * 1e9, "the aim", SECONDS * 1e9, best / SECONDS, 1.0)
    ]
