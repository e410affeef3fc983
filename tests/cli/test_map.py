"""`opero map`: modes, results, failures and the summary."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Command, finished, start
from opero.parallel.workers import process as pool

MODULE = """\
    import asyncio
    import os
    from datetime import date
    from opero import opero, opmap

    def double(x):
        return 2 * int(x)

    def odd(x):
        if int(x) % 2 == 0:
            raise ValueError(f"{x} is even")
        return int(x)

    async def wait(x):
        await asyncio.sleep(0)
        return int(x)

    def area(width, height=1):
        return float(width) * float(height)

    async def area_async(width, height=1):
        return float(width) * float(height)

    def batch(xs: list[str]) -> list[int]:
        return [len(xs)] * len(xs)

    def talk(x):
        print("saying", x)
        os.write(1, b"from below\\n")
        return x

    def strange(x):
        return {"set": {1}, 2: date(2026, 1, 2), "nan": float("nan"), "bad": "\\ud800"}

    @opmap(mode="process", workers=2, retries=1, min_delay=0, progress=False)
    def mapped(x):
        return [int(x), os.getpid()]

    @opero(policy="api", retries=2)
    def named(x):
        raise ConnectionError(x)

    @opero(policy="api")
    def inner():
        pass

    def retries(x):
        return [os.getpid(), inner.policy.retry.retries]

    class Service:
        @opmap(mode="thread")
        @classmethod
        def of_class(cls, x):
            return cls.__name__ + x
"""


@pytest.fixture(autouse=True)
def _module(command: Command) -> Any:
    command.write("app.py", MODULE)
    command.write("n.txt", "".join(f"{number}\n" for number in range(10)))
    yield
    pool.end_all()


def results(path: Path) -> dict[int, Any]:
    """Index → result or error, each once."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    found = {line["index"]: line.get("result", line.get("error")) for line in lines}
    assert len(found) == len(lines)
    return found


def test_each_item_has_a_line_with_its_index_and_result(command: Command) -> None:
    ran = command("map", "app:double", "n.txt", "-o", "r.jsonl")
    assert (ran.code, ran.out) == (0, "")
    assert re.fullmatch(r"10 items done, 0 failed, in r.jsonl\n  took \S+ s, \S+ items a second\n", ran.err)
    assert results(command.directory / "r.jsonl") == {number: 2 * number for number in range(10)}


def test_results_go_to_stdout_by_default(command: Command) -> None:
    ran = command("map", "app:double", "n.txt", "--ordered")
    assert ran.lines == [{"index": number, "result": 2 * number} for number in range(10)]
    assert sorted(path.name for path in command.directory.iterdir() if path.is_file()) == ["app.py", "n.txt"]


def test_a_failed_item_has_a_line_with_its_error_and_the_exit_code_is_1(command: Command) -> None:
    ran = command("map", "app:odd", "n.txt", "--ordered")
    assert ran.code == 1
    assert ran.lines[4] == {"index": 4, "error": {"type": "ValueError", "message": "4 is even"}}
    assert ran.lines[5] == {"index": 5, "result": 5}
    assert "10 items done, 5 failed" in ran.err
    assert ran.err.endswith("\n  5 unknown: ValueError (5)\n")


def test_failed_items_can_be_left_out(command: Command) -> None:
    ran = command("map", "app:odd", "n.txt", "--on-error", "skip", "--ordered")
    assert ran.code == 1
    assert [line["index"] for line in ran.lines] == [1, 3, 5, 7, 9]
    assert "5 failed" in ran.err


def test_a_failed_item_can_stop_the_map(command: Command) -> None:
    command.write("many.txt", "".join(f"{number}\n" for number in range(1, 100_000)))
    ran = command("map", "app:odd", "many.txt", "--on-error", "raise", "--mode", "thread", "--workers", "1")
    assert ran.code == 1
    assert {line["index"] for line in ran.lines if "error" in line} >= {1}
    assert len(ran.lines) < 90_000
    assert len({line["index"] for line in ran.lines}) == len(ran.lines)
    assert ran.err.startswith("error: map stopped: an item failed\n")


def test_too_many_failures_stop_the_map(command: Command) -> None:
    ran = command("map", "app:odd", "n.txt", "--max-failures", "2", "--mode", "thread", "--workers", "1")
    assert ran.code == 1
    assert "error: map stopped: more items failed than max_failures allows (2)" in ran.err
    assert command("map", "app:odd", "n.txt", "--max-failures", "60%").err.startswith("10 items done")


def test_on_error_of_the_policy_applies_unless_the_command_overrides_it(command: Command) -> None:
    command.policies(development="policies:\n  strict:\n    parallel: {on_error: skip, mode: thread}\n")
    assert len(command("map", "app:odd", "n.txt", "--policy", "strict").lines) == 5
    assert len(command("map", "app:odd", "n.txt", "--policy", "strict", "--on-error", "return").lines) == 10
    assert len(command("map", "app:odd", "n.txt", "--policy", "api").lines) == 10


@pytest.mark.parametrize("options", [(), ("--mode", "thread"), ("--mode", "process", "--workers", "1")])
def test_modes_and_workers_are_those_of_opmap(command: Command, options: tuple[str, ...]) -> None:
    ran = command("map", "app:double", "n.txt", "--ordered", *options)
    assert [line["result"] for line in ran.lines] == [2 * number for number in range(10)]


def test_async_functions_run_in_an_event_loop(command: Command) -> None:
    ran = command("map", "app:wait", "n.txt", "--ordered")
    assert [line["result"] for line in ran.lines] == list(range(10))


def test_a_function_of_batches_gets_batches(command: Command) -> None:
    ran = command("map", "app:batch", "n.txt", "--set", "batch_size=5", "--mode", "thread")
    assert [line["result"] for line in ran.lines] == [5] * 10


def test_options_override_the_functions_own_policy(command: Command) -> None:
    import os

    own = command("map", "app:mapped", "n.txt", "--ordered").lines
    assert os.getpid() not in {line["result"][1] for line in own}
    assert {line["result"][1] for line in command("map", "app:mapped", "n.txt", "--mode", "thread").lines} == {
        os.getpid()
    }
    ran = command("map", "app:named", "n.txt", "-o", "r.jsonl", "--json", "--mode", "thread")
    assert ran.json["stats"]["attempts"] == 30
    ran = command("map", "app:named", "n.txt", "-o", "r.jsonl", "--json", "--set", "retries=0", "--overwrite")
    assert ran.json["stats"]["calls"] == 20  # both runs
    assert ran.json["stats"]["attempts"] == 40


def test_the_environment_applies_in_worker_processes(command: Command) -> None:
    arguments = ["map", "app:retries", "n.txt", "--mode", "process", "--workers", "1", "--env", "production"]
    ran = finished(start(*arguments, "--config", "policies", directory=command.directory))
    assert {line["result"][1] for line in ran.lines} == {5}


def test_a_broken_pipe_ends_the_map(command: Command) -> None:
    command.write("many.txt", "".join(f"{number}\n" for number in range(300_000)))
    process = start("map", "app:double", "many.txt", "--mode", "thread", directory=command.directory)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
        assert process.wait(120) == 141


def test_class_methods_can_be_mapped(command: Command) -> None:
    assert command("map", "app:Service.of_class", "n.txt", "--ordered").lines[3]["result"] == "Service3"


def test_the_fields_of_rows_can_be_passed_as_arguments(command: Command) -> None:
    command.write("a.csv", "width,height\n1,2\n3,4\n")
    command.write("a.jsonl", '{"width": 2}\n{"height": 3, "width": 4}\n{"depth": 1}\n5\n')
    for target in ("app:area", "app:area_async"):
        assert [line["result"] for line in command("map", target, "a.csv", "--unpack", "--ordered").lines] == [
            2.0,
            12.0,
        ]
        lines = command("map", target, "a.jsonl", "--unpack", "--ordered").lines
        assert [line.get("result") for line in lines] == [2.0, 12.0, None, None]
        assert "unexpected keyword argument 'depth'" in lines[2]["error"]["message"]
        assert (
            "--unpack requires items that are JSON objects or CSV rows, and this is 5" in lines[3]["error"]["message"]
        )
    command.write("b.csv", "x\n1\n2\n")
    ran = command("map", "app:mapped", "b.csv", "--unpack", "--ordered")
    assert [line["result"][0] for line in ran.lines] == [1, 2]
    ran = command("map", "app:area", "a.csv", "--unpack", "--mode", "process", "--ordered")
    assert [line["result"] for line in ran.lines] == [2.0, 12.0]


def test_a_function_that_requires_more_than_an_item_is_refused_with_the_cure(command: Command) -> None:
    command.write("a.csv", "width,height\n1,2\n")
    command.write("shapes.py", "def area(width: float, height: float) -> float: return width * height\n")
    ran = command("map", "shapes:area", "a.csv", "-o", "areas.csv")
    assert ran.code == 2
    assert "is called with one item as its argument: missing a required argument: 'height'; --unpack passes" in ran.err
    assert not (command.directory / "areas.csv").exists()


def test_a_field_can_be_repeated_with_the_result(command: Command) -> None:
    command.write("a.csv", "width,height\n1,2\n3,4\n")
    ran = command("map", "app:area", "a.csv", "--unpack", "--key", "height", "--ordered")
    assert ran.lines == [{"index": 0, "key": "2", "result": 2.0}, {"index": 1, "key": "4", "result": 12.0}]
    ran = command("map", "app:area", "a.csv", "--unpack", "--key", "depth")
    assert ran.code == 2
    assert "item 0 has no field 'depth', which --key requires; its fields are width, height" in ran.err


def test_items_come_from_stdin(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n")))
    assert [line["result"] for line in command("map", "app:double", "-", "--ordered").lines] == [2, 4]


def test_results_are_converted_to_json(command: Command) -> None:
    command.write("one.txt", "1\n")
    ran = command("map", "app:strange", "one.txt", "-o", "r.jsonl")
    assert ran.code == 0
    expected = {"set": [1], "2": "2026-01-02", "nan": "nan", "bad": "\ud800"}
    assert results(command.directory / "r.jsonl") == {0: expected}


def test_output_of_the_function_does_not_mix_with_results(command: Command) -> None:
    ran = finished(
        start("map", "app:talk", "n.txt", "--mode", "process", "--workers", "1", directory=command.directory)
    )
    assert {line["index"] for line in ran.lines} == set(range(10))
    assert ran.err.count("from below") == 10
    assert "saying" not in command("map", "app:talk", "n.txt", "--mode", "thread").out


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_an_invalid_line_costs_one_item(command: Command, mode: str) -> None:
    (command.directory / "a.jsonl").write_bytes(b'oops\n1\n"\xff"\n2\n\n{\n3\n')
    ran = command("map", "app:double", "a.jsonl", "--ordered", "--mode", mode)
    assert ran.code == 1
    assert [line.get("result") for line in ran.lines] == [None, 2, None, 4, None, 6]
    assert [line["error"]["message"].partition(", exp")[0] for line in ran.lines if "error" in line] == [
        "a.jsonl:1: invalid JSON",
        "a.jsonl:3: invalid UTF-8",
        "a.jsonl:6: invalid JSON",
    ]
    assert ran.err.endswith("  3 invalid lines of the file of items\n")
    skipped = command("map", "app:double", "a.jsonl", "--on-error", "skip", "--ordered", "--mode", mode)
    assert [line["index"] for line in skipped.lines] == [1, 3, 5]
    stopped = command("map", "app:double", "a.jsonl", "--on-error", "raise", "--mode", mode)
    assert stopped.code == 1
    assert "map stopped: an item failed" in stopped.err


def test_an_invalid_row_or_one_that_does_not_fit_the_annotation_costs_one_item(command: Command) -> None:
    command.write("typed.py", "def add(a: int, b: int = 0) -> int:\n    return a + b\n")
    command.write("a.csv", "a;b\n1;2\nx;3\n1;2;3\n4;5\n")
    ran = command("map", "typed:add", "a.csv", "--unpack", "--ordered", "--delimiter", ";", "--set", "retries=3")
    assert [line.get("result") for line in ran.lines] == [3, None, None, 9]
    assert "a.csv:3: field 'a': 'x' is not int" in ran.lines[1]["error"]["message"]
    assert "2 invalid lines" in ran.err
    command.write("n.txt", "1\nx\n3\n")
    ran = command("map", "typed:add", "n.txt", "--ordered", "--json")
    assert [line.get("result") for line in ran.lines] == [1, None, 3]
    assert json.loads(ran.err)["invalid"] == 1


def test_a_line_that_was_mended_runs_when_the_map_is_resumed(command: Command) -> None:
    command.write("a.jsonl", "1\noops\n3\n")
    assert command("map", "app:double", "a.jsonl", "-o", "r.jsonl").code == 1
    command.write("a.jsonl", "1\n2\n3\n")
    ran = command("map", "app:double", "a.jsonl", "-o", "r.jsonl")
    assert ran.code == 0
    assert results(command.directory / "r.jsonl") == {0: 2, 1: 4, 2: 6}
    assert re.search(r"\n  took \S+ s\n", ran.err), "no rate, as an earlier run did some"


def test_invalid_lines_before_the_first_item_leave_batches_as_they_are(command: Command) -> None:
    command.write("sums.py", "def total(xs: list[int]) -> int:\n    return sum(xs)\n")
    command.write("a.jsonl", "oops\n[1, 2]\n[3]\n")
    assert [line.get("result") for line in command("map", "sums:total", "a.jsonl", "--ordered").lines] == [None, 3, 3]
    command.write("a.jsonl", "oops\n1\n2\n")
    assert [line.get("result") for line in command("map", "app:batch", "a.jsonl", "--ordered").lines] == [None, 2, 2]


# Tables


TABLE = """\
    def shop(x):
        if x == "0":
            raise KeyError("no such")
        return {"name": f'{x}, "Ltd"', "size": int(x), "tags": ["a"]} | ({"more": 1} if x == "3" else {})

    def scalar(x):
        return None if x == "0" else x * 2
"""


def table(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def test_results_can_be_a_table_with_a_column_for_each_field(command: Command) -> None:
    command.write("shop.py", TABLE)
    assert command("map", "shop:shop", "n.txt", "-o", "r.csv", "--ordered", "--set", "retries=0").code == 1
    rows = table(command.directory / "r.csv")
    assert rows[0] == ["index", "name", "size", "tags", "more", "error", "message"]
    assert rows[1] == ["0", "", "", "", "", "KeyError", "'no such'"]
    assert rows[2] == ["1", '1, "Ltd"', "1", '["a"]', "", "", ""]
    assert rows[4] == ["3", '3, "Ltd"', "3", '["a"]', '{"more": 1}', "", ""]
    assert len(rows) == 11


def test_other_results_have_one_column(command: Command) -> None:
    command.write("shop.py", TABLE)
    command.write("a.csv", "id\n0\n5\n")
    command.write("keyed.py", "def of(row):\n    return row['id'] * 2\n")
    ran = command("map", "keyed:of", "a.csv", "--key", "id", "--output-format", "csv", "--ordered")
    assert ran.out == "index,key,result,error,message\n0,0,00,,\n1,5,55,,\n"
    ran = command("map", "shop:scalar", "n.txt", "-o", "r.tsv", "--ordered")
    assert table(command.directory / "r.tsv", "\t")[:3] == [
        ["index", "result", "error", "message"],
        ["0", "", "", ""],
        ["1", "11", "", ""],
    ]


def test_a_table_without_results_has_a_header_and_the_failures(command: Command) -> None:
    command.write("shop.py", TABLE)
    command.write("zero.txt", "0\n0\n")
    command("map", "shop:shop", "zero.txt", "-o", "r.csv", "--ordered", "--set", "retries=0")
    assert [row[:3] for row in table(command.directory / "r.csv")] == [
        ["index", "result", "error"],
        ["0", "", "KeyError"],
        ["1", "", "KeyError"],
    ]
    command.write("none.txt", "")
    assert command("map", "shop:shop", "none.txt", "-o", "empty.csv").code == 0
    assert table(command.directory / "empty.csv") == [["index", "result", "error", "message"]]


def test_a_table_is_made_anew_when_the_map_is_resumed(command: Command) -> None:
    command.write(
        "picky.py",
        """\
        from pathlib import Path
        def of(x):
            if x == "5" and not Path("fixed").exists():
                raise ValueError(x)
            return {"x": x}
        """,
    )
    arguments = ("map", "picky:of", "n.txt", "-o", "r.csv", "--set", "retries=0")
    assert command(*arguments).code == 1
    (command.directory / "fixed").touch()
    assert command(*arguments).code == 0
    rows = table(command.directory / "r.csv")
    assert rows[0] == ["index", "x", "more", "error", "message"]
    assert sorted(rows[1:], key=lambda row: int(row[0])) == [[str(n), str(n), "", "", ""] for n in range(10)]


def test_a_map_that_cannot_begin_leaves_an_existing_table_as_it_is(command: Command) -> None:
    command.write("r.csv", "precious\n")
    assert command("map", "app:double", "n.txt", "-o", "r.csv").code == 2
    assert command("map", "app:double", "n.txt", "-o", "r.csv", "--mode", "async", "--overwrite").code == 2
    assert (command.directory / "r.csv").read_text() == "precious\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app:double", "none.txt"], "none.txt: No such file or directory"),
        (["app:double", "n.txt", "-o", "nowhere/r.jsonl"], "nowhere/r.jsonl: No such file or directory"),
        (["app:double", "n.txt", "-o", "."], ".: Is a directory"),
        (["app:double", "n.txt", "--policy", "none"], "no profile 'none'"),
        (["app:double", "n.txt", "--mode", "proces"], "mode: "),
        (["app:double", "n.txt", "--mode", "async"], "is a sync function, which mode 'async' cannot run"),
        (["app:double", "n.txt", "--workers", "0"], "workers: "),
        (
            ["app:double", "n.txt", "--workers", "2", "--set", "workers=3"],
            "'workers' is given by both --set and --workers",
        ),
        (["app:double", "n.txt", "--delimiter", "ab"], "--delimiter 'ab' is invalid: use one character"),
        (["app:double", "n.txt", "--output-format", "xml"], "--output-format 'xml' is invalid: use jsonl or csv"),
        (["app:double", "n.txt", "--journal", "j", "--no-journal"], "cannot be combined"),
        (["app:double", "n.txt", "--env", "prodction"], "did you mean 'production'?"),
    ],
)
def test_an_invalid_map_is_a_usage_error(command: Command, arguments: list[str], message: str) -> None:
    ran = command("map", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_the_json_of_the_summary(command: Command) -> None:
    ran = command("map", "app:odd", "n.txt", "-o", "r.jsonl", "--json")
    assert ran.code == 1
    assert ran.json == {
        "function": "app:odd",
        "finished": True,
        "succeeded": 5,
        "failed": 5,
        "invalid": 0,
        "failures": {"unknown": {"ValueError": 5}},
        "output": "r.jsonl",
        "journal": "r.jsonl.journal",
        "seconds": ran.json["seconds"],
        "stats": ran.json["stats"],
    }
    ran = command("map", "app:double", "n.txt", "--json")
    assert json.loads(ran.err)["output"] is None


def test_the_progress_bar_is_shown_on_request(command: Command) -> None:
    ran = command("map", "app:double", "n.txt", "--progress", "-o", "r.jsonl")
    assert "double: 10 of 10 items, 100%" in ran.err
    assert "double: 10" not in command("map", "app:double", "n.txt", "--no-progress", "-o", "r2.jsonl").err
