"""opero's backends as backends of dogpile.cache: their names, and their mutexes."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import CacheBackend

import opero.cache  # noqa: F401  # registers the backends
from opero.runtime.file_locks import HAS_LOCKS

GROUP = "dogpile.cache"
NAMES = {"opero.memory", "opero.disk", "opero.redis"}


def test_every_backend_is_an_entry_point_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    declared = project["entry-points"][GROUP]
    assert set(declared) == NAMES
    for name, value in declared.items():
        assert issubclass(importlib.metadata.EntryPoint(name, value, GROUP).load(), CacheBackend)


@pytest.mark.skipif(
    not {each.name for each in importlib.metadata.entry_points(group=GROUP)} >= NAMES,
    reason="opero was installed before it had these entry points",
)
def test_a_program_that_does_not_import_opero_can_use_them(tmp_path: Path) -> None:
    code = """
import sys
from dogpile.cache import make_region
assert "opero" not in sys.modules
for name, arguments in (("opero.memory", {"max_size": 9}), ("opero.disk", {"directory": sys.argv[1]})):
    region = make_region().configure(name, arguments=arguments)
    region.set("k", {"a": 1})
    print(region.get("k"), bool(region.get("absent")))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "{'a': 1} False\n" * 2, done.stderr


@pytest.fixture(params=["disk", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    arguments: dict[str, Any] = {"directory": tmp_path}
    if request.param == "redis":
        arguments = {"url": request.getfixturevalue("redis_url")}
    elif not HAS_LOCKS:
        pytest.skip("this platform has no locks of bytes")
    return make_region().configure(f"opero.{request.param}", arguments=arguments).backend


def test_a_mutex_tells_that_another_object_holds_it(backend: Any) -> None:
    one, other, third = (backend.get_mutex(key) for key in ("k", "k", "third"))
    for each in (one, other, third):
        assert not each.locked()
    assert one.acquire(False)
    assert (one.locked(), other.locked(), third.locked()) == (True, True, False)
    other.release()  # it does not hold it
    assert one.locked()
    assert other.locked()
    assert not other.acquire(False)
    one.release()
    assert not one.locked()
    assert not other.locked()
    assert other.acquire(False)  # asking has left nothing locked
    other.release()


def test_a_mutex_tells_that_another_process_holds_it(tmp_path: Path) -> None:
    if not HAS_LOCKS:
        pytest.skip("this platform has no locks of bytes")
    code = """
import sys
from opero.cache.disk import DiskBackend
mutex = DiskBackend({"directory": sys.argv[1]}).get_mutex("k")
assert mutex.acquire(False)
print("locked", flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    mutex = make_region().configure("opero.disk", arguments={"directory": tmp_path}).backend.get_mutex("k")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert mutex.locked()
        assert not mutex.acquire(False)
        holder.communicate("\n")
    assert not mutex.locked()
