"""Items from files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from opero.cli.exits import UsageError
from opero.cli.items import Items


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, data: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)

    return write


def test_the_name_says_what_is_in_it(write: Any) -> None:
    assert list(Items(write("a.jsonl", '1\n{"a": "é"}\n'), None)) == [1, {"a": "é"}]
    assert list(Items(write("a.NDJSON", "[]\n"), None)) == [[]]
    assert list(Items(write("a.csv", "a,b\n1,2\n"), None)) == [{"a": "1", "b": "2"}]
    assert list(Items(write("a.txt", "1\n x \n"), None)) == ["1", " x "]
    assert list(Items(write("a", "1"), "jsonl")) == [1]


def test_empty_lines_are_no_items_in_any_format(write: Any) -> None:
    assert list(Items(write("a.jsonl", "\n1\n  \n2"), None)) == [1, 2]
    assert list(Items(write("a.csv", "\na\n\n1\n\n"), None)) == [{"a": "1"}]
    assert list(Items(write("a.txt", "\n1\r\n\n2"), None)) == ["1", "2"]
    assert list(Items(write("b.txt", ""), None)) == []


def test_a_byte_order_mark_is_no_part_of_the_first_item(write: Any) -> None:
    assert list(Items(write("a.jsonl", b"\xef\xbb\xbf1\n"), None)) == [1]
    assert list(Items(write("a.csv", b"\xef\xbb\xbfa\n1\n"), None)) == [{"a": "1"}]


def test_a_field_of_csv_may_hold_line_ends_commas_and_quotes(write: Any) -> None:
    assert list(Items(write("a.csv", 'a,b\n"x\ny","1,""2"""\n'), None)) == [{"a": "x\ny", "b": '1,"2"'}]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", '1\n{"a": \n', "a.jsonl:2: is not JSON: Expecting value"),
        ("a.jsonl", b"1\n\n\xff\n", "a.jsonl:3: is not UTF-8"),
        ("a.csv", "a,b\n1,2\n1\n", "a.csv:3: has 1 fields, and the first line names 2"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: names a column twice"),
        ("a.csv", "a\n" + "x" * 200_000, "a.csv:2: is not CSV: field larger than field limit"),
    ],
)
def test_what_cannot_be_read_is_told_of_with_its_line(write: Any, name: str, data: Any, told: str) -> None:
    items = Items(write(name, data), None)
    with pytest.raises(UsageError, match="nothing after it was read") as caught:
        list(items)
    assert told in str(caught.value)


def test_items_before_a_broken_line_are_read(write: Any) -> None:
    items = iter(Items(write("a.jsonl", "1\n2\n?\n"), None))
    assert [next(items), next(items)] == [1, 2]


def test_what_cannot_be_opened_is_told_of_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; name a file of items, or - for stdin"):
        Items(str(tmp_path / "none.txt"), None)
    with pytest.raises(UsageError, match="Is a directory"):
        Items(str(tmp_path), None)
    with pytest.raises(UsageError, match="a JSON document is not read item by item; write one value a line"):
        Items("a.json", None)
    with pytest.raises(UsageError, match="--format 'xml' is not known; it is one of jsonl, csv, lines"):
        Items("a.txt", "xml")


def test_stdin_is_lines_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for form, expected in ((None, ["1", "2"]), ("jsonl", [1, 2])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n")))
        items = Items("-", form)
        assert items.count() is None
        assert list(items) == expected


def test_items_are_counted_where_looking_at_the_lines_tells(write: Any) -> None:
    assert Items(write("a.txt", "1\n\n2"), None).count() == 2
    assert Items(write("a.csv", "a\n1\n"), None).count() is None


def test_items_are_read_as_they_are_asked_for(write: Any) -> None:
    items = iter(Items(write("a.txt", "x" * 80 + "\n"), None))
    assert next(items) == "x" * 80
    assert next(items, None) is None
