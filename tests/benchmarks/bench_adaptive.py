"""What adaptive limits, throttles and priorities cost a call, and how near to the best fixed number of workers an
adaptive one comes, with a real server on loopback whose throughput has its knee at 8."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from tests.benchmarks.harness import Row, compare
from tests.parallel.workers.knee_server import Connections, answering

from opero import Policy, opmap

ITEMS, FROM = 2000, 300
FIXED = (8, 10, 12)


def nothing() -> None:
    pass


def seconds(port: int, workers: Any) -> float:
    """Return how long the items from the 300th on take."""
    ended: list[float] = []

    async def main() -> None:
        async with Connections(port) as connections:

            async def ask(number: int) -> int:
                result = await connections.ask(number)
                ended.append(time.perf_counter())
                return result

            await opmap(workers=workers, progress=False)(ask)(range(ITEMS))

    asyncio.run(main())
    return ended[-1] - ended[FROM - 1]


def throughput(rounds: int) -> Row:
    with answering(8, 0.02) as port:
        pairs = [
            (seconds(port, "adaptive"), min(seconds(port, each) for each in FIXED)) for _ in range(max(3, rounds // 40))
        ]
    ours, best = (statistics.median(each) * 1e9 / (ITEMS - FROM) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return Row("an item, server with knee at 8, from item 300", ours, f"best of {FIXED}", best, ratio, target=1 / 0.95)


def run(rounds: int) -> list[Row]:
    fixed, plain = Policy(bulkhead=8).apply(nothing), Policy(retry=3).apply(nothing)
    rows = [
        compare("bulkhead: adaptive", Policy(bulkhead="adaptive").apply(nothing), "bulkhead: 8", fixed, rounds),
        compare("retry, throttle", Policy(retry=3, throttle=2).apply(nothing), "retry", plain, rounds),
        compare("retry, priority", Policy(retry=3, priority="background").apply(nothing), "retry", plain, rounds),
    ]
    return [*rows, throughput(rounds)]
