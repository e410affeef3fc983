"""Bulkheads with `share: redis`: one set of slots for all processes, and what holds while redis cannot be used.

Functions whose policies have different `store_timeout`s stand for processes, as in `test_redis_circuit`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import redis

from opero import BulkheadFullError, BulkheadPolicy, Policy
from opero.executors.state.redis_slots import Part
from redis_server import RedisServer

WAIT = 60
BULKHEAD: dict[str, Any] = {"max_concurrent": 4, "max_wait": 0, "share": "redis"}


class Place:
    """A function that stays until it is told to leave, and knows how many calls are in it at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.most = 0
        self.leave = threading.Event()

    def __call__(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.leave.wait(WAIT)
        with self.lock:
            self.inside -= 1


def bind(url: str, process: int, function: Callable[..., Any], **options: Any) -> Any:
    bulkhead = {**BULKHEAD, "url": url, "store_timeout": 10 + process, **options}
    return Policy.model_validate({"bulkhead": bulkhead}).apply(function)


def bulkhead_of(bound: Any) -> Any:
    return bound.binding.resolved().executors["bulkhead"]


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def start(bound: Any, times: int = 1) -> list[threading.Thread]:
    def run() -> None:
        with suppress(BulkheadFullError):
            bound()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(times)]
    for thread in threads:
        thread.start()
    return threads


def fits(bound: Any) -> bool:
    """Whether a call that ends at once gets a slot."""
    try:
        bound()
    except BulkheadFullError:
        return False
    return True


def nothing() -> None:
    pass


@pytest.fixture(autouse=True)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.node.name.replace(" ", ""))
    monkeypatch.setitem(BULKHEAD, "share_as", name)
    return name


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.leave.set()


def test_calls_of_all_processes_share_the_slots(redis_url: str, place: Place) -> None:
    start(bind(redis_url, 0, place), 2)
    start(bind(redis_url, 1, place), 2)
    until(lambda: place.inside == 4)
    third = bind(redis_url, 2, nothing)
    with pytest.raises(BulkheadFullError, match="4 of 4 slots in use"):
        third()
    assert bulkhead_of(third).running == 4
    place.leave.set()
    until(lambda: fits(third))


def test_no_more_calls_run_at_once_than_there_are_slots(redis_url: str) -> None:
    lock = threading.Lock()
    inside = most = done = 0

    def work() -> None:
        nonlocal inside, most, done
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
            done += 1

    bound = [bind(redis_url, number, work, max_concurrent=3, max_wait=WAIT) for number in range(3)]

    def use(each: Any) -> None:
        for _ in range(15):
            each()

    threads = [threading.Thread(target=use, args=(each,)) for each in bound * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert (done, most) == (135, 3)
    client = redis.Redis.from_url(redis_url)
    (key,) = client.scan_iter("*:slots")
    until(lambda: client.hget(key, "#total") == b"0")
    client.close()


def test_a_call_that_has_waited_longest_gets_the_next_slot(redis_url: str) -> None:
    order: list[str] = []
    leave = threading.Event()
    options: dict[str, Any] = {"max_concurrent": 1, "max_wait": WAIT}
    first = bind(redis_url, 0, lambda: leave.wait(WAIT), **options)
    waiting = [bind(redis_url, each, partial(order.append, str(each)), **options) for each in (1, 2, 3)]
    threads = start(first)
    until(lambda: bulkhead_of(first).running == 1)
    for each in waiting:
        threads += start(each)
        until(lambda each=each: bulkhead_of(each).home.queue)
        time.sleep(0.1)
    leave.set()
    for thread in threads:
        thread.join(WAIT)
    assert order == ["1", "2", "3"]


def test_a_call_that_gives_up_leaves_the_queue(redis_url: str, place: Place) -> None:
    bound = bind(redis_url, 0, place, max_concurrent=1)
    (thread,) = start(bound)
    until(lambda: place.inside == 1)
    with pytest.raises(BulkheadFullError, match="after 200ms in the queue"):
        bind(redis_url, 1, nothing, max_concurrent=1, max_wait=0.2)()
    place.leave.set()
    thread.join(WAIT)
    assert fits(bind(redis_url, 2, nothing, max_concurrent=1))


def test_the_slots_of_a_process_that_has_died_are_free_after_seconds(redis_url: str) -> None:
    program = f"""
import time
from opero import Policy
bound = Policy.model_validate({{"bulkhead": { ({**BULKHEAD, "max_concurrent": 1, "url": redis_url})!r}}}).apply(
    lambda: print("in", flush=True) or time.sleep(600)
)
bound()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    bound = bind(redis_url, 0, nothing, max_concurrent=1)
    time.sleep(4)  # longer than a process may be silent
    assert not fits(bound)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: fits(bound))


def test_functions_of_all_kinds_share_the_slots(redis_url: str, place: Place) -> None:
    async def work() -> int:
        await asyncio.sleep(0.05)
        return 1

    start(bind(redis_url, 0, place), 2)
    until(lambda: place.inside == 2)
    rejecting, waiting = bind(redis_url, 1, work), bind(redis_url, 1, work, max_wait=WAIT)

    async def use(bound: Any) -> int:
        found = await asyncio.gather(*(bound() for _ in range(6)), return_exceptions=True)
        return sum(each == 1 for each in found)

    assert asyncio.run(use(rejecting)) == 2
    assert asyncio.run(use(waiting)) == 6


def test_a_cancelled_task_gives_back_what_it_has(redis_url: str) -> None:
    async def work() -> None:
        await asyncio.sleep(WAIT)

    bound = bind(redis_url, 0, work, max_wait=WAIT)

    async def use() -> None:
        tasks = [asyncio.ensure_future(bound()) for _ in range(6)]
        while bulkhead_of(bound).running < 4 or not bulkhead_of(bound).home.queue:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(use())
    other = bind(redis_url, 1, nothing, max_concurrent=4)
    until(lambda: fits(other) and bulkhead_of(other).running == 0)


def test_a_forked_child_has_no_slot_of_its_parent(redis_url: str) -> None:
    program = f"""
import os
from opero import BulkheadFullError, Policy
def work():
    if os.fork() == 0:
        return "child"
    os.wait()
    return "parent"
bound = Policy.model_validate({{"bulkhead": { ({**BULKHEAD, "max_concurrent": 1, "url": redis_url})!r}}}).apply(work)
found = bound()
home = bound.binding.resolved().executors["bulkhead"].home
print(found, home._taken, flush=True)
if found == "child":
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout.split("\n")[:2] == ["child 0", "parent 0"]


@pytest.mark.parametrize(("limit", "processes"), [(4, 3), (2, 5), (7, 7), (100, 6)])
def test_the_parts_of_all_processes_add_up_to_the_limit(limit: int, processes: int) -> None:
    assert sum(Part(processes, rank).of(limit) for rank in range(processes)) == limit


def test_each_process_uses_its_part_while_the_server_is_away(server: RedisServer, place: Place) -> None:
    bound = [bind(server.url, number, place, max_concurrent=5) for number in range(3)]
    for each in bound:
        bulkhead_of(each).home._ask(0)
    for each in bound:
        bulkhead_of(each).home._ask(0)  # all of them are known now
    server.kill()
    for each in bound:
        start(each, 5)
    until(lambda: place.inside == 5)
    time.sleep(0.2)
    assert place.inside == 5
    with pytest.raises(BulkheadFullError, match="no slot for this process while the store of the bulkhead cannot be"):
        bound[0]()
    server.start()
    time.sleep(3)
    for each in bound:
        start(each, 5)
    time.sleep(0.5)
    assert place.most == 5
    place.leave.set()
    until(lambda: all(bulkhead_of(each).home._taken == 0 for each in bound))
    until(lambda: fits(bound[0]))


@pytest.mark.parametrize(("stated", "fitting"), [("open", 9), ("closed", 0)])
def test_what_on_store_error_says_holds_without_the_server(place: Place, stated: str, fitting: int) -> None:
    bound = bind("redis://127.0.0.1:1", 0, place, on_store_error=stated)
    start(bound, 9)
    time.sleep(0.5)
    assert place.inside == fitting


def test_a_server_that_starts_empty_is_told_how_many_slots_are_taken(server: RedisServer, place: Place) -> None:
    bound = [bind(server.url, number, place) for number in range(2)]
    for each in bound:
        start(each, 2)
    until(lambda: place.inside == 4)
    for each in bound:
        bulkhead_of(each).home._ask(0)
    server.kill()
    server.start()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for each in bound:
            start(each)
        time.sleep(0.05)
    assert place.most == 4


def test_the_limit_that_was_configured_last_is_in_force(
    redis_url: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    one = bind(redis_url, 0, place, max_concurrent=4)
    other = bind(redis_url, 1, place, max_concurrent=2)
    with caplog.at_level(logging.WARNING, "opero"):
        start(other, 4)
        until(lambda: place.inside == 2)
        start(one, 4)
        time.sleep(0.2)
    assert place.most == 2
    assert len([each for each in caplog.records if "max_concurrent 2 is in force" in each.message]) == 1


def test_a_reload_keeps_slots_and_waiting_calls(redis_url: str, place: Place) -> None:
    options = {"max_concurrent": 1, "max_wait": WAIT}
    bound: Any = Policy(bulkhead=BulkheadPolicy(max_concurrent=1, max_wait=WAIT)).apply(place)
    threads = start(bound, 2)
    until(lambda: place.inside == 1 and bulkhead_of(bound).home.queue)
    bound.binding.swap(Policy.model_validate({"bulkhead": {**BULKHEAD, **options, "url": redis_url}}))
    other = bind(redis_url, 1, nothing, max_concurrent=1)
    bulkhead_of(bound).home.update()
    assert not fits(other)
    bound.binding.swap(
        Policy.model_validate({"bulkhead": {**BULKHEAD, **options, "url": redis_url, "max_concurrent": 2}})
    )
    until(lambda: place.inside == 2)
    bound.binding.swap(Policy(bulkhead=BulkheadPolicy(max_concurrent=2, max_wait=WAIT)))
    until(lambda: fits(other))
    place.leave.set()
    for thread in threads:
        thread.join(WAIT)
    assert bulkhead_of(bound).running == 0
