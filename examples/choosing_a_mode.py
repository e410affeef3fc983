"""Measure first, then map: `opero.tune` finds out whether a function waits or computes, and what suits it.

python examples/choosing_a_mode.py
"""

from __future__ import annotations

import time
import zlib

import opero


def probe(host: str) -> int:
    """A function that waits, as for an answer from the network."""
    time.sleep(0.01)
    return len(host)


def checksum(seed: int) -> int:
    """A function that computes."""
    value = seed
    for _ in range(600):
        value = zlib.crc32(b"%d" % value * 8)
    return value


def main() -> None:
    hosts = [f"node-{number}.example" for number in range(40)]
    waiting = opero.tune(probe, hosts, seconds=0.3)
    print(f"probe: {waiting.bound_by} bound, mode {waiting.mode}, {waiting.gain:.0f} times as fast")

    computing = opero.tune(checksum, range(40), seconds=0.3)
    print(f"checksum: {computing.bound_by} bound, mode {computing.mode}, {computing.gain:.1f} times as fast")

    # What was measured, written down: the result depends on this machine no more.
    lengths = opero.opmap(**waiting.options)(probe)(hosts)
    print(f"mapped {len(lengths)} hosts, {sum(lengths)} characters")


if __name__ == "__main__":
    main()
