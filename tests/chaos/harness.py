"""What all programs of this folder have in common: a time limit, seeded randomness, figures and losses."""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SHOWN = 20
"""Losses that are printed; the others are counted."""


class Chaos:
    """One run of a program.

    Attributes:
        seconds: how long it is to run.
        seed: of `random`. Threads and processes are scheduled by the system, so they repeat only what is drawn.
        random: all randomness of the program.
        figures: what was counted, in the order in which it is printed.
        losses: what went wrong.
    """

    def __init__(self, name: str, seconds: float, seed: int) -> None:
        self.name = name
        self.seconds = seconds
        self.seed = seed
        self.random = random.Random(seed)
        self.figures: Counter[str] = Counter()
        self.losses: list[str] = []
        self.began = time.monotonic()
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def goes_on(self) -> bool:
        return self.elapsed < self.seconds

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.figures[what] += number

    def lose(self, what: str) -> None:
        with self._lock:
            self.losses.append(what)
            if len(self.losses) <= SHOWN:
                print(f"{self.name}: LOST: {what}", file=sys.stderr, flush=True)

    def check(self, is_so: object, what: str) -> None:
        if not is_so:
            self.lose(what)

    def within(self, limit: float, is_so: Callable[[], object], what: str) -> bool:
        """Wait until something is so; it is a loss if that takes longer than a limit."""
        until = time.monotonic() + limit
        while not is_so():
            if time.monotonic() > until:
                self.lose(f"{what}: not within {limit:g} s")
                return False
            time.sleep(0.01)
        return True

    def end(self) -> int:
        """Print the line of figures; return the exit code."""
        figures = ", ".join(f"{number:,} {what}" for what, number in self.figures.items())
        print(f"{self.name}: {figures}; {len(self.losses)} lost ({self.elapsed:.0f} s, seed {self.seed})", flush=True)
        return 1 if self.losses else 0


def begin(file: str, description: str | None, seconds: float = 60.0) -> Chaos:
    """Read the options of a program: `--seconds` and `--seed`."""
    name = Path(file).stem
    parser = argparse.ArgumentParser(prog=f"python -m tests.chaos.{name}", description=description)
    parser.add_argument("--seconds", type=float, default=seconds, help=f"how long to run; default: {seconds:g}")
    parser.add_argument("--seed", type=int, help="draw the same as a run that has printed this seed")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"{name}: seed {seed}", file=sys.stderr, flush=True)
    return Chaos(name, options.seconds, seed)
