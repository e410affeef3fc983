"""`tune` tells what waits from what computes, and maps in auto mode use what is known of their function."""

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
"""Seconds that are given to tune."""
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


# What a function's time goes into


@pytest.mark.alone
def test_what_sleeps_is_for_threads() -> None:
    tuning = tune(waits, range(20), seconds=BRIEFLY)
    assert (tuning.bound_by, tuning.mode) == ("io", "thread")
    assert tuning.workers >= 8
    assert tuning.gain > 2
    assert "process" not in modes(tuning)
    assert tuning.seconds >= 0.004
    assert opmap(**tuning.options)(waits).policy.parallel == Policy(parallel={**tuning.options}).parallel


@pytest.mark.alone
def test_what_waits_for_the_network_is_for_threads() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        address = server.getsockname()

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                threading.Timer(0.005, connection.close).start()

        def ask(_: int) -> None:
            with socket.create_connection(address, timeout=30) as connection:
                connection.recv(1)

        def serve_until_closed() -> None:
            try:
                serve()
            except OSError:
                return

        threading.Thread(target=serve_until_closed, daemon=True).start()
        tuning = tune(ask, range(10), seconds=BRIEFLY)
        server.shutdown(socket.SHUT_RDWR)
    assert tuning.bound_by == "io"
    assert tuning.mode == "thread"
    assert tuning.workers >= 2


@pytest.mark.alone
@pytest.mark.parametrize("function", [computes, hashes])
def test_what_computes_is_known_by_its_processor_time(function: Callable[[int], Any]) -> None:
    tuning = tune(function, range(20), seconds=BRIEFLY)
    assert tuning.bound_by == "cpu"
    assert tuning.mode in ("process", "sequential", "thread")
    assert tuning.workers <= (os.cpu_count() or 1)
    assert tuning.measurements[0].mode == "sequential"
    assert max(each.workers for each in tuning.measurements) <= (os.cpu_count() or 1)


@pytest.mark.alone
def test_what_computes_is_known_while_others_use_the_processors() -> None:
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            hashlib.sha256(BLOCK * 4).digest()  # without the lock that Python's threads share

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
def test_what_does_both_gets_no_more_threads_than_the_processors_can_serve() -> None:
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
def test_an_async_function_that_computes_gets_no_more_tasks_than_that_helps() -> None:
    tuning = tune(computes_async, range(20), seconds=BRIEFLY)
    assert tuning.bound_by == "cpu"
    assert tuning.mode in ("async", "async_process")
    assert tuning.workers <= (os.cpu_count() or 1)
    assert len(asyncio.run(opmap(**tuning.options)(computes_async)([1, 2]))) == 2


def test_all_calls_of_an_async_function_are_in_one_event_loop() -> None:
    loops = set()

    async def note(_: int) -> None:
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.001)

    tune(note, [1, 2], seconds=BRIEFLY)
    assert len(loops) == 1


# Batches


@pytest.mark.alone
def test_a_batch_is_as_large_as_pays() -> None:
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
def test_a_batch_is_one_where_larger_ones_take_longer_than_their_items() -> None:
    def load(ids: list[int]) -> list[int]:
        time.sleep(0.002 * len(ids) ** 1.5)
        return ids

    assert tune(load, range(100), seconds=BRIEFLY).batch_size == 1


def test_the_policy_says_that_calls_get_batches() -> None:
    def load(ids):  # type: ignore[no-untyped-def]
        return [each + 1 for each in ids]

    assert tune(opmap(batch=True)(load), range(30), seconds=BRIEFLY).batch_size is not None
    with pytest.raises(MapError, match="not iterable"):
        tune(load, range(30), seconds=BRIEFLY)


@pytest.mark.alone
def test_an_async_function_gets_batches_too() -> None:
    async def load(ids: list[int]) -> list[int]:
        await asyncio.sleep(0.002)
        return ids

    tuning = tune(load, range(50), seconds=BRIEFLY)
    assert tuning.mode == "async"
    assert (tuning.batch_size or 0) >= 10


# Functions of all kinds


@pytest.mark.alone
def test_of_a_bound_function_only_the_function_itself_is_run() -> None:
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
def test_methods_are_tuned_in_processes_too(caplog: pytest.LogCaptureFixture) -> None:
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


def test_further_arguments_go_to_every_call() -> None:
    seen = set()

    def scale(number: int, by: int, *, plus: int = 0) -> int:
        seen.add((by, plus))
        time.sleep(0.001)
        return number * by + plus

    tune(scale, [1, 2, 3], 10, plus=5, seconds=BRIEFLY)
    assert seen == {(10, 5)}


def test_what_does_not_pickle_is_not_tuned_in_processes(caplog: pytest.LogCaptureFixture) -> None:
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


# What is refused


@pytest.mark.parametrize("sample", [[], (), iter(())])
def test_an_empty_sample_is_refused(sample: Any) -> None:
    with pytest.raises(ValueError, match="tune: the sample for computes is empty; pass some items"):
        tune(computes, sample)


@pytest.mark.parametrize("sample", ["text", b"bytes", 3, None])
def test_what_is_no_sample_is_refused(sample: Any) -> None:
    with pytest.raises(TypeError, match="tune: the sample of computes is .*; pass a list of some of its items"):
        tune(computes, sample)


def test_what_is_no_function_is_refused() -> None:
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


def test_an_item_that_fails_only_next_to_others_is_reported() -> None:
    main = threading.get_ident()

    def fail(number: int) -> None:
        time.sleep(0.001)
        if threading.get_ident() != main and number == 7:
            raise ValueError("not in a thread")

    with pytest.raises(MapError, match="ValueError: not in a thread") as caught:
        tune(fail, [7], seconds=BRIEFLY)
    assert caught.value.failures[0].item == 7


def test_an_async_function_is_refused_where_an_event_loop_runs() -> None:
    async def main() -> Tuning:
        with pytest.raises(RuntimeError, match=r"asyncio.to_thread\(opero.tune"):
            tune(waits_async, [1])
        return await asyncio.to_thread(opero.tune, waits_async, [1], seconds=BRIEFLY)

    assert asyncio.run(main()).mode == "async"


# How long it takes


@pytest.mark.alone
def test_it_takes_few_rounds_where_an_item_takes_long() -> None:
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
def test_an_item_that_takes_longer_than_there_is_time_is_run_once(is_async: bool) -> None:
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
def test_what_computes_longer_than_there_is_time_is_expected_to_suit_processes() -> None:
    calls: list[int] = []

    def compute(item: int) -> None:
        calls.append(item)
        spin(0.15)

    tuning = tune(compute, range(3), seconds=0.1)
    assert calls == [0]
    assert tuning.bound_by == "cpu"
    assert tuning.workers == tunings.cpu_limit()
    assert tuning.mode == ("process" if tunings.cpu_limit() > 1 else "sequential")


def test_what_it_found_can_be_read() -> None:
    tuning = tune(waits, range(5), seconds=BRIEFLY)
    first, *others = str(tuning).splitlines()
    assert first.startswith("waits waits (")
    assert f"mode='thread', workers={tuning.workers}, " in first
    assert first.endswith(" times as fast")
    assert len(others) == len(tuning.measurements)
    assert others[0].startswith("  sequential       1 at a time: ")


# What auto mode makes of it


def tuned(mode: str, workers: int = 3, *, seconds: float = 1.0, batch_size: int | None = None) -> Tuning:
    """As `tune` might have found it."""
    return Tuning("f", "io", mode, workers, batch_size, 2.0, seconds, ())


def idents(_: int) -> tuple[int, int]:
    time.sleep(0.002)
    return os.getpid(), threading.get_ident()


@pytest.mark.parametrize("options", [{}, {"mode": "thread"}])
def test_auto_workers_are_as_many_as_were_found_best(options: dict[str, Any]) -> None:
    barrier = threading.Barrier(7)

    def meet(_: int) -> int:
        return barrier.wait(30)

    bound = opmap(**options)(meet)
    bound.binding.tuning = tuned("thread", 7)
    assert sorted(bound(range(7))) == list(range(7))  # without a sample in the caller's thread, which would wait alone


def test_the_number_that_was_found_best_for_another_mode_is_not_used() -> None:
    bound = opmap(mode="thread")(idents)
    bound.binding.tuning = tuned("process", 1)
    assert len({ident for _, ident in bound(range(60))}) > 1


def test_a_number_that_the_policy_names_is_kept() -> None:
    bound = opmap(workers=1)(idents)
    bound.binding.tuning = tuned("thread", 9)
    assert len({ident for _, ident in bound(range(20))}) == 1


def test_processes_that_were_found_best_are_used_where_there_is_enough_to_do() -> None:
    bound = opmap(idents)
    bound.binding.tuning = tuned("process", 2, seconds=0.1)
    assert os.getpid() not in {pid for pid, _ in bound(range(20))}
    assert os.getpid() in {pid for pid, _ in bound(range(3))}


def test_a_function_that_is_as_fast_alone_gets_one_thread() -> None:
    bound = opmap(idents)
    bound.binding.tuning = tuned("sequential", 1)
    assert len({ident for _, ident in bound(range(20))}) == 1


def test_the_size_of_a_batch_that_was_found_best_is_used() -> None:
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
    assert sizes == [5, 5]  # none of the workers is left without
    sizes.clear()
    assert list(bound.stream(iter(range(40)))) == list(range(40))
    assert sizes == [20, 20]


def test_a_tuned_function_that_has_to_be_sent_and_cannot_be_is_run_here(caplog: pytest.LogCaptureFixture) -> None:
    barrier = threading.Barrier(2)

    def meet(_: int) -> int:
        barrier.wait(30)
        return os.getpid()

    async def here(item: int) -> int:
        return os.getpid() if barrier is not None else item

    bound: Any = opmap(meet)
    bound.binding.tuning = tuned("process", 1)  # of the processes' number, which is not the threads'
    with caplog.at_level(logging.INFO, logger="opero"):
        assert set(bound(range(4))) == {os.getpid()}
    assert "meet would be mapped in processes, but: " in caplog.text
    bound = opmap(here)
    bound.binding.tuning = tuned("async_process", 1)
    assert set(asyncio.run(bound(range(4)))) == {os.getpid()}


def test_maps_of_a_tuned_function_need_no_sample() -> None:
    bound = opmap(idents)
    tuning = tune(bound, range(10), seconds=BRIEFLY)
    assert bound.binding.tuning is tuning
    assert (os.getpid(), threading.get_ident()) not in bound(range(50))


def test_maps_remember_what_the_sample_of_the_first_has_cost() -> None:
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


def test_what_computes_and_cannot_be_sent_is_mapped_in_threads(caplog: pytest.LogCaptureFixture) -> None:
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


def test_items_that_a_cache_did_not_have_do_not_stay_in_the_callers_thread() -> None:
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
