"""The worker process itself: how it starts, what it sends and when, and how it ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from leftovers import is_alive, workers
from opero import MapError, Policy, WorkerDiedError
from opero.parallel.workers import process as processes
from opero.parallel.workers import start
from opero.runtime.private_folder import private_folder


def mapped(function: Any, **options: Any) -> Any:
    return Policy(parallel={"mode": "process", "workers": 2, "progress": False, **options}).apply(function)


def pid(_: int) -> int:
    return os.getpid()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


def test_processes_that_cannot_start_end_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.end_all()
    monkeypatch.setattr(start, "PROGRAM", "raise SystemExit(7)")
    with pytest.raises(MapError, match=r"the pool of worker processes of pid is broken.*exit code 7") as caught:
        mapped(pid).map(range(10))
    assert isinstance(caught.value.reason, WorkerDiedError)
    assert workers() == []


def test_an_idle_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.end_all()
    monkeypatch.setattr(processes, "IDLE_SECONDS", 0.3)
    before = set(mapped(pid).map(range(20)))
    until = time.monotonic() + 30
    while any(map(is_alive, before)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_alive, before))
    assert before.isdisjoint(mapped(pid).map(range(20)))


@pytest.mark.skipif(sys.platform == "win32", reason="workers inherit it")
def test_a_process_leaves_no_file() -> None:
    mapped(pid).map(range(3))
    assert list(private_folder().glob("control-*")) == []


CLEANED = """
    import os, shutil, sys, threading, time
    from concurrent.futures import ProcessPoolExecutor
    from opero import CircuitOpenError, Policy
    from opero.parallel.workers.process import end_all
    from opero.runtime import state_file
    from opero.runtime.private_folder import private_folder
    from opero.runtime.user_folder import user_folder

    if "without /proc" in sys.argv:  # as on other systems
        state_file.PROC = "/nowhere"

    def work(number):
        if number == 5 and "in a map" in sys.argv and not os.path.exists("died"):
            shutil.rmtree(folder)  # a copy of it, as the function is of the main program
            open("died", "w").close()
            os._exit(1)
        if number < 0:
            raise ConnectionError(number)
        return number

    own = {"executor": lambda: ProcessPoolExecutor(2)} if "an executor" in sys.argv else {}
    bound = Policy(
        circuit_breaker={"consecutive_failures": 3, "failure_rate": None, "open_for": 600}, rate_limit="10000/s",
        bulkhead={"max_concurrent": 50, "max_wait": 10},
        parallel={"mode": "process", "workers": 2, "progress": False, "on_error": "return", **own},
    ).apply(work)

    folder = str(user_folder())
    if __name__ == "__main__":
        assert bound.map(range(20)) == list(range(20))
        for again in range(2):
            if "in a map" not in sys.argv:
                shutil.rmtree(folder, ignore_errors=bool(again))
            if again:
                end_all()
            assert bound.map(range(20)) == list(range(20)), again
        bound.map([-1, -2, -3])
        try:
            bound(1)
        except CircuitOpenError as error:
            print("shared")
"""


@pytest.mark.parametrize(
    "case",
    [
        ("between maps",),
        ("in a map",),
        ("an executor", "between maps"),
        ("an executor", "in a map"),
        ("without /proc", "between maps"),
    ],
    ids=", ".join,
)
def test_maps_and_their_limits_go_on_when_the_folder_is_deleted(case: tuple[str, ...], tmp_path: Path) -> None:
    if sys.platform != "linux" and "in a map" in case:
        pytest.skip("needs /proc")
    (tmp_path / "session").mkdir(mode=0o700)
    (tmp_path / "program.py").write_text(textwrap.dedent(CLEANED))
    done = subprocess.run(
        [sys.executable, "program.py", *case],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "session")},
    )
    assert (done.stdout, done.returncode) == ("shared\n", 0), done.stderr
    assert (tmp_path / "died").exists() == ("in a map" in case)
    assert [each for each in (tmp_path / "session").rglob("*") if each.is_file()] == []


def outlive(number: int, folder: str) -> int:
    """Leave a process behind that holds copies of all that was open here, and die."""
    if number == 3 and not Path(folder, "child").exists():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        Path(folder, "child").write_text(str(child))
        os._exit(5)
    return number


def test_a_death_is_noticed_while_a_child_of_the_process_lives(tmp_path: Path) -> None:
    try:
        assert mapped(outlive).map(range(10), str(tmp_path)) == list(range(10))
    finally:
        psutil.Process(int((tmp_path / "child").read_text())).kill()


def test_a_forked_child_starts_processes_of_its_own_and_does_not_use_those_of_its_parent() -> None:
    done = run("""
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        from opero import Policy

        def pid(_):
            return os.getpid()

        bound = Policy(parallel={"mode": "process", "workers": 1, "progress": False}).apply(pid)
        [own] = set(bound.map(range(5)))
        child = os.fork()
        if not child:
            [other] = set(bound.map(range(5)))
            os._exit(0 if other != own else 1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), set(bound.map(range(5))) == {own})
    """)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_workers_end_with_a_killed_parent_while_its_forked_child_lives() -> None:
    done = run("""
        import os, signal, sys, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from opero import Policy

        def pid(_):
            return os.getpid()

        bound = Policy(parallel={"mode": "process", "workers": 1, "progress": False}).apply(pid)
        print(*set(bound.map(range(5))))
        child = os.fork()
        if not child:
            os.close(1), os.close(2)
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    worker, child = map(int, done.stdout.split())
    try:
        until = time.monotonic() + 10
        while is_alive(worker) and time.monotonic() < until:
            time.sleep(0.02)
        assert not is_alive(worker)
        assert is_alive(child)
    finally:
        os.kill(child, 9)


def test_output_of_items_is_flushed_when_the_program_ends() -> None:
    done = run("""
        from opero import Policy

        Policy(parallel={"mode": "process", "workers": 1, "progress": False}).apply(print).map(range(3))
    """)
    assert (done.stdout.split(), done.stderr) == (["0", "1", "2"], "")


def test_results_that_were_sent_before_a_death_are_not_run_again(tmp_path: Path) -> None:
    """Those of a chunk are sent after 50 ms, and its last item kills the process after a second."""
    bound = mapped(note_and_die, workers=1, window=2000)
    assert bound.map(range(4000), str(tmp_path)) == list(range(4000))
    times = Counter(int(line) for line in (tmp_path / "calls").read_text().split())
    assert {number for number, count in times.items() if count > 1} == {1500}


def note_and_die(number: int, folder: str) -> int:
    with Path(folder, "calls").open("a") as file:
        file.write(f"{number}\n")
    if number == 1500 and not Path(folder, "died").exists():
        Path(folder, "died").touch()
        time.sleep(1)
        os._exit(1)
    return number


def change(number: int) -> list[int]:
    """Returns a list that the next items change while it may be pickled."""
    SHARED.append(number)
    time.sleep(0.03)
    return SHARED


SHARED: list[int] = []


def test_a_result_that_later_items_change_does_not_fail() -> None:
    results = mapped(change, workers=1).map(range(40))
    assert [each[number] for number, each in enumerate(results)] == list(range(40))


def hold(path: str) -> None:
    try:
        time.sleep(600)
    finally:
        Path(path, "released").touch()


async def hold_async(path: str) -> None:
    try:
        await asyncio.sleep(600)
    finally:
        Path(path, "released").touch()


@pytest.mark.parametrize(("mode", "function"), [("process", hold), ("async_process", hold_async)])
def test_finally_blocks_of_a_running_item_run_when_its_map_ends(mode: str, function: Any, tmp_path: Path) -> None:
    bound: Any = Policy(parallel={"mode": mode, "workers": 1, "deadline": 1.5, "progress": False}).apply(function)

    def run() -> None:
        result = bound.map([str(tmp_path)])
        if asyncio.iscoroutine(result):
            asyncio.run(result)

    with pytest.raises(MapError):
        run()
    assert (tmp_path / "released").exists()


@pytest.mark.alone  # the worker has a third of a second to answer
def test_a_worker_process_whose_item_was_interrupted_is_used_again(tmp_path: Path) -> None:
    options = {"mode": "process", "workers": 1, "progress": False}
    bound: Any = Policy(parallel={**options, "deadline": 1.5}).apply(hold)
    with pytest.raises(MapError):
        bound.map([str(tmp_path)])
    (before,) = workers()
    assert Policy(parallel=options).apply(os.path.basename).map(["a/b", "a/c"]) == ["b", "c"]  # type: ignore[arg-type]
    assert [each.pid for each in workers()] == [before.pid]
