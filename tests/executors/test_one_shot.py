"""A warning, once for a function, if another attempt gets an argument that the failed one may have read in part."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opero import Policy
from opero.testing import VirtualClock

AGAIN = {"retry": {"retries": 1, "min_delay": 0, "max_delay": 0}}
ALWAYS = ConnectionError("down")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def logged() -> list[str]:
        found = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        caplog.clear()
        return found

    return logged


def rows(count: int = 3) -> Iterator[int]:
    yield from range(count)


class Rows:
    """An iterator of a class of one's own."""

    def __init__(self) -> None:
        self.left = 3

    def __iter__(self) -> Rows:
        return self

    def __next__(self) -> int:
        self.left -= 1
        if not self.left:
            raise StopIteration
        return self.left


def consume(values: Any, sep: str = ",") -> None:
    next(iter(values), None)
    raise ALWAYS


def attempt(call: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(Exception, match=r"down|attempts failed"):
        call(*args, **kwargs)


@pytest.mark.parametrize(
    "made",
    [
        rows,
        lambda: map(str, [1, 2]),
        lambda: zip([1], [2], strict=True),
        lambda: iter([1, 2]),
        itertools.count,
        lambda: io.StringIO("a\nb"),
        Rows,
    ],
)
def test_it_is_told_at_the_first_retry_and_once(made: Any, bind: Any, warnings: Any) -> None:
    call = bind(Policy(**AGAIN), consume)
    attempt(call, made())
    (told,) = warnings()
    assert ": argument 'values' (" in told
    assert "can be read only once, and another attempt gets what the failed one has left of it; pass a list" in told
    attempt(call, made())
    attempt(call, values=made())
    assert warnings() == []


def test_a_file_is_told(warnings: Any) -> None:
    with Path(__file__).open(encoding="utf-8") as file:
        attempt(Policy(**AGAIN).apply(consume), file)
    (told,) = warnings()
    assert "argument 'values' (TextIOWrapper)" in told


def test_the_argument_is_named_however_it_is_passed(warnings: Any) -> None:
    def keyword(*, values: Any) -> None:
        consume(values)

    def variadic(*values: Any) -> None:
        consume(values[1])

    for function, args, kwargs, name in (
        (keyword, (), {"values": rows()}, "'values' (generator)"),
        (variadic, (1, rows()), {}, "2 (generator)"),
    ):
        attempt(Policy(**AGAIN).apply(function), *args, **kwargs)
        (told,) = warnings()
        assert f"argument {name}" in told


@pytest.mark.parametrize("values", [[1, 2], (1,), "text", {"a": 1}, range(3), None, object(), b"x"])
def test_what_can_be_read_again_is_not_told(values: Any, warnings: Any) -> None:
    attempt(Policy(**AGAIN).apply(lambda _: consume([])), values)
    assert warnings() == []


def test_a_success_is_not_told_nor_is_a_call_without_another_attempt(warnings: Any) -> None:
    assert Policy(**AGAIN).apply(list)(rows()) == [0, 1, 2]
    attempt(Policy(retry=0).apply(consume), rows())
    attempt(Policy(timeout=5).apply(consume), rows())
    assert warnings() == []


def test_a_generator_that_was_not_begun_is_not_told(warnings: Any) -> None:
    def fails_at_once(values: Any) -> None:
        raise ALWAYS

    attempt(Policy(**AGAIN).apply(fails_at_once), rows())
    assert warnings() == []


def test_a_database_cursor_is_not_read_but_executed(warnings: Any) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        attempt(Policy(**AGAIN).apply(lambda _: consume([])), connection.cursor())
    assert warnings() == []


def test_an_instance_that_is_an_iterator_is_not_told_but_its_arguments_are(warnings: Any) -> None:
    class Reader(Rows):
        @Policy(**AGAIN).apply
        def read(self, values: Any) -> None:
            consume(values)

    attempt(Reader().read, [1])
    assert warnings() == []
    attempt(Reader().read, rows())
    (told,) = warnings()
    assert "Reader.read: argument 'values' (generator)" in told


def test_an_async_iterator_is_told(warnings: Any) -> None:
    async def lines() -> AsyncIterator[int]:
        yield 1

    async def send(body: Any) -> None:
        await anext(body)
        raise ALWAYS

    async def main() -> None:
        with pytest.raises(Exception, match="failed"):
            await Policy(**AGAIN).apply(send)(lines())

    asyncio.run(main())
    (told,) = warnings()
    assert "send: argument 'body' (async_generator)" in told


@pytest.mark.parametrize(
    "fallback", [{"arg": "keys"}, {"function": lambda values, keys: None}], ids=["values", "function"]
)
def test_other_values_and_a_fallback_function_are_other_attempts(fallback: Any, bind: Any, warnings: Any) -> None:
    def send(values: Any, keys: str) -> None:
        consume(values)

    call = bind(Policy(fallback=fallback), send)
    if "function" in fallback:
        call(rows(), "a")
    else:
        attempt(call, rows(), ["a", "b"])
    (told,) = warnings()
    assert "argument 'values' (generator)" in told


def test_a_rejected_result_is_a_failed_attempt(warnings: Any) -> None:
    policy = Policy(retry={"retries": 1, "min_delay": 0, "max_delay": 0, "retry_if_result": lambda found: found == []})
    call: Any = policy.apply(lambda values: list(values)[:0], clock=VirtualClock())
    attempt(call, rows())
    (told,) = warnings()
    assert "argument 'values' (generator)" in told
