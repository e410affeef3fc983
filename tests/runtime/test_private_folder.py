"""The temporary directory of a process: private, deleted at its end, and not shared with forked children."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
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


def test_threads_that_create_it_at_the_same_time_share_one() -> None:
    done = run(
        """
        import tempfile, threading
        from concurrent.futures import ThreadPoolExecutor
        from opero.runtime.private_folder import private_folder

        class SlowDirectory(tempfile.TemporaryDirectory):
            def __init__(self, *args, **kwargs):
                threading.Event().wait(0.1)  # so that all threads have begun
                super().__init__(*args, **kwargs)

        tempfile.TemporaryDirectory = SlowDirectory
        both = threading.Barrier(2)

        def get(_):
            both.wait()
            return private_folder()

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(get, range(2))
        assert first == second and first.exists(), (first, second)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
