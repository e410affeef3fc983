"""What statistics cost: reading them, memory, and calls that are timed."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from typing import Any

from tests.benchmarks.harness import Row, compare

from opero import Policy, Registry, opero

FUNCTIONS = 1000


def registry_of(number: int) -> tuple[Registry, list[Any]]:
    """A registry, and functions of a profile that have been called with durations of many sizes."""
    limits: Any = {"retry": 2, "circuit_breaker": 5, "rate_limit": 1_000_000, "bulkhead": 50}
    registry = Registry({"api": Policy(**limits)})
    functions = []
    for position in range(number):

        def function(seconds: float) -> float:
            return seconds

        function.__qualname__ = f"function{position}"
        functions.append(registry.bind(function, "api"))
    for each in functions:
        each(0.0)
        for power in range(20):
            each.stats.samples.histogram.add(0.001 * 1.2**power)
    return registry, functions


def reading(rounds: int) -> Row:
    registry, _kept = registry_of(FUNCTIONS)
    times = []
    for _ in range(max(5, rounds // 10)):
        started = time.perf_counter_ns()
        registry.stats()
        times.append(time.perf_counter_ns() - started)
    taken = statistics.median(times)
    return Row(f"registry.stats() of {FUNCTIONS:,} functions", taken, "the aim", 50e6, taken / 50e6, 1.0)


def memory() -> Row:
    _registry, functions = registry_of(FUNCTIONS)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for each in functions:
        each.stats.drain()
        each.stats.count_error(ConnectionError())
        each(0.0)
        for power in range(20):
            each.stats.samples.histogram.add(0.001 * 1.2**power)
    gc.collect()
    size = (tracemalloc.get_traced_memory()[0] - before) / FUNCTIONS
    tracemalloc.stop()
    aim = 4 * 1024
    return Row("statistics of a function: bytes", size, "the aim", aim, size / aim, 1.0, f"{size / 1024:.1f} KB")


def run(rounds: int) -> list[Row]:
    def function() -> int:
        return 1

    sampled, exact = opero(retries=3)(function), opero(retries=3)(function)
    exact.stats.exact = True
    return [
        reading(rounds),
        memory(),
        compare("retry, every call timed", exact, "a sample timed", sampled, rounds),
    ]
