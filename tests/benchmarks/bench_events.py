"""What a call costs while somebody listens to events or traces it, beside the same call while nobody does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.benchmarks.harness import Row, compare

from opero import on, opero, trace
from opero.events import AttemptFailed, CallSucceeded, RetryScheduled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from opero.events import Event


def value(number: int) -> int:
    return number


async def value_async(number: int) -> int:
    return number


class Flaky:
    """A function that fails twice before each success."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int) -> int:
        self.calls += 1
        if self.calls % 3:
            raise ConnectionError
        return number


def listening(event: type[Event]) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def listened() -> Iterator[None]:
        off = on(event, lambda event: None)
        try:
            yield
        finally:
            off()

    return listened


def row(name: str, bound: Any, event: type[Event], rounds: int, *, target: float | None = None, wait: str = "") -> Row:
    name, call = f"{name}, a handler of {event.__name__}", f"{wait}call(1)"
    return compare(name, bound, "the same, without", bound, rounds, target=target, call=call, during=listening(event))


def hooked(name: str, function: Any, rounds: int, wait: str = "") -> Row:
    with_hook, without = opero(on_retry=print)(function), opero(function)
    return compare(name, with_hook, "the same, without", without, rounds, target=1.03, call=f"{wait}call(1)")


MOST_FOR_RECEIPT = 3000
"""Nanoseconds that the receipt of a call may take."""


def receipt(name: str, bound: Any, rounds: int, wait: str = "") -> Row:
    found = compare(name, bound, "the same, without", bound, rounds, call=f"{wait}call(1)", during=trace)
    more = found.ours - found.theirs
    ratio, note = more / MOST_FOR_RECEIPT, f"{found.ours:.0f} ns within a trace, {found.theirs:.0f} ns without"
    return Row(name, more, "the most that it may cost", MOST_FOR_RECEIPT, ratio, 1.0, note)


def run(rounds: int) -> list[Row]:
    plain, plain_async = opero(value), opero(value_async)
    cached, flaky = opero(cache=True)(value), opero(retries=2, min_delay=0)(Flaky())
    rows = []
    for bound, what, wait in ((plain, "retry", ""), (plain_async, "retry, async", "await ")):
        rows.append(row(what, bound, RetryScheduled, rounds, target=1.03, wait=wait))
        rows.append(row(what, bound, CallSucceeded, rounds, wait=wait))
    return [
        *rows,
        hooked("retry, a hook on_retry", value, rounds),
        hooked("retry, a hook on_retry, async", value_async, rounds, "await "),
        row("memory hit", cached, RetryScheduled, rounds, target=1.03),
        row("two failures", flaky, AttemptFailed, rounds),
        receipt("a receipt", plain, rounds),
        receipt("a receipt, async", plain_async, rounds, "await "),
        receipt("a receipt, memory hit", cached, rounds),
    ]
