"""Reading items from files and stdin."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from opero.cli.exits import UsageError
from opero.cli.items import InvalidItem, Items


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
        ("a.csv", "a\n" + "x" * 200_000, "a.csv:2: invalid CSV: field larger than field limit"),
    ],
)
def test_what_stands_for_an_invalid_line_names_it(write: Any, name: str, data: Any, message: str) -> None:
    found = list(Items(write(name, data), None))
    (invalid,) = [each for each in found if isinstance(each, InvalidItem)]
    assert message in str(invalid.error)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a,b\n1,2\n1\n3,4\n", [{"a": "1", "b": "2"}, None, {"a": "3", "b": "4"}]),
        (b"a\n\xff\nx\n", [None, {"a": "x"}]),
        ("a\n" + "x" * 200_000 + "\ny\n", [None, {"a": "y"}]),
    ],
)
def test_rows_after_an_invalid_one_are_read(write: Any, data: Any, expected: list[Any]) -> None:
    found = Items(write("a.csv", data), None)
    assert [None if isinstance(each, InvalidItem) else each for each in found] == expected


@pytest.mark.parametrize(
    ("data", "message"), [("a,a\n1,2\n", "duplicate column name"), (b"a,\xff\n1,2\n", "invalid UTF-8")]
)
def test_a_header_that_cannot_be_used_ends_the_run(write: Any, data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"a.csv:1: {message}; nothing was run"):
        list(Items(write("a.csv", data), None))


def test_fields_are_separated_as_the_suffix_or_the_option_says(write: Any) -> None:
    assert list(Items(write("a.tsv", "a\tb\n1\t2,3\n"), None)) == [{"a": "1", "b": "2,3"}]
    for given in (";", "semicolon"):
        assert list(Items(write("a.csv", "a;b\n1;2,3\n"), None, given)) == [{"a": "1", "b": "2,3"}]
    for given in ("tab", "\\t", "\t"):
        assert list(Items(write("a.csv", "a\tb\n1\t2\n"), None, given)) == [{"a": "1", "b": "2"}]
    for given in ("", ";;", "\n", '"'):
        with pytest.raises(UsageError, match="--delimiter .* is invalid: use one character"):
            Items(write("a.csv", "a\n"), None, given)


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
