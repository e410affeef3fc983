"""A process that forks while one of its threads changes the configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

SETUP = """
import json, os, signal, sys, threading
from pathlib import Path
from opero import Policy, Registry, get_default_registry, set_default_registry
from opero.registry import default

base = Path("policies/base.yaml")
base.write_text("policies: {api: {retry: 1, rate_limit: 5/s}}")
registry = Registry.load("policies", environ={})
bound = registry.bind(len, "api")
held, done = threading.Event(), threading.Event()

def in_a_child(work):
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def use():
    base.write_text("policies: {api: {retry: 2, rate_limit: 6/s}}")
    assert registry.reload().profiles == ("api",)
    with registry.override(api={"retry": 4}):
        assert bound.policy.retry.retries == 4
    summed = registry.bind(sum, "api")
    assert bound([1]) == summed([1]) == 1
    registry.bind_import("json:dumps", "api")
    assert len(registry.bindings()) == 3
    set_default_registry(registry)
    assert get_default_registry() is registry
"""


def check(directory: Path, source: str) -> None:
    (directory / "policies").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", SETUP + source], capture_output=True, text=True, timeout=60, check=False, cwd=directory
    )
    assert ran.returncode == 0, ran.stderr


def test_a_child_forked_during_a_reload_can_reload(tmp_path: Path) -> None:
    (tmp_path / "takes_long.py").write_text("import __main__\n__main__.held.set()\n__main__.done.wait(30)")
    check(
        tmp_path,
        """
sys.path.insert(0, os.getcwd())
base.write_text("policies: {api: {retry: {retry_on: 'takes_long:Error'}}}")
def reload():
    try:
        registry.reload()
    except ValueError:
        pass
thread = threading.Thread(target=reload)
thread.start()
assert held.wait(30)
in_a_child(use)
done.set()
thread.join()
""",
    )


@pytest.mark.parametrize(
    "lock",
    [
        "registry._changing",
        "registry._roster._lock",
        "registry._in_force.shared._lock",
        "registry._imports._lock",
        "default._default_lock",
        "default._unclaimed._lock",
    ],
)
def test_a_forked_child_does_not_wait_for_locks_of_the_parents_threads(tmp_path: Path, lock: str) -> None:
    check(
        tmp_path,
        f"""
def hold():
    with {lock}:
        held.set()
        done.wait(30)
thread = threading.Thread(target=hold)
thread.start()
assert held.wait(30)
in_a_child(use)
done.set()
thread.join()
with {lock}:
    in_a_child(use)
""",
    )
