"""Programs that end during a map: they end at once, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from pathlib import Path

COMMON = """
    import asyncio, itertools, os, signal, sys, threading, time
    from opero import MapError, Policy, opmap

    mode, how, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def report(number):
        if number == 5:
            print("running", flush=True)
            open(__file__ + ".running", "w").close()

    def wait():
        while not os.path.exists(__file__ + ".running"):
            time.sleep(0.01)

    def one(number):
        if number >= 5:
            report(number)
            time.sleep(300)
        return number

    async def one_async(number):
        if number >= 5:
            report(number)
            await asyncio.sleep(300)
        return number

    function = Policy(parallel={"mode": mode, "workers": workers, "progress": False}).apply(
        one_async if mode.startswith("async") else one
    )

    def use():
        if how == "list":
            return function.map(range(100))
        if how == "stream":
            return [each for each in function.stream(itertools.count())]

    async def use_async():
        if how == "list":
            return await function.map(range(100))
        return [each async for each in function.stream(itertools.count())]

    def run():
        return asyncio.run(use_async()) if mode.startswith("async") else use()
"""

MODES = ["thread", "process", "async", "async_process", "auto"]


def start(tmp_path: Path, code: str, mode: str, how: str, workers: int = 2) -> subprocess.Popen[bytes]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(COMMON) + textwrap.dedent(code))
    command = [sys.executable, str(script), mode, how, str(workers)]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err)


def finish(program: subprocess.Popen[bytes], folder: Path, *, after: Any = None) -> tuple[str, str]:
    """The output of a program after `after` was called while it ran. The program and its children must end."""
    out, err = folder / "out", folder / "err"
    try:
        until = time.monotonic() + 60
        while "running\n" not in out.read_text():
            assert program.poll() is None, err.read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
        family = psutil.Process(program.pid).children(recursive=True)
        if after is not None:
            after(program)
        program.wait(60)
    finally:
        program.kill()
        program.wait()
    _, alive = psutil.wait_procs(family, timeout=120)
    for each in alive:
        each.kill()
    assert alive == []
    return out.read_text().replace("running\n", ""), err.read_text()


def interrupt(program: subprocess.Popen[bytes]) -> None:
    os.kill(program.pid, signal.SIGINT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["list", "stream"])
def test_ctrl_c_ends_a_map_and_its_program_at_once(mode: str, how: str, tmp_path: Path) -> None:
    code = """
        if __name__ == "__main__":
            try:
                run()
            except KeyboardInterrupt as error:
                print("interrupted", isinstance(error.__cause__, MapError), flush=True)
    """
    out, err = finish(start(tmp_path, code, mode, how), tmp_path, after=interrupt)
    assert err == ""
    assert out.splitlines()[-1].startswith("interrupted")


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_ctrl_c_loses_no_finished_result(mode: str, tmp_path: Path) -> None:
    code = """
        if __name__ == "__main__":
            try:
                run()
            except KeyboardInterrupt as error:
                print(sorted(error.__cause__.results.items()), flush=True)
    """
    out, _ = finish(start(tmp_path, code, mode, "list", workers=1), tmp_path, after=interrupt)
    assert out.splitlines()[-1] == str([(number, number) for number in range(5)])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "auto"])
def test_an_open_stream_does_not_delay_the_end_of_its_program(mode: str, tmp_path: Path) -> None:
    code = """
        async def first():
            stream = function.stream(itertools.count())
            await anext(stream)
            await asyncio.to_thread(wait)
            print("the end", flush=True)

        if __name__ == "__main__":
            if mode.startswith("async"):
                asyncio.run(first())
            else:
                stream = function.stream(itertools.count())
                first = next(stream)
                wait()
                print("the end", flush=True)
    """
    program = start(tmp_path, code, mode, "stream")
    out, err = finish(program, tmp_path)
    assert out == "the end\n"
    assert err == ""
    assert program.returncode == 0


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_map_in_a_daemon_thread_does_not_delay_the_end_of_its_program(mode: str, tmp_path: Path) -> None:
    code = """
        if __name__ == "__main__":
            threading.Thread(target=run, daemon=True).start()
            wait()
            print("the end", flush=True)
    """
    out, _ = finish(start(tmp_path, code, mode, "list"), tmp_path)
    assert "the end" in out


@pytest.mark.parametrize("mode", ["process", "async_process"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_killed_program(mode: str, number: int, tmp_path: Path) -> None:
    code = """
        if __name__ == "__main__":
            run()
    """
    finish(start(tmp_path, code, mode, "list"), tmp_path, after=lambda program: os.kill(program.pid, number))


def test_an_error_in_the_reader_of_a_stream_ends_the_program(tmp_path: Path) -> None:
    code = """
        if __name__ == "__main__":
            for each in function.stream(itertools.count()):
                if each == 0:
                    raise RuntimeError("the reader's own")
    """
    program = start(tmp_path, code, "process", "stream")
    try:
        assert program.wait(60) == 1
    finally:
        program.kill()
        program.wait()
    assert "the reader's own" in (tmp_path / "err").read_text()
