"""What an import adds to the start of the interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.harness import Row

PAIRS_A_ROUND = 0.5


def seconds_for(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
    return time.perf_counter() - started


def added(code: str, peer: str, pairs: int) -> tuple[float, float]:
    """The medians of what two imports add to an empty program, taken in turn."""
    empty, ours, theirs = [], [], []
    for _ in range(pairs):
        empty.append(seconds_for("pass"))
        ours.append(seconds_for(code))
        theirs.append(seconds_for(peer))
    base = statistics.median(empty)
    return statistics.median(ours) - base, statistics.median(theirs) - base


def run(rounds: int) -> list[Row]:
    rows = []
    for code, target in (("import opero", 0.6), ("from opero import opero", None)):
        ours, theirs = added(code, "import tenacity", max(5, int(rounds * PAIRS_A_ROUND)))
        rows.append(Row(code, ours * 1e9, "import tenacity", theirs * 1e9, ours / theirs, target))
    return rows
