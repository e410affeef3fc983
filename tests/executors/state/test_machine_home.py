"""Limits with `share: machine`: one state for all processes of a user on this machine, such as those of gunicorn."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opero import BulkheadFullError, CircuitOpenError, ConfigError, Policy, RateLimitExceededError, Registry
from opero.executors.state import machine_home

WAIT = 60
LIMIT: dict[str, Any] = {"rate": 0.01, "burst": 10, "max_wait": 0, "share": "machine", "share_as": "work"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of this user's files."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "opero" / "limits"


def work(value: Any = None) -> Any:
    return value() if callable(value) else value


def fails() -> None:
    raise ConnectionError("down")


def bind(function: Any = work, **policies: Any) -> Any:
    return Policy.model_validate(policies).apply(function)


def passing(bound: Any, tries: int = 20) -> int:
    count = 0
    for _ in range(tries):
        try:
            bound()
            count += 1
        except RateLimitExceededError:
            pass
    return count


def run(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a program with `passing` and `LIMIT`."""
    text = f"""
import os, sys, time
from opero import Policy, RateLimitExceededError, CircuitOpenError, BulkheadFullError
LIMIT = {LIMIT!r}
def passing(bound, tries=20):
    count = 0
    for _ in range(tries):
        try:
            bound("")
            count += 1
        except RateLimitExceededError:
            pass
    return count
"""
    command = [sys.executable, "-c", text + textwrap.dedent(program), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})


def output(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=WAIT)[0].split()


def test_preforked_workers_keep_one_limit() -> None:
    program = """
        bound = Policy.model_validate({"rate_limit": LIMIT}).apply(len)
        if sys.argv[1] == "used":
            bound("")
        for _ in range(4):
            if os.fork() == 0:
                os.write(1, b" %d " % passing(bound))
                os._exit(0)
        for _ in range(4):
            os.wait()
    """
    assert sum(map(int, output(run(program, "used")))) == 9
    assert sum(map(int, output(run(program, "unused")))) == 0  # its parent began later, and all is used


def test_processes_that_start_at_the_same_time_keep_one_limit(folder: Path) -> None:
    program = """
        bound = Policy.model_validate({"rate_limit": LIMIT}).apply
        print("ready", flush=True)
        sys.stdin.readline()
        print(passing(bound(len)))
    """
    processes = [run(program) for _ in range(3)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    assert sum(int(output(each)[0]) for each in processes) == 10
    assert len(list(folder.iterdir())) == 1


def test_a_circuit_that_opens_in_one_process_is_open_in_all() -> None:
    policy = {"consecutive_failures": 2, "share": "machine", "share_as": "work"}
    bound = bind(circuit_breaker=policy)
    program = """
        def fails():
            raise ConnectionError("down")
        bound = Policy.model_validate({"circuit_breaker": eval(sys.argv[1])}).apply(fails)
        for _ in range(2):
            try:
                bound()
            except ConnectionError as error:
                print(type(error).__name__)
    """
    bound()
    assert output(run(program, repr(policy))) == ["ConnectionError"] * 2
    with pytest.raises(CircuitOpenError, match="it opened after ConnectionError: down"):
        bound()


def test_slots_are_those_of_all_processes_and_a_process_that_is_killed_gives_them_back() -> None:
    policy = {"max_concurrent": 2, "share": "machine", "share_as": "work"}
    program = """
        bound = Policy.model_validate({"bulkhead": eval(sys.argv[1])}).apply(lambda: sys.stdin.readline())
        print("ready", flush=True)
        bound()
    """
    bound = bind(bulkhead=policy)
    holder = run(program, repr(policy))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    slots = bound.binding.resolved().executors["bulkhead"]
    until(lambda: slots.running == 1)

    def inner() -> None:
        with pytest.raises(BulkheadFullError):
            bound()

    bound(inner)
    holder.kill()
    output(holder)
    assert bound(lambda: bound(lambda: slots.running)) == 2


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_worker_processes_of_a_map_use_the_same_file() -> None:
    registry = Registry({"api": Policy.model_validate({"rate_limit": {**LIMIT, "share_as": None}})})
    mapped: Any = registry.bind(work, "api", mapped=True, mode="process", workers=2, on_error="return")
    assert sum(isinstance(each, RateLimitExceededError) for each in mapped(range(30))) == 20
    assert passing(registry.bind(work, "api")) == 0


def test_functions_with_one_name_share_and_others_do_not() -> None:
    one, other, third = (bind(rate_limit={**LIMIT, "share_as": name}) for name in ("a", "a", "b"))
    assert passing(one, 6) == 6
    assert passing(other) == 4
    assert passing(third) == 10


def test_a_reload_moves_the_state_into_the_file_and_back() -> None:
    alone = {"rate": 0.01, "burst": 10, "max_wait": 0}
    bound = bind(rate_limit=alone)
    assert passing(bound, 4) == 4
    bound.binding.swap(Policy.model_validate({"rate_limit": LIMIT}))
    assert passing(bound, 2) == 2
    assert passing(bind(rate_limit=LIMIT), 1) == 1
    bound.binding.swap(Policy.model_validate({"rate_limit": {**LIMIT, "burst": 9}}))
    assert passing(bound, 1) == 1
    bound.binding.swap(Policy.model_validate({"rate_limit": alone}))
    assert 1 <= passing(bound) <= 2


def test_calls_under_way_keep_their_slots_through_a_reload() -> None:
    shared = {"max_concurrent": 2, "share": "machine", "share_as": "work"}
    bound = bind(bulkhead=shared)

    def inner() -> int:
        bound.binding.swap(Policy.model_validate({"bulkhead": {**shared, "max_concurrent": 3}}))
        return int(bound(lambda: bound.binding.resolved().executors["bulkhead"].running))

    assert bound(inner) == 2
    assert bound.binding.resolved().executors["bulkhead"].running == 0


def test_a_restart_of_the_machine_begins_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passing(bind(rate_limit=LIMIT)) == 10
    (before,) = folder.iterdir()
    monkeypatch.setattr(machine_home, "boot", lambda: "another")
    assert passing(bind(rate_limit=LIMIT)) == 10
    (after,) = folder.iterdir()
    assert after != before


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"opero-{os.getuid()}").mkdir()
    (tmp_path / f"opero-{os.getuid()}").chmod(0o777)
    with pytest.raises(
        ConfigError, match=r"work: rate_limit.share 'machine' cannot keep its state in a file: .*others"
    ):
        bind(rate_limit={**LIMIT})
