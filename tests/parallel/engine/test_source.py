"""What `iter()` accepts, a map accepts, whatever `len()` says of it."""

from __future__ import annotations

import asyncio
import collections
import io
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import opmap
from opero.parallel.engine.source import Source, is_iterable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MODES = ["thread", "process", "auto", "async", "async_process"]


def same(item: Any) -> Any:
    return item


async def same_async(item: Any) -> Any:
    return item


def mapped(mode: str, items: Any, **options: Any) -> list[Any]:
    function: Any = same_async if mode.startswith("async") else same
    options = {"workers": 2, "progress": False, "retries": 0, **options}
    results = opmap(mode=mode, **options)(function)(items)  # type: ignore[call-overload]
    return asyncio.run(results) if mode.startswith("async") else results


class Dataset:
    """A sequence by `__getitem__` alone, as data sets of torch are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, index: int) -> int:
        if index >= self.count:
            raise IndexError(index)
        return index

    def __len__(self) -> int:
        return self.count


class Says:
    """Numbers, whose number is said to be another one."""

    def __init__(self, count: int, said: Any) -> None:
        self.count, self.said = count, said

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said  # type: ignore[no-any-return]


LENGTHS: list[Any] = [
    0, 1, 3, 10**6, 10**30, -1, 2.5, "three", None,
    TypeError("no len"), NotImplementedError(), OverflowError(), RuntimeError("not loaded"),
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_map_takes_whatever_iter_takes(mode: str) -> None:
    for items in (
        [0, 1, 2], (0, 1, 2), range(3), iter(range(3)), (each for each in range(3)), {0: "a", 1: "b", 2: "c"}.keys(),
        collections.deque(range(3)), np.arange(3), memoryview(bytes([0, 1, 2])), Dataset(3),
        itertools.islice(range(9), 3), map(int, "012"), Says(3, RuntimeError("not loaded")), Says(3, 1),
    ):  # fmt: skip
        assert mapped(mode, items) == [0, 1, 2], items
    assert mapped(mode, io.StringIO("a\nb\n")) == ["a\n", "b\n"]
    assert [list(each) for each in mapped(mode, np.eye(2))] == [[1, 0], [0, 1]]


@pytest.mark.parametrize("said", LENGTHS, ids=repr)
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_the_length_may_fail_or_be_wrong(said: Any, count: int) -> None:
    seen: list[tuple[int, int | None]] = []

    def note(progress: Any) -> None:
        seen.append((progress.done, progress.total))

    bound = opmap(mode="thread", workers=2, retries=0)(same)
    assert bound(Says(count, said), progress=note) == list(range(count))
    assert list(bound.stream(Says(count, said))) == list(range(count))
    assert seen[-1][0] == count


def test_a_range_that_is_longer_than_any_list_is_a_stream_of_known_memory() -> None:
    for mode in ("thread", "process", "auto"):
        stream = opmap(mode=mode, workers=2, progress=False)(same).stream(range(10**20))  # type: ignore[call-overload]
        assert list(itertools.islice(stream, 100)) == list(range(100))
        stream.close()


class SomeAsync:
    """An async iterable that says how many items it has."""

    def __init__(self, said: int) -> None:
        self.said = said

    def __len__(self) -> int:
        return self.said

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(5):
            yield number


@pytest.mark.parametrize("said", [0, 2, 5, 9])
def test_an_async_iterable_may_be_wrong_about_its_length_too(said: int) -> None:
    assert mapped("async", SomeAsync(said)) == [0, 1, 2, 3, 4]


@given(st.integers(0, 60), st.one_of(st.none(), st.integers(0, 60)), st.lists(st.integers(1, 20), max_size=20))
def test_what_is_left_is_known_as_far_as_the_length_is_right(count: int, said: int | None, reads: list[int]) -> None:
    source = Source(Says(count, said) if said is not None else iter(range(count)))
    taken = 0
    for most in reads:
        indices, items = source.read(most)
        assert list(indices) == items
        taken += len(items)
        if source.left is not None:
            assert source.left >= 0
            assert source.is_exhausted or source.left == said - taken  # type: ignore[operator]
    if said == count:
        assert source.left == count - taken


def test_is_iterable_agrees_with_iter() -> None:
    class No:
        __iter__ = None

        def __getitem__(self, index: int) -> int:
            return index

    for value in (
        [],
        "",
        b"",
        {},
        3,
        None,
        iter([]),
        Dataset(1),
        No(),
        object(),
        list,
        len,
        np.arange(2),
        range(2),
    ):
        try:
            iter(value)  # type: ignore[call-overload]
        except TypeError:
            assert not is_iterable(value), value
        else:
            assert is_iterable(value), value
