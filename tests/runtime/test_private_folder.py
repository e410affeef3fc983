"""The temporary directory of a process: private, deleted at its end, and not shared with forked children."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from opero.runtime.private_folder import MOST_SWEPT


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_is_private_and_deleted_at_exit_without_a_warning() -> None:
    done = run(
        """
        import stat
        from opero.runtime.private_folder import private_folder

        folder = private_folder()
        assert private_folder() == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        print(folder)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(done.stdout.strip()).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_one_of_its_own_and_leaves_that_of_its_parent() -> None:
    done = run(
        """
        import os, sys
        from opero.runtime.private_folder import private_folder

        folder = private_folder()
        if not (child := os.fork()):
            assert private_folder() != folder
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert folder.exists()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


THREADS = """
    import os, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from opero import opmap
    from opero.runtime.private_folder import private_folder

    sys.setswitchinterval(1e-6)
    all_of_them = threading.Barrier(4)

    def folder(_):
        all_of_them.wait()
        return private_folder()

    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(folder, range(4)))
    assert len(folders) == 1, folders
    [one] = folders
    assert [*one.parent.iterdir()] == [one], "no other was made and lost"
"""

MAPS = """
    import sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from opero import Policy

    sys.setswitchinterval(1e-5)
    all_of_them = threading.Barrier(4)

    def run(number):
        bound = Policy(
            rate_limit="10000/s", bulkhead=50, parallel={"mode": "process", "workers": 1, "progress": False}
        ).apply(abs)
        all_of_them.wait()
        return bound.map([number] * 3)

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(run, range(4))] == [[number] * 3 for number in range(4)]
"""


@pytest.mark.parametrize(("program", "times"), [(THREADS, 10), (MAPS, 2)], ids=["folders", "maps"])
def test_threads_that_create_it_at_the_same_time_share_one(program: str, times: int, tmp_path: Path) -> None:
    for _ in range(times):
        done = run(program, XDG_RUNTIME_DIR=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        assert list((tmp_path / "opero").iterdir()) == []


def test_it_is_made_again_where_it_can_be_when_it_has_been_deleted(tmp_path: Path) -> None:
    done = run(
        """
        import os, shutil, tempfile
        from opero.runtime.private_folder import in_private_folder, private_folder

        first = private_folder()
        shutil.rmtree(first)
        second = private_folder()
        assert second.is_dir() and second != first and second.parent == first.parent
        shutil.rmtree(os.environ["XDG_RUNTIME_DIR"])
        third = private_folder()
        assert third.is_dir() and str(third).startswith(os.environ["TMPDIR"])
        shutil.rmtree(os.environ["TMPDIR"])
        assert private_folder().is_dir()

        tries = []
        def make(folder):
            if len(tries) < 3:
                shutil.rmtree(folder)
            tries.append(folder)
            (folder / "file").write_text("x")
            return folder / "file"
        assert in_private_folder(make).exists() and len(tries) == 4
        assert not os.path.isdir("/proc/self/fd") or len(os.listdir("/proc/self/fd")) < 8
        """,
        XDG_RUNTIME_DIR=str(made(tmp_path / "session")),
        TMPDIR=str(made(tmp_path / "temporary")),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [each for each in tmp_path.rglob("*") if not each.is_dir()] == []


def made(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


HOLDER = """
    import sys, time
    from opero.runtime.private_folder import private_folder

    (private_folder() / "file").write_text("x")
    print(private_folder(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the session, which programs use, and which has a directory `opero`."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return made(tmp_path / "opero")


def started_program(code: str = HOLDER) -> tuple[subprocess.Popen[str], Path]:
    """A program that has a folder until its stdin is closed, and the folder."""
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    return program, Path(program.stdout.readline().strip())


def test_folders_of_killed_processes_are_swept_and_those_of_living_ones_are_not(session: Path) -> None:
    killed, of_killed = started_program()
    living, of_living = started_program()
    try:
        killed.kill()
        killed.wait()
        assert of_killed.parent == of_living.parent == session
        assert of_killed.exists(), "its process could not delete it"
        other = session / "1-80.json"  # such as the address of a server
        other.write_text("{}")
        (session / "map-1-note").mkdir()
        assert run(HOLDER).returncode == 0
        assert not of_killed.exists()
        assert (of_living / "file").exists()
        assert sorted(session.iterdir()) == sorted([other, of_living, session / "map-1-note"])
    finally:
        for program in (killed, living):
            program.communicate()
    assert living.returncode == 0
    assert not of_living.exists()


def test_a_process_is_recognised_by_its_start_time(session: Path) -> None:
    folder = made(session / f"map-{os.getpid()}-1-of_another_with_this_number")
    assert run(HOLDER).returncode == 0
    assert not folder.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_folder_that_a_process_of_another_container_has_is_not_swept(session: Path) -> None:
    living, folder = started_program()
    try:  # as if its number meant nothing here
        elsewhere = folder.rename(session / "map-99999999-5-elsewhere")
        assert run(HOLDER).returncode == 0
        assert (elsewhere / "file").exists()
    finally:
        living.kill()
        living.communicate()
    assert run(HOLDER).returncode == 0
    assert not elsewhere.exists()


def test_sweeping_many_is_done_in_parts(session: Path) -> None:
    for number in range(MOST_SWEPT + 8):
        made(session / f"map-99999999-{number}-x")
    assert run(HOLDER).returncode == 0
    assert len(list(session.iterdir())) == 8
    assert run(HOLDER).returncode == 0
    assert list(session.iterdir()) == []


def test_programs_that_begin_and_sweep_at_the_same_time_keep_their_own(session: Path) -> None:
    code = HOLDER.replace("sys.stdin.read()", "sys.stdin.read(); assert (private_folder() / 'file').exists()")
    for number in range(20):
        made(session / f"map-99999999-{number}-x")
    programs = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for program in programs:
        assert program.stdout is not None
        program.stdout.readline()
    for program in programs:
        program.communicate()
    assert [program.returncode for program in programs] == [0] * 4
    assert list(session.iterdir()) == []
