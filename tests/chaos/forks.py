"""Forks a busy process: `python -m tests.chaos.forks [--count N | --seconds N]`.

The process is that of tests/runtime/busy_process.py, where the suite forks a few dozen children. Here it is 1,000.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "runtime" / "busy_process.py"
AT_ONCE = 20
"""Forks of one process; with `--seconds`, as many processes follow each other as there is time for."""
PATIENCE = 1800


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="go on for so long")
    parser.add_argument("--count", type=int, default=1000, help="how many forks; default: 1000")
    options = parser.parse_args()
    until = None if options.seconds is None else time.monotonic() + options.seconds
    count = hangs = lost = 0
    while (count < options.count) if until is None else (time.monotonic() < until):
        forks = options.count if until is None else AT_ONCE
        command = [sys.executable, str(PROGRAM), str(forks)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        print(done.stderr, end="", file=sys.stderr)
        found = re.fullmatch(r"\d+ forks of a busy process: (\d+) hangs, (\d+) lost\n", done.stdout)
        count += forks
        hangs += int(found[1]) if found else 0
        lost += int(found[2]) if found else 1
    print(f"forks: {count:,} forks of a busy process, {hangs} hangs, {lost} lost")
    return 1 if hangs or lost else 0


if __name__ == "__main__":
    sys.exit(main())
