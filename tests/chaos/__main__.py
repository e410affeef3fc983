"""Attacks that opero has to survive: `python -m tests.chaos [--minutes 20 | --slice] [program ...]`.

Each program of this folder, `python -m tests.chaos.NAME [--seconds N] [--seed S]`, prints a line of figures and exits
with 1 if anything was lost. This one shares the time between them, and exits with 1 if any of them failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = sorted(
    path.stem
    for path in HERE.glob("*.py")
    if path.stem != "__main__" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
SLICE = 100.0
"""Seconds for all programs of a slice, so that it ends within two minutes."""
GRACE = 120.0
"""Seconds that a program may take to end. One that takes longer hangs, which is a failure."""


def run(name: str, seconds: float, seed: int | None) -> tuple[int | None, str]:
    """Run a program; return its exit code, None if it was stopped, and its last line."""
    command = [sys.executable, "-m", f"tests.chaos.{name}", "--seconds", f"{seconds:g}"]
    text = (HERE / f"{name}.py").read_text(encoding="utf-8")
    if seed is not None and ("harness import" in text or "--seed" in text):  # others draw nothing
        command += ["--seed", str(seed)]
    process = subprocess.Popen(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=2 * seconds + GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler, if a program has enabled it, shows where it hangs
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"{name}: has not ended after {2 * seconds + GRACE:.0f} s"
    lines = [line for line in out.splitlines() if line.strip()]
    return process.returncode, lines[-1] if lines else f"{name}: has printed nothing"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="program", help=f"of {', '.join(PROGRAMS)}; default: all")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--minutes", type=float, default=20.0, help="how long all of them take; default: 20")
    much.add_argument("--slice", action="store_true", help="at most two minutes, for every change")
    parser.add_argument("--seed", type=int, help="the seed of every program")
    options = parser.parse_args()
    if unknown := sorted(set(options.programs) - set(PROGRAMS)):
        parser.error(f"no program {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    programs = options.programs or PROGRAMS
    seconds = (SLICE if options.slice else 60 * options.minutes) / len(programs)
    failed = []
    lines = []
    for name in programs:
        code, line = run(name, seconds, options.seed)
        print(line, flush=True)
        lines.append(f"{'ok' if code == 0 else 'FAILED':7}{line}")
        if code != 0:
            failed.append(name)
    print(f"\nPython {sys.version.split()[0]}, {len(programs)} programs of {seconds:.0f} s each")
    print("\n".join(lines))
    if failed:
        print(f"failed: {', '.join(failed)}; its seed is in its line: python -m tests.chaos.NAME --seed SEED")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
