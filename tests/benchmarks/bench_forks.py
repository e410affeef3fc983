"""Forks of a process whose threads use everything: how many children hang, and what is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import Row

PROGRAM = Path(__file__).parents[1] / "runtime" / "busy_process.py"
FORKS, QUICK_FORKS = 1000, 200


def run(rounds: int) -> list[Row]:
    """Run the program, which prints the result: there is no peer to compare it with."""
    forks = FORKS if rounds >= 200 else QUICK_FORKS
    done = subprocess.run([sys.executable, str(PROGRAM), str(forks)], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return []
