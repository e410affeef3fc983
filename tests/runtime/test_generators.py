"""Generators: an attempt runs to the first item, and later items pass through unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from opero import AllFailedError, CircuitOpenError, Policy, opero
from opero.testing import VirtualClock


class Flaky:
    """Creates generators that fail the first times before their first item."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.seen: list[Any] = []

    def items(self, count: int = 3) -> Any:
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        for number in range(count):
            try:
                self.seen.append((yield number))
            except KeyError as error:
                self.seen.append(error)
            except GeneratorExit:
                self.seen.append("closed")
                raise
        return "returned"

    async def items_async(self, count: int = 3) -> Any:
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        for number in range(count):
            try:
                self.seen.append((yield number))
            except KeyError as error:
                self.seen.append(error)
            except GeneratorExit:
                self.seen.append("closed")
                raise


def bound(failures: int, **kinds: Any) -> Any:
    flaky = Flaky(failures)
    return flaky, Policy(**(kinds or {"retry": 3})).apply(flaky.items, clock=VirtualClock())


def bound_async(failures: int, **kinds: Any) -> Any:
    flaky, clock = Flaky(failures), VirtualClock()
    return flaky, clock, Policy(**(kinds or {"retry": 3})).apply(flaky.items_async, clock=clock)


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def test_a_failure_before_the_first_item_is_retried_and_nothing_runs_before_next() -> None:
    flaky, items = bound(2)
    iterator = items()
    assert flaky.failures == 2
    assert list(iterator) == [0, 1, 2]
    assert (items.stats.attempts, items.stats.recoveries) == (3, 1)


def test_a_failure_of_an_async_generator_before_the_first_item_is_retried() -> None:
    _, clock, items = bound_async(2)
    assert clock.run(collect(items())) == [0, 1, 2]
    assert items.stats.attempts == 3


def test_all_attempts_can_fail() -> None:
    _, items = bound(9)
    with pytest.raises(AllFailedError):
        next(items())
    _, clock, items_async = bound_async(9)
    with pytest.raises(AllFailedError):
        clock.run(collect(items_async()))


def test_an_error_after_the_first_item_is_raised_unchanged() -> None:
    def items() -> Any:
        yield 1
        raise ConnectionError

    iterator = Policy(retry=3).apply(items)()
    assert next(iterator) == 1
    with pytest.raises(ConnectionError):
        next(iterator)


def test_a_stream_that_breaks_counts_as_a_failed_call() -> None:
    @opero(clock=VirtualClock())
    def breaks() -> Iterator[int]:
        yield 1
        raise ConnectionError

    @opero(clock=VirtualClock())
    async def breaks_async() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    async def read() -> None:
        async for _ in breaks_async():
            pass

    with pytest.raises(ConnectionError):
        list(breaks())
    with pytest.raises(ConnectionError):
        asyncio.run(read())
    for bound in (breaks, breaks_async):
        assert bound.stats.failures == bound.stats.calls == bound.stats.attempts == 1  # type: ignore[attr-defined]
        assert bound.stats.errors == {"ConnectionError": 1}  # type: ignore[attr-defined]


def test_an_exception_that_the_reader_throws_in_is_no_failure_of_the_stream() -> None:
    @opero(clock=VirtualClock())
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    stream: Any = numbers()
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("from outside"))
    assert numbers.stats.failures == 0


def test_send_throw_and_return_pass_through() -> None:
    flaky, items = bound(1)
    iterator = items(4)
    assert next(iterator) == 0
    assert iterator.send("a") == 1
    error = KeyError("b")
    assert iterator.throw(error) == 2
    assert next(iterator) == 3
    with pytest.raises(StopIteration) as end:
        next(iterator)
    assert end.value.value == "returned"
    assert flaky.seen == ["a", error, None, None]


def test_asend_and_athrow_pass_through() -> None:
    flaky, clock, items = bound_async(1)

    async def main() -> None:
        iterator = items(3)
        assert await anext(iterator) == 0
        assert await iterator.asend("a") == 1
        error = KeyError("b")
        assert await iterator.athrow(error) == 2
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
        assert flaky.seen == ["a", error, None]

    clock.run(main())


def test_close_closes_the_users_generator() -> None:
    flaky, items = bound(0)
    iterator = items()
    next(iterator)
    iterator.close()
    flaky_async, clock, items_async = bound_async(0)

    async def main() -> None:
        iterator = items_async()
        await anext(iterator)
        await iterator.aclose()

    clock.run(main())
    assert flaky.seen == flaky_async.seen == ["closed"]


def test_an_empty_generator_yields_nothing() -> None:
    _, items = bound(0)
    assert list(items(0)) == []
    _, clock, items_async = bound_async(1)
    assert clock.run(collect(items_async(0))) == []


def test_yield_from_returns_the_return_value() -> None:
    _, items = bound(0)

    def outer() -> Any:
        return (yield from items(1))

    iterator = outer()
    next(iterator)
    with pytest.raises(StopIteration) as end:
        next(iterator)
    assert end.value.value == "returned"


def test_the_circuit_breaker_counts_starts_of_the_generator() -> None:
    _, items = bound(9, circuit_breaker=2)
    for error in (ConnectionError, ConnectionError, CircuitOpenError):
        with pytest.raises(error):
            next(items())
