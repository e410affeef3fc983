"""The items among the arguments of a map, and further arguments that seem to be items."""

from __future__ import annotations

import collections
import os
import types
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from opero import opero, opmap


def pair(x: Any, y: Any = 0) -> Any:
    return x, y


@pytest.mark.parametrize("items", [{"a": 1}, collections.Counter("ab"), os.environ, types.MappingProxyType({})])
def test_a_mapping_is_refused_with_what_to_pass_instead(items: Any) -> None:
    for call in (opmap()(pair), opero()(pair).map, opero()(pair).stream, opero()(pair).starmap):
        with pytest.raises(TypeError, match=r"keys or its values: pass list\(it\), it.values\(\) or it.items\(\)"):
            call(items)


@pytest.mark.parametrize("items", [np.array(3), np.float64(3)])
def test_an_array_without_dimensions_is_refused(items: Any) -> None:
    with pytest.raises(TypeError, match=r"without dimensions, which has no items: pass array.reshape\(1\)"):
        opero()(pair).map(items)


class PandasFrame:
    """A frame by its shape: its rows come from a method, and iterating it gives the names of its columns."""

    columns = ("a", "b")
    ndim = 2

    def itertuples(self, index: bool = True) -> Any:
        row = collections.namedtuple("Row", "a b")
        return iter([row(1, 2), row(3, 4)])

    def __iter__(self) -> Any:
        return iter(self.columns)


class PolarsFrame:
    columns = ("a", "b")

    def iter_rows(self, *, named: bool = False) -> Any:
        return iter([{"a": 1, "b": 2}, {"a": 3, "b": 4}])

    def __iter__(self) -> Any:
        return iter([[1, 3], [2, 4]])


def test_a_data_frame_is_refused_and_its_rows_are_mapped() -> None:
    bound, mapped = opero()(pair), opmap()(pair)
    for frame, cure in (
        (PandasFrame(), r"frame.itertuples\(index=False\)"),
        (PolarsFrame(), r"frame.iter_rows\(named=True\)"),
    ):
        for call in (bound.map, bound.stream, bound.starmap, mapped):
            with pytest.raises(TypeError, match=f"iterates over its columns: pass its rows, {cure}"):
                call(frame)
    assert bound.map(PandasFrame().itertuples(index=False)) == [((1, 2), 0), ((3, 4), 0)]
    assert bound.starmap(PandasFrame().itertuples(index=False)) == [(1, 2), (3, 4)]
    assert bound.map(PolarsFrame().iter_rows(named=True)) == [({"a": 1, "b": 2}, 0), ({"a": 3, "b": 4}, 0)]
    assert bound(PandasFrame())[1] == 0  # one call with a frame is a call like any other


def test_frames_of_pandas_and_polars_have_that_shape() -> None:
    from pandas import DataFrame

    frames: list[Any] = [DataFrame({"a": [1]})]
    with suppress(ImportError):  # a wheel of 50 MB
        from polars import DataFrame as PolarsFrames

        frames.append(PolarsFrames({"a": [1]}))
    for frame in frames:
        with pytest.raises(TypeError, match="iterates over its columns"):
            opero()(pair).map(frame)
    rows = DataFrame({"a": [1, 2], "b": [3, 4]}).itertuples(index=False)
    assert opero()(pair).map(rows) == [((1, 3), 0), ((2, 4), 0)]


def typed(x: int, y: int) -> Any:
    return x, y


def listed(x: int, y: list[int]) -> Any:
    return x, y


def with_default(x: int, y: Any = ()) -> Any:
    return x, y


def variable(*args: Any) -> Any:
    return args


def only_one(x: Any) -> Any:
    return x


class Service:
    @opero()
    def pair(self, x: Any, y: Any) -> Any:
        return x, y


def unannotated(x, y):  # type: ignore[no-untyped-def]
    return x, y


@pytest.mark.parametrize(
    ("function", "items", "further", "cure"),
    [
        (unannotated, [1, 2], [3, 4], r"or pass y= by keyword if each is meant to get all of them"),
        (unannotated, range(2), np.arange(2), r"every call would get all 2 values of 'y'"),
        (variable, [1, 2], [3, 4], "every call would get all 2 values of a further argument"),
        (typed, [1, 2], [3, 4], "every call would get all 2 values of 'y'"),
        (typed, iter([1, 2]), [3, 4, 5], "every call would get all 3 values of 'y'"),
        (only_one, [1, 2], [3, 4], "too many positional arguments; for calls with one item of each"),
    ],
)
def test_several_iterables_are_refused_with_a_hint_at_starmap(
    function: Any, items: Any, further: Any, cure: str
) -> None:
    for call in (opero()(function).map, opmap()(function), opero()(function).stream):
        with pytest.raises(TypeError, match=cure) as caught:
            call(items, further)
        assert f"use {function.__name__}.starmap(zip(...))" in str(caught.value)


def test_a_further_argument_that_is_meant_for_every_call_is_none_of_them() -> None:
    for function, items, args, further in (
        (listed, [1, 2], ([3, 4],), {}),
        (with_default, [1, 2], ([3, 4],), {}),
        (unannotated, [1, 2], ([3, 4, 5],), {}),
        (unannotated, [1], ([3],), {}),
        (unannotated, [1, 2], ("ab",), {}),
        (unannotated, [1, 2], ({3, 4},), {}),
        (unannotated, [1, 2], (), {"y": [3, 4]}),
        (typed, [1, 2], (), {"y": [3, 4]}),
    ):
        [y] = (*args, *further.values())
        assert opero()(function).map(items, *args, **further) == [(x, y) for x in items]  # type: ignore[operator]


def test_a_method_is_mapped_over_its_first_argument_after_the_instance() -> None:
    with pytest.raises(TypeError, match=r"use Service.pair.starmap\(zip\(...\)\), or pass y= by keyword"):
        Service().pair.map([1, 2], [3, 4])
    assert Service().pair.map([1, 2], 3) == [(1, 3), (2, 3)]
