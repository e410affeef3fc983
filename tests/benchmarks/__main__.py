"""opero's speed beside its peers': `python -m tests.benchmarks [--quick] [--check] [topic ...]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tests.benchmarks.harness import show

TOPICS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
ROUNDS, QUICK_ROUNDS = 200, 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(TOPICS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args()
    if unknown := sorted(set(options.topics) - set(TOPICS)):
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    print(f"Python {sys.version.split()[0]}: medians; the ratio is the median of paired rounds' own ratios")
    rows = []
    for topic in options.topics or TOPICS:
        module = importlib.import_module(f"tests.benchmarks.bench_{topic}")
        found = module.run(QUICK_ROUNDS if options.quick else ROUNDS)
        show(found, has_head=not rows)
        rows += found
    return 1 if options.check and any(row.is_over for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
