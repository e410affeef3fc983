"""What hedging costs a call that needs no hedge, and what it does for the slowest calls of a service of which one in
twenty takes ten times as long."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from tests.benchmarks.harness import Row, compare

from opero import Policy

CALLS, AT_ONCE = 2000, 20
USUAL, SLOW, SHARE = 0.02, 0.2, 0.05


def nothing() -> None:
    pass


async def nothing_async() -> None:
    pass


class Service:
    """A service that counts its calls, some of which are slow."""

    def __init__(self) -> None:
        self.calls = 0
        self.random = random.Random(1)

    async def ask(self) -> None:
        self.calls += 1
        await asyncio.sleep(SLOW if self.random.random() < SHARE else USUAL * self.random.uniform(0.8, 1.2))


def p99(bound: Any) -> float:
    """Return the seconds of the slowest call but those of one percent."""
    times: list[float] = []

    async def caller() -> None:
        for _ in range(CALLS // AT_ONCE):
            started = time.perf_counter()
            await bound()
            times.append(time.perf_counter() - started)

    async def main() -> None:
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))

    asyncio.run(main())
    return sorted(times)[int(len(times) * 0.99)]


def stragglers() -> list[Row]:
    hedged, plain = Service(), Service()
    ours = p99(Policy.model_validate({"hedge": {"after": "p95", "budget": "5%"}}).apply(hedged.ask))
    theirs = p99(plain.ask)
    load = hedged.calls / CALLS
    return [
        Row(
            "p99, one call in twenty takes ten times as long", ours * 1e9, "no hedge", theirs * 1e9, ours / theirs, 0.4
        ),
        Row("calls that the service gets", hedged.calls, "no hedge", plain.calls, load, 1.06, unit="calls"),
    ]


def run(rounds: int) -> list[Row]:
    with_it, without = (Policy.model_validate({"retry": 3, **more}) for more in ({"hedge": "10s"}, {}))
    rows = [
        compare("retry, hedge", with_it.apply(nothing), "retry", without.apply(nothing), rounds),
        compare(
            "retry, hedge, async",
            with_it.apply(nothing_async),
            "retry",
            without.apply(nothing_async),
            rounds,
            call="await call()",
        ),
    ]
    return [*rows, *stragglers()]
