"""The circuit breaker and generators: a stream counts when it ends, by what ended it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from opero import CallTimeoutError, CircuitOpenError, Policy
from opero.testing import VirtualClock
from opero.testing.clock import _VirtualLoop

DOWN = ConnectionError("down")


class Source:
    """A sync and an async generator function that yield or raise what they are told, stream by stream."""

    def __init__(self) -> None:
        self.streams: list[list[Any]] = []

    def sync(self, key: str = "") -> Iterator[Any]:
        for item in self.streams.pop(0):
            if isinstance(item, BaseException):
                raise item
            yield item

    async def asynchronous(self, key: str = "") -> AsyncIterator[Any]:
        for item in self.streams.pop(0):
            await asyncio.sleep(0)
            if isinstance(item, BaseException):
                raise item
            yield item


class Reader:
    """Reads streams of one function under a policy."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.clock = VirtualClock()
        self.source = Source()
        self.bound: Any = None
        # One event loop for all steps: it closes unfinished streams when it ends.
        self.runner = asyncio.Runner(loop_factory=lambda: _VirtualLoop(self.clock))

    def bind(self, **policies: Any) -> None:
        function: Any = self.source.sync if self.kind == "sync" else self.source.asynchronous
        self.bound = Policy(**policies).apply(function, clock=self.clock)

    @property
    def state(self) -> str:
        return str(self.bound.binding.circuit_breaker.state)

    def open(self, *items: Any, key: Any = "") -> Callable[..., Any]:
        """Begin a stream of these items, to be read item by item: `next()`, or `next(close=True)`."""
        self.source.streams.append(list(items))
        stream = self.bound(key)

        def step(*, close: bool = False, throw: Any = None) -> Any:
            if self.kind == "sync":
                return stream.close() if close else stream.throw(throw) if throw else next(stream, "end")
            if close:
                return self.runner.run(stream.aclose())
            if throw:
                return self.runner.run(stream.athrow(throw))

            async def step() -> Any:
                return await anext(stream, "end")

            return self.runner.run(step())

        return step

    def read(self, *items: Any) -> str:
        """Read a whole stream; return how it ended."""
        try:
            step = self.open(*items)
            while step() != "end":
                pass
        except CircuitOpenError:
            self.source.streams.clear()
            return "rejected"
        except Exception as error:
            return type(error).__name__
        return "end"


@pytest.fixture(params=["sync", "async"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    reader = Reader(request.param)
    with reader.runner:
        yield reader


def test_a_stream_that_breaks_after_its_first_item_is_a_failed_call(reader: Reader) -> None:
    reader.bind(circuit_breaker=2, retry=3)
    assert [reader.read(1, DOWN) for _ in range(3)] == ["ConnectionError", "ConnectionError", "rejected"]
    assert reader.bound.stats.executed == 2  # neither was restarted


def test_a_stream_that_ends_well_ends_a_row_of_failures(reader: Reader) -> None:
    reader.bind(circuit_breaker=2)
    assert [reader.read(1, DOWN), reader.read(1, 2), reader.read(1, DOWN), reader.read(1)] == [
        "ConnectionError",
        "end",
        "ConnectionError",
        "end",
    ]
    assert reader.state == "closed"


def test_the_first_item_does_not_end_a_row_of_failures(reader: Reader) -> None:
    reader.bind(circuit_breaker=2)
    reader.read(DOWN)
    stream = reader.open(1, 2)
    assert stream() == 1
    assert reader.read(DOWN) == "ConnectionError"
    assert reader.state == "open"


def test_only_failures_that_trip_count(reader: Reader) -> None:
    reader.bind(circuit_breaker={"consecutive_failures": 1, "ignore": KeyError})
    assert [reader.read(1, KeyError()), reader.read(1, TypeError())] == ["KeyError", "TypeError"]
    assert reader.state == "closed"
    assert reader.read(1, DOWN) == "ConnectionError"
    assert reader.state == "open"


def test_failures_are_in_the_window_of_a_rate(reader: Reader) -> None:
    reader.bind(circuit_breaker={"failure_rate": "50%", "min_calls": 4, "window": 100})
    assert [reader.read(*items) for items in ((1,), (1, DOWN), (1,), (1, 2, DOWN))] == [
        *("end", "ConnectionError"),
        *("end", "ConnectionError"),
    ]
    assert reader.state == "open"


def test_what_the_reader_does_is_no_failure_of_the_stream(reader: Reader) -> None:
    reader.bind(circuit_breaker=1)
    stream = reader.open(1, 2)
    assert stream() == 1
    stream(close=True)
    stream = reader.open(1, 2)
    stream()
    with pytest.raises(ConnectionError):
        stream(throw=ConnectionError("the reader's"))
    assert reader.state == "closed"


def half_open(reader: Reader, **policies: Any) -> None:
    reader.bind(circuit_breaker={"consecutive_failures": 1, "open_for": 10}, **policies)
    reader.read(DOWN)
    reader.clock.advance(12)
    assert reader.state == "half_open"


def test_a_probe_is_settled_when_its_stream_ends(reader: Reader) -> None:
    half_open(reader)
    probe = reader.open(1, 2)
    assert probe() == 1
    assert reader.state == "half_open"
    assert reader.read(1) == "rejected"  # the only probe is under way
    assert [probe(), probe()] == [2, "end"]
    assert reader.state == "closed"


def test_a_probe_whose_stream_breaks_opens_the_circuit_again(reader: Reader) -> None:
    half_open(reader)
    assert reader.read(1, DOWN) == "ConnectionError"
    assert reader.state == "open"


def test_a_probe_that_its_reader_closes_has_succeeded(reader: Reader) -> None:
    half_open(reader)
    probe = reader.open(1, 2)
    probe()
    probe(close=True)
    assert reader.state == "closed"


def test_a_probe_that_fails_in_a_way_that_says_nothing_makes_room_for_another(reader: Reader) -> None:
    half_open(reader)
    assert reader.read(1, TypeError()) == "TypeError"
    assert reader.state == "half_open"
    assert reader.read(1, 2) == "end"
    assert reader.state == "closed"


def test_a_probe_over_fallback_values_is_settled_when_its_stream_ends(reader: Reader) -> None:
    """Its first value fails before its first item, and its second one yields: one probe from beginning to end."""
    half_open(reader, fallback={"arg": "key"}, retry={"retries": 0})
    reader.source.streams.append([DOWN])
    probe = reader.open(1, DOWN, key=["a", "b"])
    assert probe() == 1
    assert reader.state == "half_open"
    assert reader.read(1) == "rejected"
    with pytest.raises(ConnectionError):
        probe()
    assert reader.state == "open"


def test_a_call_that_was_retried_before_its_first_item_counts_once(reader: Reader) -> None:
    reader.bind(circuit_breaker=2, retry={"retries": 1, "min_delay": 0})
    for _ in range(3):
        reader.source.streams.append([DOWN])
        assert reader.read(1, 2) == "end"
    assert reader.state == "closed"
    reader.source.streams.append([DOWN])
    assert reader.read(1, DOWN) == "ConnectionError"
    assert reader.read(1, DOWN) == "ConnectionError"
    assert reader.read(1) == "rejected"


def test_a_stream_whose_next_item_takes_too_long_is_a_failed_call() -> None:
    clock = VirtualClock()

    def slow() -> Iterator[int]:
        yield 1
        clock.sleep(9)
        yield 2

    bound = Policy(circuit_breaker=1, timeout={"idle": 2}).apply(slow, clock=clock)
    with pytest.raises(CallTimeoutError):
        list(bound())
    assert bound.binding.circuit_breaker.state == "open"  # type: ignore[attr-defined]


def test_a_cancelled_stream_counts_for_nothing() -> None:
    clock = VirtualClock()

    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1000)

    bound: Any = Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 10}).apply(endless, clock=clock)
    breaker = bound.binding.circuit_breaker
    breaker.record(breaker.admit(clock.monotonic()), clock.monotonic(), DOWN)
    clock.advance(12)

    async def read() -> None:
        async for _ in bound():
            pass

    async def main() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run(main())
    assert breaker.state == "half_open"
    assert breaker.admit(clock.monotonic()) >= 0  # its place is free again
