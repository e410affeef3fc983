"""The pytest plugin, in sessions of its own: it loads by itself, and works beside pytest-asyncio, anyio and xdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Run = Callable[..., str]

SAMPLE = """
import asyncio, time
from concurrent.futures import ThreadPoolExecutor
import pytest
from opero import Policy, opero
from opero.testing import assert_attempts, faults, ok, slow, status

BEGAN = time.monotonic()

@opero(retries=3, min_delay=30, jitter=False, circuit_breaker=4)
def fetch(item=1):
    return item

@opero(retries=3, min_delay=30, jitter=False, circuit_breaker=4)
async def fetch_async(item=1):
    await asyncio.sleep(100)
    return item

"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run pytest on a program, with the plugin as it is when opero is installed, and return what it prints."""
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    installed = tmp_path / "installed" / "sample_of_opero-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sample_of_opero\nVersion: 1\n")
    lines = [f"{name} = {target}" for name, target in entry_points.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    project = tmp_path / "project"
    project.mkdir()

    def run(program: str, *arguments: str, ini: str = "", passed: int | None = None) -> str:
        (project / "test_sample.py").write_text(program)
        (project / "pytest.ini").write_text(f"[pytest]\naddopts = -p no:cacheprovider --strict-config\n{ini}\n")
        places = [str(installed.parent), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments, "test_sample.py"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        output = result.stdout + result.stderr
        if passed is not None:
            assert result.returncode == 0, output
            assert f"{passed} passed" in output, output
        return output

    return run


def test_fixtures_are_there_by_themselves(run: Run) -> None:
    program = SAMPLE + (
        """
def test_in_virtual_time(virtual_clock):
    with faults(fetch, [ConnectionError, status(503), ok]), assert_attempts(fetch, 3):
        assert fetch(5) == 5
    assert virtual_clock.slept == [30, 30]
    assert asyncio.run(fetch_async()) == 1
    with ThreadPoolExecutor(4) as pool, faults(fetch, [ConnectionError] * 3):
        assert list(pool.map(fetch, range(4))) == [0, 1, 2, 3]

def test_without_waits(no_waits):
    with faults(fetch, [ConnectionError] * 2):
        fetch()
    assert no_waits.slept == [30, 30]

def test_no_time_has_passed():
    assert time.monotonic() - BEGAN < 25
"""
    )
    run(program, passed=3)


def test_the_example_of_the_guide_passes(run: Run) -> None:
    section = (ROOT / "docs" / "guide.md").read_text().partition("\n## Tests\n")[2]
    run(section.partition("```python\n")[2].partition("```")[0], passed=1)


BREAKING = SAMPLE + (
    """
@pytest.mark.parametrize("number", range(3))
def test_break(number):
    assert fetch.binding.circuit_breaker.state == "closed"
    assert fetch.stats.calls == 0
    fetch.binding.circuit_breaker.force_open()
    with pytest.raises(Exception):
        fetch()
"""
)


def test_state_begins_anew_with_each_test(run: Run) -> None:
    run(BREAKING, passed=3)


def test_fresh_state_can_be_switched_off_and_asked_for(run: Run) -> None:
    assert "2 failed, 1 passed" in run(BREAKING, ini="opero_fresh_state = false")
    asked = BREAKING.replace("def test_break(number)", "def test_break(number, fresh_state)")
    run(asked, ini="opero_fresh_state = false", passed=3)


def test_a_session_that_does_not_use_opero_does_not_import_it(run: Run) -> None:
    program = """
import sys

def test_nothing_is_imported():
    assert sorted(name for name in sys.modules if name.startswith("opero.")) == ["opero.pytest_plugin"]
    assert "pydantic" not in sys.modules
    assert "opero_fresh_state" in open("pytest.ini").read()
"""
    run(program, "-p", "no:hypothesispytest", ini="opero_fresh_state = true", passed=1)


ASYNC = """
async def test_async_delays_and_sleeps_pass_at_once(virtual_clock):
    before = virtual_clock.monotonic()
    with faults(fetch_async, [ConnectionError, slow("10s")]), assert_attempts(fetch_async, 2):
        assert await fetch_async(4) == 4
    assert virtual_clock.slept == [30, 10]
    assert virtual_clock.monotonic() - before == pytest.approx(140)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 1000)
    assert time.monotonic() - BEGAN < 25

async def test_time_is_real_again():
    began = time.monotonic()
    await asyncio.sleep(0.05)
    assert 0.04 < time.monotonic() - began < 25
"""


@pytest.mark.skipif(find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed")
@pytest.mark.parametrize("scope", ["function", "session"])
def test_pytest_asyncio(run: Run, scope: str) -> None:
    ini = f"asyncio_mode = auto\nasyncio_default_test_loop_scope = {scope}"
    run(SAMPLE + ASYNC, "-p", "no:anyio", ini=ini, passed=2)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_anyio(run: Run, library: str) -> None:
    body = ASYNC if library == "asyncio" else TRIO
    backend = f"pytestmark = pytest.mark.anyio\n@pytest.fixture\ndef anyio_backend():\n    return {library!r}\n"
    disabled = ["-p", "no:asyncio"] if find_spec("pytest_asyncio") else []
    run(SAMPLE + backend + body, *disabled, passed=2 if library == "asyncio" else 1)


TRIO = """
@opero(retries=3, min_delay=30, jitter=False)
async def quick():
    return 1

async def test_delays_pass_at_once(virtual_clock):
    with faults(quick, [ConnectionError, slow("10s")]), assert_attempts(quick, 2):
        assert await quick() == 1
    assert virtual_clock.slept == [30, 10]
    assert time.monotonic() - BEGAN < 25
"""


def test_xdist(run: Run) -> None:
    program = SAMPLE + (
        """
@pytest.mark.parametrize("number", range(20))
def test_retries(number, virtual_clock):
    assert fetch.stats.calls == 0
    with faults(fetch, [ConnectionError] * 3), assert_attempts(fetch, 4):
        fetch()
    assert virtual_clock.slept == [30] * 3
"""
    )
    run(program, "-n", "2", passed=20)
