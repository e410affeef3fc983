"""Timing in pairs: opero and a peer in turn, many short rounds, and the median of the rounds' ratios."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Row", "compare", "compare_async", "show"]

SECONDS_A_ROUND = 0.004


@dataclass(frozen=True)
class Row:
    """One line of the table. Times are nanoseconds; `target` is the greatest ratio that will do, or None."""

    name: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    target: float | None = None

    @property
    def is_over(self) -> bool:
        return self.target is not None and self.ratio > self.target


def compare(
    name: str, ours: Callable[[], object], peer: str, theirs: Callable[[], object], target: float | None, rounds: int
) -> Row:
    """Time two sync callables against each other."""
    number = _number(lambda count: _loop(ours, count))
    pairs = _pairs(lambda count: _loop(ours, count), lambda count: _loop(theirs, count), number, rounds)
    return _row(name, peer, target, pairs)


def compare_async(
    name: str,
    ours: Callable[[], Awaitable[Any]],
    peer: str,
    theirs: Callable[[], Awaitable[Any]],
    target: float | None,
    rounds: int,
) -> Row:
    """Time two async callables against each other, each awaited in a loop within one task."""
    with asyncio.Runner() as runner:

        def timed(call: Callable[[], Awaitable[Any]]) -> Callable[[int], float]:
            async def loop(count: int) -> float:
                started = time.perf_counter()
                for _ in range(count):
                    await call()
                return (time.perf_counter() - started) / count * 1e9

            return lambda count: runner.run(loop(count))

        a, b = timed(ours), timed(theirs)
        return _row(name, peer, target, _pairs(a, b, _number(a), rounds))


def _loop(call: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count * 1e9


def _number(timed: Callable[[int], float]) -> int:
    timed(100)
    return max(10, int(SECONDS_A_ROUND * 1e9 / timed(100)))


def _pairs(a: Callable[[int], float], b: Callable[[int], float], number: int, rounds: int) -> list[tuple[float, float]]:
    pairs = []
    b(100)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            if turn % 2:
                second = b(number)
                pairs.append((a(number), second))
            else:
                pairs.append((a(number), b(number)))
    finally:
        gc.enable()
    return pairs


def _row(name: str, peer: str, target: float | None, pairs: list[tuple[float, float]]) -> Row:
    ours, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    return Row(name, ours, peer, theirs, statistics.median(a / b for a, b in pairs), target)


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{'':54}{'opero':>12}  {'peer':34}{'':>12}{'ratio':>8}{'target':>9}")
    for row in rows:
        verdict = "" if row.target is None else f"≤ {row.target:<5g} {'OVER' if row.is_over else 'ok'}"
        print(f"{row.name:54}{_time(row.ours):>12}  {row.peer:34}{_time(row.theirs):>12}{row.ratio:>8.3f}  {verdict}")


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size * 2:
            return f"{nanoseconds / size:.2f} {unit}"
    return f"{nanoseconds:.0f} ns"
