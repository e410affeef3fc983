"""Reading items from files and stdin."""

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


def test_the_suffix_determines_the_format(write: Any) -> None:
    assert list(Items(write("a.jsonl", '1\n{"a": "é"}\n'), None)) == [1, {"a": "é"}]
    assert list(Items(write("a.NDJSON", "[]\n"), None)) == [[]]
    assert list(Items(write("a.csv", "a,b\n1,2\n"), None)) == [{"a": "1", "b": "2"}]
    assert list(Items(write("a.txt", "1\n x \n"), None)) == ["1", " x "]
    assert list(Items(write("a", "1"), "jsonl")) == [1]


def test_blank_lines_are_skipped_in_every_format(write: Any) -> None:
    assert list(Items(write("a.jsonl", "\n1\n  \n2"), None)) == [1, 2]
    assert list(Items(write("a.csv", "\na\n\n1\n\n"), None)) == [{"a": "1"}]
    assert list(Items(write("a.txt", "\n1\r\n\n2"), None)) == ["1", "2"]
    assert list(Items(write("b.txt", ""), None)) == []


def test_a_byte_order_mark_is_skipped(write: Any) -> None:
    assert list(Items(write("a.jsonl", b"\xef\xbb\xbf1\n"), None)) == [1]
    assert list(Items(write("a.csv", b"\xef\xbb\xbfa\n1\n"), None)) == [{"a": "1"}]


def test_a_csv_field_can_contain_newlines_commas_and_quotes(write: Any) -> None:
    assert list(Items(write("a.csv", 'a,b\n"x\ny","1,""2"""\n'), None)) == [{"a": "x\ny", "b": '1,"2"'}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '1\n{"a": \n', "a.jsonl:2: invalid JSON, expected one value per line: Expecting value"),
        ("a.jsonl", b"1\n\n\xff\n", "a.jsonl:3: invalid UTF-8"),
        ("a.csv", "a,b\n1,2\n1\n", "a.csv:3: 1 fields, but the header has 2"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: duplicate column name"),
        ("a.csv", "a\n" + "x" * 200_000, "a.csv:2: invalid CSV: field larger than field limit"),
    ],
)
def test_the_error_for_invalid_data_names_the_line(write: Any, name: str, data: Any, message: str) -> None:
    items = Items(write(name, data), None)
    with pytest.raises(UsageError, match="later lines were not read") as caught:
        list(items)
    assert message in str(caught.value)


def test_items_before_an_invalid_line_are_read(write: Any) -> None:
    items = iter(Items(write("a.jsonl", "1\n2\n?\n"), None))
    assert [next(items), next(items)] == [1, 2]


def test_an_unusable_file_or_format_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; use a file of items, or - for stdin"):
        Items(str(tmp_path / "none.txt"), None)
    with pytest.raises(UsageError, match="Is a directory"):
        Items(str(tmp_path), None)
    with pytest.raises(UsageError, match="JSON documents are not supported: write one value per line"):
        Items("a.json", None)
    with pytest.raises(UsageError, match="--format 'xml' is invalid: use one of jsonl, csv, lines"):
        Items("a.txt", "xml")


def test_stdin_is_read_as_lines_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for form, expected in ((None, ["1", "2"]), ("jsonl", [1, 2])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n")))
        items = Items("-", form)
        assert items.count() is None
        assert list(items) == expected


def test_the_number_of_items_is_the_number_of_lines(write: Any) -> None:
    assert Items(write("a.txt", "1\n\n2"), None).count() == 2
    assert Items(write("a.csv", "a\n1\n"), None).count() is None


def test_items_are_read_lazily(write: Any) -> None:
    items = iter(Items(write("a.txt", "x" * 80 + "\n"), None))
    assert next(items) == "x" * 80
    assert next(items, None) is None
