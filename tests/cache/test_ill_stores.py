"""Stores that are ill when the program starts: an outage like any other, and never an error of a binding or a call."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from opero import ConfigError, Policy
from opero.events import CacheFailed, CacheRestored
from opero.testing import VirtualClock

PROGRAM = """
    import json, os, subprocess, sys
    from pathlib import Path
    from opero import Policy, on
    from opero.testing import VirtualClock

    def function(x):
        calls.append(x)
        return [x]

    def bind(directory):
        return Policy(
            cache={"backend": "disk", "ttl": None, "cache_dir": directory, "store_timeout": 0.2, "serializer": "json"}
        ).apply(function, clock=clock)

    def use(directory):
        global calls
        calls, seen = [], []
        offs = [on(name, seen.append) for name in ("cache_failed", "cache_restored")]
        bound = bind(directory)
        results = [bound(x) for x in (1, 1, 2, 2)]
        for off in offs: off()
        held[directory] = bound
        return [results == [[1], [1], [2], [2]], calls, [f"{each.what}" for each in seen]]

    def fill(directory):
        global calls
        calls = []
        bound = bind(directory)
        bound(1)
        bound.binding.cache.store.backend.close()

    def run(*command):
        subprocess.run(command, check=True)

    held = {}
    clock = VirtualClock()
    place = Path(sys.argv[1])
    warm, empty = place / "warm", place / "empty"
    empty.mkdir(mode=0o700)
    fill(warm)
"""
DOWN = [True, [1, 1, 2, 2], ["unavailable"]]
READ_ONLY = [True, [2, 2], ["read_only"]]
GARBAGE = b"not a database at all" * 500


def output_of(code: str, place: Path, *prefix: str) -> Any:
    program = textwrap.dedent(PROGRAM) + textwrap.dedent(code)
    command = [*prefix, sys.executable, "-W", "error", "-c", program, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def without_capabilities() -> list[str]:
    """What runs a program as a user for whom permissions hold."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere, and there is no setpriv to give that up")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def with_own_mounts() -> list[str]:
    """What runs a program that may mount file systems of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("this user may not mount anything")
    return ["unshare", "-m"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes say nothing there")
def test_directories_without_permission_are_outages_and_what_is_in_them_is_read(tmp_path: Path) -> None:
    code = """
    (place / "damaged").mkdir(mode=0o700)
    (place / "damaged" / "opero.sqlite3").write_bytes(b"not a database at all" * 500)
    secret = place / "secret"
    fill(secret)
    (secret / "opero.sqlite3").chmod(0)
    for each in (warm, empty, place / "damaged"):
        each.chmod(0o500)
    found = {each.name: use(each) for each in (warm, empty, empty / "below", place / "damaged", secret)}
    calls = []
    held[warm].cache_delete(1)  # which is not possible, and does not end reading
    found["deleted"] = [held[warm](1), calls]
    for each in (warm, empty):
        each.chmod(0o700)
    clock.advance(60)
    for each in (warm, empty):
        calls = []
        again = [held[each](x) for x in (1, 2, 1, 2, 3, 3)]
        found[f"{each.name} again"] = [calls, again == [[1], [2], [1], [2], [3], [3]]]
    print(json.dumps(found))
    """
    assert output_of(code, tmp_path, *without_capabilities()) == {
        "warm": READ_ONLY,
        "empty": DOWN,
        "below": DOWN,
        "damaged": DOWN,
        "secret": DOWN,
        "deleted": [[1], []],
        "warm again": [[2, 3], True],
        "empty again": [[1, 2, 3], True],
    }


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_read_only_and_full_file_systems_are_outages_and_what_is_on_them_is_read(tmp_path: Path) -> None:
    code = """
    run("mount", "--bind", str(warm), str(warm))
    run("mount", "-o", "remount,ro,bind", str(warm))
    found = {"read-only image": use(warm)}
    run("mount", "-o", "remount,rw,bind", str(warm))
    clock.advance(60)
    calls = []
    found["writable again"] = [[held[warm](x) for x in (1, 2, 2)], calls]
    full = place / "full"
    full.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "none", str(full))
    fill(full)
    held[full] = None
    def stuff():
        with open(full / "stuffing", "ab", buffering=0) as file:
            try:
                while True: file.write(bytes(1024))
            except OSError as error:
                assert error.errno == 28, error
    stuff()
    found["full, warm"] = use(full)
    (full / "stuffing").unlink()
    clock.advance(60)
    calls = []
    found["with space again"] = [[held[full](x) for x in (1, 2, 2)], calls]
    held[full].binding.cache.store.backend.close()
    for each in full.iterdir(): each.unlink()
    stuff()
    found["full, empty"] = use(full)
    print(json.dumps(found))
    """
    found = output_of(code, tmp_path, *with_own_mounts())
    assert found == {
        "read-only image": READ_ONLY,
        "writable again": [[[1], [2], [2]], [2]],
        "full, warm": READ_ONLY,
        "with space again": [[[1], [2], [2]], [2]],
        "full, empty": DOWN,
    }


def bound_to(directory: Path, calls: list[int]) -> tuple[Any, VirtualClock]:
    clock = VirtualClock()
    cache = {"backend": "disk", "ttl": None, "cache_dir": directory, "store_timeout": 0.1}

    def function(x: int) -> int:
        calls.append(x)
        return x

    return Policy(cache=cache).apply(function, clock=clock), clock


def whats(events: list[Any]) -> list[tuple[str, str]]:
    return [(each.name, each.what) for each in events if isinstance(each, CacheFailed | CacheRestored)]


def test_a_file_to_which_another_process_writes_at_the_start_is_read(tmp_path: Path, heard: list[Any]) -> None:
    earlier, _ = bound_to(tmp_path, [])
    earlier(0)
    holder = sqlite3.connect(tmp_path / "opero.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    earlier.binding.cache.store.backend.close()
    calls: list[int] = []
    bound, clock = bound_to(tmp_path, calls)
    assert [bound(1) for _ in range(3)] == [1] * 3
    assert whats(heard) == [("cache_failed", "read_only")]
    holder.execute("COMMIT")
    holder.close()
    clock.advance(2)
    assert [bound(2) for _ in range(3)] == [2] * 3
    assert calls == [1, 1, 1, 2]
    assert whats(heard) == [("cache_failed", "read_only"), ("cache_restored", "read_only")]


def test_a_file_that_is_locked_for_itself_alone_is_an_outage_at_the_start(tmp_path: Path, heard: list[Any]) -> None:
    holder = sqlite3.connect(tmp_path / "opero.sqlite3", isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("PRAGMA journal_mode=WAL")
    holder.execute("CREATE TABLE other (id)")
    calls: list[int] = []
    bound, clock = bound_to(tmp_path, calls)
    assert [bound(1) for _ in range(3)] == [1] * 3
    assert whats(heard) == [("cache_failed", "unavailable")]
    holder.close()
    clock.advance(2)
    assert [bound(2) for _ in range(3)] == [2] * 3
    assert calls == [1, 1, 1, 2]


def test_a_file_that_is_damaged_at_the_start_is_replaced(tmp_path: Path, heard: list[Any]) -> None:
    (tmp_path / "opero.sqlite3").write_bytes(GARBAGE)
    calls: list[int] = []
    bound, _ = bound_to(tmp_path, calls)
    assert [bound(1) for _ in range(3)] == [1] * 3
    assert (calls, whats(heard)) == ([1], [])
    assert (tmp_path / "opero.sqlite3.damaged").read_bytes() == GARBAGE


@pytest.mark.parametrize("below", ["file", "file/below", "x" * 300, "nul\0"])
def test_a_place_where_there_can_be_no_directory_is_an_error_of_the_binding(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used: .*; choose another cache_dir"):
        bound_to(tmp_path / below, [])


def test_a_directory_that_others_make_before_the_first_use_is_checked_then(
    tmp_path: Path, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from opero.cache import open_shared

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(open_shared, "make_directory", refused)
    bound, clock = bound_to(tmp_path / "later", [])
    (tmp_path / "later").mkdir()
    (tmp_path / "later").chmod(0o777)
    assert bound(1) == 1
    assert whats(heard) == [("cache_failed", "unavailable")]
    assert "could run the code of others" in bound.binding.cache.store.breaker.trouble
    assert not (tmp_path / "later" / "opero.sqlite3").exists()
    (tmp_path / "later").chmod(0o700)
    clock.advance(2)
    assert [bound(1), bound(1)] == [1, 1]
    assert bound.stats.attempts == 2
