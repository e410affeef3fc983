"""How a mode is chosen, and what is refused when a function is decorated."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from opero import ConfigError, MapError, Policy, opero, opmap
from opero.parallel.workers.choose import worker_count

if TYPE_CHECKING:
    from pathlib import Path


def plain(item: int) -> int:
    return item


async def plain_async(item: int) -> int:
    return item


# mode: auto


def test_auto_runs_functions_that_wait_in_threads() -> None:
    @opmap(workers=4)
    def wait(_: int) -> int:
        time.sleep(0.01)
        return threading.get_ident()

    idents = wait(range(8))
    assert idents[0] == threading.get_ident()  # the first items are the sample
    assert idents[-1] != threading.get_ident()


def test_auto_runs_long_computations_in_processes() -> None:
    @opmap(workers=2)
    def compute(_: int) -> int:
        until = time.thread_time() + 0.03
        while time.thread_time() < until:
            pass
        return os.getpid()

    pids = compute(range(24))
    assert pids[0] == os.getpid()
    assert os.getpid() not in pids[2:]


def test_auto_runs_short_computations_in_this_process() -> None:
    @opmap
    def compute(_: int) -> int:
        return os.getpid()

    assert set(compute(range(100))) == {os.getpid()}


def test_auto_keeps_the_size_of_batches() -> None:
    sizes: list[int] = []

    @opmap(batch_size=5)
    def load(ids: list[int]) -> list[int]:
        sizes.append(len(ids))
        return ids

    assert load(range(12)) == list(range(12))
    assert sorted(sizes) == [2, 5, 5]


def test_auto_stops_at_a_failure_in_its_sample() -> None:
    called: list[int] = []

    @opmap(retries=0)
    def fail(number: int) -> None:
        called.append(number)
        raise ValueError(number)

    with pytest.raises(Exception, match="9 were not finished"):
        fail(range(10))
    assert called == [0]


# workers


def test_the_number_of_workers_follows_from_the_mode() -> None:
    assert worker_count(3, "thread") == 3
    assert worker_count("auto", "async") == 100
    assert 1 <= worker_count("auto", "process") <= max(1, (os.cpu_count() or 1) - 1)
    assert 1 <= worker_count("auto", "thread") <= 32


def test_a_map_has_no_more_workers_than_a_bulkhead_without_a_queue_admits() -> None:
    def slow(number: int) -> int:
        time.sleep(0.002)
        return number

    assert opmap(bulkhead=3, mode="thread", progress=False)(slow)(range(200)) == list(range(200))
    with pytest.raises(MapError, match="bulkhead full: 3 of 3 slots in use"):
        opmap(bulkhead=3, mode="thread", workers=20, progress=False)(slow)(range(200))


# Refused when the function is decorated


@pytest.mark.parametrize("mode", ["dask", "ray"])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rate_limit": 10}, "rate_limit"),
        ({"circuit_breaker": 5}, "circuit_breaker"),
        ({"bulkhead": 2, "rate_limit": 10}, "rate_limit and bulkhead"),
    ],
)
def test_limits_that_no_cluster_can_share_are_refused(options: dict[str, Any], named: str, mode: Any) -> None:
    with pytest.raises(ConfigError, match=rf"plain: {named} cannot be shared with the machines.*mode='process'"):
        opmap(mode=mode, **options)(plain)


@pytest.mark.parametrize("mode", ["dask", "ray"])
def test_a_limit_that_a_cluster_can_share_is_accepted(mode: Any) -> None:
    opmap(mode=mode, rate_limit={"rate": 10, "share": "redis"})(plain)
    with pytest.raises(ConfigError, match="rate_limit cannot be shared with the machines"):
        opmap(mode=mode, rate_limit={"rate": 10, "share": "machine"})(plain)


def test_limits_that_are_switched_off_are_accepted() -> None:
    opmap(mode="dask", policy=Policy(rate_limit={"rate": 5, "enabled": False}))(plain)


def test_a_single_call_ignores_the_mode_of_maps() -> None:
    bound = opero(mode="dask", rate_limit=100)(plain)
    assert bound(3) == 3
    with pytest.raises(ConfigError, match="rate_limit cannot be shared"):
        bound.map([1, 2])


@pytest.mark.parametrize(
    ("mode", "function", "serves"),
    [
        ("thread", plain_async, "mode='async', or 'async_process'"),
        ("process", plain_async, "mode='async', or 'async_process'"),
        ("async", plain, "mode='thread' or 'process'"),
        ("async_process", plain, "mode='process' or 'thread'"),
    ],
)
def test_the_error_for_an_unsuitable_mode_names_the_suitable_ones(mode: Any, function: Any, serves: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"plain.* is an? (async|sync) function, which mode '{mode}' cannot run.*{serves}"
    ):
        opmap(mode=mode)(function)


def test_a_wrong_option_is_refused_when_the_decorator_is_created() -> None:
    with pytest.raises(ValueError, match=r"'proces' is not one of .*; did you mean 'process'"):
        opmap(mode="proces")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="0 is invalid: use an integer >= 1"):
        opmap(workers=0)


# progress


def test_progress_true_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert opmap(mode="thread", progress=True)(plain)(range(3)) == [0, 1, 2]
    assert "plain" in capsys.readouterr().err


@pytest.mark.parametrize("progress", ["auto", False])
def test_progress_auto_is_not_shown_without_a_terminal(progress: Any, capsys: pytest.CaptureFixture[str]) -> None:
    opmap(mode="thread", progress=progress)(plain)(range(3))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["thread", "process"])
@pytest.mark.parametrize("batch", [True, False])
def test_a_fallback_result_of_an_item_is_not_cached(mode: Any, batch: bool) -> None:
    def broken(item: Any) -> Any:
        raise ConnectionError

    def instead(item: Any) -> Any:
        return ["instead"] * len(item) if isinstance(item, list) else "instead"

    bound = Policy(
        cache=True, fallback={"function": instead}, parallel={"mode": mode, "workers": 2, "batch": batch}
    ).apply(broken)
    assert bound.map(range(40)) == ["instead"] * 40
    assert bound.cache_get(1) is None
    assert bound.stats.failures == 0


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_on_error_raise_starts_no_item_after_a_failed_one_of_its_chunk(mode: Any) -> None:
    def fail_late(item: int) -> int:
        if item == 3000:
            raise ValueError(item)
        return item

    bound = Policy(parallel={"mode": mode, "workers": 1}).apply(fail_late)
    with pytest.raises(MapError) as caught:
        bound.map(range(50_000))
    assert len(caught.value.results) + 1 < 20_000
    assert [each.index for each in caught.value.failures] == [3000]


@pytest.mark.parametrize(("function", "items", "results"), [(int, ["1", "2"], [1, 2]), (time.sleep, [0], [None])])
def test_a_builtin_without_a_signature_is_mapped(function: Any, items: list[Any], results: Any) -> None:
    assert opmap(mode="thread")(function)(items) == results


# Daemonic processes


DAEMON = """
    import asyncio, logging, multiprocessing, os, sys
    from opero import opmap

    @opmap(mode="process", workers=2, progress=False)
    def pid(_):
        return os.getpid()

    @opmap(mode="async_process", workers=2, progress=False)
    async def pid_async(_):
        return os.getpid()

    def work(_):
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        found = {*pid(range(5)), *pid(range(5)), *asyncio.run(pid_async(range(5)))}
        return found == {os.getpid()}

    if __name__ == "__main__":
        if sys.argv[1] == "billiard":
            from billiard.pool import Pool
        else:
            Pool = multiprocessing.get_context("spawn").Pool
        pool = Pool(1)
        print(pool.map(work, [1]))
        pool.close()
        pool.join()
        assert os.getpid() not in pid(range(5))
"""


@pytest.mark.parametrize("library", ["multiprocessing", "billiard"])
def test_a_daemonic_process_has_no_worker_processes_and_says_so_once(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(DAEMON))
    done = subprocess.run(
        [sys.executable, str(program), library], capture_output=True, text=True, timeout=120, check=False
    )
    text = "WARNING {} would be mapped in processes, but this process is daemonic and must not have any: in mode {}"
    lines = [text.format("pid", "thread"), text.format("pid_async", "async"), "[True]"]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr
