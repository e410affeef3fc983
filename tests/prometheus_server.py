"""Prometheus and its `promtool`: those of the machine, else of Debian's package, which is unpacked into the cache.

Tests that need them are skipped where neither can be had.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = "prometheus"
LIMIT = 120.0


@pytest.fixture(scope="session")
def prometheus_programs(request: pytest.FixtureRequest) -> Path:
    """The directory of the programs `prometheus` and `promtool`."""
    installed = shutil.which("promtool"), shutil.which("prometheus")
    if all(installed):
        return Path(str(installed[0])).parent
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("prometheus is not installed, and there is no apt-get to fetch it")
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("prometheus")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        programs = folder / "unpacked" / "usr" / "bin"
        if not (programs / "prometheus").exists():
            problem = _fetch(folder)
            if problem:
                pytest.skip(f"Debian's package prometheus cannot be fetched: {problem}")
    return programs


def _fetch(folder: Path) -> str:
    """Unpack the package into a folder, which needs no root; what went wrong, or ""."""
    draft = folder / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "unpacked").mkdir(parents=True)
    problem = _run(draft, "apt-get", "download", PACKAGE)
    if problem and hasattr(os, "geteuid") and os.geteuid() == 0:  # its lists may be missing, as in many images
        problem = _run(draft, "apt-get", "update", "-qq") or _run(draft, "apt-get", "download", PACKAGE)
    problem = problem or _run(draft, "sh", "-c", f"dpkg -x {PACKAGE}_*.deb unpacked")
    if problem:
        return problem
    programs = draft / "unpacked" / "usr" / "bin"
    started = subprocess.run([programs / "promtool", "--version"], capture_output=True, check=False)
    if started.returncode:  # a package of another architecture, or of a newer system
        return "its promtool does not run here"
    (draft / "unpacked").rename(folder / "unpacked")
    shutil.rmtree(draft)
    return ""


def _run(folder: Path, *command: str) -> str:
    """Run a command; what went wrong, or ""."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]} takes more than {LIMIT:g} s"
    return (done.stderr.strip() or f"{command[0]} failed").splitlines()[-1] if done.returncode else ""
