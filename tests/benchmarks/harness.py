"""Timing in pairs: opero and a peer in turn, many short rounds, and the median of the rounds' ratios."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

SECONDS_A_TURN = 0.002

# Each callable gets a loop of its own, compiled for it alone: the interpreter adapts a loop to what it calls, and
# nothing stands between the loop and the call.
LOOP = """
{define} timed(call, count):
    started = now()
    for _ in repeat(None, count):
        {expression}
    return (now() - started) / count * 1e9
"""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is measured.
        ours, theirs: medians in nanoseconds; `peer` says whose time `theirs` is.
        ratio: the median of the rounds' own ratios, ours to theirs.
        target: the greatest ratio that will do; None: shown for information.
        unit: what `ours` and `theirs` count, if not nanoseconds.
    """

    name: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    target: float | None = None
    note: str = ""
    unit: str | None = None

    @property
    def is_over(self) -> bool:
        return self.target is not None and self.ratio > self.target


def compare(
    name: str,
    ours: Any,
    peer: str,
    theirs: Any,
    rounds: int,
    *,
    target: float | None = None,
    call: str = "call()",
    less: Any = None,
    during: Callable[[], AbstractContextManager[object]] = nullcontext,
    note: Callable[[float, float], str] = lambda ours, theirs: "",
) -> Row:
    """Time two callables against each other, in one process, in turns of some milliseconds.

    Args:
        name, ours, peer, theirs, target: as in `Row`; `ours` and `theirs` are what is called.
        rounds: turns for each.
        call: the expression that is timed; where it begins with "await", it is awaited within one task a turn.
        less: a callable whose time is taken from ours, round by round.
        during: makes what is entered for each turn of ours.
        note: makes the row's note of the two medians.
    """
    turns: list[list[float]] = []
    with asyncio.Runner() as runner:
        timers = [_timer(each, call, runner) for each in (ours, theirs, less) if each is not None]
        counts = [_calls_a_turn(timer) for timer in timers]
        gc.collect()
        gc.disable()
        try:
            for turn in range(rounds):
                order = range(len(timers)) if turn % 2 else reversed(range(len(timers)))
                times = {}
                for each in order:
                    with nullcontext() if each else during():
                        times[each] = timers[each](counts[each])
                turns.append([times[each] for each in sorted(times)])
        finally:
            gc.enable()
    pairs = [(turn[0] - sum(turn[2:]), turn[1]) for turn in turns]
    a, b = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return Row(name, a, peer, b, ratio, target, note(a, b))


def _timer(function: Any, call: str, runner: asyncio.Runner) -> Callable[[int], float]:
    """A function of a number of calls: nanoseconds for one."""
    names: dict[str, Any] = {"now": time.perf_counter, "repeat": itertools.repeat}
    is_async = call.startswith("await")
    exec(LOOP.format(define="async def" if is_async else "def", expression=call), names)
    timed = names["timed"]
    return (lambda count: runner.run(timed(function, count))) if is_async else (lambda count: timed(function, count))


def _calls_a_turn(timer: Callable[[int], float]) -> int:
    timer(200)  # until the interpreter has adapted
    return max(3, int(SECONDS_A_TURN * 1e9 / timer(50)))


def show(rows: list[Row], *, has_head: bool = True) -> None:
    """Print the table, or more rows of it."""
    if has_head:
        print(f"{'':50}{'opero':>10}  {'peer':26}{'peer':>10}{'ratio':>8}  {'target':12}")
    for row in rows:
        verdict = "" if row.target is None else f"≤ {row.target:<5g}{'OVER' if row.is_over else 'ok'}"
        ours, theirs = (
            _time(each) if row.unit is None else f"{each:.0f} {row.unit}" for each in (row.ours, row.theirs)
        )
        times = f"{row.name:50}{ours:>10}  {row.peer:26}{theirs:>10}{row.ratio:>8.3f}"
        print(f"{times}  {verdict:12} {row.note}".rstrip(), flush=True)


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(nanoseconds) >= size:
            return f"{nanoseconds / size:.3g} {unit}" if unit != "s" else f"{nanoseconds / size:.4f} s"
    return f"{nanoseconds:.0f} ns"
