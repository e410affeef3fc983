"""Maps on ray: a real one, on this machine."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from leftovers import restored
from opero import ConfigError, MapError, MissingExtraError, opmap
from opero.testing.workers import WorkerTests

ray = pytest.importorskip("ray")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("fails_if_it_hangs")

LOCK = threading.Lock()
"""Cannot be pickled: functions that use it must be found by their names."""


@pytest.fixture(autouse=True, scope="module")
def ray_here(no_process_is_left: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A ray on this machine, whose token is not kept in the user's home, and whose workers can import these tests."""
    with restored(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(each for each in sys.path if each))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


class TestRay(WorkerTests):
    options = {"mode": "ray"}
    shares_limits = False


class TestRayForAsyncFunctions(TestRay):
    is_async = True


def mapped(function: Any, **options: Any) -> Any:
    return opmap(**{"mode": "ray", "retries": 0, **options})(function)


def wait_until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(12000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it has not happened within two minutes")


def is_idle() -> bool:
    return bool(ray.available_resources().get("CPU") == 2)


@opmap(retries=0)
def square(number: int) -> int:
    with LOCK:
        return number * number


def pid(_: Any) -> int:
    return os.getpid()


def identity(value: Any) -> Any:
    return value


# Functions and clusters


def test_results_of_other_processes_have_the_order_of_the_items() -> None:
    assert mapped(square.__wrapped__)(range(1000)) == [number * number for number in range(1000)]
    assert os.getpid() not in mapped(pid)(range(100))


def test_an_async_function_runs_in_event_loops_of_the_workers() -> None:
    async def nap(_: int) -> int:
        await asyncio.sleep(0.001)
        return os.getpid()

    assert os.getpid() not in asyncio.run(mapped(nap)(range(100)))


def test_the_address_of_the_connected_cluster_is_accepted() -> None:
    address = ray.get_runtime_context().gcs_address
    assert mapped(square.__wrapped__, address=address)([2]) == [4]
    assert mapped(square.__wrapped__, address="auto")([2]) == [4]


def test_the_address_of_another_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"10\.1\.2\.3:6379.*is not the ray cluster.*ray.shutdown"):
        mapped(square.__wrapped__, address="10.1.2.3:6379")([2])


def test_maps_within_a_worker_run_there() -> None:
    def outer(_: int) -> tuple[int, set[int]]:
        return os.getpid(), set(opmap(mode="ray", retries=0)(pid)([1, 2, 3]))

    for outside, inside in mapped(outer)([1, 2]):
        assert inside == {outside}


# Failures


def wait_for_file(number: int, folder: str) -> int:
    """Create a file that shows that it has started, and wait for another one."""
    open(os.path.join(folder, f"started-{number}-{os.getpid()}"), "w").close()
    wait_until(lambda: os.path.exists(os.path.join(folder, "go")))
    return number


def started(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("started")]


def test_no_result_is_lost_when_workers_are_killed(tmp_path: Path) -> None:
    results: list[int] = []
    stream = mapped(wait_for_file).stream(range(8), str(tmp_path))
    reader = threading.Thread(target=lambda: results.extend(stream))
    reader.start()
    wait_until(lambda: len(started(tmp_path)) >= 2)
    os.kill(int(started(tmp_path)[0].split("-")[2]), signal.SIGKILL)
    (tmp_path / "go").touch()
    reader.join(30)
    assert results == list(range(8))


@pytest.mark.parametrize("policy", [{"rate_limit": 5}, {"circuit_breaker": 5}, {"bulkhead": 5}])
def test_limits_that_no_cluster_can_share_are_refused_when_the_function_is_decorated(policy: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be shared with the machines of a cluster"):
        opmap(mode="ray", **policy)(identity)


def test_a_missing_extra_is_reported_when_the_function_is_decorated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'opero\[ray\]'"):
        opmap(mode="ray")(identity)


# Ends


def test_closing_a_stream_ends_the_chunks_that_were_sent(tmp_path: Path) -> None:
    stream = mapped(wait_for_file).stream(itertools.count(), str(tmp_path))
    first: list[int] = []
    reader = threading.Thread(target=lambda: first.append(next(stream)))
    (tmp_path / "go").touch()
    reader.start()
    reader.join(30)
    (tmp_path / "go").unlink()
    assert first == [0]
    before = set(started(tmp_path))
    wait_until(lambda: set(started(tmp_path)) - before or len(before) > 2)
    stream.close()
    wait_until(is_idle)


def test_items_that_run_at_a_failure_are_finished(tmp_path: Path) -> None:
    def run(number: int) -> int:
        if number == 1:
            wait_until(lambda: started(tmp_path))
            raise ValueError(number)
        if number == 0:
            open(tmp_path / "started", "w").close()
            threading.Event().wait(0.3)
        return number

    with pytest.raises(MapError) as caught:
        mapped(run)([0, 1, 2, 3])
    assert caught.value.results.items() >= {0: 0}.items()


def test_cancelling_the_task_ends_the_chunks_that_were_sent(tmp_path: Path) -> None:
    async def never_ends(_: int) -> None:
        open(tmp_path / f"started-{os.getpid()}", "w").close()
        await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.ensure_future(mapped(never_ends)(range(4)))
        while not started(tmp_path):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)

    asyncio.run(cancel())
    wait_until(is_idle)


def script(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=dict(os.environ),
    )


def test_without_options_a_local_ray_is_started_and_ctrl_c_ends_it() -> None:
    done = script("""
        import os, signal, threading, time
        from opero import opmap

        @opmap(mode="ray", workers=2, retries=0)
        def nap(seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()

        pids = set(nap([0.0] * 4)) | set(nap([0.0] * 4))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            nap([600.0] * 4)
        except KeyboardInterrupt:
            print(*pids)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()
    wait_until(lambda: not any(psutil.pid_exists(int(each)) for each in done.stdout.split()))


def test_a_wrong_address_is_reported() -> None:
    done = script("""
        from opero import ConfigError, opmap

        try:
            opmap(mode="ray", address="127.0.0.1:1", retries=0)(abs)([1])
        except ConfigError as error:
            print(error)
    """)
    assert "no ray cluster answers at address='127.0.0.1:1'" in done.stdout, done.stderr
