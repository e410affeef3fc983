"""One rate limit, one circuit breaker and one bulkhead for all workers of a map, in processes too."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from opero import (
    BulkheadFullError,
    CircuitOpenError,
    MapError,
    Policy,
    RateLimitExceededError,
    Registry,
)


def moment(_: Any = None) -> float:
    return time.monotonic()


async def moment_async(_: Any = None) -> float:
    return time.monotonic()


def processes(**policies: Any) -> Policy:
    parallel = {"mode": "process", "workers": 2, **policies.pop("parallel", {})}
    return Policy.model_validate({"parallel": parallel, **policies})


def check(moments: list[float], began: float, rate: float, burst: int = 1) -> None:
    """The n-th start never comes before n permits can have fallen due; on a busy machine it may come later."""
    for number, each in enumerate(sorted(moments), 1):
        assert each >= began + (number - burst) / rate - 0.001


# Rate limit


def test_a_rate_holds_for_all_workers_and_the_parent_together() -> None:
    bound = processes(rate_limit=100.0).apply(moment)
    own: list[float] = []
    stop = threading.Event()
    began = time.monotonic()

    def call() -> None:
        while not stop.is_set():
            own.append(bound())

    thread = threading.Thread(target=call)
    thread.start()
    moments = bound.map(range(60))
    stop.set()
    thread.join(30)
    assert own
    assert len(moments) == 60
    check([*moments, *own], began, 100.0)


def test_a_rate_holds_for_the_event_loops_of_all_workers_together() -> None:
    bound = processes(rate_limit=200.0, parallel={"mode": "async_process", "concurrency": 20}).apply(moment_async)
    began = time.monotonic()
    check(asyncio.run(bound.map(range(60))), began, 200.0)


def test_workers_share_one_burst() -> None:
    bound = processes(rate_limit={"rate": 50.0, "burst": 10}).apply(moment)
    began = time.monotonic()
    check(bound.map(range(25)), began, 50.0, burst=10)


def test_a_rejection_by_the_rate_limit_in_a_worker_arrives_as_itself() -> None:
    bound = processes(
        rate_limit={"rate": 0.01, "burst": 5, "max_wait": 0}, parallel={"on_error": "return", "ordered": False}
    ).apply(moment)
    assert bound()
    results = bound.map(range(20))
    refused = [each for each in results if isinstance(each, Exception)]
    assert {type(each) for each in refused} == {RateLimitExceededError}
    assert len(refused) == 16
    assert "the next permit of 0.01/s" in str(refused[0])
    assert refused[0].retry_in > 1
    with pytest.raises(RateLimitExceededError):  # the permits that the map has taken are missing here, too
        bound()
    assert bound.stats.rejections == 17


def costly(cost: float) -> float:
    return cost


def test_costs_are_counted_over_all_workers() -> None:
    bound = processes(
        rate_limit={"rate": 0.01, "burst": 10, "max_wait": 0, "cost": "cost"}, parallel={"on_error": "skip"}
    ).apply(costly)
    assert sum(bound.map([1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0])) <= 10
    with pytest.raises(RateLimitExceededError):
        bound(10.0)


def always_fails(_: int) -> None:
    raise ConnectionError("down")


def test_retries_in_workers_take_permits() -> None:
    bound = processes(
        rate_limit={"rate": 0.01, "burst": 6, "max_wait": 0},
        retry={"retries": 2, "min_delay": 0, "retry_on": ["ConnectionError"]},
        parallel={"on_error": "return"},
    ).apply(always_fails)
    bound.map(range(5))
    assert bound.stats.attempts == 6


def other(number: int) -> float:
    return time.monotonic()


def test_two_functions_of_one_profile_share_its_budget_in_two_maps_at_once() -> None:
    registry = Registry({"api": processes(rate_limit=100.0)})
    bound = [registry.bind(function, "api") for function in (moment, other)]
    moments: list[float] = []
    began = time.monotonic()
    threads = [threading.Thread(target=lambda each=each: moments.extend(each.map(range(20)))) for each in bound]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(moments) == 40
    check(moments, began, 100.0)


def test_functions_with_a_scope_of_their_own_share_no_budget() -> None:
    limit = {"rate": 0.01, "burst": 3, "max_wait": 0, "scope": "function"}
    registry = Registry({"api": processes(rate_limit=limit)})
    for function in (moment, other):
        assert len(registry.bind(function, "api").map(range(3))) == 3


def test_two_maps_of_a_function_share_its_budget() -> None:
    bound = processes(rate_limit={"rate": 0.01, "burst": 4, "max_wait": 0}).apply(moment)
    assert len(bound.map(range(2))) == 2
    assert len(bound.map(range(2))) == 2
    with pytest.raises(MapError) as caught:
        bound.map(range(1))
    assert isinstance(caught.value.failures[0].exception, RateLimitExceededError)


# Circuit breaker


def log_and_fail(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("attempt\n")
    raise ConnectionError("down")


def test_failures_in_workers_open_the_circuit_for_all(tmp_path: Path) -> None:
    path = tmp_path / "attempts"
    bound = processes(circuit_breaker=5, parallel={"on_error": "return"}).apply(log_and_fail)
    results = bound.map([str(path)] * 100)
    attempts = len(path.read_text().splitlines())
    assert 5 <= attempts <= 6  # one may have been under way
    refused = [each for each in results if isinstance(each, CircuitOpenError)]
    assert len(refused) == 100 - attempts
    assert "ConnectionError: down" in str(refused[0])
    assert bound.binding.circuit_breaker.state == "open"
    with pytest.raises(CircuitOpenError):
        bound(str(path))
    assert bound.stats.rejections == len(refused) + 1


def identity(value: Any) -> Any:
    return value


def test_a_circuit_that_is_forced_open_here_is_open_in_workers() -> None:
    bound = processes(circuit_breaker=5, parallel={"on_error": "return"}).apply(identity)
    assert bound.map([1, 2]) == [1, 2]
    bound.binding.circuit_breaker.force_open()
    assert {type(each) for each in bound.map([1, 2])} == {CircuitOpenError}
    bound.binding.circuit_breaker.reset()
    assert bound.map([1, 2]) == [1, 2]


def fail_if(bad: bool) -> bool:  # the item itself
    if bad:
        raise ConnectionError("down")
    return bad


def test_a_failure_rate_counts_the_calls_of_all_workers() -> None:
    policy = {"failure_rate": 0.5, "window": 40, "min_calls": 20}
    bound = processes(circuit_breaker=policy, parallel={"on_error": "return"}).apply(fail_if)
    bound.map([False] * 12)
    assert bound.binding.circuit_breaker.state == "closed"
    bound.map([True] * 12)
    assert bound.binding.circuit_breaker.state == "open"


def test_a_success_in_a_worker_closes_the_circuit_here() -> None:
    bound = processes(
        circuit_breaker={"consecutive_failures": 1, "open_for": 0.05}, parallel={"on_error": "return"}
    ).apply(fail_if)
    with pytest.raises(ConnectionError):
        bound(True)
    until = time.monotonic() + 120
    while bound.binding.circuit_breaker.state != "half_open":
        assert time.monotonic() < until
        time.sleep(0.005)
    assert bound.map([False]) == [False]
    assert bound.binding.circuit_breaker.state == "closed"


# Bulkhead


def occupy(folder: str) -> int:
    """How many calls are running, including this one."""
    mine = Path(folder) / f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
    mine.touch()
    try:
        time.sleep(0.005)
        return len(list(Path(folder).iterdir()))
    finally:
        mine.unlink()


def test_max_concurrent_holds_for_all_workers_and_the_parent_together(tmp_path: Path) -> None:
    bound = processes(bulkhead={"max_concurrent": 1, "max_wait": None}, parallel={"workers": 3}).apply(occupy)
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.extend(bound(str(tmp_path)) for _ in range(20)))
    thread.start()
    counts += bound.map([str(tmp_path)] * 40)
    thread.join(30)
    assert len(counts) == 60
    assert max(counts) == 1


async def occupy_async(folder: str) -> int:
    mine = Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}"
    mine.touch()
    try:
        await asyncio.sleep(0.002)
        return len(list(Path(folder).iterdir()))
    finally:
        mine.unlink()


def test_max_concurrent_holds_for_the_event_loops_of_all_workers_together(tmp_path: Path) -> None:
    bound = processes(
        bulkhead={"max_concurrent": 3, "max_wait": None}, parallel={"mode": "async_process", "concurrency": 30}
    ).apply(occupy_async)
    counts = asyncio.run(bound.map([str(tmp_path)] * 200))
    assert len(counts) == 200
    assert max(counts) <= 3


def test_a_full_bulkhead_rejects_items_in_workers() -> None:
    registry = Registry({"api": processes(bulkhead=1)})
    held, mapped = registry.bind(hold_while, "api"), registry.bind(identity, "api")
    inside, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=held, args=(inside, go))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(MapError) as caught:
        mapped.map([1, 2, 3])
    assert isinstance(caught.value.failures[0].exception, BulkheadFullError)
    go.set()
    thread.join(30)
    assert mapped.map([1]) == [1]


def hold_while(inside: threading.Event, go: threading.Event) -> None:
    inside.set()
    go.wait(30)


def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def test_the_slot_of_a_worker_that_dies_is_released(tmp_path: Path) -> None:
    bound = processes(bulkhead={"max_concurrent": 1, "max_wait": 30}).apply(die_once)
    path = str(tmp_path / "died")
    assert bound.map([path] * 5) == [path] * 5


def test_a_map_in_threads_after_one_in_processes_uses_the_same_limits() -> None:
    registry = Registry(
        {"api": processes(rate_limit={"rate": 0.01, "burst": 4, "max_wait": 0}, parallel={"on_error": "skip"})}
    )
    first, second = registry.bind(moment, "api"), registry.bind(other, "api", mode="thread")
    assert len(first.map(range(2))) == 2
    assert len(second.map(range(5))) == 2
