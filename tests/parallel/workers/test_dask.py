"""Maps on a dask cluster: a real one, of two worker processes."""

from __future__ import annotations

import asyncio
import base64
import importlib
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import opero.parallel
from leftovers import restored
from opero import ConfigError, MapError, MissingExtraError, RateLimitExceededError, opmap
from opero.testing.workers import WorkerTests

distributed = pytest.importorskip("distributed")
dask_config = pytest.importorskip("dask.config")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("fails_if_it_hangs")

LOCK = threading.Lock()
"""Cannot be pickled: functions that use it must be found by their names."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with (
        restored(),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[Any]:
    """The default client of the program, which maps find."""
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def dask(client: Any, cluster: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Maps a function on the default client's cluster. At the end the scheduler knows nothing of it any more."""
    if getattr(request.node, "execution_count", 1) > 1:  # a second try, with workers that no first one has left busy
        client.restart(timeout=60)

    def has_two_workers() -> bool:
        cluster.scale(2)  # dask gives up a worker that dies while it starts, after some seconds
        return len(cluster.scheduler.workers) == 2

    wait_until(has_two_workers)

    def mapped(function: Any, **options: Any) -> Any:
        wait_until(has_two_workers)
        return opmap(**{"mode": "dask", "retries": 0, **options})(function)

    yield mapped
    wait_until(lambda: not chunks_at(cluster))


def wait_until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(12000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it has not happened within two minutes")


class TestDask(WorkerTests):
    options = {"mode": "dask"}
    shares_limits = False

    @pytest.fixture(autouse=True)
    def two_workers(self, dask: Any) -> None:
        """The default client's cluster, which has all its workers."""


class TestDaskForAsyncFunctions(TestDask):
    is_async = True


# Functions whose names refer to their wrappers


@opmap(retries=0)
def square(number: int) -> int:
    with LOCK:
        return number * number


def pid(_: Any) -> int:
    return os.getpid()


def identity(value: Any) -> Any:
    return value


# Functions and clusters


def test_results_of_the_clusters_workers_have_the_order_of_the_items(dask: Any, client: Any) -> None:
    assert dask(square.__wrapped__)(range(1000)) == [number * number for number in range(1000)]
    assert set(dask(pid)(range(1000))) <= set(client.run(os.getpid).values())


def test_an_async_function_runs_in_event_loops_of_the_workers(dask: Any, client: Any) -> None:
    async def nap(_: int) -> int:
        await asyncio.sleep(0.001)
        return os.getpid()

    assert set(asyncio.run(dask(nap)(range(100)))) <= set(client.run(os.getpid).values())


def test_a_map_runs_on_the_scheduler_at_the_given_address(cluster: Any) -> None:
    from opero.parallel.workers import dask as ours

    address = cluster.scheduler_address
    bound = opmap(mode="dask", address=address, retries=0)(square.__wrapped__)
    assert bound([2, 3]) == [4, 9]
    held = ours._clients[address]
    assert bound([4]) == [16]
    assert ours._clients.pop(address) is held
    held.close()


def test_maps_within_a_worker_run_there(dask: Any) -> None:
    def outer(_: int) -> tuple[int, set[int]]:
        return os.getpid(), set(opmap(mode="dask", retries=0)(pid)([1, 2, 3]))

    for outside, inside in dask(outer)([1, 2]):
        assert inside == {outside}


def test_workers_that_are_threads_of_this_process_do_not_mark_it_as_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def outer(_: int) -> list[int]:
        return opmap(mode="process", retries=0)(pid)([1, 2])  # type: ignore[no-any-return]

    with (
        distributed.LocalCluster(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0") as here,
        distributed.Client(here, set_as_default=False) as client,
        client.as_current(),
    ):
        assert opmap(mode="dask", retries=0)(outer)([1, 2]) == [[os.getpid()] * 2] * 2
    assert not opero.parallel.is_worker


def test_an_async_client_is_used_in_its_own_event_loop() -> None:
    async def use() -> list[int]:
        async with (
            distributed.LocalCluster(
                processes=False, n_workers=1, asynchronous=True, dashboard_address=":0", protocol="tcp"
            ) as here,
            distributed.Client(here, asynchronous=True, set_as_default=False) as client,
        ):
            with client.as_current():
                return await opmap(mode="dask", retries=0)(double)(range(20))  # type: ignore[no-any-return]

    assert asyncio.run(asyncio.wait_for(use(), 30)) == [2 * number for number in range(20)]


async def double(number: int) -> int:
    return 2 * number


MET = threading.Barrier(3)


def meet(_: int) -> bool:
    MET.wait(30)
    return True


def test_workers_that_join_during_a_map_receive_items() -> None:
    with (
        distributed.LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as here,
        distributed.Client(here, set_as_default=False) as client,
        client.as_current(),
    ):
        timer = threading.Timer(0, here.scale, (3,))
        timer.start()
        assert opmap(mode="dask", retries=0)(meet)([1, 2, 3]) == [True] * 3
        timer.join()


# Failures


def wait_for_file(number: int, folder: str) -> int:
    """Create a file that shows that it has started, and wait for another one."""
    open(os.path.join(folder, f"started-{number}-{os.getpid()}"), "w").close()
    wait_until(lambda: os.path.exists(os.path.join(folder, "go")))
    return number


def started(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("started")]


def test_no_result_is_lost_when_workers_are_killed(dask: Any, tmp_path: Path) -> None:
    results: list[int] = []
    items, large = range(12), bytes(200_000)
    bound = dask(lambda number, folder, _: wait_for_file(number, folder))
    reader = threading.Thread(target=lambda: results.extend(bound.stream(items, str(tmp_path), large)))
    reader.start()
    wait_until(lambda: len(started(tmp_path)) >= 2)
    for pid in {int(name.split("-")[2]) for name in started(tmp_path)}:  # so results are lost
        os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    reader.join(30)
    assert results == list(items)


def test_closing_the_client_ends_the_map_with_all_results_so_far() -> None:
    with (
        distributed.LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as here,
        distributed.Client(here, set_as_default=False) as client,
        client.as_current(),
    ):
        HELD.append(client)
        with pytest.raises(MapError, match="the dask cluster of .*retry_failed") as caught:
            opmap(mode="dask", retries=0)(close_the_client)(range(100))
        assert caught.value.results.items() >= {0: 0, 1: 1}.items()


def test_a_local_cluster_that_has_lost_all_its_workers_gets_new_ones() -> None:
    with (
        dask_config.set({"distributed.deploy.lost-worker-timeout": "100ms"}),
        distributed.LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as here,
        distributed.Client(here, set_as_default=False) as client,
        client.as_current(),
    ):
        HELD.append(here)
        assert opmap(mode="dask", retries=0)(lose_all_workers)(range(10)) == list(range(10))


def lose_all_workers(number: int) -> int:
    if number == 5 and HELD:
        cluster = HELD.pop()
        cluster.loop.add_callback(cluster.workers[0].close, executor_wait=False)
    return number


HELD: list[Any] = []


def close_the_client(number: int) -> int:
    if number == 5:
        client = HELD.pop()
        threading.Thread(target=client.close).start()
        wait_until(lambda: client.status == "closed")
    return number


@pytest.mark.parametrize(
    ("address", "message"),
    [("tcp://127.0.0.1:{port}", "no dask scheduler answers at address="), ("nowhere", "tcp://host")],
)
def test_a_wrong_address_is_reported_at_once(address: str, message: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(port=unused.getsockname()[1])
        with pytest.raises(ConfigError, match=message) as caught:
            opmap(mode="dask", address=address, retries=0)(identity)([1])
    assert address in str(caught.value)


@pytest.mark.parametrize("policy", [{"rate_limit": 5}, {"circuit_breaker": 5}, {"bulkhead": 5}])
def test_limits_that_no_cluster_can_share_are_refused_when_the_function_is_decorated(policy: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be shared with the machines of a cluster"):
        opmap(mode="dask", **policy)(identity)


def test_workers_of_a_cluster_use_a_budget_in_redis(dask: Any, redis_url: str) -> None:
    limit = {"rate": 0.01, "burst": 10, "max_wait": 0, "share": "redis", "url": redis_url, "store_timeout": 30}
    found = dask(identity, rate_limit=limit, on_error="return", ordered=False)(range(30))
    assert sum(isinstance(each, RateLimitExceededError) for each in found) == 20


def test_a_missing_extra_is_reported_when_the_function_is_decorated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'opero\[dask\]'"):
        opmap(mode="dask")(identity)


# Journals and arguments


def test_a_journal_that_a_program_with_dask_writes_needs_no_dask_to_be_read(tmp_path: Path) -> None:
    def fail(number: int) -> None:
        raise FileNotFoundError(2, "No such file", "x.txt")

    opmap(mode="thread", retries=0, on_error="return")(fail)([1], journal=tmp_path / "run.jsonl")
    [_, line] = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert b"tblib" not in base64.b64decode(line["pickle"])
    assert pickle.loads(base64.b64decode(line["pickle"])).filename == "x.txt"


def test_large_common_arguments_are_sent_once(dask: Any, cluster: Any) -> None:
    bound = dask(lambda number, table: table[number % 256])
    stream = bound.stream(itertools.count(), bytes(range(256)) * 4000)
    seen: dict[str, tuple[int, int]] = {}
    for number, result in zip(range(20_000), stream, strict=False):
        assert result == number % 256
        for task in list(cluster.scheduler.tasks.values()):  # a task that is done is forgotten
            if "run_chunk" in task.key and task.run_spec is not None:
                seen[task.key] = len(task.dependencies), len(pickle.dumps(task.run_spec))
        if number >= 50 and len(seen) > 2:
            break
    stream.close()
    assert len(seen) > 2
    assert {dependencies for dependencies, _ in seen.values()} == {1}
    assert max(size for _, size in seen.values()) < 100_000


# Ends


def chunks_at(cluster: Any) -> list[str]:
    """The chunks that the scheduler knows of."""
    return [each for each in list(cluster.scheduler.tasks) if "run_chunk" in each]


def test_closing_a_stream_cancels_the_chunks_that_were_sent(dask: Any, cluster: Any, tmp_path: Path) -> None:
    bound = dask(wait_for_file)
    stream = bound.stream(itertools.count(), str(tmp_path))
    reader = threading.Thread(target=lambda: next(stream, None))
    reader.start()
    wait_until(lambda: started(tmp_path))
    (tmp_path / "go").touch()
    reader.join(30)
    (tmp_path / "go").unlink()
    stream.close()
    wait_until(lambda: not chunks_at(cluster))
    (tmp_path / "go").touch()


def test_items_that_run_at_a_failure_are_finished(dask: Any, tmp_path: Path) -> None:
    def run(number: int) -> int:
        if number == 1:
            wait_until(lambda: started(tmp_path))
            raise ValueError(number)
        if number == 0:
            open(tmp_path / "started", "w").close()
            threading.Event().wait(0.3)
        return number

    with pytest.raises(MapError) as caught:
        dask(run)([0, 1, 2, 3])
    assert caught.value.results.items() >= {0: 0}.items()


def test_cancelling_the_task_cancels_the_chunks_that_were_sent(dask: Any, cluster: Any, tmp_path: Path) -> None:
    async def never_ends(_: int) -> None:
        open(tmp_path / "started", "w").close()
        while not (tmp_path / "go").exists():
            await asyncio.sleep(0.01)

    async def cancel() -> None:
        task = asyncio.ensure_future(dask(never_ends)(range(4)))
        while not started(tmp_path):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)

    asyncio.run(cancel())
    wait_until(lambda: not chunks_at(cluster))
    (tmp_path / "go").touch()


def script(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment,
    )


def test_without_options_a_local_cluster_is_started_and_reused(tmp_path: Path) -> None:
    """From a script without a guard around its main part, which its workers must not run."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            import os
            from opero import opmap

            @opmap(mode="dask", workers=2, retries=0)
            def pid(number):
                return os.getpid()

            first, second = set(pid(range(100))), set(pid(range(100)))
            assert os.getpid() not in first
            print(len(first | second), *(first | second))
        """)
    )
    done = script(f"import runpy; runpy.run_path({str(tmp_path / 'script.py')!r}, run_name='__main__')")
    assert (done.returncode, done.stderr) == (0, "")
    count, *pids = done.stdout.split()
    assert int(count) <= 2
    wait_until(lambda: not any(psutil.pid_exists(int(each)) for each in pids))


def test_ctrl_c_ends_the_map_and_the_script_and_leaves_no_process_behind() -> None:
    done = script("""
        import os, signal, threading, time
        from opero import opmap

        @opmap(mode="dask", workers=2, retries=0)
        def nap(seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()

        pids = set(nap([0.0] * 4))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            nap([600.0] * 4)
        except KeyboardInterrupt:
            print(*pids)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()
    wait_until(lambda: not any(psutil.pid_exists(int(each)) for each in done.stdout.split()))


def test_joblib_has_the_private_module_that_registers_the_start_method_of_dask_workers() -> None:
    import multiprocessing

    importlib.import_module("joblib.externals.loky")
    assert multiprocessing.get_context("loky").get_start_method() == "loky"
