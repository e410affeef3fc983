"""Maps whose number of workers is found by what items take."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from opero import ConfigError, MapError, Policy, on, opmap
from opero.events import LimitChanged
from opero.observe.stats import Stats
from opero.parallel.engine.blocks import Report
from opero.parallel.workers.adaptive import AdaptiveThreadWorkers, WorkerLimit
from opero.testing import VirtualClock
from parallel.workers.knee_server import Connections, answering


class Knee:
    """A service that works on some items at once, and has the others wait."""

    def __init__(self, clock: VirtualClock, knee: int, seconds: float = 0.05) -> None:
        self.clock = clock
        self.knee = knee
        self.seconds = seconds
        self.ended: list[float] = []
        self.running = self.most = 0
        self._places: list[asyncio.Semaphore] = []
        self._random = random.Random(1)

    async def __call__(self, number: int) -> int:
        if not self._places:
            self._places.append(asyncio.Semaphore(self.knee))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with self._places[0]:
                await asyncio.sleep(self.seconds * self._random.uniform(0.8, 1.2))
        finally:
            self.running -= 1
        self.ended.append(self.clock.monotonic())
        return number

    def rate(self, first: int, last: int) -> float:
        return (last - first) / (self.ended[last - 1] - self.ended[first - 1])


def mapped(service: Knee, **options: Any) -> Any:
    async def function(number: int) -> int:
        return await service(number)

    policy = Policy.from_options(workers="adaptive", progress=False, **options)
    return policy.apply(function, clock=service.clock)


def test_a_map_finds_the_knee_of_a_service_and_stays_there() -> None:
    clock = VirtualClock()
    service = Knee(clock, 8)
    assert clock.run(mapped(service).map(range(10_000))) == list(range(10_000))
    best = 8 / 0.05
    assert service.rate(300, 1000) >= 0.95 * best
    assert service.rate(300, 10_000) >= 0.95 * best
    assert service.rate(9000, 10_000) >= 0.95 * best
    assert service.most <= 20


@pytest.mark.parametrize("knee", [1, 3, 40])
def test_it_finds_other_knees(knee: int) -> None:
    clock = VirtualClock()
    service = Knee(clock, knee)
    clock.run(mapped(service).map(range(4000)))
    assert service.rate(1500, 4000) >= 0.95 * knee / 0.05
    assert service.running == 0


def test_streams_and_failures_are_as_ever() -> None:
    clock = VirtualClock()
    service = Knee(clock, 8)

    async def function(number: int) -> int:
        await service(number)
        if number % 10 == 3:
            raise ConnectionError(str(number))
        return number

    async def streamed(bound: Any) -> list[Any]:
        return [each async for each in bound.stream(range(500))]

    options = {"workers": "adaptive", "progress": False}
    skipping = Policy.from_options(**options, on_error="skip").apply(function, clock=clock)  # type: ignore[arg-type]
    assert clock.run(streamed(skipping)) == [each for each in range(500) if each % 10 != 3]
    raising = Policy.from_options(**options).apply(function, clock=clock)  # type: ignore[arg-type]
    with pytest.raises(MapError) as caught:
        clock.run(raising.map(range(500)))
    assert caught.value.results.keys() >= {0, 1, 2}
    assert service.running == 0


def test_a_cancelled_map_leaves_nothing_running() -> None:
    clock = VirtualClock()
    service = Knee(clock, 8)
    bound = mapped(service)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await bound.map(itertools.count())

    clock.run(main())
    assert service.running == 0


def test_batches_are_items_of_the_service() -> None:
    clock = VirtualClock()
    service = Knee(clock, 8)

    async def function(numbers: list[int]) -> list[int]:
        await service(0)
        return numbers

    policy = Policy.from_options(workers="adaptive", batch_size=5, progress=False)
    assert clock.run(policy.apply(function, clock=clock).map(range(5000))) == list(range(5000))
    assert service.rate(300, 1000) >= 0.95 * 8 / 0.05


def test_an_event_tells_of_their_number() -> None:
    seen: list[LimitChanged] = []
    off = on(LimitChanged, seen.append)
    clock = VirtualClock()
    clock.run(mapped(Knee(clock, 8)).map(range(2000)))
    off()
    assert {each.what for each in seen} == {"workers"}
    assert (seen[0].before, 7 <= seen[-1].after <= 12) == (4, True)
    assert seen[0].function.endswith("function")


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_threads_are_as_many_as_the_limit_says(seconds: float) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def function(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(seconds)
        with lock:
            running -= 1
        return -number

    bound = opmap(mode="thread", workers="adaptive", progress=False)(function)
    assert bound(range(600)) == [-each for each in range(600)]
    assert most <= 64
    assert list(itertools.islice(bound.stream(itertools.count()), 300)) == [-each for each in range(300)]


def test_mode_auto_takes_threads() -> None:
    def function(number: int) -> str:
        sum(range(20_000))
        return threading.current_thread().name

    names = opmap(workers="adaptive", progress=False)(function)(range(300))
    assert "opero-map" in names


def test_a_failure_stops_threads_that_wait_for_others() -> None:
    begun: list[int] = []

    def function(number: int) -> int:
        begun.append(number)
        time.sleep(0.002)
        if number == 50:
            raise ValueError("stop")
        return number

    bound = opmap(mode="thread", workers="adaptive", retries=0, progress=False)(function)
    with pytest.raises(MapError) as caught:
        bound(range(10_000))
    assert [each.index for each in caught.value.failures] == [50]
    ran = set(begun)  # what had begun has ended, and nothing begins later
    assert caught.value.results.keys() == ran - {50}
    assert len(ran) < 2000
    time.sleep(0.05)
    assert set(begun) == ran


def test_threads_that_wait_begin_in_the_order_of_their_items() -> None:
    order: list[int] = []
    may_run = threading.Event()

    class Work:
        def run(self, items: Sequence[int], control: object, report: Report, *, keep_going: bool) -> None:
            may_run.wait()
            order.extend(items)
            report.values.extend(items)

    limit = WorkerLimit(1, time.monotonic, Stats())
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    workers = AdaptiveThreadWorkers(Work(), limit, inbox, contextvars.Context())  # type: ignore[arg-type]

    def take(numbers: list[int]) -> None:
        for number in numbers:
            workers.run([number], [0, 0, 0], Report([]))

    threads = [
        threading.Thread(target=take, args=(numbers,)) for numbers in ([0, 10], *([each] for each in range(1, 10)))
    ]
    for count, thread in enumerate(threads, 1):
        thread.start()
        while workers.arrived < count:
            time.sleep(0)
    may_run.set()
    for thread in threads:
        thread.join()
    assert order == list(range(11))


def test_few_items_and_none() -> None:
    bound = opmap(mode="thread", workers="adaptive", progress=False)(lambda number: number)
    assert (bound([]), bound([1]), bound([1, 2])) == ([], [1], [1, 2])


def test_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="not mode: process; set a number or auto"):
        opmap(mode="process", workers="adaptive")(abs)


# A real server


@pytest.fixture
def server() -> Iterator[int]:
    """A server on loopback whose throughput has its knee at 8; yields its port."""
    with answering(8, 0.02) as port:
        yield port


def limits_found(run: Callable[[], Any]) -> list[int]:
    seen: list[LimitChanged] = []
    off = on(LimitChanged, seen.append)
    assert run() == list(range(1200))
    off()
    return [each.after for each in seen]


def test_an_async_map_of_a_real_server_finds_about_its_knee(server: int) -> None:
    async def main() -> Any:
        async with Connections(server) as connections:
            return await opmap(workers="adaptive", progress=False)(connections.ask)(range(1200))

    assert 5 <= limits_found(lambda: asyncio.run(main()))[-1] <= 40


def test_threads_of_a_real_server_find_about_its_knee(server: int) -> None:
    idle: list[socket.socket] = []

    def ask(number: int) -> int:
        try:
            connection = idle.pop()
        except IndexError:
            connection = socket.create_connection(("127.0.0.1", server))
        connection.sendall(b"question\n")
        assert connection.recv(100) == b"answer\n"
        idle.append(connection)
        return number

    bound = opmap(mode="thread", workers="adaptive", progress=False)(ask)
    try:
        assert 5 <= limits_found(lambda: bound(range(1200)))[-1] <= 40
    finally:
        for each in idle:
            each.close()
