"""What an import adds to the start of the interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.harness import Row

import opero

ROUNDS_A_CYCLE = 5
"""A cycle of four interpreters takes as long as many turns of the other benchmarks."""

CODES = ("pass", "import tenacity", "import opero", "from opero import opero")


def nanoseconds(code: str) -> float:
    started = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter_ns() - started


def run(rounds: int) -> list[Row]:
    # Also the first round, after which everything is compiled and in memory.
    for code in CODES:
        subprocess.run([sys.executable, "-c", code], check=True)
    check = f"import opero; assert opero.__file__ == {opero.__file__!r}, opero.__file__"
    subprocess.run([sys.executable, "-c", check], check=True)
    cycles = []
    for cycle in range(rounds // ROUNDS_A_CYCLE):
        order = CODES if cycle % 2 else tuple(reversed(CODES))
        times = {code: nanoseconds(code) for code in order}
        cycles.append({code: times[code] - times["pass"] for code in CODES})
    added = {code: statistics.median(each[code] for each in cycles) for code in CODES}

    def row(code: str, target: float | None) -> Row:
        # A single start is too noisy to divide by: the ratio is that of the medians of what was added in each cycle.
        return Row(code, added[code], CODES[1], added[CODES[1]], added[code] / added[CODES[1]], target)

    return [row("import opero", 0.6), row("from opero import opero", None)]
