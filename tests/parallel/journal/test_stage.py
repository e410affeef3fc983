"""Maps with a journal: items that an earlier run has finished are not run again, however that run ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import ConfigError, MapError, Policy, opero, opmap

MODES = ["thread", "process", "async", "async_process", "auto"]


def noted(number: int, notes: str) -> int:
    """Records in a file that it has run."""
    with Path(notes).open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    if number < 0:
        raise ValueError(number)
    return number * 10


async def noted_async(number: int, notes: str) -> int:
    return noted(number, notes)


def ran(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def mapped(mode: str, items: Any, notes: Path, **kwargs: Any) -> Any:
    function = noted_async if mode.startswith("async") else noted
    policy = Policy(parallel={"mode": mode, "workers": 2, "progress": False, **kwargs.pop("parallel", {})})
    result = policy.apply(function).map(items, str(notes), **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("mode", MODES)
def test_a_second_run_computes_only_what_the_first_has_not_finished(mode: str, tmp_path: Path) -> None:
    notes, journal = tmp_path / "notes", tmp_path / "run.jsonl"
    assert mapped(mode, range(5), notes, journal=journal) == [0, 10, 20, 30, 40]
    assert mapped(mode, range(8), notes, journal=journal) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert sorted(ran(notes)) == list(range(8))
    assert mapped(mode, iter(range(8)), notes, journal=journal) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert len(ran(notes)) == 8


@pytest.mark.parametrize("mode", ["thread", "process", "async"])
def test_failed_items_run_again_and_successful_ones_do_not(mode: str, tmp_path: Path) -> None:
    notes, journal = tmp_path / "notes", tmp_path / "run.jsonl"
    parallel = {"on_error": "skip"}
    assert mapped(mode, [1, -2, 3, -4], notes, journal=journal, parallel=parallel) == [10, 30]
    assert mapped(mode, [1, -2, 3, -4], notes, journal=journal, parallel=parallel) == [10, 30]
    assert sorted(ran(notes)) == [-4, -4, -2, -2, 1, 3]


@pytest.mark.parametrize("mode", ["thread", "process", "async"])
def test_failed_only_runs_failed_items_and_returns_recorded_results(mode: str, tmp_path: Path) -> None:
    notes, journal = tmp_path / "notes", tmp_path / "run.jsonl"
    with pytest.raises(MapError):
        mapped(mode, [1, -2, 3], notes, journal=journal, parallel={"max_failures": 10})
    before = len(ran(notes))
    # Items 4 and 5 have no record, so they are omitted.
    left = mapped(mode, [1, -2, 3, 4, 5], notes, journal=journal, failed_only=True, parallel={"on_error": "return"})
    assert [each if isinstance(each, int) else repr(each) for each in left] == [10, "ValueError(-2)", 30]
    assert ran(notes)[before:] == [-2]


def test_a_stream_accepts_failed_only(tmp_path: Path) -> None:
    notes, journal = tmp_path / "notes", tmp_path / "run.jsonl"
    function = Policy(parallel={"mode": "thread", "on_error": "return"}).apply(noted)
    list(function.stream([1, -2], str(notes), journal=journal))
    again = list(function.stream([1, -2, 3], str(notes), journal=journal, failed_only=True))
    assert [str(each) for each in again] == ["10", "-2"]


def test_failed_only_without_a_journal_is_refused() -> None:
    with pytest.raises(TypeError, match="failed_only runs what a journal records as failed; pass journal="):
        Policy().apply(noted).map([1], "notes", failed_only=True)


def test_an_argument_named_journal_is_passed_to_a_function_that_has_it(tmp_path: Path) -> None:
    @opero(mode="thread", retries=0)
    def written(number: int, journal: str, progress: str = "") -> tuple[int, str, str]:
        return number, journal, progress

    assert written.map([1], journal="mine", progress="too") == [(1, "mine", "too")]
    assert list(tmp_path.iterdir()) == []


def test_a_journal_records_failures(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    mapped("thread", [1, -2], tmp_path / "notes", journal=journal, parallel={"on_error": "skip"})
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert records[0]["function"].startswith("parallel.journal.test_stage:noted with ")
    assert sorted((each["i"], each.get("ok"), each.get("error")) for each in records[1:]) == [
        (0, 10, None),
        (1, None, "ValueError: -2"),
    ]


# Refused journals


def test_a_journal_of_other_items_is_refused_and_not_touched(tmp_path: Path) -> None:
    journal, notes = tmp_path / "run.jsonl", tmp_path / "notes"
    mapped("thread", [1, 2], notes, journal=journal)
    held = journal.read_bytes()
    with pytest.raises(
        ConfigError, match="belongs to other items: item 1 was another one then; nothing .* overwritten"
    ):
        mapped("thread", [1, 3], notes, journal=journal)
    assert journal.read_bytes() == held
    assert sorted(ran(notes)) == [1, 2]


def test_a_journal_of_another_function_or_other_arguments_is_refused(tmp_path: Path) -> None:
    journal, notes = tmp_path / "run.jsonl", tmp_path / "notes"
    mapped("thread", [1, 2], notes, journal=journal)
    with pytest.raises(ConfigError, match=r"belongs to the function 'parallel\.journal\.test_stage:noted with"):
        Policy(parallel="thread").apply(abs).map([1, 2], journal=journal)
    with pytest.raises(ConfigError, match=r"belongs to the function"):
        mapped("thread", [1, 2], tmp_path / "other", journal=journal)
    assert sorted(ran(notes)) == [1, 2]


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    function = Policy(parallel={"mode": "thread", "workers": 1}).apply(abs)
    stream = function.stream([1, 2], journal=journal)
    next(stream)
    with pytest.raises(ConfigError, match="is in use by another run"):
        function.map([1, 2], journal=journal)
    stream.close()
    assert function.map([1, 2], journal=journal) == [1, 2]


def test_a_file_that_is_no_journal_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(ConfigError, match="nothing was changed; give another path"):
        Policy(parallel="thread").apply(abs).map([1], journal=path)
    assert path.read_text() == "my notes\n"


def test_a_run_with_fewer_items_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = tmp_path / "run.jsonl"
    function = Policy(parallel="thread").apply(abs)
    function.map(range(5), journal=journal)
    caplog.clear()
    assert function.map(range(3), journal=journal) == [0, 1, 2]
    assert "records items up to number 4, and this run had 3" in caplog.text


# Interrupted runs


SCRIPT = """
    import sys, time
    from pathlib import Path
    from opero import opmap

    @opmap(mode=sys.argv[1], workers=2, progress=False, retries=0)
    def slow(number: int) -> int:
        time.sleep(0.005)
        return number * 10

    if __name__ == "__main__":
        print("ready", flush=True)
        print(sum(slow(range(int(sys.argv[3])), journal=sys.argv[2])), flush=True)
"""


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_after_kill_9_the_next_run_computes_only_the_rest(mode: str, tmp_path: Path) -> None:
    script, journal = tmp_path / "script.py", tmp_path / "run.jsonl"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), mode, str(journal), "2000"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 50):
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        first.stdout.close()  # type: ignore[union-attr]
    recorded = journal.read_bytes().count(b"\n") - 1
    assert 50 <= recorded < 2000
    second = subprocess.run(
        [*command[:-1], "100"], capture_output=True, text=True, timeout=60, check=True, env={**os.environ}
    )
    assert second.stdout.split()[-1] == str(sum(range(100)) * 10)
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert len({each["i"] for each in lines if each["i"] < 100}) == 100
    computed_again = len(lines) - len({each["i"] for each in lines})
    assert computed_again == 0  # recorded items are not computed again


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_results_are_recorded_if_the_map_ends_with_an_error(mode: str, tmp_path: Path) -> None:
    journal, notes = tmp_path / "run.jsonl", tmp_path / "notes"
    with pytest.raises(MapError) as caught:
        mapped(mode, [*range(20), -1, *range(21, 200)], notes, journal=journal)
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert {each["i"] for each in records if "ok" in each} == set(caught.value.results)
    assert [each["i"] for each in records if "error" in each] == [20]


def test_a_closed_stream_has_recorded_the_results_that_it_yielded(tmp_path: Path) -> None:
    journal, notes = tmp_path / "run.jsonl", tmp_path / "notes"
    function = Policy(parallel={"mode": "thread", "workers": 2}).apply(noted)
    for result in function.stream(range(1000), str(notes), journal=journal):
        if result == 500:
            break
    recorded = {json.loads(line)["i"] for line in journal.read_text().splitlines()[1:]}
    assert set(range(51)) <= recorded
    assert function.map(range(1000), str(notes), journal=journal) == [number * 10 for number in range(1000)]


def test_retry_failed_continues_the_journal(tmp_path: Path) -> None:
    journal, broken = tmp_path / "run.jsonl", [True]

    def one(number: int) -> int:
        if number == 3 and broken[0]:
            raise ValueError(number)
        return number

    function = opmap(mode="thread", workers=2, retries=0, progress=False)(one)
    with pytest.raises(MapError) as caught:
        function(range(10), journal=journal)
    broken[0] = False
    assert caught.value.retry_failed() == list(range(10))
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert {each["i"] for each in records if "ok" in each} == set(range(10))


batches: list[list[int]] = []


def tens(numbers: list[int]) -> list[int]:
    batches.append(numbers)
    return [number * 10 for number in numbers]


def test_a_journal_works_with_a_cache_and_batches(tmp_path: Path) -> None:
    batches.clear()
    policy = Policy(cache={"ttl": 60}, parallel={"mode": "thread", "workers": 1, "batch_size": 4})
    first, second = policy.apply(tens), policy.apply(tens)
    journal = tmp_path / "run.jsonl"
    assert first.map(range(6), journal=journal) == [0, 10, 20, 30, 40, 50]
    assert sum(map(len, batches)) == 6
    assert first.map(range(8), journal=tmp_path / "other.jsonl") == [number * 10 for number in range(8)]
    assert sum(map(len, batches)) == 8  # the others were in the cache, and are in the new journal now
    assert second.map(range(8), journal=tmp_path / "other.jsonl") == [number * 10 for number in range(8)]
    assert sum(map(len, batches)) == 8


@given(
    count=st.integers(0, 40),
    runs=st.lists(st.tuples(st.integers(0, 40), st.sets(st.integers(0, 39)), st.booleans(), st.booleans()), max_size=5),
)
def test_no_successful_item_runs_again_after_any_sequence_of_runs(
    count: int, runs: list[tuple[int, set[int], bool, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    journal = tmp_path_factory.mktemp("runs") / "run.jsonl"
    succeeded: set[int] = set()
    failed: set[int] = set()
    for length, failing, failed_only, is_stream in [*runs, (count, set(), False, False)]:
        tried: list[int] = []

        def one(number: int, failing: set[int] = failing, tried: list[int] = tried) -> int:
            tried.append(number)
            if number in failing:
                raise ValueError(number)
            return number

        one.__qualname__ = "one"
        one.__module__ = "parallel.journal.test_stage"
        function = Policy(parallel={"mode": "thread", "workers": 2, "on_error": "skip"}).apply(one)
        run = function.stream if is_stream else function.map
        results = list(run(range(length), journal=journal, failed_only=failed_only))
        assert not set(tried) & succeeded
        expected = failed if failed_only else set(range(length)) - succeeded
        assert set(tried) == expected & set(range(length))
        succeeded |= set(tried) - failing
        failed = (failed | (set(tried) & failing)) - succeeded
        assert results == sorted(succeeded & set(range(length)))


def test_a_refused_journal_starts_no_workers_and_a_refused_map_closes_its_journal(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    made = []

    def make() -> Any:
        made.append(1)
        raise AssertionError("it is not needed")

    function = Policy(parallel={"executor": make}).apply(abs)
    journal.write_text("my notes\n")
    with pytest.raises(ConfigError, match="give another path"):
        function.map([1], journal=journal)
    assert made == []
    journal.unlink()
    with pytest.raises(AssertionError, match="it is not needed"):
        function.map([1], journal=journal)
    assert Policy(parallel="thread").apply(abs).map([-1], journal=journal) == [1]  # it is closed


# A full disk


FULL = """
    import asyncio, resource, sys
    from opero import opmap

    mode, how = sys.argv[1:]

    def text(number):
        return f"{number} " * 2000

    async def text_async(number):
        return text(number)

    async def read(stream, into):
        async for each in stream:
            into.append(each)

    if __name__ == "__main__":
        function = opmap(mode=mode, workers=2, retries=0, progress=False)(text_async if "async" in mode else text)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))  # the disk is full then
        got, results = [], {}
        try:
            if how == "stream":
                stream = function.stream(range(2000), journal="journal")
                asyncio.run(read(stream, got)) if "async" in mode else got.extend(stream)
            else:
                result = function.map(range(2000), journal="journal")
                got = asyncio.run(result) if "async" in mode else result
        except OSError as error:
            results = error.__cause__.results
            assert error.filename == "journal" and not error.__cause__.failures
            assert error.__cause__.__cause__.errno == error.errno  # what it was before
        assert results and all(value == text(index) for index, value in results.items())
        assert got == [text(number) for number in range(len(got))] and not set(range(len(got))) & set(results)
        if how == "stream":
            assert len(got) + len(results) >= 10
        print("the way is there")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.parametrize("how", ["list", "stream"])
@pytest.mark.parametrize("mode", ["thread", "process", "async", "async_process", "auto"])
def test_results_are_not_lost_when_the_disk_is_full(mode: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(FULL))
    done = subprocess.run(
        [sys.executable, "program.py", mode, how],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("the way is there\n", "")
