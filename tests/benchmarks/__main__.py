"""opero's speed beside its peers': `python -m tests.benchmarks [--quick] [--check] [topic ...]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tests.benchmarks.harness import show

TOPICS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", choices=[*TOPICS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}; medians of paired rounds")
    rows = []
    for topic in options.topics or TOPICS:
        rows += importlib.import_module(f"tests.benchmarks.bench_{topic}").run(20 if options.quick else 60)
    show(rows)
    return 1 if options.check and any(row.is_over for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
