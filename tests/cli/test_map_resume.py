"""Resuming a run of `opero map`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Command, Ran, finished, start

MODULE = """\
    import os, time

    def note(x):
        # The items that were run, by all processes.
        with open("ran.txt", "a") as file:
            file.write(f"{x}\\n")
        return int(x)

    def picky(x):
        note(x)
        if int(x) == 5 and not os.path.exists("fixed"):
            raise ValueError("not yet")
        return int(x)

    def stuck(x):
        note(x)
        if int(x) == 500 and not os.path.exists("fixed"):
            open("stuck", "w").close()
            time.sleep(600)
        return int(x)

    async def stuck_async(x):
        import asyncio
        note(x)
        if int(x) == 500 and not os.path.exists("fixed"):
            open("stuck", "w").close()
            await asyncio.sleep(600)
        return int(x)
"""
COUNT = 1000


@pytest.fixture(autouse=True)
def _module(command: Command) -> None:
    command.write("app.py", MODULE)
    command.write("n.txt", "".join(f"{number}\n" for number in range(COUNT)))
    command.write("ten.txt", "".join(f"{number}\n" for number in range(10)))


def results(path: Path) -> dict[int, Any]:
    """Index → result or error, each once."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    found = {line["index"]: line.get("result", line.get("error")) for line in lines}
    assert len(found) == len(lines)
    return found


def ran(command: Command) -> list[int]:
    return [int(line) for line in (command.directory / "ran.txt").read_text().splitlines()]


def wait_until_stuck(process: Any, directory: Path) -> None:
    """Wait until the 500th item is running and there are results in the file."""
    output, until = directory / "r.jsonl", time.monotonic() + 30
    while not ((directory / "stuck").exists() and output.exists() and output.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def begin(command: Command, target: str, *options: str) -> Any:
    arguments = ["map", f"app:{target}", "n.txt", "-o", "r.jsonl", *options]
    process = start(*arguments, directory=command.directory, start_new_session=True)
    try:
        wait_until_stuck(process, command.directory)
    except BaseException:
        process.kill()
        raise
    return process


def resume(command: Command, target: str, *options: str) -> Ran:
    (command.directory / "fixed").touch()
    return command("map", f"app:{target}", "n.txt", "-o", "r.jsonl", *options)


@pytest.mark.parametrize("options", [("--mode", "thread", "--workers", "2"), ("--mode", "process", "--workers", "2")])
def test_a_killed_run_is_resumed_without_duplicate_lines(command: Command, options: tuple[str, ...]) -> None:
    process = begin(command, "stuck", *options)
    with process:
        process.kill()
        process.communicate(timeout=120)
    before = len(ran(command))
    found = resume(command, "stuck", *options)
    assert found.code == 0
    assert results(command.directory / "r.jsonl") == {number: number for number in range(COUNT)}
    assert not (command.directory / "r.jsonl.journal").exists()
    # At least once: only items that were running when the process was killed run again.
    assert set(ran(command)) == set(range(COUNT))
    assert len(ran(command)) < COUNT + before


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("stuck", ("--mode", "thread", "--workers", "2")),
        ("stuck", ("--mode", "process", "--workers", "2")),
        ("stuck_async", ()),
    ],
)
def test_ctrl_c_leaves_a_valid_file_and_says_how_to_resume(
    command: Command, target: str, options: tuple[str, ...]
) -> None:
    process = begin(command, target, *options)
    os.killpg(process.pid, signal.SIGINT)
    stopped = finished(process)
    assert stopped.code == 130
    written = results(command.directory / "r.jsonl")
    assert 0 < len(written) < COUNT
    assert stopped.err.splitlines()[-1] == (
        f"error: interrupted: {len(written)} items done, 0 failed, in r.jsonl; give the same command again to resume"
    )
    assert "Traceback" not in stopped.err
    assert resume(command, target, *options).code == 0
    assert results(command.directory / "r.jsonl") == {number: number for number in range(COUNT)}


@pytest.mark.parametrize(
    ("target", "options"), [("stuck", ("--mode", "process", "--workers", "2")), ("stuck_async", ())]
)
def test_sigterm_ends_a_map_like_ctrl_c(command: Command, target: str, options: tuple[str, ...]) -> None:
    process = begin(command, target, *options)
    process.terminate()
    stopped = finished(process)
    assert stopped.code == 143
    written = results(command.directory / "r.jsonl")
    assert stopped.err.splitlines()[-1].startswith(f"error: interrupted: {len(written)} items done, 0 failed")
    assert stopped.err.endswith("give the same command again to resume\n")
    assert "Traceback" not in stopped.err
    assert resume(command, target, *options).code == 0
    assert results(command.directory / "r.jsonl") == {number: number for number in range(COUNT)}


def test_only_failed_items_run_again(command: Command) -> None:
    first = command("map", "app:picky", "ten.txt", "-o", "r.jsonl")
    assert first.code == 1
    assert "1 failed, in r.jsonl; give the same command again to retry the failed items\n" in first.err
    assert results(command.directory / "r.jsonl")[5] == {"type": "ValueError", "message": "not yet"}
    (command.directory / "fixed").touch()
    second = command("map", "app:picky", "ten.txt", "-o", "r.jsonl", "--json")
    assert second.code == 0
    assert second.json["succeeded"] == 10
    assert second.json["journal"] is None
    assert results(command.directory / "r.jsonl") == {number: number for number in range(10)}
    assert sorted(ran(command)) == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]


def test_a_finished_file_is_not_overwritten(command: Command) -> None:
    assert command("map", "app:note", "ten.txt", "-o", "r.jsonl").code == 0
    before = (command.directory / "r.jsonl").read_bytes()
    again = command("map", "app:note", "ten.txt", "-o", "r.jsonl")
    assert again.code == 2
    assert "r.jsonl is not empty and there is no journal r.jsonl.journal to resume from; nothing was run" in again.err
    assert (command.directory / "r.jsonl").read_bytes() == before
    assert len(ran(command)) == 10
    assert command("map", "app:note", "ten.txt", "-o", "r.jsonl", "--overwrite").code == 0
    assert len(ran(command)) == 20


def test_a_journal_of_other_items_or_another_function_is_refused(command: Command) -> None:
    command("map", "app:picky", "ten.txt", "-o", "r.jsonl")
    before = (command.directory / "r.jsonl").read_bytes()
    other = command("map", "app:note", "ten.txt", "-o", "r.jsonl")
    assert other.code == 2
    assert "belongs to the function 'app:picky', not to 'app:note'" in other.err
    assert "--overwrite to start from the beginning" in other.err
    command.write("ten.txt", "".join(f"{number}\n" for number in range(10, 20)))
    other = command("map", "app:picky", "ten.txt", "-o", "r.jsonl")
    assert other.code == 2
    assert "item 0" in other.err
    assert (command.directory / "r.jsonl").read_bytes() == before


def test_a_journal_given_by_the_user_is_not_deleted(command: Command) -> None:
    arguments = ["map", "app:note", "ten.txt", "-o", "r.jsonl", "--journal", "done.jsonl"]
    assert command(*arguments).code == 0
    assert command(*arguments).code == 0
    assert len(ran(command)) == 10
    assert results(command.directory / "r.jsonl") == {number: number for number in range(10)}
    assert command("map", "app:note", "ten.txt", "--journal", "done.jsonl", "--ordered").lines[9] == {
        "index": 9,
        "result": 9,
    }
    assert len(ran(command)) == 10


def test_a_journal_in_use_by_another_run_is_refused(command: Command) -> None:
    process = begin(command, "stuck", "--mode", "thread", "--workers", "2")
    with process:
        for options in ([], ["--overwrite"]):
            ran = command("map", "app:stuck", "n.txt", "-o", "r.jsonl", *options)
            assert ran.code == 2
            assert "r.jsonl.journal is in use by another run" in ran.err
            assert "to start from the beginning" not in ran.err
        process.kill()
        process.communicate(timeout=120)
    assert resume(command, "stuck").code == 0
    assert results(command.directory / "r.jsonl") == {number: number for number in range(COUNT)}


def test_the_file_of_items_is_never_overwritten(command: Command) -> None:
    before = (command.directory / "ten.txt").read_bytes()
    for options in (["-o", "ten.txt"], ["-o", "r.jsonl", "--journal", "ten.txt"]):
        for force in ([], ["--overwrite"]):
            ran = command("map", "app:note", "ten.txt", *options, *force)
            assert ran.code == 2, (options, force)
            assert "ten.txt" in ran.err
            assert (command.directory / "ten.txt").read_bytes() == before


def test_items_results_and_journal_must_be_different_files(command: Command) -> None:
    command.write("items.journal", "1\n")
    for items, options, message in (
        ("ten.txt", ["-o", "x.jsonl", "--journal", "./x.jsonl"], "x.jsonl is the file of results; use another file"),
        ("ten.txt", ["-o", "x.jsonl", "--journal", "ten.txt"], "ten.txt is the file of items; use another file"),
        ("items.journal", ["-o", "items"], "items.journal is the file of items"),
    ):
        ran = command("map", "app:note", items, *options)
        assert ran.code == 2
        assert message in ran.err
    assert not (command.directory / "x.jsonl").exists()


def test_without_a_journal_a_run_cannot_be_resumed(command: Command) -> None:
    assert command("map", "app:picky", "ten.txt", "-o", "r.jsonl", "--no-journal").code == 1
    assert not (command.directory / "r.jsonl.journal").exists()
    assert command("map", "app:picky", "ten.txt", "-o", "r.jsonl", "--no-journal").code == 2


def test_a_journal_works_with_unpack(command: Command) -> None:
    command.write("a.csv", "x\n1\n5\n")
    arguments = ["map", "app:picky", "a.csv", "--unpack", "-o", "r.jsonl"]
    assert command(*arguments).code == 1
    (command.directory / "fixed").touch()
    assert command(*arguments).code == 0
    assert ran(command) == [1, 5, 5]


def test_the_error_of_a_full_disk(command: Command) -> None:
    stopped = finished(start("map", "app:note", "n.txt", "-o", "/dev/full", directory=command.directory))
    assert stopped.code == 2
    assert "No space left on device" in stopped.err
    assert "Traceback" not in stopped.err


def test_memory_does_not_grow_with_the_number_of_items(command: Command) -> None:
    code = """\
        import resource, sys
        from opero.cli.app import run
        assert run(sys.argv[1:]) == 0
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
    """
    import subprocess
    import sys
    import textwrap

    def kilobytes(count: int) -> int:
        command.write("many.txt", "".join(f"{number}\n" for number in range(count)))
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), "map", "builtins:len", "many.txt", "--mode", "thread"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=command.directory,
            check=True,
            timeout=60,
        )
        return int(done.stderr.splitlines()[-1])

    kilobytes(1000)
    assert kilobytes(100_000) - kilobytes(5_000) < 8_000
