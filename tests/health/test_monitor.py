"""Health checks run side by side, each within its limit, for sync and async callers alike."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from opero import HealthMonitor, HealthStatus, Policy, opero
from opero.testing import VirtualClock

Run = Callable[[HealthMonitor], dict[str, HealthStatus]]


def run_sync(monitor: HealthMonitor) -> dict[str, HealthStatus]:
    return monitor.run_all_health_checks_sync()


def run_async(monitor: HealthMonitor) -> dict[str, HealthStatus]:
    return asyncio.run(monitor.run_all_health_checks())


@pytest.fixture(params=[run_sync, run_async])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


@pytest.fixture
def monitor() -> HealthMonitor:
    return HealthMonitor()


def refused() -> None:
    raise ConnectionError("refused by redis://user:hunter2@localhost")


async def refused_async() -> None:
    refused()


async def fine_async() -> dict[str, str]:
    return {"status": "ok"}


# What a check says


@pytest.mark.parametrize(
    ("check", "status", "error"),
    [
        (lambda: None, "healthy", None),
        (lambda: {"status": "down"}, "healthy", None),
        (lambda: 0, "healthy", None),
        (lambda: False, "unhealthy", "the check returned False"),
        (lambda: "degraded", "degraded", "the check returned 'degraded'"),
        (lambda: "unhealthy", "unhealthy", "the check returned 'unhealthy'"),
        (refused, "unhealthy", "ConnectionError: refused by redis://**********@localhost"),
        (refused_async, "unhealthy", "ConnectionError: refused by redis://**********@localhost"),
        (fine_async, "healthy", None),
        (lambda: fine_async(), "healthy", None),  # noqa: PLW0108  # not an async function itself
        (lambda: refused_async(), "unhealthy", "ConnectionError: refused by redis://**********@localhost"),  # noqa: PLW0108
        (sys.exit, "unhealthy", "RuntimeError: SystemExit"),
        (opero(retries=0)(fine_async), "healthy", None),
        (Policy(retry={"retries": 1, "min_delay": "1ms"}).apply(refused), "unhealthy", None),
    ],
)
def test_a_check_is_healthy_unless_it_raises_or_says_otherwise(
    monitor: HealthMonitor, run: Run, check: Callable[[], Any], status: str, error: str | None
) -> None:
    monitor.register_health_check("it", check)
    found = run(monitor)["it"]
    assert (found.name, found.status) == ("it", status)
    if check.__name__ == "refused" and error is None:
        assert found.last_error is not None
        assert found.last_error.startswith("AllFailedError: ")
    else:
        assert found.last_error == error


async def exits() -> None:
    sys.exit("done")


def test_an_async_check_that_exits_does_not_end_the_event_loop(monitor: HealthMonitor, run: Run) -> None:
    monitor.register_health_check("it", exits)
    assert run(monitor)["it"].last_error == "RuntimeError: SystemExit: done"


async def cancels_itself() -> None:
    raise asyncio.CancelledError


def test_a_check_that_cancels_itself_cancels_no_other(monitor: HealthMonitor, run: Run) -> None:
    monitor.register_health_check("it", cancels_itself)
    monitor.register_health_check("other", fine_async)
    assert {name: each.status for name, each in run(monitor).items()} == {"it": "unhealthy", "other": "healthy"}


def test_a_check_sees_the_context_of_its_caller(monitor: HealthMonitor, run: Run) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())

    monitor.register_health_check("sync", lambda: seen.append(variable.get()))
    monitor.register_health_check("async", look)
    variable.set("request 1")
    run(monitor)
    assert seen == ["request 1"] * 2


# Side by side, within limits


def test_all_checks_are_under_way_at_once(monitor: HealthMonitor, run: Run) -> None:
    everyone = threading.Barrier(20)

    async def meet() -> None:
        await asyncio.get_running_loop().run_in_executor(pool, everyone.wait)

    with ThreadPoolExecutor(10) as pool:
        for number in range(10):
            monitor.register_health_check(f"sync {number}", everyone.wait, timeout=20)
            monitor.register_health_check(f"async {number}", meet, timeout=20)
        assert {each.status for each in run(monitor).values()} == {"healthy"}


def test_a_check_that_hangs_is_named_with_its_limit_and_others_are_not_affected(
    monitor: HealthMonitor, run: Run
) -> None:
    release = threading.Event()

    async def hang() -> None:
        await asyncio.sleep(60)

    monitor.register_health_check("archive", release.wait, timeout="30ms")
    monitor.register_health_check("search", hang, timeout=0.02)
    monitor.register_health_check("database", fine_async)
    found = run(monitor)
    assert found["archive"].last_error == "health check 'archive' has not ended within its limit of 30ms"
    assert found["search"].last_error == "health check 'search' has not ended within its limit of 20ms"
    assert [each.status for each in found.values()] == ["unhealthy", "unhealthy", "healthy"]
    release.set()


def test_a_check_that_still_hangs_is_not_started_again(monitor: HealthMonitor, run: Run) -> None:
    release, started, ended = threading.Event(), [], threading.Event()

    def hang() -> None:
        started.append(1)
        release.wait()
        ended.set()

    monitor.register_health_check("archive", hang, timeout="20ms")
    run(monitor)
    again = [run(monitor)["archive"].last_error for _ in range(3)]
    assert all("still runs after" in str(each) and "beyond its limit of 20ms" in str(each) for each in again)
    assert len(started) == 1
    release.set()
    ended.wait()
    while "still runs" in str(run(monitor)["archive"].last_error):
        time.sleep(0.001)
    assert len(started) == 2


def test_an_async_check_that_swallows_its_cancellation_does_not_keep_its_caller(
    monitor: HealthMonitor, run: Run
) -> None:
    release = threading.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                release_later.start()

    release_later = threading.Timer(0.2, release.set)
    monitor.register_health_check("it", stubborn, timeout="10ms")
    assert "not ended" in str(run(monitor)["it"].last_error)


def test_an_async_check_whose_thread_hangs_does_not_keep_a_sync_caller(monitor: HealthMonitor) -> None:
    release = threading.Event()
    monitor.register_health_check("it", lambda: asyncio.to_thread(release.wait), timeout="10ms")
    assert monitor.run_health_check_sync("it").status == "unhealthy"
    assert not release.is_set()
    release.set()


def test_times_are_those_of_the_clock() -> None:
    clock = VirtualClock()
    monitor = HealthMonitor(clock=clock)

    async def slow() -> None:
        await asyncio.sleep(3)

    monitor.register_health_check("sync", lambda: clock.sleep(2), timeout=4)
    monitor.register_health_check("too long", lambda: clock.sleep(9), timeout=4)
    monitor.register_health_check("async", slow, timeout=4)
    found = {name: clock.run(monitor.run_health_check(name)) for name in ("sync", "too long", "async")}
    assert {name: each.response_time for name, each in found.items()} == {"sync": 2, "too long": 4, "async": 3}
    assert [each.status for each in found.values()] == ["healthy", "unhealthy", "healthy"]
    assert monitor.run_health_check_sync("async").response_time == 3


def test_they_run_under_trio(monitor: HealthMonitor) -> None:
    async def meet() -> None:
        await trio.sleep(0)

    async def hang() -> None:
        await trio.sleep(60)

    monitor.register_health_check("async", meet)
    monitor.register_health_check("hangs", hang, timeout="10ms")
    monitor.register_health_check("sync", refused)
    found = trio.run(monitor.run_all_health_checks)
    assert {name: each.status for name, each in found.items()} == {
        "async": "healthy",
        "hangs": "unhealthy",
        "sync": "unhealthy",
    }


def test_a_cancelled_caller_cancels_its_checks(monitor: HealthMonitor) -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def main() -> None:
        task = asyncio.create_task(monitor.run_all_health_checks())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    monitor.register_health_check("it", slow)
    asyncio.run(main())
    assert ended == ["cancelled"]
    assert monitor.get_overall_health() == "unknown"


def test_sync_methods_are_refused_where_they_would_block_an_event_loop(monitor: HealthMonitor) -> None:
    monitor.register_health_check("it", fine_async)

    async def main() -> None:
        monitor.run_health_check_sync("it")

    for loop in (lambda: asyncio.run(main()), lambda: trio.run(main)):
        with pytest.raises(RuntimeError, match=r"would block the event loop .* await run_health_check\(\) instead"):
            loop()


def test_threads_may_run_and_register_checks_at_once(monitor: HealthMonitor) -> None:
    def work(number: int) -> None:
        monitor.register_health_check(f"check {number}", fine_async)
        for _ in range(5):
            monitor.run_all_health_checks_sync()
            monitor.get_overall_health()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(monitor.run_all_health_checks_sync()) == 6
    assert monitor.get_overall_health() == "healthy"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_a_check_that_hangs_in_its_parent(monitor: HealthMonitor) -> None:
    release = threading.Event()
    parent = os.getpid()
    monitor.register_health_check("it", lambda: os.getpid() != parent or release.wait(), timeout="20ms")
    assert monitor.run_health_check_sync("it").status == "unhealthy"
    child = os.fork()
    if child == 0:
        os._exit(0 if monitor.run_health_check_sync("it").status == "healthy" else 1)
    _, code = os.waitpid(child, 0)
    release.set()
    assert os.waitstatus_to_exitcode(code) == 0


# Names


def test_an_unknown_name_is_refused_with_the_nearest(monitor: HealthMonitor) -> None:
    with pytest.raises(ValueError, match="there is no health check 'database'$"):
        asyncio.run(monitor.run_health_check("database"))
    monitor.register_health_check("database", fine_async)
    with pytest.raises(ValueError, match="there is no health check 'databse'; did you mean 'database'"):
        monitor.run_health_check_sync("databse")


def test_a_second_check_of_a_name_is_refused_unless_it_replaces_the_first(monitor: HealthMonitor) -> None:
    monitor.register_health_check("it", refused)
    monitor.run_health_check_sync("it")
    with pytest.raises(ValueError, match=r"'it' already, .*refused: choose another name, or pass replace=True"):
        monitor.register_health_check("it", fine_async)
    assert monitor.health_checks == {"it": refused}
    monitor.register_health_check("it", fine_async, replace=True)
    assert monitor.health_checks == {"it": fine_async}
    assert monitor.status_history == {"it": ()}
    assert monitor.run_health_check_sync("it").error_rate == 0


def generate() -> Any:
    yield


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("it", None), "health check 'it' is not a function but a value of type NoneType"),
        (("it", lambda url: url), "called without arguments: .* is missing a required argument: 'url'"),
        (("it", generate), "generate is a generator, which checks nothing"),
        (("", refused), "needs a name"),
        (("it", refused, "2 fortnights"), "health check 'it': timeout: '2 fortnights' is not a duration"),
        (("it", refused, 0), "health check 'it': timeout: 0 is not more than 0"),
        (("it", refused, float("nan")), "health check 'it': timeout: nan is not a duration"),
    ],
)
def test_what_is_no_check_is_refused_at_registration(
    monitor: HealthMonitor, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        monitor.register_health_check(*arguments)
    assert not monitor.health_checks


# Rates


@given(st.lists(st.tuples(st.sampled_from(["healthy", "degraded", "unhealthy"]), st.integers(0, 50)), max_size=230))
def test_rates_are_those_of_the_last_hundred_results(runs: list[tuple[str, int]]) -> None:
    clock = VirtualClock()
    monitor = HealthMonitor(clock=clock)
    answer = "healthy"

    async def check() -> str:
        return answer

    monitor.register_health_check("it", check)

    async def main() -> list[HealthStatus]:
        nonlocal answer
        found = []
        for status, pause in runs:
            clock.advance(pause)
            answer = status
            found.append(await monitor.run_health_check("it"))
        return found

    found = clock.run(main())
    up_since: float | None = None
    now = 0
    for number, ((status, pause), result) in enumerate(zip(runs, found, strict=True)):
        now += pause
        up_since = None if status == "unhealthy" else now if up_since is None else up_since
        last = [each for each, _ in runs[max(0, number - 99) : number + 1]]
        assert result.status == status
        assert result.error_rate == sum(each == "unhealthy" for each in last) / len(last)
        assert result.uptime == pytest.approx(0 if up_since is None else now - up_since, abs=1e-6)
    assert monitor.status_history["it"] == tuple(found[-100:])


# Overall


def test_overall_health_and_readiness_follow_the_latest_results(monitor: HealthMonitor) -> None:
    down: set[str] = set()

    def check(name: str) -> Callable[[], bool]:
        return lambda: name not in down

    assert (monitor.get_overall_health(), monitor.is_ready()) == ("unknown", True)
    monitor.register_health_check("mail", check("mail"))
    monitor.register_health_check("database", check("database"), critical=True)
    assert (monitor.get_overall_health(), monitor.is_ready()) == ("unknown", False)
    seen = {}
    for each in ((), ("mail",), ("database",), ("mail", "database"), ()):
        down = set(each)
        monitor.run_all_health_checks_sync()
        seen[each] = monitor.get_overall_health(), monitor.is_ready()
    assert seen == {
        (): ("healthy", True),
        ("mail",): ("degraded", True),
        ("database",): ("unhealthy", False),
        ("mail", "database"): ("unhealthy", False),
    }


def test_a_critical_check_that_is_degraded_leaves_the_program_ready(monitor: HealthMonitor) -> None:
    monitor.register_health_check("database", lambda: "degraded", critical=True)
    monitor.run_all_health_checks_sync()
    assert (monitor.get_overall_health(), monitor.is_ready()) == ("degraded", True)


def test_a_status_can_be_made_by_hand_as_well() -> None:
    status = HealthStatus(name="it", status="healthy", response_time=0.1, error_rate=0.0)
    assert (status.last_error, status.uptime) == (None, 0.0)
