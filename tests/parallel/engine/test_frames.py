"""Maps over the rows of real frames, whose results become a column; a frame itself is refused, with the cure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import polars
import pytest

from opero import opero, opmap

COLUMNS: dict[str, list[Any]] = {"symbol": ["A", "B", "C"], "pieces": [1, 2, 3]}
CALLED: list[str] = []


@pytest.fixture
def of_pandas() -> Any:
    return pandas.DataFrame(COLUMNS)


@pytest.fixture
def of_polars() -> Any:
    return polars.DataFrame(COLUMNS)


def cost(row: Any) -> float:
    return row.pieces * 1.5


def cost_of(row: dict[str, Any]) -> float:
    return row["pieces"] * 1.5


COSTS = [1.5, 3.0, 4.5]


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_the_results_of_a_map_over_rows_are_a_column_of_pandas(of_pandas: Any, mode: Any) -> None:
    of_pandas["cost"] = opero(mode=mode, workers=2)(cost).map(of_pandas.itertuples(index=False), progress=False)
    assert of_pandas["cost"].tolist() == COSTS
    assert of_pandas["cost"].dtype == float
    of_pandas["again"] = opmap(mode=mode, workers=2, progress=False)(cost)(of_pandas.itertuples())
    assert of_pandas["again"].tolist() == COSTS


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_the_results_of_a_map_over_rows_are_a_column_of_polars(of_polars: Any, mode: Any) -> None:
    costs = opero(mode=mode, workers=2)(cost_of).map(of_polars.iter_rows(named=True), progress=False)
    frame = of_polars.with_columns(polars.Series("cost", costs))
    assert frame["cost"].to_list() == COSTS
    assert frame["cost"].dtype == polars.Float64


def test_an_async_function_maps_rows(of_pandas: Any, of_polars: Any) -> None:
    @opero
    async def later(row: Any) -> float:
        return cost_of(row) if isinstance(row, dict) else cost(row)

    async def main() -> None:
        assert await later.map(of_pandas.itertuples(index=False), progress=False) == COSTS
        assert await later.map(of_polars.iter_rows(named=True), progress=False) == COSTS

    asyncio.run(main())


def test_one_column_is_mapped_as_any_other_sequence(of_pandas: Any, of_polars: Any) -> None:
    lower = opero(str.lower)
    assert lower.map(of_pandas["symbol"], progress=False) == ["a", "b", "c"]
    assert lower.map(of_polars["symbol"], progress=False) == ["a", "b", "c"]


ARRAYS: dict[str, Callable[[list[float]], Any]] = {
    "numpy": numpy.array,
    "pandas": pandas.Series,
    "polars": polars.Series,
}


@pytest.mark.parametrize("mode", ["thread", "process"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_a_batch_of_rows_may_return_an_array(of_pandas: Any, kind: str, mode: Any) -> None:
    @opmap(batch=True, batch_size=2, mode=mode, progress=False)
    def costs(rows: list[Any]) -> Any:
        return ARRAYS[kind]([each.pieces * 1.5 for each in rows])

    of_pandas["cost"] = costs(of_pandas.itertuples(index=False))
    assert of_pandas["cost"].tolist() == COSTS


def test_a_batch_may_return_a_matrix_with_a_row_for_each_item() -> None:
    @opmap(batch_size=2, mode="thread", progress=False)
    def embed(texts: list[str]) -> Any:
        return numpy.array([[len(each), 0] for each in texts])

    assert [each.tolist() for each in embed(["a", "bb", "ccc"])] == [[1, 0], [2, 0], [3, 0]]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (numpy.array([1]), "returned ndarray of 1:"),
        (numpy.array(1), "returned ndarray:"),
        (pandas.DataFrame({"a": [1, 2], "b": [1, 2]}), "returned DataFrame:"),
    ],
)
def test_an_array_of_another_length_and_a_frame_are_refused(result: Any, message: str) -> None:
    @opmap(batch_size=2, mode="thread", progress=False)
    def wrong(numbers: list[int]) -> Any:
        return result

    with pytest.raises(Exception, match=message):
        wrong([1, 2])


@pytest.mark.parametrize("call", ["map", "mapped", "stream"])
def test_a_frame_is_refused_with_the_cure(of_pandas: Any, of_polars: Any, call: str) -> None:
    calls = {"map": opero(cost).map, "mapped": opmap(progress=False)(cost), "stream": opero(cost).stream}
    for frame, cure in (
        (of_pandas, r"pass its rows, frame\.itertuples\(index=False\)"),
        (of_polars, r"pass its rows, frame\.iter_rows\(named=True\)"),
        (of_polars.lazy(), r"frame\.collect\(\)\.iter_rows\(named=True\)"),
    ):
        with pytest.raises(TypeError, match=f"cost is mapped over items and got a .*Frame, .*{cure}"):
            calls[call](frame)


def test_a_frame_is_an_argument_like_any_other_to_a_plain_call(of_pandas: Any, of_polars: Any) -> None:
    @opero
    def size(frame: Any) -> int:
        return len(frame)

    assert size(of_pandas) == size(of_polars) == 3
    assert size.map([of_pandas, of_polars], progress=False) == [3, 3]


@opero(mode="thread", retries=0)
def noted(row: Any) -> str:
    symbol = row["symbol"] if isinstance(row, dict) else row.symbol
    CALLED.append(symbol)
    if symbol == "C" and len(CALLED) <= 3:
        raise ValueError(symbol)
    return symbol * 2


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_a_journal_resumes_a_map_over_rows(of_pandas: Any, of_polars: Any, tmp_path: Path, kind: str) -> None:
    def rows() -> Any:
        return of_pandas.itertuples(index=False) if kind == "pandas" else of_polars.iter_rows(named=True)

    CALLED.clear()
    options: Any = {"journal": tmp_path / "rows.jsonl", "progress": False}
    with pytest.raises(Exception, match="1 of 3 items failed"):
        noted.map(rows(), **options)
    assert noted.map(rows(), **options) == ["AA", "BB", "CC"]
    assert CALLED.count("A") == 1
