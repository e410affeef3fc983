"""`opero tune`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from cli.conftest import Command
from opero.parallel.workers import process as pool


@pytest.fixture(autouse=True)
def _module(command: Command) -> Any:
    command.write(
        "app.py",
        """\
        import time
        def wait(x):
            time.sleep(0.002)
        def add(a, b):
            time.sleep(0.002)
            return int(a) + int(b)
        def broken(x):
            raise ValueError("no")
        """,
    )
    command.write("n.txt", "1\n2\n")
    command.write("a.csv", "a,b\n1,2\n")
    yield
    pool.end_all()


def test_the_fastest_way_is_printed_with_yaml_to_paste(command: Command) -> None:
    ran = command("tune", "app:wait", "n.txt", "--seconds", "0.2")
    assert ran.code == 0
    assert re.match(r"wait waits \(.* ms an item\): mode='thread', workers=\d+", ran.out)
    pasted = yaml.safe_load(ran.out[ran.out.index("# in a profile") :])
    command.policies(development=yaml.safe_dump(pasted))
    assert pasted["functions"]["app:wait"]["parallel"]["mode"] == "thread"
    assert command("check").code == 0


def test_the_json_of_tune(command: Command) -> None:
    ran = command("tune", "app:add", "a.csv", "--unpack", "--seconds", "0.2", "--json")
    assert ran.json.keys() == {
        "function",
        "bound_by",
        "mode",
        "workers",
        "batch_size",
        "gain",
        "seconds",
        "options",
        "measurements",
    }
    assert ran.json["function"] == "app:add"
    assert ran.json["measurements"][0].keys() == {"mode", "workers", "rate", "cpu", "batch_size"}


def test_items_that_fail_are_left_out(command: Command) -> None:
    command.write(
        "picky.py",
        """\
        import time
        def wait(x: int):
            time.sleep(0.002)
            if x % 2:
                raise ValueError(f"{x} is odd")
        def sums(xs: list[int]) -> list[int]:
            if 1 in xs:
                raise ValueError("no 1")
            return xs
        async def wait_async(x: int):
            if x % 2:
                raise ValueError(f"{x} is odd")
        """,
    )
    command.write("m.txt", "1\n2\nx\n3\n4\n")
    for target in ("picky:wait", "picky:wait_async"):
        ran = command("tune", target, "m.txt", "--seconds", "0.2", "--json")
        assert ran.code == 0
        assert ran.err.startswith("warning: left out 3 items that failed; the first: InvalidItemError: m.txt:3: 'x' is")
        assert ran.json["measurements"]
    ran = command("tune", "picky:sums", "m.txt", "--seconds", "0.2")
    assert ran.code == 0
    command.write("x.txt", "x\n")
    ran = command("tune", "picky:wait", "x.txt")
    assert ran.code == 2
    assert "contains no items to measure with; the first is invalid: x.txt:1: 'x' is not int" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["app:broken", "n.txt"], 1, "broken failed with item 1 of the sample: ValueError: no"),
        (["app:wait", "empty.txt"], 2, "empty.txt contains no items to measure with"),
        (["app:wait", "n.txt", "--seconds", "0"], 2, "--seconds 0 is invalid: use a number > 0 and ≤ 86400"),
        (["app:wait", "n.txt", "--seconds", "nan"], 2, "--seconds nan is invalid"),
        (["app:wait", "n.txt", "--seconds", "inf"], 2, "--seconds inf is invalid"),
        (["app:wait", "n.txt", "--policy", "none"], 2, "no profile 'none'"),
    ],
)
def test_the_error_if_nothing_can_be_measured(command: Command, arguments: list[str], code: int, message: str) -> None:
    command.write("empty.txt", "")
    ran = command("tune", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
