"""The disk backend: one file that threads and processes share, also after forks, kills and damage."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from hypothesis import given
from hypothesis import strategies as st

import opero.cache  # registers the backend
from opero.cache.disk import PURGE_EVERY, DiskBackend

assert opero.cache
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[DiskBackend]:
    made = DiskBackend({"directory": tmp_path})
    made.get_serialized("")  # opens the file
    yield made
    made.close()


def checked(text: str) -> bytes:
    """A value that shows whether it is complete."""
    return hashlib.sha256(text.encode()).digest() * 200 + text.encode()


def is_whole(value: bytes) -> bool:
    return value == checked(value[6400:].decode())


PRELUDE = """
import hashlib, os, sys, time, random
from dogpile.cache.api import NO_VALUE
from opero.cache.disk import DiskBackend
def checked(text): return hashlib.sha256(text.encode()).digest() * 200 + text.encode()
def is_whole(value): return value == checked(value[6400:].decode())
backend = DiskBackend({"directory": sys.argv[1]})
"""


def process(code: str, *args: Any, **more: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PRELUDE + code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, **more)


def test_dogpile_knows_the_backend_by_name(tmp_path: Path) -> None:
    region = make_region().configure("opero.disk", arguments={"directory": tmp_path})
    region.set_multi({"a": 1, "b": [2]})
    assert region.get_multi(["b", "c", "a"]) == [[2], NO_VALUE, 1]
    region.delete_multi(["a"])
    assert region.get("a") is NO_VALUE
    assert region.get_or_create("d", lambda: 4) == region.get("d") == 4
    region.backend.close()


def test_many_values_are_read_and_written_in_the_order_of_their_keys(backend: DiskBackend) -> None:
    backend.set_serialized_multi({f"k{number}": b"%d" % number for number in range(1200)})
    keys = [f"k{number}" for number in range(1300)]
    found = backend.get_serialized_multi(keys)
    assert found == [b"%d" % number for number in range(1200)] + [NO_VALUE] * 100


def test_expired_values_are_not_served_and_later_writes_purge_them(backend: DiskBackend) -> None:
    backend.set_expiring("short", b"1", 0.02)
    backend.set_expiring("long", b"2", 60)
    backend.set_expiring("ever", b"3", None)
    assert backend.get_serialized_multi(["short", "long", "ever"]) == [b"1", b"2", b"3"]
    time.sleep(0.03)
    assert backend.get_serialized("short") is NO_VALUE
    assert backend.get_serialized_multi(["short", "long", "ever"]) == [NO_VALUE, b"2", b"3"]
    assert backend.count_prefix("") == 2
    for number in range(PURGE_EVERY):
        backend.set_expiring("other", b"%d" % number, 60)
    rows = sqlite3.connect(backend.database.path)
    assert {key for (key,) in rows.execute("SELECT key FROM entries")} == {"long", "ever", "other"}
    rows.close()
    assert backend.purge() == 0


def test_a_new_value_replaces_the_expiry(backend: DiskBackend) -> None:
    backend.set_expiring("a", b"1", 0.01)
    backend.set_expiring("a", b"2", None)
    time.sleep(0.02)
    assert (backend.get_serialized("a"), backend.purge()) == (b"2", 0)


@given(keys=st.sets(TEXT, max_size=12), prefix=TEXT)
def test_a_prefix_matches_exactly_the_keys_that_begin_with_it(
    tmp_path_factory: Any, keys: set[str], prefix: str
) -> None:
    backend = DiskBackend({"directory": tmp_path_factory.getbasetemp() / "prefixes"})
    backend.clear_prefix("")
    backend.set_serialized_multi(dict.fromkeys(keys, b"v"))
    within = {key for key in keys if key.startswith(prefix)}
    assert backend.count_prefix(prefix) == len(within)
    assert backend.clear_prefix(prefix) == len(within)
    left = sorted(keys)
    assert [value is not NO_VALUE for value in backend.get_serialized_multi(left)] == [
        key not in within for key in left
    ]


@pytest.mark.parametrize("prefix", ["", "a", "a\U0010ffff", "\U0010ffff", "\U0010ffff" * 1500, "\ud7ff"])
def test_a_prefix_at_the_end_of_unicode_matches(backend: DiskBackend, prefix: str) -> None:
    keys = [prefix, prefix + "x", prefix + "\U0010ffff" * 1500, prefix + "\x00"]
    backend.set_serialized_multi(dict.fromkeys(keys, b"v"))
    assert backend.count_prefix(prefix) == len(keys)


def test_trimming_removes_expired_and_then_the_oldest_values_of_a_prefix(backend: DiskBackend) -> None:
    backend.set_expiring("f:short", b"", 0.01)
    for key in "abcd":
        backend.set_serialized(f"f:{key}", b"")
    backend.set_serialized("f:a", b"")  # written again
    backend.set_serialized("g:a", b"")
    time.sleep(0.02)
    assert backend.trim_prefix("f:", 3) == 2
    found = backend.get_serialized_multi(["f:a", "f:b", "f:c", "f:d", "g:a"])
    assert [value is not NO_VALUE for value in found] == [True, False, True, True, True]
    assert backend.trim_prefix("f:", 3) == 0


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/below", "file"])
def test_a_directory_that_cannot_be_created_is_an_error_of_the_first_operation(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    backend = DiskBackend({"directory": tmp_path / place})
    with pytest.raises(OSError, match="nowhere|file"):
        backend.get_serialized("a")


def test_created_directories_are_accessible_to_their_owner_only(tmp_path: Path) -> None:
    backend = DiskBackend({"directory": tmp_path / "a" / "b"})
    backend.get_serialized("a")
    backend.close()
    assert [(tmp_path / each).stat().st_mode & 0o777 for each in ("a", "a/b")] == [0o700, 0o700]


def test_backends_of_one_directory_share_its_connections(tmp_path: Path) -> None:
    one, other = DiskBackend({"directory": tmp_path}), DiskBackend({"directory": str(tmp_path)})
    assert one.database is other.database
    one.close()


def test_processes_that_create_the_file_at_once_all_succeed_and_read_no_partial_value(tmp_path: Path) -> None:
    code = """
for turn in range(60):
    key = f"k{turn % 10}"
    backend.set_serialized(key, checked(f"{os.getpid()} {turn}" * random.randint(1, 200)))
    value = backend.get_serialized(key)
    assert value is not NO_VALUE and is_whole(value)
print("done")
"""
    for fresh in range(2):
        processes = [process(code, tmp_path / str(fresh)) for _ in range(4)]
        assert [each.communicate()[0] for each in processes] == [b"done\n"] * 4


def test_a_process_killed_during_a_write_leaves_no_partial_value(tmp_path: Path) -> None:
    code = """
print("writing", flush=True)
for turn in range(10**6):
    backend.set_serialized_multi({f"k{number}": checked(f"{turn}") for number in range(20)})
"""
    for number in range(5):
        writer = process(code, tmp_path)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + number / 50)
        writer.kill()
        writer.communicate()
        backend = DiskBackend({"directory": tmp_path})
        values = backend.get_serialized_multi([f"k{at}" for at in range(20)])
        assert len(set(values)) == 1  # the transaction is complete, or has no effect
        assert all(is_whole(value) for value in values if value is not NO_VALUE)
        backend.set_serialized("mine", b"1")
        assert backend.get_serialized("mine") == b"1"
        backend.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_uses_its_own_connections() -> None:
    code = """
backend.set_serialized("a", b"1")
mutex = backend.get_mutex("k")
assert mutex.acquire(False)
child = os.fork()
if child == 0:
    assert backend.database._idle == []
    assert backend.get_serialized("a") == b"1"
    assert not backend.get_mutex("k").acquire(False)
    backend.set_serialized("b", b"2")
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert backend.get_serialized("b") == b"2"
assert not backend.get_mutex("k").acquire(False)
mutex.release()
assert backend.get_mutex("k").acquire(False)
print("done")
"""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        assert process(code, directory).communicate()[0] == b"done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_can_write_after_its_parent_closed_the_file(tmp_path: Path) -> None:
    code = """
def step(): os.write(told[1], b"x"); os.read(go[0], 1)
go, told = os.pipe(), os.pipe()
backend.set_serialized("parent", b"1")
child = os.fork()
os.close(told[1 if child else 0])  # so that a failing child ends the read below
if child == 0:
    backend.set_serialized("child", b"2")
    step()
    assert backend.get_serialized("stranger") == b"3"
    backend.set_serialized("later", b"4")
    step()
    os._exit(7)
os.read(told[0], 1)
backend.close()
stranger = [sys.executable, "-c", sys.argv[2] + "backend.set_serialized('stranger', b'3')", sys.argv[1]]
import subprocess
subprocess.run(stranger, check=True)
os.write(go[1], b"x")
os.read(told[0], 1) or sys.exit("the child failed")
assert backend.get_serialized("later") == b"4"
os.write(go[1], b"x")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done")
"""
    assert process(code, tmp_path, PRELUDE).communicate(timeout=120)[0] == b"done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_waits_for_running_writes_and_the_child_inherits_no_connection(tmp_path: Path) -> None:
    code = """
import threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
from opero.cache import database
stop = threading.Event()
def write():
    turn = 0
    while not stop.is_set():
        turn += 1
        backend.set_serialized(f"k{turn % 5}", checked(str(turn)))
        time.sleep(0.001)  # SQLite has no queue: without a pause, a child might never get its turn
threads = [threading.Thread(target=write, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
for number in range(10):
    child = os.fork()
    if child == 0:
        clean = not database._inherited and not backend.database._used
        backend.set_serialized(f"child{number}", b"1")
        os._exit(7 if clean else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop.set()
for thread in threads: thread.join()
assert all(backend.get_serialized(f"child{number}") == b"1" for number in range(10))
assert all(is_whole(backend.get_serialized(f"k{number}")) for number in range(5))
print("done")
"""
    assert process(code, tmp_path).communicate(timeout=120)[0] == b"done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_other_fork_hooks_may_use_the_store(tmp_path: Path) -> None:
    hooks = """
import os
def use():
    backend.set_serialized("a", b"1")
    DiskBackend({"directory": sys.argv[1], "timeout": 3}).set_serialized("b", b"2")
os.register_at_fork(before=use, after_in_parent=use, after_in_child=use)  # inside the store's own hooks
"""
    code = """
child = os.fork()
if child == 0: os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(backend.get_serialized("a").decode())
"""
    command = [sys.executable, "-c", hooks + PRELUDE + code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=True, timeout=30).stdout == b"1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_does_not_hold_its_parents_mutex(tmp_path: Path) -> None:
    code = """
mutex = backend.get_mutex("k")
assert mutex.acquire(False)
child = os.fork()
if child == 0:
    assert mutex.locked()  # by the parent
    mutex.release()  # without effect
    assert not mutex.acquire(False)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert mutex.locked()
print("done")
"""
    assert process(code, tmp_path).communicate(timeout=120)[0] == b"done\n"


def test_threads_read_and_write_concurrently(backend: DiskBackend) -> None:
    wrong: list[Any] = []

    def hammer(number: int) -> None:
        for turn in range(40):
            backend.set_serialized(f"k{turn % 5}", checked(f"{number} {turn}"))
            value = backend.get_serialized(f"k{turn % 5}")
            wrong.extend([] if is_whole(value) else [value])

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(backend.database._idle) <= 6


def test_a_mutex_excludes_other_threads_and_processes_and_is_released_when_its_holder_dies(
    backend: DiskBackend, tmp_path: Path
) -> None:
    mutex, other = backend.get_mutex("k"), backend.get_mutex("k")
    assert mutex.acquire(False)
    assert mutex.locked()
    assert not other.acquire(False)
    assert backend.get_mutex("another").acquire(False)
    other.release()  # not the holder
    assert not other.acquire(False)
    attempt = "print(backend.get_mutex('k').acquire(False))"
    assert process(attempt, tmp_path).communicate()[0] == b"False\n"
    mutex.release()
    assert process(attempt, tmp_path).communicate()[0] == b"True\n"

    code = "backend.get_mutex('k').acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    holder = process(code, tmp_path)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert not other.acquire(False)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert other.acquire(False)
    other.release()


def test_backends_of_one_directory_share_mutexes_whatever_their_timeout_or_path(tmp_path: Path) -> None:
    directory = tmp_path / "real"
    directory.mkdir()
    one = DiskBackend({"directory": directory})
    (tmp_path / "link").symlink_to(directory)
    others = [DiskBackend({"directory": directory, "timeout": 2}), DiskBackend({"directory": tmp_path / "link"})]
    mutex = one.get_mutex("k")
    assert mutex.acquire(False)
    for other in others:
        assert not other.get_mutex("k").acquire(False)
        beside = other.get_mutex("beside")
        assert beside.acquire(False)
        beside.release()
        other.close()
    del others, other, beside
    gc.collect()
    attempt = "print(backend.get_mutex('k').acquire(False))"
    assert (
        process(attempt, directory).communicate()[0] == b"False\n"
    )  # garbage collection of a backend has not released the lock
    mutex.release()
    one.close()


@pytest.mark.parametrize("garbage", [b"not a database at all" * 500, b"SQLite format 3\x00" + b"\xff" * 8000])
def test_a_damaged_file_is_renamed_and_a_new_one_created(tmp_path: Path, caplog: Any, garbage: bytes) -> None:
    backend = DiskBackend({"directory": tmp_path})
    backend.set_serialized("a", b"1")
    backend.close()
    backend.database.path.write_bytes(garbage)
    assert backend.get_serialized("a") is NO_VALUE
    backend.set_serialized("a", b"2")
    assert backend.get_serialized("a") == b"2"
    assert (tmp_path / "opero.sqlite3.damaged").read_bytes() == garbage
    assert "is damaged" in caplog.text
    backend.close()
    backend.database.path.write_bytes(garbage)
    again = DiskBackend({"directory": tmp_path, "timeout": 2})  # the damage is found on opening this time
    assert again.get_serialized("a") is NO_VALUE
    again.close()


def test_damage_in_the_middle_of_the_file_is_handled_when_it_is_read(tmp_path: Path, caplog: Any) -> None:
    backend = DiskBackend({"directory": tmp_path})
    backend.set_serialized_multi({f"k{number}": b"v" * 500 for number in range(1000)})
    backend.close()
    with backend.database.path.open("r+b") as file:
        for page in range(4, backend.database.path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    assert backend.get_serialized("k500") is NO_VALUE
    backend.set_serialized("k500", b"2")
    assert backend.get_serialized("k500") == b"2"
    assert (tmp_path / "opero.sqlite3.damaged").exists()
    assert caplog.text.count("is damaged") == 1
    backend.close()


def test_processes_that_find_the_same_damage_rename_the_file_once_and_share_the_new_one(tmp_path: Path) -> None:
    code = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
print("open", flush=True)
sys.stdin.readline()
for turn in range(20):
    backend.set_serialized(sys.argv[2], checked(str(turn)))
    assert is_whole(backend.get_serialized(sys.argv[2]))
print("done")
"""
    first = DiskBackend({"directory": tmp_path})
    processes = [process(code, tmp_path, number, stdin=subprocess.PIPE) for number in range(3)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == b"open\n"
    first.database.path.write_bytes(b"not a database at all" * 500)
    told = b"".join(each.communicate(b"go\n")[0] for each in processes)
    assert told.count(b"done\n") == 3
    assert told.count(b"is damaged") == 1
    found = first.get_serialized_multi(["0", "1", "2"])
    assert [value is not NO_VALUE and is_whole(value) for value in found] == [True] * 3
    first.close()


def test_garbage_collection_closes_the_connections(tmp_path: Path) -> None:
    code = """
import gc, threading
def use(): backend.set_serialized("a", b"1")
threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
other = DiskBackend({"directory": sys.argv[1] + "/other"})
other.set_serialized("a", b"1")
del other
gc.collect()
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.alone
def test_a_file_locked_by_another_process_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    backend = DiskBackend({"directory": tmp_path, "timeout": 0.1})
    assert backend.get_serialized("a") is NO_VALUE
    other = sqlite3.connect(backend.database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        backend.set_serialized("a", b"1")
    assert 0.09 < time.monotonic() - started < 2
    assert backend.get_serialized("a") is NO_VALUE  # reading does not wait
    other.close()
    backend.set_serialized("a", b"1")
    backend.close()
