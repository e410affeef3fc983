"""What binding a function costs, in time and memory, and how loading, binding and reloading grow with their number."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.harness import Row

from opero import Policy, Registry, opero

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTIONS = 300
FEW, MANY = 1000, 10_000


def function() -> Callable[..., Any]:
    def bound(first: int, second: int = 2, *, third: int = 3) -> int:
        return first

    return bound


def nanoseconds(bind: Callable[[Any], Any]) -> float:
    functions = [function() for _ in range(FUNCTIONS)]
    gc.collect()
    gc.disable()
    started = time.perf_counter_ns()
    kept = [bind(each) for each in functions]
    taken = time.perf_counter_ns() - started
    gc.enable()
    return taken / len(kept)


def size_of(bind: Callable[[Any], Any]) -> float:
    """Bytes of one bound function that has not been called."""
    functions = [function() for _ in range(FUNCTIONS)]
    bind(function())
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [bind(each) for each in functions]
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / len(kept)


def binding(name: str, bind: Callable[[Any], Any], rounds: int, microseconds: float, kilobytes: float) -> list[Row]:
    taken = statistics.median(nanoseconds(bind) for _ in range(rounds // 10))
    size = size_of(bind)
    return [
        Row(name, taken, "the aim", microseconds * 1000, taken / (microseconds * 1000), 1.0),
        Row(
            f"{name}: bytes", size, "the aim", kilobytes * 1024, size / (kilobytes * 1024), 1.0, f"{size / 1024:.1f} KB"
        ),
    ]


def growth(rounds: int) -> list[Row]:
    few = [steps(FEW) for _ in range(max(3, rounds // 40))]
    many = [steps(MANY) for _ in range(max(2, rounds // 100))]
    rows = []
    for number, name in enumerate(("load", "bind", "reload")):
        ours, theirs = (statistics.median(each[number] for each in times) for times in (many, few))
        rows.append(Row(f"{name} {MANY:,} profiles and functions", ours, f"{FEW:,}", theirs, ours / theirs, 11))
    return rows


def steps(number: int) -> tuple[float, float, float]:
    """Nanoseconds to load a number of profiles, to bind as many functions to them, and to reload."""

    def text(burst: int) -> str:
        profiles = (
            f"  profile{each}:\n"
            f"    retry: {{retries: {each % 7}, min_delay: 0.1, max_delay: 30s, retry_on: [ConnectionError]}}\n"
            f"    timeout: {{total: {10 + each % 50}s, attempt: 2s}}\n"
            f"    rate_limit: {{rate: {1 + each % 50}/s, burst: {burst}}}\n"
            "    circuit_breaker: {consecutive_failures: 5, open_for: 30s}\n"
            for each in range(number)
        )
        return f"policies:\n{''.join(profiles)}"

    def timed(action: Callable[[], Any]) -> tuple[float, Any]:
        started = time.perf_counter_ns()
        result = action()
        return time.perf_counter_ns() - started, result

    functions = [function() for _ in range(number)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "base.yaml"
        file.write_text(text(3))
        gc.collect()
        loading, registry = timed(lambda: Registry.load(folder, "development", {}))
        binding, kept = timed(lambda: [registry.bind(each, f"profile{at}") for at, each in enumerate(functions)])
        file.write_text(text(4))
        reloading, changes = timed(registry.reload)
        assert len(changes.functions) == len(kept) == number
    return loading, binding, reloading


def run(rounds: int) -> list[Row]:
    registry = Registry({"api": Policy(retry=3, timeout="5s", rate_limit=100, circuit_breaker=5)})
    return [
        *binding("bind with a bare @opero", opero, rounds, 40, 3),
        *binding("bind to a profile of four policies", lambda each: registry.bind(each, "api"), rounds, 150, 8),
        *growth(rounds),
    ]
