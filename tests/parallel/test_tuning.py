"""`tune` measures whether a function waits or computes, and maps in auto mode use what it has found."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import opero
from leftovers import workers
from opero import ConfigError, MapError, Policy, Tuning, opmap, tune
from opero.parallel import tuning as tunings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BRIEFLY = 0.4
"""Seconds for a call of `tune`."""
BLOCK = bytes(1 << 18)


def spin(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def waits(_: int) -> int:
    time.sleep(0.004)
    return os.getpid()


def computes(_: int) -> int:
    return sum(range(20_000))


def hashes(_: int) -> str:
    return hashlib.sha256(BLOCK).hexdigest()


def does_both(_: int) -> None:
    time.sleep(0.003)
    spin(0.003)


async def waits_async(_: int) -> None:
    await asyncio.sleep(0.004)


async def computes_async(_: int) -> int:
    return sum(range(20_000))


class Service:
    def __init__(self, base: int) -> None:
        self.base = base

    @opmap(cache=True, retries=5)
    def add(self, number: int) -> int:
        spin(0.002)
        return self.base + number

    def plain(self, number: int) -> int:
        spin(0.002)
        return self.base + number

    @opmap
    @classmethod
    def named(cls, number: int) -> str:
        time.sleep(0.002)
        return f"{cls.__name__}{number}"


def modes(tuning: Tuning) -> set[str]:
    return {each.mode for each in tuning.measurements}


# Waiting and computing


@pytest.mark.alone
def test_a_function_that_sleeps_is_tuned_to_threads() -> None:
    tuning = tune(waits, range(20), seconds=BRIEFLY)
    assert (tuning.bound_by, tuning.mode) == ("io", "thread")
    assert tuning.workers >= 8
    assert tuning.gain > 2
    assert "process" not in modes(tuning)
    assert tuning.seconds >= 0.004
    assert opmap(**tuning.options)(waits).policy.parallel == Policy(parallel={**tuning.options}).parallel


@pytest.mark.alone
def test_a_function_that_waits_for_the_network_is_tuned_to_threads() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        address = server.getsockname()

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                threading.Timer(0.005, connection.close).start()

        def fetch(_: int) -> None:
            with socket.create_connection(address, timeout=30) as connection:
                connection.recv(1)

        def serve_until_closed() -> None:
            try:
                serve()
            except OSError:
                return

        threading.Thread(target=serve_until_closed, daemon=True).start()
        tuning = tune(fetch, range(10), seconds=BRIEFLY)
        server.shutdown(socket.SHUT_RDWR)
    assert tuning.bound_by == "io"
    assert tuning.mode == "thread"
    assert tuning.workers >= 2


@pytest.mark.alone
@pytest.mark.parametrize("function", [computes, hashes])
def test_a_function_that_computes_is_recognized_by_its_processor_time(function: Callable[[int], Any]) -> None:
    tuning = tune(function, range(20), seconds=BRIEFLY)
    assert tuning.bound_by == "cpu"
    assert tuning.mode in ("process", "sequential", "thread")
    assert tuning.workers <= (os.cpu_count() or 1)
    assert tuning.measurements[0].mode == "sequential"
    assert max(each.workers for each in tuning.measurements) <= (os.cpu_count() or 1)


@pytest.mark.alone
def test_computing_and_waiting_are_recognized_on_a_busy_machine() -> None:
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            hashlib.sha256(BLOCK * 4).digest()  # which releases the global lock

    others = [threading.Thread(target=disturb) for _ in range(3)]
    for each in others:
        each.start()
    try:
        assert tune(hashes, range(20), seconds=BRIEFLY).bound_by != "io"
        assert tune(waits, range(20), seconds=BRIEFLY).mode == "thread"
    finally:
        ended.set()
        for each in others:
            each.join()


@pytest.mark.alone
def test_a_function_that_waits_and_computes_gets_few_threads_per_processor() -> None:
    tuning = tune(does_both, range(20), seconds=BRIEFLY)
    assert tuning.bound_by == "both"
    assert tuning.workers <= 4 * (os.cpu_count() or 1)


@pytest.mark.alone
def test_an_async_function_that_waits_gets_many_tasks() -> None:
    tuning = tune(waits_async, range(20), seconds=BRIEFLY)
    assert (tuning.bound_by, tuning.mode) == ("io", "async")
    assert tuning.workers >= 10
    assert asyncio.run(opmap(**tuning.options)(waits_async)([1])) == [None]


@pytest.mark.alone
def test_an_async_function_that_computes_gets_at_most_one_worker_per_processor() -> None:
    tuning = tune(computes_async, range(20), seconds=BRIEFLY)
    assert tuning.bound_by == "cpu"
    assert tuning.mode in ("async", "async_process")
    assert tuning.workers <= (os.cpu_count() or 1)
    assert len(asyncio.run(opmap(**tuning.options)(computes_async)([1, 2]))) == 2


def test_all_calls_of_an_async_function_run_in_one_event_loop() -> None:
    loops = set()

    async def note(_: int) -> None:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.001)

    tune(note, [1, 2], seconds=BRIEFLY)
    assert len(loops) == 1


# Batches


@pytest.mark.alone
def test_the_batch_size_is_large_if_calls_take_equally_long_for_any_size() -> None:
    sizes: list[int] = []

    def load(ids: list[int]) -> list[int]:
        sizes.append(len(ids))
        assert len(set(ids)) == len(ids)
        time.sleep(0.002)
        return ids

    tuning = tune(load, range(60), seconds=BRIEFLY)
    assert tuning.batch_size is not None
    assert 10 <= tuning.batch_size <= 60
    assert max(sizes) <= 60
    assert tuning.options["batch_size"] == tuning.batch_size
    assert {each.batch_size for each in tuning.measurements} >= {1, 10}
    assert f"batch_size={tuning.batch_size}" in str(tuning)


@pytest.mark.alone
def test_the_batch_size_is_one_if_larger_batches_take_longer_per_item() -> None:
    def load(ids: list[int]) -> list[int]:
        time.sleep(0.002 * len(ids) ** 1.5)
        return ids

    assert tune(load, range(100), seconds=BRIEFLY).batch_size == 1


def test_batch_true_of_the_policy_is_respected() -> None:
    def load(ids):  # type: ignore[no-untyped-def]
        return [each + 1 for each in ids]

    assert tune(opmap(batch=True)(load), range(30), seconds=BRIEFLY).batch_size is not None
    with pytest.raises(MapError, match="not iterable"):
        tune(load, range(30), seconds=BRIEFLY)


@pytest.mark.alone
def test_the_batch_size_of_an_async_function_is_tuned() -> None:
    async def load(ids: list[int]) -> list[int]:
        await asyncio.sleep(0.002)
        return ids

    tuning = tune(load, range(50), seconds=BRIEFLY)
    assert tuning.mode == "async"
    assert (tuning.batch_size or 0) >= 10


# Functions of all kinds


@pytest.mark.alone
def test_a_bound_function_is_tuned_without_its_policies() -> None:
    calls = []

    @opmap(cache=True, rate_limit=1.0, circuit_breaker=2, retries=3, bulkhead=1)
    def call(item: int) -> int:
        calls.append(item)
        time.sleep(0.002)
        return item

    tuning = tune(call, [1, 2], seconds=BRIEFLY)
    assert len(calls) > 20  # neither cached nor limited
    assert tuning.workers > 1
    assert call.cache_get(1) is None
    assert call.stats.calls == 0
    assert call.binding.tuning is tuning


@pytest.mark.alone
def test_methods_are_tuned_in_processes(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(3)
    with caplog.at_level(logging.INFO, logger="opero"):
        tuned = [tune(function, range(10), seconds=1.0) for function in (service.add, service.plain)]
    assert "is not tuned" not in caplog.text
    for tuning in tuned:
        assert tuning.bound_by == "cpu"
        assert "process" in modes(tuning)
    assert service.add.stats.calls == 0  # type: ignore[attr-defined]
    assert tune(Service.named, range(5), seconds=BRIEFLY).mode == "thread"
    with pytest.raises(TypeError, match=r"Service.plain is a method .*tune\(instance.plain, sample\)"):
        tune(opmap(Service.plain), [1])


def test_further_arguments_are_passed_to_every_call() -> None:
    seen = set()

    def scale(number: int, by: int, *, plus: int = 0) -> int:
        seen.add((by, plus))
        time.sleep(0.001)
        return number * by + plus

    tune(scale, [1, 2, 3], 10, plus=5, seconds=BRIEFLY)
    assert seen == {(10, 5)}


def test_a_function_that_cannot_be_pickled_is_not_tuned_in_processes(caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    def compute(_: int) -> None:
        with lock:
            spin(0.001)

    with caplog.at_level(logging.INFO, logger="opero"):
        tuning = tune(compute, range(5), seconds=BRIEFLY)
    assert "process" not in modes(tuning)
    assert tuning.mode in ("sequential", "thread")
    assert "is not tuned in processes: " in caplog.text
    assert "'lock'" in caplog.text


def test_the_initializer_of_the_policy_runs_in_the_workers() -> None:
    def prepare() -> None:
        os.environ["PREPARED_FOR_TUNING"] = "1"

    def compute(_: int) -> None:
        os.environ["PREPARED_FOR_TUNING"]
        spin(0.002)

    os.environ["PREPARED_FOR_TUNING"] = "here"
    try:
        assert "process" in modes(tune(opmap(initializer=prepare)(compute), range(5), seconds=1.0))
    finally:
        del os.environ["PREPARED_FOR_TUNING"]


# Refused samples and functions


@pytest.mark.parametrize("sample", [[], (), iter(())])
def test_an_empty_sample_is_refused(sample: Any) -> None:
    with pytest.raises(ValueError, match="tune: the sample for computes is empty; pass some items"):
        tune(computes, sample)


@pytest.mark.parametrize("sample", ["text", b"bytes", 3, None])
def test_an_invalid_sample_is_refused(sample: Any) -> None:
    with pytest.raises(TypeError, match="tune: the sample of computes is .*; pass a list of some of its items"):
        tune(computes, sample)


def test_an_invalid_function_or_duration_is_refused() -> None:
    with pytest.raises(TypeError, match="tune: got a value of type int, not a function"):
        tune(3, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds=0 leaves no time"):
        tune(computes, [1], seconds=0)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_function_is_refused(is_async: bool) -> None:
    def items(number: int) -> Iterator[int]:
        yield number

    async def items_async(number: int) -> Any:
        yield number

    with pytest.raises(ConfigError, match="is a generator function and cannot be mapped"):
        tune(items_async if is_async else items, [1])


@pytest.mark.parametrize("is_async", [False, True])
def test_an_item_that_fails_is_reported(is_async: bool) -> None:
    def fail(number: int) -> int:
        return 1 // number

    async def fail_async(number: int) -> int:
        return 1 // number

    with pytest.raises(MapError, match=r"failed with item 2 of the sample: ZeroDivisionError") as caught:
        tune(fail_async if is_async else fail, [1, 2, 0, 3], seconds=BRIEFLY)
    (failure,) = caught.value.failures
    assert (failure.index, failure.item) == (2, 0)
    assert isinstance(failure.exception, ZeroDivisionError)


def test_an_item_that_fails_only_in_a_thread_is_reported() -> None:
    main = threading.get_ident()

    def fail(number: int) -> None:
        time.sleep(0.001)
        if threading.get_ident() != main and number == 7:
            raise ValueError("not in a thread")

    with pytest.raises(MapError, match="ValueError: not in a thread") as caught:
        tune(fail, [7], seconds=BRIEFLY)
    assert caught.value.failures[0].item == 7


def test_an_async_function_is_refused_in_a_running_event_loop() -> None:
    async def main() -> Tuning:
        with pytest.raises(RuntimeError, match=r"asyncio.to_thread\(opero.tune"):
            tune(waits_async, [1])
        return await asyncio.to_thread(opero.tune, waits_async, [1], seconds=BRIEFLY)

    assert asyncio.run(main()).mode == "async"


# Duration


@pytest.mark.alone
def test_slow_items_are_measured_in_few_rounds() -> None:
    began: list[float] = []

    def wait(_: int) -> None:
        began.append(time.perf_counter())
        time.sleep(0.3)

    tuning = tune(wait, range(3), seconds=1.0)
    assert (tuning.bound_by, tuning.mode) == ("io", "thread")
    assert tuning.workers >= 16
    rounds = 1 + sum(later - earlier > 0.15 for earlier, later in zip(sorted(began), sorted(began)[1:], strict=False))
    assert rounds <= 4  # one alone, and a few of many


@pytest.mark.parametrize("is_async", [False, True])
def test_an_item_that_takes_longer_than_the_given_seconds_is_run_once(is_async: bool) -> None:
    calls: list[int] = []

    def wait(item: int) -> None:
        calls.append(item)
        time.sleep(0.15)

    async def wait_async(item: int) -> None:
        calls.append(item)
        await asyncio.sleep(0.15)

    tuning = tune(wait_async if is_async else wait, range(3), seconds=0.1)
    assert calls == [0]
    assert tuning.mode == ("async" if is_async else "thread")
    assert tuning.workers >= 16
    assert tuning.gain >= 16
    assert len(tuning.measurements) == 1


@pytest.mark.alone
def test_a_computation_that_takes_longer_than_the_given_seconds_is_tuned_to_processes() -> None:
    calls: list[int] = []

    def compute(item: int) -> None:
        calls.append(item)
        spin(0.15)

    tuning = tune(compute, range(3), seconds=0.1)
    assert calls == [0]
    assert tuning.bound_by == "cpu"
    assert tuning.workers == tunings.cpu_limit()
    assert tuning.mode == ("process" if tunings.cpu_limit() > 1 else "sequential")


def test_a_tuning_as_text_has_its_options_and_measurements() -> None:
    tuning = tune(waits, range(5), seconds=BRIEFLY)
    first, *others = str(tuning).splitlines()
    assert first.startswith("waits waits (")
    assert f"mode='thread', workers={tuning.workers}, " in first
    assert first.endswith(" times as fast")
    assert len(others) == len(tuning.measurements)
    assert others[0].startswith("  sequential       1 at a time: ")


# Auto mode


def tuned(mode: str, workers: int = 3, *, seconds: float = 1.0, batch_size: int | None = None) -> Tuning:
    """A tuning as `tune` may return it."""
    return Tuning("f", "io", mode, workers, batch_size, 2.0, seconds, ())


def idents(_: int) -> tuple[int, int]:
    time.sleep(0.002)
    return os.getpid(), threading.get_ident()


@pytest.mark.parametrize("options", [{}, {"mode": "thread"}])
def test_workers_auto_uses_the_tuned_number(options: dict[str, Any]) -> None:
    barrier = threading.Barrier(7)

    def meet(_: int) -> int:
        return barrier.wait(30)

    bound = opmap(**options)(meet)
    bound.binding.tuning = tuned("thread", 7)
    assert sorted(bound(range(7))) == list(range(7))  # no sample runs in the caller's thread: it would wait alone


def test_workers_auto_ignores_the_number_tuned_for_another_mode() -> None:
    bound = opmap(mode="thread")(idents)
    bound.binding.tuning = tuned("process", 1)
    assert len({ident for _, ident in bound(range(60))}) > 1


def test_workers_of_the_policy_override_the_tuned_number() -> None:
    bound = opmap(workers=1)(idents)
    bound.binding.tuning = tuned("thread", 9)
    assert len({ident for _, ident in bound(range(20))}) == 1


def test_tuned_processes_are_used_only_for_long_maps() -> None:
    bound = opmap(idents)
    bound.binding.tuning = tuned("process", 2, seconds=0.1)
    assert os.getpid() not in {pid for pid, _ in bound(range(20))}
    assert os.getpid() in {pid for pid, _ in bound(range(3))}


def test_a_function_tuned_to_sequential_runs_in_one_thread() -> None:
    bound = opmap(idents)
    bound.binding.tuning = tuned("sequential", 1)
    assert len({ident for _, ident in bound(range(20))}) == 1


def test_the_tuned_batch_size_is_used() -> None:
    sizes: list[int] = []

    def load(ids: list[int]) -> list[int]:
        sizes.append(len(ids))
        return ids

    bound = opmap(load)
    bound.binding.tuning = tuned("thread", 2, batch_size=20)
    assert bound(range(100)) == list(range(100))
    assert sizes == [20] * 5
    sizes.clear()
    bound(range(10))
    assert sizes == [5, 5]  # each worker receives a batch
    sizes.clear()
    assert list(bound.stream(iter(range(40)))) == list(range(40))
    assert sizes == [20, 20]


def test_a_function_tuned_to_processes_that_cannot_be_sent_runs_here(caplog: pytest.LogCaptureFixture) -> None:
    barrier = threading.Barrier(2)

    def meet(_: int) -> int:
        barrier.wait(30)
        return os.getpid()

    async def here(item: int) -> int:
        return os.getpid() if barrier is not None else item

    bound: Any = opmap(meet)
    bound.binding.tuning = tuned("process", 1)  # one process; threads have their own number
    with caplog.at_level(logging.INFO, logger="opero"):
        assert set(bound(range(4))) == {os.getpid()}
    assert "meet would be mapped in processes, but: " in caplog.text
    bound = opmap(here)
    bound.binding.tuning = tuned("async_process", 1)
    assert set(asyncio.run(bound(range(4)))) == {os.getpid()}


def test_maps_of_a_tuned_function_run_no_sample() -> None:
    bound = opmap(idents)
    tuning = tune(bound, range(10), seconds=BRIEFLY)
    assert bound.binding.tuning is tuning
    assert (os.getpid(), threading.get_ident()) not in bound(range(50))


def test_later_maps_reuse_the_measurement_of_the_first_sample() -> None:
    here: list[bool] = []
    main = threading.get_ident()

    def wait(_: int) -> None:
        here.append(threading.get_ident() == main)
        time.sleep(0.01)

    bound = opmap(workers=2)(wait)
    bound(range(8))
    assert here[0]
    here.clear()
    bound(range(8))
    assert not any(here)


def test_a_short_map_starts_no_process() -> None:
    before = {each.pid for each in workers()}

    @opmap
    def compute(_: int) -> int:
        spin(0.004)
        return os.getpid()

    for _ in range(2):  # measured, and remembered
        assert set(compute(range(20))) == {os.getpid()}
    assert {each.pid for each in workers()} == before


def test_a_computation_that_cannot_be_sent_is_mapped_in_threads(caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    @opmap
    def compute(_: int) -> tuple[int, int]:
        with lock:
            pass
        spin(0.03)
        return os.getpid(), threading.get_ident()

    with caplog.at_level(logging.INFO, logger="opero"):
        found = compute(range(30))
    assert {pid for pid, _ in found} == {os.getpid()}
    assert found[-1][1] != threading.get_ident()
    assert "compute would be mapped in processes, but: " in caplog.text
    assert "'lock'" in caplog.text


def test_items_missing_in_the_cache_are_run_by_workers() -> None:
    calls: list[int] = []

    def wait(item: int) -> int:
        calls.append(threading.get_ident())
        time.sleep(0.01)
        return item

    bound = Policy(cache={"max_size": 5000}, parallel={"workers": 4}).apply(wait)
    for item in range(3000):
        bound.cache_set(item, item)
    assert bound.map(range(3040)) == list(range(3040))
    assert len(calls) == 40
    assert calls.count(threading.get_ident()) < 20
