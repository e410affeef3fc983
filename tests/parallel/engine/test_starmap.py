"""`starmap` and `starstream`: items that are tuples of arguments."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from opero import AllFailedError, ConfigError, MapError, Policy, opero, opmap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MODES = ["thread", "process", "auto", "async", "async_process"]


def power(base: int, exponent: int = 2, *, plus: int = 0) -> int:
    return int(base**exponent) + plus


async def power_async(base: int, exponent: int = 2, *, plus: int = 0) -> int:
    await asyncio.sleep(0)
    return int(base**exponent) + plus


def bound(mode: str, **options: Any) -> Any:
    function: Any = power_async if mode.startswith("async") else power
    return opero(mode=mode, workers=2, progress=False, retries=0, **options)(function)  # type: ignore[call-overload]


def results(call: Any, *args: Any, **kwargs: Any) -> Any:
    returned = call(*args, **kwargs)
    return asyncio.run(returned) if asyncio.iscoroutine(returned) else returned


def streamed(stream: Any) -> list[Any]:
    async def collected() -> list[Any]:
        return [each async for each in stream]

    return asyncio.run(collected()) if hasattr(stream, "__anext__") else list(stream)


PAIRS = [(base, exponent) for base in range(7) for exponent in range(5)]


@pytest.mark.parametrize("mode", MODES)
def test_each_item_has_the_arguments_of_one_call(mode: str) -> None:
    function, expected = bound(mode), list(itertools.starmap(power, PAIRS))
    assert results(function.starmap, PAIRS) == expected
    assert streamed(function.starstream(iter(PAIRS))) == expected
    assert results(function.starmap, [(2,), [3, 3], np.array([4, 2]), range(2, 4)]) == [4, 27, 16, 8]
    assert results(function.starmap, [(2,), (3,)], 3, plus=1) == [9, 28]
    assert results(function.starmap, zip([1, 2], [3, 4], strict=True), plus=1) == [2, 17]
    assert results(opmap(mode=mode, progress=False)(function.__wrapped__).starmap, PAIRS) == expected


@pytest.mark.parametrize("mode", MODES)
def test_an_item_that_has_no_arguments_fails_alone(mode: str) -> None:
    function = bound(mode, on_error="return")
    outcomes = results(function.starmap, [(2, 2), 3, "ab", {"base": 1}, (1, 2, 3), (3, 2)])
    assert [outcomes[0], outcomes[-1]] == [4, 9]
    assert all(type(each) is TypeError for each in outcomes[1:-1])
    assert "is a tuple of arguments for one call, and this one is of type int; use map" in str(outcomes[1])


def test_policies_apply_to_each_call() -> None:
    tried: list[tuple[int, int]] = []

    @opero(retries=1, min_delay=0, mode="thread", workers=1, progress=False)
    def unsteady(x: int, y: int) -> int:
        tried.append((x, y))
        if tried.count((x, y)) == 1:
            raise ConnectionError
        return x + y

    assert unsteady.starmap([(1, 2), (3, 4)]) == [3, 7]
    assert tried == [(1, 2)] * 2 + [(3, 4)] * 2
    assert unsteady.stats.retries == 2


@pytest.mark.parametrize("mode", ["thread", "process", "async"])
def test_the_cache_knows_the_calls_by_their_arguments(mode: str) -> None:
    function = bound(mode, cache=True)
    assert results(function.starmap, [(2, 3), (3, 2), (2, 3)]) == [8, 9, 8]
    assert function.cache_get(2, 3) == 8
    assert function.cache_get(2, exponent=3) == 8
    assert results(function.map, [2, 3], 3) == [8, 27]
    assert function.stats.cache_hits == 2
    outcomes = results(bound(mode, cache=True, on_error="return").starmap, [(2, 3), 7, iter([3, 2])])
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [8, TypeError, 9]


def test_fallback_values_are_tried_for_each_call() -> None:
    @opero(arg_fallback="key", mode="thread", progress=False)
    def fetch(path: str, key: str) -> str:
        if key == "bad":
            raise PermissionError(key)
        return path + key

    assert fetch.starmap([("a",), ("b",)], key=["bad", "good"]) == ["agood", "bgood"]


CALLS: list[tuple[int, int]] = []


@opero(mode="thread", workers=1, progress=False, retries=0)
def note(x: int, y: int) -> int:
    CALLS.append((x, y))
    if len(CALLS) == 2:
        raise ValueError
    return x * y


def test_a_journal_resumes_what_is_missing(tmp_path: Path) -> None:
    CALLS.clear()
    journal = tmp_path / "run.jsonl"
    with pytest.raises(MapError) as caught:
        note.starmap([(1, 2), (3, 4), (5, 6)], journal=journal)
    assert caught.value.retry_failed() == [2, 12, 30]
    assert note.starmap([(1, 2), (3, 4), (5, 6)], journal=journal) == [2, 12, 30]
    assert len(CALLS) == 4


class Service:
    def __init__(self, base: int) -> None:
        self.base = base

    @opero(mode="thread", progress=False)
    def add(self, x: int, y: int) -> int:
        return self.base + x + y

    @opmap(mode="thread", progress=False)
    def multiply(self, x: int, y: int) -> int:
        return self.base * x * y

    @opero(mode="thread", progress=False)
    @classmethod
    def join(cls, x: str, y: str) -> str:
        return f"{cls.__name__}{x}{y}"


def test_methods_have_it_too() -> None:
    service = Service(10)
    assert service.add.starmap([(1, 2), (3, 4)]) == [13, 17]
    assert list(service.add.starstream([(1, 2)])) == [13]
    assert service.multiply.starmap([(1, 2), (3, 4)]) == [20, 120]
    assert Service.join.starmap([("a", "b")]) == ["Serviceab"]


def test_async_iterables_are_spread_as_they_come() -> None:
    async def pairs() -> AsyncIterator[tuple[int, int]]:
        for pair in PAIRS:
            yield pair

    assert results(bound("async").starmap, pairs()) == list(itertools.starmap(power, PAIRS))
    assert streamed(bound("async").starstream(pairs())) == list(itertools.starmap(power, PAIRS))


def test_calls_never_get_batches() -> None:
    def sums(numbers: list[int], plus: int) -> int:
        return sum(numbers) + plus

    assert opmap(progress=False)(sums).starmap([([1, 2], 3), ([4], 5)]) == [6, 9]
    with pytest.raises(ConfigError, match="starmap calls it once for each item, and batch=True with lists of items"):
        opmap(batch=True, progress=False)(sums).starmap([([1, 2], 3)])


def test_what_every_call_gets_is_checked_first() -> None:
    function = bound("thread")
    with pytest.raises(TypeError, match="plsu"):
        function.starmap([(1, 2)], plsu=1)
    with pytest.raises(TypeError, match="got none: pass an iterable"):
        function.starmap(base=[(1, 2)])
    with pytest.raises(TypeError, match="is not iterable"):
        function.starmap(3)


def test_a_function_with_such_an_attribute_of_its_own_is_refused() -> None:
    def own() -> None: ...

    own.starmap = None  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has an attribute 'starmap'"):
        Policy().apply(own)


def test_errors_are_those_of_the_call() -> None:
    function = bound("thread", on_error="return")
    [error] = function.starmap([(0, -1)])
    assert type(error) is ZeroDivisionError
    assert not isinstance(error, AllFailedError)
