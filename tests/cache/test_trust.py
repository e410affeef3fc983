"""Nobody who can write to a store or a journal runs code in this process, and what opero makes there is private."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from opero import Policy
from opero.errors import ConfigError
from opero.events import CacheFailed
from opero.parallel.journal.journal import Journal
from opero.runtime.hosts import Outcome

WRITERS: dict[str, dict[str, Any]] = {
    "json": {"serializer": "json"},
    "pickle": {"serializer": "pickle", "allow_unsigned_pickle": True},
    "signed": {"serializer": "signed_pickle", "secret": "one"},
    "signed by another": {"serializer": "signed_pickle", "secret": "two"},
}
posix = pytest.mark.skipif(sys.platform == "win32", reason="rights are not in the mode of a file")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
OTHER = 12345


class Bomb:
    exploded = 0

    def __reduce__(self) -> Any:
        return Bomb.explode, ()

    @staticmethod
    def explode() -> str:
        Bomb.exploded += 1
        return "exploded"


@pytest.fixture(autouse=True)
def _unexploded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPERO_CACHE_SECRET", raising=False)
    monkeypatch.setattr(Bomb, "exploded", 0)


@pytest.fixture(params=["disk", "redis", "dogpile.cache.dbm"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "redis":
        return {"backend": "redis", "ttl": 60, "url": request.getfixturevalue("redis_url")}
    if request.param == "disk":
        return {"backend": "disk", "ttl": 60, "cache_dir": str(tmp_path)}
    return {"backend": request.param, "ttl": 60, "arguments": {"filename": str(tmp_path / "cache.dbm")}}


def function(key: str) -> Any:
    return [key]


@pytest.mark.parametrize("reader", WRITERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_store_reads_what_its_serializer_writes_and_nothing_else(
    store: dict[str, Any], writer: str, reader: str, heard: Any
) -> None:
    planting = Policy(cache={**store, **WRITERS[writer]}).apply(function)
    assert planting.cache_set(["planted"], "k") is True
    if writer == "pickle":
        assert planting.cache_set(Bomb(), "bomb") is True
    reading = Policy(cache={**store, **WRITERS[reader]}).apply(function)
    is_own = writer == reader
    assert reading("k") == (["planted"] if is_own else ["k"])
    assert [each.what for each in heard if isinstance(each, CacheFailed)] == ([] if is_own else ["unreadable"])
    if not is_own:
        assert reading("bomb") == ["bomb"]
        assert Bomb.exploded == 0


def test_a_secret_signs_what_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"backend": "disk", "ttl": 60, "cache_dir": tmp_path}
    unsigned = Policy(cache=cache).apply(function)
    unsigned.cache_set(Bomb(), "k")
    for signed in (Policy(cache={**cache, "secret": "one"}), Policy(cache=cache)):
        bound = signed.apply(function)
        assert bound("k") == ["k"]
        assert bound("k") == ["k"]
        assert bound.stats.attempts == 1
        monkeypatch.setenv("OPERO_CACHE_SECRET", "two")
    assert Bomb.exploded == 0


# Where others can write


def distrust(place: Path, how: str) -> None:
    """Let others write to a directory, or to the one above it, or to a file in it."""
    if how == "owner":
        os.chown(place, OTHER, -1)
    elif how == "owner of the file":
        (place / "opero.sqlite3").write_bytes(b"")
        os.chown(place / "opero.sqlite3", OTHER, -1)
    else:
        (place.parent if how == "above" else place).chmod(0o1777 if how == "sticky" else 0o777)


WAYS = ["mode", "sticky", "above", *(pytest.param(each, marks=needs_root) for each in ("owner", "owner of the file"))]


@posix
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("serializer", ["json", "pickle", "signed_pickle"])
def test_a_directory_where_others_can_write_is_refused_for_pickles_and_warned_of_for_the_rest(
    tmp_path: Path, caplog: Any, how: str, serializer: str
) -> None:
    place = tmp_path / "above" / "cache"
    place.mkdir(parents=True)
    distrust(place, how)
    cache = {"backend": "disk", "ttl": 60, "cache_dir": place, "serializer": serializer}
    policy = Policy(cache={**cache, **({"secret": "one"} if serializer == "signed_pickle" else {})})
    if serializer == "pickle":
        with pytest.raises(ConfigError, match=r"pickles in .* could run the code of others, as .*: use a directory of"):
            policy.apply(function)
        return
    bound = policy.apply(function)
    assert bound("k") == bound("k") == ["k"]
    assert bound.stats.attempts == 1
    assert "others can change what is cached" in caplog.text


@posix
def test_a_directory_of_ones_own_causes_no_warning(tmp_path: Path, caplog: Any) -> None:
    Policy(cache={"backend": "disk", "ttl": 60, "cache_dir": tmp_path / "own"}).apply(function)("k")
    assert caplog.text == ""


@posix
@pytest.mark.parametrize("is_there", [False, True])
def test_the_files_of_a_store_are_private(tmp_path: Path, is_there: bool) -> None:
    place = tmp_path / "made" / "for it"
    if is_there:
        place.mkdir(parents=True, mode=0o755)
    before = os.umask(0)
    try:
        bound = Policy(cache={"backend": "disk", "ttl": 60, "cache_dir": place}).apply(function)
        bound("k")
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in place.iterdir()}
    finally:
        os.umask(before)
    assert {"opero.sqlite3", "opero.sqlite3-wal", "opero.sqlite3-shm", "opero.locks"} == set(modes)
    assert set(modes.values()) == {0o600}
    assert is_there or {stat.S_IMODE(each.stat().st_mode) for each in (place, place.parent)} == {0o700}


# Journals

NAME = "shop:fetch"


def record(path: Path, *values: Any, secret: bytes | None = None, name: str = NAME, first: int = 0) -> None:
    with Journal(path, name, secret) as journal:
        for index, value in enumerate(values, first):
            journal.record(index, index, Outcome(error=value) if isinstance(value, Exception) else Outcome(value))


def recall(path: Path, count: int, secret: bytes | None = None, name: str = NAME) -> dict[int, Any]:
    with Journal(path, name, secret) as journal:
        return {index: each.get() for index, each in journal.recall(0, range(count)).outcomes.items()}


def failures(path: Path, secret: bytes | None = None) -> str:
    with Journal(path, NAME, secret) as journal:
        return repr(journal.failures())


def test_a_signed_journal_recalls_what_it_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path, 1, (2,), KeyError("x"), secret=b"one")
    assert recall(path, 3, b"one") == {0: 1, 1: (2,)}
    assert failures(path, b"one") == "{2: KeyError('x')}"
    record(path, 3, secret=b"one", first=2)
    assert recall(path, 3, b"one") == {0: 1, 1: (2,), 2: 3}


@pytest.mark.parametrize("value", [1, (1,), Bomb(), KeyError("x")])
@pytest.mark.parametrize("secrets", [(None, b"one"), (b"one", b"two"), (b"one", None)])
def test_a_journal_with_other_signatures_is_not_read(tmp_path: Path, value: Any, secrets: Any) -> None:
    path, (written, read) = tmp_path / "run.jsonl", secrets
    record(path, value, secret=written)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"line 2 (is not signed|is signed, and|has an invalid signature)"):
        failures(path, read) if isinstance(value, Exception) else recall(path, 1, read)
    assert Bomb.exploded == 0
    assert path.read_bytes() == before


def test_a_signed_record_that_was_changed_anywhere_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path, (2, "two"), secret=b"one")
    header, line = path.read_bytes().splitlines(keepends=True)
    for position in range(len(line)):
        for flip in (1, 32):
            changed = bytearray(line)
            changed[position] ^= flip
            path.write_bytes(header + changed)
            try:
                assert recall(path, 1, b"one") == {}  # the line is no record any more
            except ConfigError:
                continue


def test_a_signed_record_of_another_function_is_not_read(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    record(one, (1,), secret=b"key")
    record(other, (2,), secret=b"key", name="shop:other")
    line = one.read_bytes().splitlines(keepends=True)[1]
    other.write_bytes(other.read_bytes().splitlines(keepends=True)[0] + line)
    with pytest.raises(ConfigError, match="invalid signature"):
        recall(other, 1, b"key", "shop:other")


@pytest.mark.parametrize("way", ["policy", "environment"])
def test_the_journal_of_a_map_is_signed_if_there_is_a_secret(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    policy = Policy(parallel={"mode": "thread"})
    if way == "environment":
        monkeypatch.setenv("OPERO_CACHE_SECRET", "one")
    else:
        policy = Policy(parallel={"mode": "thread"}, cache={"secret": "one"})
    bound = policy.apply(function)
    assert bound.map(["a", "b"], journal=path) == [["a"], ["b"]]
    assert path.read_bytes().count(b'"sig": "') == 2
    assert bound.map(["a", "b"], journal=path) == [["a"], ["b"]]
    assert bound.stats.attempts == 2
    monkeypatch.delenv("OPERO_CACHE_SECRET", raising=False)
    with pytest.raises(ConfigError, match="is signed, and there is no secret to verify it: set OPERO_CACHE_SECRET"):
        Policy(parallel={"mode": "thread"}).apply(function).map(["a", "b"], journal=path)


@posix
@pytest.mark.parametrize("how", ["file", "directory", pytest.param("owner", marks=needs_root)])
def test_pickles_in_a_journal_that_others_can_write_are_not_read(tmp_path: Path, caplog: Any, how: str) -> None:
    path = tmp_path / "run.jsonl"
    record(path, {"plain": 1}, Bomb())
    if how == "owner":
        os.chown(path, OTHER, -1)
    else:
        (path if how == "file" else tmp_path).chmod(0o777)
    assert recall(path, 1) == {0: {"plain": 1}}  # JSON runs no code
    assert "can be changed by others" in caplog.text
    with pytest.raises(ConfigError, match=r"line 3 is a pickle, which could run the code of others, as .*: move it"):
        recall(path, 2)
    assert Bomb.exploded == 0


@posix
def test_a_journal_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        record(tmp_path / "run.jsonl", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.jsonl").stat().st_mode) == 0o600
