"""What an import adds to the start of the interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.harness import Row

import opero

ROUNDS_A_CYCLE = 5
"""A cycle of five interpreters takes as long as many turns of the other benchmarks."""

MODEL = "import pydantic\nclass Model(pydantic.BaseModel):\n    value: int = 1\nModel()"
SETTINGS = f"import pydantic_settings\n{MODEL}"
CALL = "from opero import opero\n@opero(policy='api')\ndef function(x): return x\nfunction(1)"
"""A first call by a profile of policies/, which is below the working directory."""
CODES = ("pass", "import tenacity", MODEL, "import opero", "from opero import opero", SETTINGS, CALL)


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

    def row(code: str, peer: str, name: str, target: float | None, title: str = "") -> Row:
        # A single start is too noisy to divide by: the ratio is that of the medians of what was added in each cycle.
        return Row(title or code, added[code], name, added[peer], added[code] / added[peer], target)

    return [
        row("import opero", "import tenacity", "import tenacity", 0.6),
        row("from opero import opero", MODEL, "pydantic, with a first model", 1.25),
        row(CALL, SETTINGS, "pydantic-settings, with a first model", 1.5, "a first call by a profile"),
    ]
