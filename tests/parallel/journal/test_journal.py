"""The file behind a map's journal."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import Policy
from opero.errors import ConfigError
from opero.parallel.journal import journal as journal_module
from opero.parallel.journal.journal import Journal
from opero.runtime import exclusive_file as locked_file
from opero.runtime.hosts import Outcome

NAME = "shop.prices:fetch"


class Colour(IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@dataclass
class Point:
    x: float
    tags: list[str] = field(default_factory=list)


class AwkwardError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class DisguisedError(Exception):
    """Unpickles as another exception."""

    def __reduce__(self) -> Any:
        return KeyError, ("mask",)


class TextlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unreadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Plain:
    """Equal to nothing but itself."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def write(path: Path, *values: Any, first: int = 0, name: str = NAME) -> None:
    """Record these values as the results of the items `first`, `first + 1`, …; exceptions as failures."""
    with Journal(path, name) as journal:
        for index, value in enumerate(values, first):
            journal.record(index, index, outcome(value))


def outcome(value: Any) -> Outcome:
    return Outcome(error=value) if isinstance(value, Exception) else Outcome(value)


def recalled(path: Path, items: Any, *, name: str = NAME, **options: Any) -> tuple[dict[int, Any], list[int]]:
    with Journal(path, name) as journal:
        found = journal.recall(0, items, **options)
    return {index: each.get() for index, each in found.outcomes.items()}, found.to_run


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, with the same types all the way down; NaN is NaN, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return same(sorted(one, key=repr), sorted(other, key=repr))
    if isinstance(one, Point):
        return same(vars(one), vars(other))
    return bool(one == other)


# Results

TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud83d", "\ud83d\ude00", "\udc80x", "a\nb\0", "\u2028"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**700, -(2**3000), Colour.RED, Text("a"), -0.0, Decimal("1.50"), True, 1, 1.0])
    | st.floats()
    | TEXTS
    | st.binary(max_size=4)
)
KEYS = TEXTS | st.integers() | st.booleans() | st.none() | st.tuples(st.integers())
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(TEXTS, inner, max_size=3)
        | st.sets(LEAVES, max_size=3)
        | st.frozensets(LEAVES, max_size=3)
        | st.builds(Point, st.floats(), st.lists(TEXTS, max_size=2))
    ),
    max_leaves=8,
)


@given(values=st.lists(VALUES, max_size=6))
def test_recalled_results_are_equal_and_of_the_same_types(tmp_path_factory: Any, values: list[Any]) -> None:
    path = tmp_path_factory.mktemp("journal") / "run.jsonl"
    write(path, *values)
    done, to_run = recalled(path, range(len(values)))
    assert list(done) == list(range(len(values)))
    assert all(same(done[index], value) for index, value in enumerate(values))
    assert to_run == []


@given(item=VALUES, other=VALUES)
def test_items_are_distinguished_by_value_and_type(tmp_path_factory: Any, item: Any, other: Any) -> None:
    with Journal(tmp_path_factory.mktemp("journal") / "run.jsonl", NAME) as journal:
        journal.record(0, item, Outcome("result"))
        assert journal.recall(0, [item]).outcomes[0].get() == "result"
        if not same(item, other):
            with pytest.raises(ConfigError, match="item 0"):
                journal.recall(0, [other])


@pytest.mark.parametrize(
    "value",
    [1, "é\n", [1, -0.0, None], {"a": {"b": [True, 1.5]}}, "", {}, 2**64],
    ids=repr,
)
def test_a_result_that_json_represents_exactly_is_written_as_json(path: Path, value: Any) -> None:
    write(path, value)
    record = json.loads(path.read_text("utf-8").splitlines()[1])
    assert same(record["ok"], value)
    assert record.keys() == {"i", "item", "ok"}


@pytest.mark.parametrize(
    "value",
    [(1,), {1: 2}, math.nan, -math.inf, [Colour.RED], Text("a"), "\ud800", "\ud83d\ude00", {1, 2}, b"a", 10**1000],
    ids=ascii,
)
def test_a_result_that_json_would_change_is_written_as_a_pickle(path: Path, value: Any) -> None:
    write(path, value)
    record = json.loads(path.read_bytes().splitlines()[1])
    assert record.keys() == {"i", "item", "pickle"}
    assert same(recalled(path, [0])[0][0], value)


def test_a_journal_is_readable_text(path: Path) -> None:
    write(path, {"name": "Zoë"}, ValueError("no such café"))
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == '{"opero_journal": 1, "function": "shop.prices:fetch"}'
    assert lines[1].startswith('{"i": 0, "item": "')
    assert lines[1].endswith('", "ok": {"name": "Zoë"}}')
    assert '"error": "ValueError: no such café"' in lines[2]


def test_deeply_nested_and_cyclic_results_are_recalled(path: Path) -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    cycle: list[Any] = [1]
    cycle.append(cycle)
    write(path, deep, cycle)
    done, _ = recalled(path, range(2))
    assert done[0] == deep
    assert done[1][1] is done[1]


def test_lambdas_and_instances_of_local_classes_are_recalled(path: Path) -> None:
    class Local:
        size = 3

    write(path, lambda number: number + 1, Local())
    done, _ = recalled(path, range(2))
    assert done[0](1) == 2
    assert done[1].size == 3


def test_an_instance_of_a_class_in_main_is_recalled_as_one_in_the_next_run(path: Path) -> None:
    code = f"""
        from dataclasses import dataclass
        from opero.runtime.hosts import Outcome
        from opero.parallel.journal.journal import Journal

        @dataclass
        class Point:
            x: int

        with Journal({str(path)!r}, "main") as journal:
            found = journal.recall(0, ["a"])
            print([each.get() == Point(1) for each in found.outcomes.values()])
            journal.record(0, "a", Outcome(Point(1)))
    """
    assert [run(code).stdout for _ in range(2)] == ["[]\n", "[True]\n"]


def test_a_result_that_cannot_be_written_is_computed_again_and_reported_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "opero"):
        write(path, threading.Lock(), (each for each in ()), 3)
    assert recalled(path, range(3)) == ({2: 3}, [0, 1])
    (record,) = caplog.records
    assert "result of item 0, a lock" in record.getMessage()
    assert str(path) in record.getMessage()


def test_a_result_that_cannot_be_read_back_is_computed_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, Unreadable(), 1)
    with caplog.at_level(logging.WARNING, "opero"):
        assert recalled(path, range(3)) == ({1: 1}, [0, 2])
    assert "result of item 0 cannot be read back (ValueError" in caplog.text


# Failures


def test_failed_items_run_again_with_the_remaining_ones(path: Path) -> None:
    write(path, "a", ValueError("b"))
    assert recalled(path, range(3)) == ({0: "a"}, [1, 2])


def test_failed_only_runs_failed_items_and_omits_items_without_a_record(path: Path) -> None:
    write(path, "a", ValueError("b"))
    assert recalled(path, range(3), failed_only=True) == ({0: "a"}, [1])


def test_failed_only_needs_no_digest_of_items_that_it_omits(path: Path) -> None:
    write(path, "a")
    assert recalled(path, [0, Plain()], failed_only=True) == ({0: "a"}, [])


def test_the_last_record_of_an_item_counts(path: Path) -> None:
    write(path, ValueError("first"), "kept", "lost")
    write(path, "second")
    write(path, KeyError("third"), first=2)
    assert recalled(path, range(3)) == ({0: "second", 1: "kept"}, [2])
    with Journal(path, NAME) as journal:
        assert list(journal.failures()) == [2]


def test_failures_are_recalled_with_their_types_and_attributes(path: Path) -> None:
    error = ValueError("text", 3)
    error.add_note("a note")
    write(path, error)
    with Journal(path, NAME) as journal:
        (found,) = journal.failures().values()
    assert type(found) is ValueError
    assert found.args == ("text", 3)
    assert found.__notes__ == ["a note"]


def test_a_failure_that_cannot_be_pickled_keeps_its_text(path: Path) -> None:
    holder = ValueError("holds a lock")
    holder.lock = threading.Lock()  # type: ignore[attr-defined]
    write(
        path, AwkwardError(404, reason="gone"), holder, TextlessError(), ValueError("\ud800"), ValueError("x" * 10**5)
    )
    with Journal(path, NAME) as journal:
        found = journal.failures()
    assert [type(each) for each in found.values()] == [
        RuntimeError,
        RuntimeError,
        TextlessError,
        ValueError,
        ValueError,
    ]
    assert str(found[0]) == "AwkwardError: 404: gone"
    assert str(found[1]) == "ValueError: holds a lock"
    records = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    assert records[2]["error"] == "TextlessError"
    assert records[3]["error"] == "ValueError: \\ud800"
    assert len(records[4]["error"]) < 3000


def test_a_failure_that_unpickles_as_another_exception_keeps_its_text(path: Path) -> None:
    write(path, DisguisedError("face"))
    with Journal(path, NAME) as journal:
        assert repr(journal.failures()) == "{0: RuntimeError('DisguisedError: face')}"


# Digests of items


def test_digests_of_items_are_the_same_in_every_process(path: Path) -> None:
    code = f"""
        from pathlib import Path
        from opero.runtime.hosts import Outcome
        from opero.parallel.journal.journal import Journal

        items = [{{"a", "b", "c"}}, {{"x": 1, "y": (2.0, None)}}, frozenset("hello"), "text", 7, Path("a") / "b", b"1"]
        with Journal({str(path)!r}, "main") as journal:
            found = journal.recall(0, items)
            print(len(found.outcomes))
            for index in found.to_run:
                journal.record(index, items[index], Outcome(index))
    """
    assert [run(code, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")] == ["0\n", "7\n"]


def test_equal_paths_have_equal_digests(path: Path) -> None:
    with Journal(path, NAME) as journal:
        journal.record(0, PurePosixPath("a/b"), Outcome(1))
        assert journal.recall(0, [PurePosixPath("a", "b")]).to_run == []
        with pytest.raises(ConfigError):
            journal.recall(0, ["a/b"])


def test_an_item_that_the_function_changes_is_recorded_as_it_was_before(path: Path) -> None:
    item = {"a": 1}
    with Journal(path, NAME) as journal:
        journal.recall(0, [item])
        item.clear()
        journal.record(0, item, Outcome("done"))
    assert recalled(path, [{"a": 1}]) == ({0: "done"}, [])


def test_an_item_without_a_digest_is_refused_before_anything_runs(path: Path) -> None:
    with Journal(path, NAME) as journal:
        for item in (Plain(), lambda: None, [[Plain()]]):
            with pytest.raises(ConfigError, match=r"run\.jsonl cannot distinguish item 4, a \w+, .*__opero_key__"):
                journal.recall(3, [1, item])
        with pytest.raises(ConfigError, match="item 9"):
            journal.record(9, Plain(), Outcome(1))


# Refused files and items


def refused(path: Path, match: str, *, name: str = NAME, items: Any = range(100)) -> None:
    """Check that opening the journal, or recalling these items, is refused and leaves the file unchanged."""
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=match) as caught, Journal(path, name) as journal:
        journal.recall(0, items)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_other_items_are_refused(path: Path) -> None:
    write(path, *range(30))
    refused(path, r"run\.jsonl line 19 belongs to other items: item 17 ", items=[*range(17), "other", *range(18, 30)])


def test_other_items_are_refused_if_the_record_is_a_failure_and_the_last_line_is_incomplete(path: Path) -> None:
    write(path, ValueError("a"), 1)
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, r"line 2 belongs to other items: item 0 ", items=["other"])


def test_recording_another_item_is_refused(path: Path) -> None:
    write(path, "a")
    before = path.read_bytes()
    with Journal(path, NAME) as journal, pytest.raises(ConfigError, match="line 2 belongs to other items: item 0 "):
        journal.record(0, "other", Outcome(1))
    assert path.read_bytes() == before


def test_the_journal_of_another_function_is_refused(path: Path) -> None:
    write(path, 1, name="shop.prices:other")
    refused(path, "belongs to the function 'shop.prices:other', not to 'shop.prices:fetch'")


@pytest.mark.parametrize(
    "content",
    [
        b"name,price\nbolt,3\n",
        b"{}",
        b"x",
        b"\n",
        b'{"i": 0, "item": "5d40a4cf2f1c7e0b", "ok": 12.5}\n',
        b"[1]\n",
        b"\xff\xfe\x00\x01",
        b"\0" * 4096,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 900,
        b"[" * 100_000,
        b'{"opero_journal": 1, "function": "shop.prices:other"',
        b"\xef\xbb\xbf" + b'{"opero_journal": 1, "function": "shop.prices:fetch"}\n',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_file_that_is_no_journal_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "is no journal of opero's")


def test_a_journal_of_a_later_format_is_refused(path: Path) -> None:
    path.write_bytes(b'{"opero_journal": 2, "function": "shop.prices:fetch"}\n')
    refused(path, "has format 2, and this opero reads format 1")


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b'{"i": 1, "item": "5d40a4cf\n',
        b'{"i": 1, "item": "5d40a4cf2f1c7e0b"}\n',
        b'{"i": -1, "item": "5d40a4cf2f1c7e0b", "ok": 1}\n',
        b'{"i": true, "item": "5d40a4cf2f1c7e0b", "ok": 1}\n',
        b'{"i": 99999999999, "item": "5d40a4cf2f1c7e0b", "ok": 1}\n',
        b'{"i": 1, "item": "xyz", "ok": 1}\n',
        b'{"i": 1, "item": "5d40a4cf2f1c7e0b", "ok": "\0\0\0"}\n',
        b'{"i": 1, "item": "5d40a4cf2f1c7e0b", "ok": \xff}\n'[:-2] + b"\n",
        b"[1, 2]\n",
        b"\0" * 50 + b"\n",
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_broken_line_in_the_middle_is_refused_and_named(path: Path, line: bytes) -> None:
    write(path, 0, 1, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    refused(path, r"run\.jsonl is broken in line 3: delete that line")


def test_a_value_that_is_broken_in_the_middle_is_refused_when_it_is_recalled(path: Path) -> None:
    write(path, 0, "abc", 2)
    path.write_bytes(path.read_bytes().replace(b'"abc"', b'"ab\x01'))
    refused(path, r"broken in line 3")


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory .*/absent'"):
        Journal(tmp_path / "absent" / "run.jsonl", NAME).open()


def test_a_path_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        Journal(tmp_path, NAME).open()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        Journal(tmp_path / "pipe", NAME).open()
    with pytest.raises(ConfigError, match="no regular file"):
        Journal("/dev/null", NAME).open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_refused(path: Path) -> None:
    write(path, 1)
    path.chmod(0o400)
    refused(path, "cannot be opened for reading and writing: Permission denied")


def test_fewer_items_than_recorded_are_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, *range(5))
    with caplog.at_level(logging.WARNING, "opero"), Journal(path, NAME) as journal:
        journal.recall(0, range(2000))
        journal.finished(5)
        assert caplog.text == ""
        journal.finished(4)
    assert "up to number 4, and this run had 4" in caplog.text


# Crashes


def test_a_journal_truncated_anywhere_recalls_a_prefix_and_can_be_continued(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(locked_file.os, "fsync", lambda _: None)
    values = ["Zoë", (1, 2), ValueError("é"), {"ü": [1.5]}]
    write(path, *values)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        missing = ends[0] - size  # of the header, which is synced before any record
        for tail in (b"", b"\0" * (missing if missing > 0 else 7)):
            path.write_bytes(whole[:size] + tail)
            count = max(sum(end <= size for end in ends) - 1, 0)  # without the header
            done, to_run = recalled(path, range(4))
            expected = {index: value for index, value in enumerate(values[:count]) if index != 2}
            if tail and size in (len(whole), *ends[1:]):
                assert path.read_bytes() == whole[:size] + tail  # nothing was written, so nothing was changed
            assert (done, to_run) == (expected, [index for index in range(4) if index not in expected]), size
            write(path, *values[count:], first=count)
            assert path.read_bytes().rstrip(b"\0") == whole, size  # nothing is removed if there is nothing to write


def test_a_corrupt_last_line_is_removed(path: Path) -> None:
    write(path, 0)
    before = path.read_bytes()
    write(path, "abcdef", first=1)
    whole = path.read_bytes()
    for broken in (whole.replace(b"cd", b"\0\0"), whole.replace(b'ef"', b"e\x01f")):
        path.write_bytes(broken)
        assert recalled(path, range(2)) == ({0: 0}, [1])
        write(path, 1, first=1)
        assert path.read_bytes().startswith(before + b'{"i": 1, ')
        assert recalled(path, range(2)) == ({0: 0, 1: 1}, [])


def test_a_journal_that_was_reformatted_is_read_as_json(path: Path) -> None:
    write(path, 0, 1, 2)
    header, *records = map(json.loads, path.read_bytes().splitlines())
    compact = [json.dumps(each, separators=(",", ":"), sort_keys=True) for each in records]
    path.write_text("\n".join([json.dumps(header), compact[0], "", *compact[1:], ""]))
    write(path, 3, first=3)
    assert recalled(path, range(4)) == ({index: index for index in range(4)}, [])


def test_flushed_records_survive_kill_9(path: Path) -> None:
    code = f"""
        from opero.runtime.hosts import Outcome
        from opero.parallel.journal.journal import Journal

        journal = Journal({str(path)!r}, {NAME!r})
        journal.open()
        for index in range(10**6):
            journal.record(index, index, Outcome([index, "é" * (index % 50)]))
            if index % 10 == 9:
                journal.flush()
                print(index, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if int(line) >= 2000:
                process.kill()
                break
        last = [int(line), *map(int, process.stdout.read().split())][-1]
    assert process.returncode == -signal.SIGKILL
    done, _ = recalled(path, range(last + 1000))
    assert len(done) >= last + 1
    assert all(value == [index, "é" * (index % 50)] for index, value in done.items())
    assert list(done) == list(range(len(done)))


def test_records_are_synced_to_the_disk_once_a_second_and_at_the_end(path: Path, monkeypatch: Any) -> None:
    synced: list[bool] = []
    now = 100.0
    real = os.fsync
    monkeypatch.setattr(locked_file.os, "fsync", lambda file: (synced.append(True), real(file))[0])
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now)
    with Journal(path, NAME) as journal:
        assert len(synced) == 2  # the new file and its directory
        synced.clear()
        journal.flush()
        assert len(synced) == 0
        for index in range(10):
            journal.record(index, index, Outcome(index))
            journal.flush()
        assert len(synced) == 1
        now = 101.5
        journal.flush()
        assert len(synced) == 2
        now = 110.0
        journal.flush()
        assert len(synced) == 2
        journal.record(10, 10, Outcome(10))
    assert len(synced) == 3


def test_a_record_is_in_the_file_after_flush_and_not_before(path: Path) -> None:
    with Journal(path, NAME) as journal:
        empty = path.read_bytes()
        journal.record(0, 0, Outcome("value"))
        assert path.read_bytes() == empty
        journal.flush()
        assert path.read_bytes().endswith(b'"ok": "value"}\n')
        journal.record(1, 1, Outcome("x" * 2**20))  # large records are written at once
        assert len(path.read_bytes()) > 2**20
        journal.record(2, 2, Outcome("last"))
        assert journal.recall(2, [2]).outcomes[2].get() == "last"


def test_opening_and_closing_writes_nothing_to_a_journal_that_exists(path: Path) -> None:
    for values in ((), (1, 2)):
        write(path, *values)
        os.utime(path, (1, 1))
        assert len(recalled(path, range(3))[0]) == len(values)
        assert path.stat().st_mtime == 1


# A full disk


def test_a_full_disk_is_reported_and_unwritten_records_count_as_not_recorded(path: Path) -> None:
    code = f"""
        import resource
        from opero.runtime.hosts import Outcome
        from opero.parallel.journal.journal import Journal

        path = {str(path)!r}
        journal = Journal(path, {NAME!r})
        journal.open()
        journal.record(0, 0, Outcome("first"))
        journal.flush()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        for index in range(1, 10):
            journal.record(index, index, Outcome("x" * 50))
        for _ in range(2):
            try:
                journal.flush()
            except OSError as error:
                print(type(error).__name__, error.filename == path, journal._states[1] & 3, journal._offsets[1])
        with open({str(path.parent / "copy")!r}, "wb") as copy:
            copy.write(open(path, "rb").read())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        journal.flush()
        print(sorted(journal.recall(0, range(10)).outcomes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        journal.record(10, 10, Outcome("x" * 50))
        try:
            journal.close()
        except OSError as error:
            print("close", error.filename == path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        with Journal(path, {NAME!r}) as journal:
            print(len(journal.recall(0, range(11)).outcomes))
    """
    expected = ["OSError True 0 0", "OSError True 0 0", str(list(range(10))), "close True", "10"]
    assert run(code).stdout.splitlines() == expected
    torn = path.parent / "copy"
    assert torn.stat().st_size == 300
    done, to_run = recalled(torn, range(10))
    assert done[0] == "first"
    assert sorted([*done, *to_run]) == list(range(10))
    assert all(value == "x" * 50 for index, value in done.items() if index)


def test_a_full_disk_does_not_hide_an_earlier_exception(path: Path, caplog: Any, monkeypatch: Any) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with Journal(path, NAME) as journal:
            journal.record(0, 0, Outcome(1))
            monkeypatch.setattr(locked_file.os, "write", full)
            raise KeyError

    with caplog.at_level(logging.WARNING, "opero"), pytest.raises(KeyError):
        fail()
    assert "No space left on device" in caplog.text
    with pytest.raises(OSError, match="No space left on device.*run.jsonl"):
        write(path.parent / "other-run.jsonl")
    monkeypatch.undo()
    assert recalled(path, [0]) == ({}, [0])


def test_an_interrupted_write_is_repeated(path: Path, monkeypatch: Any) -> None:
    real = os.write

    def interrupted(file: int, data: Any) -> int:
        real(file, data[:30])
        raise KeyboardInterrupt

    with Journal(path, NAME) as journal:
        journal.record(0, 0, Outcome("a"))
        journal.flush()
        journal.record(1, 1, Outcome("b"))
        monkeypatch.setattr(locked_file.os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.flush()
        monkeypatch.undo()
    assert recalled(path, range(2)) == ({0: "a", 1: "b"}, [])
    assert len(path.read_bytes().splitlines()) == 3


# Locks


def test_a_journal_cannot_be_opened_twice(path: Path) -> None:
    link = path.parent / "link"
    with Journal(path, NAME) as journal:
        link.symlink_to(path)
        for other in (Journal(path, NAME), Journal(link, NAME), journal):
            with pytest.raises(ConfigError, match="is in use by another run"):
                other.open()
        journal.record(0, 0, Outcome(1))
    assert recalled(link, [0]) == ({0: 1}, [])


def test_another_process_cannot_open_an_open_journal(path: Path) -> None:
    code = f"""
        from opero.errors import ConfigError
        from opero.parallel.journal.journal import Journal
        try:
            Journal({str(path)!r}, {NAME!r}).open()
        except ConfigError as error:
            print(error)
    """
    with Journal(path, NAME):
        assert "run.jsonl is in use by another run" in run(code).stdout
    assert run(code).stdout == ""


def test_a_system_without_locks_is_reported(path: Path, caplog: Any, monkeypatch: Any) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with caplog.at_level(logging.WARNING, "opero"), Journal(path, NAME) as journal:
        journal.record(0, 0, Outcome(1))
        with pytest.raises(ConfigError, match="in use"):  # within a process, no lock is needed
            Journal(path, NAME).open()
    assert "cannot be locked here" in caplog.text
    assert recalled(path, [0])[0] == {0: 1}


def test_a_refused_journal_is_not_kept_locked(path: Path) -> None:
    write(path, 1, name="other")
    refused(path, "belongs to the function")
    write(path, 1, name="other")


def test_a_child_process_neither_writes_nor_locks_its_parents_journal(path: Path) -> None:
    code = f"""
        import os, signal, time
        from opero.runtime.hosts import Outcome
        from opero.parallel.journal.journal import Journal

        with Journal({str(path)!r}, {NAME!r}) as journal:
            journal.record(0, 0, Outcome("parent"))
            child = os.fork()
            if child == 0:
                assert journal._file.is_closed
                journal.close()
                os.close(1)
                time.sleep(60)
            journal.flush()
            print(child, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    process = run(code, check=False)
    try:
        assert process.returncode == -signal.SIGKILL
        assert recalled(path, [0]) == ({0: "parent"}, [])
        assert len(path.read_bytes().splitlines()) == 2
    finally:
        os.kill(int(process.stdout), signal.SIGKILL)


def test_a_closed_journal_cannot_be_used_and_can_be_opened_again(path: Path) -> None:
    journal = Journal(path, NAME)
    journal.close()
    for use in (journal.flush, lambda: journal.recall(0, []), lambda: journal.record(0, 0, Outcome(1))):
        with pytest.raises(ValueError, match="run.jsonl is not open"):
            use()
    for _ in range(2):
        journal.open()
        journal.record(0, 0, Outcome(1))
        journal.close()
        journal.close()
    assert recalled(path, [0]) == ({0: 1}, [])


# Memory and order


def test_an_open_journal_keeps_no_values_in_memory(path: Path) -> None:
    with Journal(path, NAME) as journal:
        for index in range(5000):
            journal.record(index, index, Outcome("x" * 100))
    with Journal(path, NAME) as journal:
        held: list[Any] = [journal._offsets, journal._digests, journal._states]
        assert all(isinstance(each, array | bytearray) for each in held)
        assert sum(sys.getsizeof(each) for each in held) < 20 * (5000 + 1024)
        assert journal._waiting == []


def test_records_are_recalled_in_the_order_of_the_items(path: Path) -> None:
    order = [5, 3, 9, 0, 2, 7]
    with Journal(path, NAME) as journal:
        for index in order:
            journal.record(index, index, Outcome(index))
    done, to_run = recalled(path, range(10))
    assert list(done) == sorted(order)
    assert to_run == [1, 4, 6, 8]


def test_items_are_recalled_in_parts(path: Path) -> None:
    write(path, *range(10))
    with Journal(path, NAME) as journal:
        for first in range(0, 12, 3):
            found = journal.recall(first, range(first, first + 3))
            wanted = range(first, first + 3)
            assert list(found.outcomes) == [index for index in wanted if index < 10]
            assert found.to_run == [index for index in wanted if index >= 10]


def run(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=check,
        timeout=60,
    )


def test_items_of_a_slow_source_run_as_they_arrive(tmp_path: Path) -> None:
    started: list[int] = []
    seen: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            time.sleep(0.03)  # longer than a read waits
            seen.append(len(started))
            yield number

    def run(number: int) -> int:
        started.append(number)
        return number

    bound = Policy(parallel={"mode": "thread", "workers": 2, "progress": False}).apply(run)
    assert bound.map(items(), journal=tmp_path / "run.jsonl") == list(range(40))
    assert seen[-1] >= 30, seen


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 300, "~nobody-has-this/x"], ids=ascii)
def test_a_text_that_is_no_path_is_refused_with_the_journal(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^the journal .* cannot be (opened|created)"):
        Journal(text, "f").open()


def test_a_journal_is_closed_where_ctrl_c_comes_just_before_the_map_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    bound: Any = Policy(parallel={"mode": "thread", "workers": 2, "progress": False}).apply(abs)
    with monkeypatch.context() as patched:
        patched.setattr("opero.parallel.engine.run.Run._reported", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bound.map([-1, 2], journal=tmp_path / "journal")
    assert bound.map([-1, 2], journal=tmp_path / "journal") == [1, 2]
