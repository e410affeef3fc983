"""Worker processes that die: their items are run again, an item that kills them is found, and no result is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from leftovers import is_alive, workers
from opero import CallTimeoutError, MapError, Policy, WorkerDiedError


def noted(number: int, folder: str, fatal: tuple[int, ...], deaths: int = 1_000_000) -> int:
    """Records that it has started; a fatal number kills its process, up to `deaths` times."""
    with (Path(folder) / "started").open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    if number in fatal and started(Path(folder))[number] <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


async def noted_async(number: int, folder: str, fatal: tuple[int, ...], deaths: int = 1_000_000) -> int:
    await asyncio.sleep(0)
    return noted(number, folder, fatal, deaths)


def noted_batch(numbers: list[int], folder: str, fatal: tuple[int, ...]) -> list[int]:
    return [noted(number, folder, fatal) for number in numbers]


def started(folder: Path) -> Counter[int]:
    """How often each item was started."""
    path = folder / "started"
    return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()


def mapped(mode: str = "process", function: Any = None, **parallel: Any) -> Any:
    function = function or (noted_async if mode.startswith("async") else noted)
    return Policy(parallel={"mode": mode, "workers": 2, "progress": False, **parallel}).apply(function)


def run(function: Any, *args: Any) -> Any:
    result = function.map(*args)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def large(number: int, folder: str) -> bytes:
    """Kills its process, the first time, when a part of the result has been sent."""
    if number == 3 and not (Path(folder) / "killed").exists():
        (Path(folder) / "killed").touch()
        main = threading.get_ident()

        def kill_during_send() -> None:
            while "_send" not in sys._current_frames()[main].f_code.co_name:
                time.sleep(0)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill_during_send).start()
        return bytes(200 << 20)
    return bytes(number)


def test_a_death_while_a_large_result_is_sent_is_noticed(tmp_path: Path) -> None:
    assert mapped(function=large).map(range(8), str(tmp_path))[4:] == [bytes(4), bytes(5), bytes(6), bytes(7)]


@pytest.mark.parametrize("mode", ["process", "async_process"])
def test_a_death_that_does_not_recur_loses_no_result(mode: str, tmp_path: Path) -> None:
    results = run(mapped(mode), range(300), str(tmp_path), (150,), 1)
    assert results == [number * 10 for number in range(300)]


@pytest.mark.parametrize("mode", ["process", "async_process"])
def test_an_item_that_kills_its_workers_is_found_and_all_other_results_arrive(mode: str, tmp_path: Path) -> None:
    results = run(mapped(mode, on_error="return"), range(300), str(tmp_path), (150,))
    error = results.pop(150)
    assert isinstance(error, WorkerDiedError)
    assert error.times == 2
    assert "died of item 150" in str(error)
    assert "SIGKILL" in str(error)
    assert results == [number * 10 for number in range(300) if number != 150]


def test_only_items_of_the_dead_worker_are_run_again(tmp_path: Path) -> None:
    run(mapped(on_error="skip"), range(300), str(tmp_path), (150,))
    counts = started(tmp_path)
    assert counts.pop(150) == 2
    # Only items of its chunk whose results were not sent are run twice.
    again = [number for number, count in counts.items() if count > 1]
    assert max(counts.values()) <= 2
    assert all(number < 150 for number in again)  # finished in the same chunk, and lost with the worker
    assert len(again) < 100


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_worker_retries_limits_how_often_an_item_is_run_again(retries: int, tmp_path: Path) -> None:
    with pytest.raises(MapError) as caught:
        mapped(worker_retries=retries, max_failures=100).map(range(20), str(tmp_path), (7,))
    assert started(tmp_path)[7] == retries + 1
    (failure,) = caught.value.failures
    assert isinstance(failure.exception, WorkerDiedError)
    assert failure.exception.times == retries + 1
    assert caught.value.results == {number: number * 10 for number in range(20) if number != 7}


def test_several_items_that_kill_their_workers_are_all_found(tmp_path: Path) -> None:
    fatal = (3, 40, 41, 99)
    results = mapped(on_error="return", worker_retries=0).map(range(100), str(tmp_path), fatal)
    assert [number for number, each in enumerate(results) if isinstance(each, WorkerDiedError)] == list(fatal)
    assert [each for each in results if isinstance(each, int)] == [n * 10 for n in range(100) if n not in fatal]


def test_a_batch_that_kills_its_workers_fails_as_a_whole(tmp_path: Path) -> None:
    function = mapped(function=noted_batch, batch_size=5, on_error="return")
    results = function.map(range(40), str(tmp_path), (12,))
    assert [number for number, each in enumerate(results) if isinstance(each, WorkerDiedError)] == [10, 11, 12, 13, 14]
    assert "items 10 to 14" in str(results[10])
    assert [each for each in results if isinstance(each, int)] == [n * 10 for n in range(40) if not 10 <= n < 15]


def test_a_stream_continues_after_a_death(tmp_path: Path) -> None:
    stream = mapped(on_error="skip").stream(itertools.count(), str(tmp_path), (30,))
    assert list(itertools.islice(stream, 60)) == [number * 10 for number in range(61) if number != 30]
    stream.close()


def test_a_death_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mapped(on_error="skip").map(range(20), str(tmp_path), (7,))
    assert "noted: a worker process died of item 7; it is tried again" in caplog.text


def test_the_count_of_failures_includes_items_that_killed_their_workers(tmp_path: Path) -> None:
    function = mapped(on_error="skip")
    function.map(range(20), str(tmp_path), (7,))
    assert function.stats.failures == 1
    assert function.stats.errors == {"WorkerDiedError": 1}


def wait_for(path: str) -> str:
    Path(path, f"pid-{os.getpid()}").touch()
    until = time.monotonic() + 60
    while not Path(path, "go").exists() and time.monotonic() < until:
        time.sleep(0.005)
    return path


def test_workers_that_are_killed_during_a_map_are_replaced(tmp_path: Path) -> None:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.extend(mapped(function=wait_for).map([str(tmp_path)] * 6)))
    thread.start()
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    for path in tmp_path.glob("pid-*"):
        os.kill(int(path.name.removeprefix("pid-")), signal.SIGKILL)
    (tmp_path / "go").touch()
    thread.join(60)
    assert results == [str(tmp_path)] * 6


def test_idle_workers_that_are_killed_between_maps_are_replaced(tmp_path: Path) -> None:
    function = mapped()
    for _ in range(3):
        assert function.map(range(10), str(tmp_path), ()) == [number * 10 for number in range(10)]
        for each in workers():
            each.kill()


# Attempts that cannot be interrupted


def uninterruptible(number: int, folder: str, slow: tuple[int, ...]) -> int:
    """Cannot be interrupted by a signal if it is slow."""
    with (Path(folder) / "started").open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    if number in slow:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(600)
    return number * 10


@pytest.mark.parametrize("limit", [{"attempt": 0.3}, {"total": 0.3}], ids=str)
def test_the_worker_of_an_attempt_that_cannot_be_interrupted_is_killed(limit: Any, tmp_path: Path) -> None:
    policy = Policy(timeout=limit, parallel={"mode": "process", "workers": 2, "progress": False, "on_error": "return"})
    began = time.monotonic()
    results = policy.apply(uninterruptible).map(range(60), str(tmp_path), (20,))
    assert time.monotonic() - began < 300  # and not the 600 s of the item
    error = results.pop(20)
    assert isinstance(error, CallTimeoutError)
    assert error.scope == next(iter(limit))
    assert "its worker process was killed" in str(error)
    assert results == [number * 10 for number in range(60) if number != 20]
    assert started(tmp_path)[20] == 1  # it is not run again


def test_an_attempt_that_can_be_interrupted_keeps_its_worker(tmp_path: Path) -> None:
    policy = Policy(timeout={"attempt": 0.2}, parallel={"mode": "process", "workers": 1, "on_error": "return"})
    function = policy.apply(nap)
    results = function.map([0, 5, 0])
    pids = {each for each in results if isinstance(each, int)}
    assert len(pids) == 1
    assert isinstance(results[1], CallTimeoutError)


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_the_worker_of_an_attempt_that_is_waited_for_lives(tmp_path: Path) -> None:
    """It sleeps for longer than a worker is given that is to be interrupted."""
    timeout = {"attempt": 0.1, "enforce": "wait"}
    policy = Policy(timeout=timeout, parallel={"mode": "process", "workers": 1, "on_error": "return"})
    results = policy.apply(nap).map([0, 1.2, 0])
    assert isinstance(results[1], CallTimeoutError)
    assert "killed" not in str(results[1])
    assert results[0] == results[2]
    unlimited = Policy(
        timeout={"total": 0.1, "enforce": "none"}, parallel={"mode": "process", "workers": 1, "on_error": "return"}
    )
    assert len(set(unlimited.apply(nap).map([0, 1.2, 0]))) == 1


# Closed streams


def test_closing_a_stream_leaves_no_worker_that_still_computes(tmp_path: Path) -> None:
    stream = mapped(function=endless).stream((number, str(tmp_path)) for number in itertools.count())
    assert next(stream) == 0
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    stream.close()
    until = time.monotonic() + 120
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert [pid for pid in pids if is_alive(pid)] == []


def endless(item: tuple[int, str]) -> int:
    number, folder = item
    if number:
        (Path(folder) / f"pid-{os.getpid()}").touch()
        time.sleep(600)
    return number
