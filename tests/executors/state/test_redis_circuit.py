"""Circuit breakers with `share: redis`: one circuit for all processes, and what holds while redis cannot be used.

Functions whose policies have different `store_timeout`s stand for processes: nothing in this process is common to them.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import redis

from opero import CircuitBreakerPolicy, CircuitOpenError, Policy
from opero.executors.state.circuit import new_circuit, record
from opero.executors.state.redis_circuit import packed, unpacked
from redis_server import RedisServer

WAIT = 60
BREAKER: dict[str, Any] = {"consecutive_failures": 3, "open_for": 60, "share": "redis", "share_as": "work"}


class Service:
    """A function that fails while `is_down`, and counts its calls."""

    def __init__(self) -> None:
        self.is_down = False
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.is_down:
            raise ConnectionError("down")
        return "up"


def bind(url: str, process: int, service: Callable[[], Any], **options: Any) -> Any:
    breaker = {**BREAKER, "url": url, "store_timeout": 10 + process, **options}
    return Policy.model_validate({"circuit_breaker": breaker}).apply(service)


def breaker_of(bound: Any) -> Any:
    return bound.binding.resolved().executors["circuit_breaker"]


def call(bound: Any, times: int = 1) -> list[str]:
    """What calls come to: their results, or the names of their errors."""
    found = []
    for _ in range(times):
        try:
            found.append(bound())
        except (ConnectionError, CircuitOpenError) as error:
            found.append(type(error).__name__)
    return found


def until(condition: Callable[[], Any], limit: float = WAIT) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def exchanges(url: str) -> int:
    client = redis.Redis.from_url(url)
    stats = client.info("commandstats")
    client.close()
    return sum(int(stats.get(f"cmdstat_{each}", {"calls": 0})["calls"]) for each in ("evalsha", "eval"))


@pytest.fixture(autouse=True)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A circuit for each test: that of the test before may be written once more."""
    name = str(request.node.name.replace(" ", ""))
    monkeypatch.setitem(BREAKER, "share_as", name)
    return name


@pytest.fixture
def services() -> list[Service]:
    return [Service() for _ in range(3)]


def test_a_circuit_that_opens_in_one_process_protects_the_others(redis_url: str, services: list[Service]) -> None:
    one, other = (bind(redis_url, number, services[number]) for number in range(2))
    assert call(one) == call(other) == ["up"]
    services[0].is_down = True
    assert call(one, 4) == ["ConnectionError"] * 3 + ["CircuitOpenError"]
    until(lambda: call(other) == ["CircuitOpenError"], 2)
    with pytest.raises(CircuitOpenError, match="ConnectionError: down") as caught:
        other()
    assert caught.value.retry_in == pytest.approx(60, abs=8)


def test_failures_of_all_processes_add_up(redis_url: str, services: list[Service]) -> None:
    bound = [bind(redis_url, number, services[number]) for number in range(3)]
    for each, service in zip(bound, services, strict=True):
        assert call(each) == ["up"]
        service.is_down = True
        assert call(each) == ["ConnectionError"]
    until(lambda: all(breaker_of(each).state == "open" for each in bound))
    assert sum(service.calls for service in services) == 6


def test_a_rate_is_that_of_all_processes(redis_url: str, services: list[Service]) -> None:
    options = {"consecutive_failures": None, "failure_rate": 0.5, "min_calls": 12, "window": "60s"}
    bound = [bind(redis_url, number, services[number], **options) for number in range(3)]
    for service in services[:2]:
        service.is_down = True
    for each in bound:
        call(each, 4)
    until(lambda: all(breaker_of(each).state == "open" for each in bound))


@pytest.mark.parametrize("window", [100, "60s"])
def test_no_result_is_lost_where_processes_count_at_the_same_time(redis_url: str, window: Any) -> None:
    services = [Service() for _ in range(4)]
    options = {"consecutive_failures": None, "failure_rate": 1.0, "min_calls": 100, "window": window}
    bound = [bind(redis_url, number, services[number], **options) for number in range(4)]

    def use(number: int) -> None:
        for each in range(20):
            services[number].is_down = each % 2 == 0
            call(bound[number])
            breaker_of(bound[number]).home.update()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for each in bound:
        home = breaker_of(each).home
        until(lambda home=home: home.update() or True)
        counts = home.circuit.window.counts(time.monotonic())
        assert (counts.calls, counts.failures) == (80, 40)


def test_the_attempts_of_one_call_count_once_although_others_count_in_between(
    redis_url: str, services: list[Service]
) -> None:
    options = {"consecutive_failures": None, "failure_rate": 1.0, "min_calls": 100, "window": 100}
    other = bind(redis_url, 1, services[1], **options)
    home = breaker_of(other).home

    def flaky() -> str:
        services[0].calls += 1
        if services[0].calls < 4:
            call(other)
            home.update()
            breaker_of(bound).home.update()
            raise ConnectionError("down")
        return "up"

    breaker = {**BREAKER, "url": redis_url, "store_timeout": 10, **options}
    retry = {"retries": 3, "min_delay": 0, "max_delay": 0}
    bound: Any = Policy.model_validate({"circuit_breaker": breaker, "retry": retry}).apply(flaky)
    assert bound() == "up"
    breaker_of(bound).home.update()
    home.update()
    counts = home.circuit.window.counts(time.monotonic())
    assert (counts.calls, counts.failures) == (4, 0)


def test_as_many_probes_as_one_process_may_make_are_made_by_all(redis_url: str) -> None:
    ran: list[int] = []
    barrier, leave = threading.Barrier(6), threading.Event()

    def probe() -> str:
        ran.append(1)
        if len(ran) > 3:
            leave.wait(WAIT)
            return "up"
        raise ConnectionError("down")

    bound = [bind(redis_url, number, probe, open_for=0.5, half_open_calls=2) for number in range(3)]
    call(bound[0], 3)
    until(lambda: all(breaker_of(each).state == "half_open" for each in bound))
    found: list[str] = []

    def use(each: Any) -> None:
        barrier.wait(WAIT)
        found.extend(call(each))

    threads = [threading.Thread(target=use, args=(each,)) for each in bound * 2]
    for thread in threads:
        thread.start()
    until(lambda: len(found) == 4)
    leave.set()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(found) == ["CircuitOpenError"] * 4 + ["up"] * 2
    until(lambda: all(breaker_of(each).state == "closed" for each in bound))


def test_probes_of_a_process_that_has_died_are_written_off(redis_url: str, services: list[Service]) -> None:
    bound = bind(redis_url, 0, services[0], open_for=0.5, half_open_calls=1)
    services[0].is_down = True
    call(bound, 3)
    program = f"""
import os, time
from opero import CircuitOpenError, Policy
bound = Policy.model_validate({{"circuit_breaker": { ({**BREAKER, "url": redis_url, "open_for": 0.5})!r}}}).apply(
    lambda: os._exit(7)
)
while True:
    try:
        bound()
    except CircuitOpenError:
        time.sleep(0.01)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=WAIT, check=False).returncode == 7
    services[0].is_down = False
    until(lambda: call(bound) == ["up"])


def test_an_operator_forces_the_circuit_of_all_processes(redis_url: str, services: list[Service]) -> None:
    one, other = (bind(redis_url, number, services[number]) for number in range(2))
    call(one)
    call(other)
    breaker_of(one).force_open()
    until(lambda: call(other) == ["CircuitOpenError"])
    breaker_of(other).reset()
    until(lambda: call(one) == ["up"])
    breaker_of(one).force_closed()
    services[1].is_down = True
    until(lambda: breaker_of(other).state == "forced_closed")
    assert call(other, 9) == ["ConnectionError"] * 9


def test_a_success_asks_the_server_four_times_a_second_at_most(redis_url: str, services: list[Service]) -> None:
    bound = bind(redis_url, 0, services[0])
    call(bound)
    before, began = exchanges(redis_url), time.monotonic()
    while time.monotonic() - began < 1:
        call(bound, 100)
    assert exchanges(redis_url) - before <= 6


def test_rejections_of_an_open_circuit_ask_the_server_as_rarely(redis_url: str, services: list[Service]) -> None:
    bound = bind(redis_url, 0, services[0])
    services[0].is_down = True
    call(bound, 4)
    before, began = exchanges(redis_url), time.monotonic()
    while time.monotonic() - began < 1:
        assert call(bound, 10) == ["CircuitOpenError"] * 10
    assert exchanges(redis_url) - before <= 6


def test_async_functions_and_sync_ones_share_a_circuit(redis_url: str, services: list[Service]) -> None:
    async def work() -> str:
        return services[0]()

    one, other = bind(redis_url, 0, work), bind(redis_url, 1, services[1])

    async def use() -> list[str]:
        found: list[str] = []
        for _ in range(4):
            try:
                found.append(await one())
            except (ConnectionError, CircuitOpenError) as error:
                found.append(type(error).__name__)
        return found

    assert asyncio.run(use()) == ["up"] * 4
    assert call(other) == ["up"]
    services[0].is_down = True
    assert asyncio.run(use()) == ["ConnectionError"] * 3 + ["CircuitOpenError"]
    until(lambda: call(other) == ["CircuitOpenError"])


def test_a_process_goes_on_by_itself_while_the_server_is_away(server: RedisServer, services: list[Service]) -> None:
    one, other = (bind(server.url, number, services[number]) for number in range(2))
    call(one)
    call(other)
    server.kill()
    services[0].is_down = True
    assert call(one, 4) == ["ConnectionError"] * 3 + ["CircuitOpenError"]
    assert call(other, 5) == ["up"] * 5
    server.start()
    until(lambda: call(other) == ["CircuitOpenError"])
    assert call(one) == ["CircuitOpenError"]


def test_a_server_that_starts_empty_is_told_of_an_open_circuit(server: RedisServer, services: list[Service]) -> None:
    one, other = (bind(server.url, number, services[number]) for number in range(2))
    call(other)
    services[0].is_down = True
    call(one, 3)
    until(lambda: call(other) == ["CircuitOpenError"])
    server.kill()
    server.start()
    assert call(one) == call(other) == ["CircuitOpenError"]
    third = bind(server.url, 2, services[2])
    until(lambda: call(one) == call(third) == ["CircuitOpenError"])


def test_a_server_that_was_never_there_leaves_each_process_its_own_circuit(services: list[Service]) -> None:
    bound = bind("redis://127.0.0.1:1", 0, services[0])
    assert call(bound, 3) == ["up"] * 3
    services[0].is_down = True
    assert call(bound, 4) == ["ConnectionError"] * 3 + ["CircuitOpenError"]
    assert "Connection refused" in breaker_of(bound).home.trouble or breaker_of(bound).home.trouble


def test_the_window_that_was_configured_last_is_in_force(
    redis_url: str, services: list[Service], caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"consecutive_failures": None, "failure_rate": 0.5}
    one = bind(redis_url, 0, services[0], **options, window=50)
    call(one)
    breaker_of(one).home.update()
    other = bind(redis_url, 1, services[1], **options, window=20)
    call(other)
    with caplog.at_level(logging.WARNING, "opero"):
        for _ in range(3):
            breaker_of(other).home.update()
            breaker_of(one).home.update()
            call(one)
    assert breaker_of(one).home.circuit.length == 20
    assert len([each for each in caplog.records if "a window of 20 is in force" in each.message]) == 1


def test_a_reload_keeps_the_state(redis_url: str, services: list[Service]) -> None:
    def policy(**options: Any) -> Policy:
        return Policy.model_validate({"circuit_breaker": {**BREAKER, "url": redis_url, **options}})

    bound: Any = policy().apply(services[0])
    services[0].is_down = True
    call(bound, 3)
    bound.binding.swap(policy(open_for=90))
    assert call(bound) == ["CircuitOpenError"]
    bound.binding.swap(policy(share="process", share_as=None, url=None))
    assert call(bound) == ["CircuitOpenError"]


def test_a_forked_child_uses_the_circuit_of_its_parent(redis_url: str) -> None:
    program = f"""
import os
from opero import CircuitOpenError, Policy
def fail():
    raise ConnectionError("down")
bound = Policy.model_validate({{"circuit_breaker": { ({**BREAKER, "url": redis_url})!r}}}).apply(fail)
def call():
    try:
        bound()
    except Exception as error:
        return type(error).__name__
found = [call(), call()]
bound.binding.resolved().executors["circuit_breaker"].home.update()
child = os.fork()
if child == 0:
    print(call(), call(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout.split() == ["ConnectionError", "CircuitOpenError"]


@pytest.mark.parametrize("window", [20, 60.0])
def test_a_circuit_is_the_same_after_its_way_over_the_server(window: float) -> None:
    policy = CircuitBreakerPolicy(failure_rate=0.9, window=window, min_calls=20)
    circuit, random = new_circuit(policy, 100.0), Random(1)
    for number in range(30):
        record(circuit, policy, 100.0 + number / 10, random, 0, number % 3 == 0, number % 5 == 0, "wrong")
    found, told = unpacked(packed(circuit, 90.0, 7).encode(), 990.0)
    assert told == 7
    assert found.since == 1000.0
    for circuit_, now in ((circuit, 103.0), (found, 1003.0)):
        record(circuit_, policy, now, random, 0, True, False, "wrong")
    assert vars(found) | {"since": 0, "window": 0} == vars(circuit) | {"since": 0, "window": 0}
    assert found.window.counts(1003.0) == circuit.window.counts(103.0)


def test_what_another_program_has_written_there_is_replaced(redis_url: str, services: list[Service], name: str) -> None:
    client, key = redis.Redis.from_url(redis_url), f"opero:{{{name}/circuit_breaker}}"
    client.set(key, b"12:not a circuit")
    bound = bind(redis_url, 0, services[0])
    assert call(bound) == ["up"]
    breaker_of(bound).home.update()
    text = client.get(key)
    assert isinstance(text, bytes)
    assert b'"state":"closed"' in text
    assert 0 < client.pttl(key) <= 3_600_000  # type: ignore[operator]
    client.close()


# A circuit for each value of an argument


def keyed(url: str, process: int, max_keys: int = 100) -> Any:
    def work(tenant: str) -> str:
        if tenant.startswith("bad"):
            raise ConnectionError(tenant)
        return tenant

    scope = {"by": "tenant", "max_keys": max_keys}
    breaker = {**BREAKER, "url": url, "store_timeout": 10 + process, "scope": scope}
    return Policy.model_validate({"circuit_breaker": breaker}).apply(work)


def outcome(bound: Any, tenant: str) -> str:
    return call(lambda: bound(tenant))[0]


def test_each_value_of_an_argument_has_a_circuit_of_all_processes(redis_url: str) -> None:
    one, other = keyed(redis_url, 0), keyed(redis_url, 1)
    assert [outcome(one, "bad") for _ in range(4)] == ["ConnectionError"] * 3 + ["CircuitOpenError"]
    until(lambda: outcome(other, "bad") == "CircuitOpenError")
    assert outcome(one, "good") == outcome(other, "good") == "good"


def test_what_a_circuit_has_counted_is_not_lost_when_its_key_is_used_no_more(redis_url: str) -> None:
    one, other = keyed(redis_url, 0, max_keys=1), keyed(redis_url, 1)
    assert outcome(one, "bad") == outcome(one, "bad") == "ConnectionError"
    assert outcome(one, "good") == "good"  # of the two keys, one circuit is kept
    time.sleep(0.5)
    assert outcome(other, "bad") == "ConnectionError"
    assert outcome(other, "bad") == "CircuitOpenError"
