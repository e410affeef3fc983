"""How long a command takes, from nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.harness import Row

POLICIES = Path(__file__).parents[2] / "policies"
ROUNDS_A_CYCLE = 10
"""A cycle of three commands takes as long as many turns of the other benchmarks."""
LONGEST = 0.5e9
"""Nanoseconds that `opero explain` may take."""

IMPORTS = ("-c", "import pydantic_settings, typer")
EXPLAIN = ("-m", "opero", "explain", "api", "--config", str(POLICIES), "--env", "production")
HELP = ("-m", "opero", "--help")


def nanoseconds(arguments: tuple[str, ...]) -> float:
    started = time.perf_counter_ns()
    # Elsewhere, so that no .env file or pyproject.toml of this directory counts.
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    return time.perf_counter_ns() - started


def run(rounds: int) -> list[Row]:
    commands = (IMPORTS, EXPLAIN, HELP)
    for arguments in commands:  # after which everything is compiled and in memory
        nanoseconds(arguments)
    cycles = [
        {each: nanoseconds(each) for each in (commands if cycle % 2 else reversed(commands))}
        for cycle in range(max(3, rounds // ROUNDS_A_CYCLE))
    ]
    medians = {each: statistics.median(cycle[each] for cycle in cycles) for each in commands}

    def row(name: str, arguments: tuple[str, ...], target: float | None) -> Row:
        ratio = statistics.median(cycle[arguments] / cycle[IMPORTS] for cycle in cycles)
        return Row(name, medians[arguments], "import both", medians[IMPORTS], ratio, target)

    explain = medians[EXPLAIN]
    return [
        row("opero explain / import pydantic_settings, typer", EXPLAIN, None),
        row("opero --help / import pydantic_settings, typer", HELP, None),
        Row("opero explain, cold", explain, "what it may take", LONGEST, explain / LONGEST, 1.0),
    ]
