"""Rate limits with `share: redis`: one budget for all processes, and what holds while the server cannot be used."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from opero import ConfigError, MissingExtraError, Policy, RateLimitExceededError, Registry, on
from opero.executors.state.redis_store import RedisStore
from opero.health.monitor import HealthMonitor
from opero.testing import VirtualClock
from redis_server import RedisServer

WAIT = 60
LIMIT: dict[str, Any] = {"rate": 0.01, "burst": 10, "max_wait": 0, "share": "redis", "store_timeout": 10}


def work(value: Any = None) -> Any:
    return value


async def work_async(value: Any = None) -> Any:
    return value


def limited(url: str, function: Any = work, **options: Any) -> Any:
    limit = {**LIMIT, "url": url, "share_as": "work", **options}
    return Policy.model_validate({"rate_limit": limit}).apply(function)


def executor_of(bound: Any) -> Any:
    return bound.binding.resolved().executors["rate_limit"].limiter


def passing(bound: Any, tries: int = 20) -> int:
    """How many of these calls get a permit at once."""
    count = 0
    for _ in range(tries):
        try:
            bound()
            count += 1
        except RateLimitExceededError:
            pass
    return count


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def keys_of(url: str) -> list[str]:
    client = redis.Redis.from_url(url)
    try:
        return sorted(each.decode() for each in client.scan_iter())
    finally:
        client.close()


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    events: list[Any] = []
    offs = [on(name, events.append) for name in ("store_failed", "store_restored")]
    yield events
    for off in offs:
        off()


# One budget


def test_functions_of_all_kinds_take_permits_from_one_budget(redis_url: str) -> None:
    one, other = limited(redis_url), limited(redis_url, work_async)

    async def use() -> int:
        found = await asyncio.gather(*(other() for _ in range(20)), return_exceptions=True)
        return sum(not isinstance(each, RateLimitExceededError) for each in found)

    assert passing(one, 4) == 4
    assert asyncio.run(use()) == 6
    assert passing(one) == 0
    with pytest.raises(RateLimitExceededError) as caught:
        one()
    assert caught.value.retry_in == pytest.approx(100, abs=10)


def test_processes_take_permits_from_one_budget(redis_url: str) -> None:
    program = textwrap.dedent(
        f"""
        from opero import Policy, RateLimitExceededError
        bound = Policy.model_validate({{"rate_limit": { ({**LIMIT, "share_as": "work"})!r}}}).apply(len)
        count = 0
        for _ in range(8):
            try:
                bound("")
                count += 1
            except RateLimitExceededError:
                pass
        print(count)
        """
    )
    run = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env={"OPERO_REDIS_URL": redis_url}) for _ in range(2)
    ]
    assert sum(int(each.communicate(timeout=WAIT)[0]) for each in processes) == 10


def test_a_forked_child_takes_permits_from_the_budget_of_its_parent(redis_url: str) -> None:
    program = f"""
import os
from opero import Policy, RateLimitExceededError
bound = Policy.model_validate({{"rate_limit": { ({**LIMIT, "url": redis_url})!r}}}).apply(len)
def passing():
    count = 0
    for _ in range(8):
        try:
            bound("")
            count += 1
        except RateLimitExceededError:
            pass
    return count
before = passing() if {{}} else 0
bound("")
child = os.fork()
count = passing() if child == 0 else 0
if child == 0:
    print(count, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(passing())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout.split() == ["8", "1"]


@pytest.mark.parametrize("mode", ["process", "async_process"])
def test_worker_processes_of_a_map_use_the_budget_by_themselves(redis_url: str, mode: str) -> None:
    policy = {"rate_limit": {**LIMIT, "url": redis_url}}
    registry = Registry({"api": Policy.model_validate(policy)})
    function: Any = work if mode == "process" else work_async
    mapped: Any = registry.bind(function, "api", mapped=True, mode=mode, workers=2, on_error="return", ordered=False)
    found = mapped(range(30))
    found = asyncio.run(found) if mode == "async_process" else found
    assert sum(isinstance(each, RateLimitExceededError) for each in found) == 20
    assert any(each.endswith("{api/rate_limit}:due") for each in keys_of(redis_url))
    assert len(keys_of(redis_url)) <= 2
    assert passing(registry.bind(work, "api")) == 0


def test_calls_wait_for_permits_in_the_order_in_which_they_ask(redis_url: str) -> None:
    bound = limited(redis_url, rate=50, burst=1, max_wait=None)
    began = time.monotonic()
    for _ in range(6):
        bound()
    assert time.monotonic() - began >= 0.1 - 0.001


def test_a_call_may_cost_more_than_one_permit(redis_url: str) -> None:
    bound = limited(redis_url, lambda tokens: tokens, cost="tokens")
    other = limited(redis_url)
    bound(7)
    assert passing(other) == 3
    with pytest.raises(RateLimitExceededError) as caught:
        bound(25)
    assert caught.value.retry_in == pytest.approx(1000, abs=10)  # until the budget is full


@pytest.mark.parametrize(
    ("share_as", "function", "profile", "key"),
    [
        (None, work, "api", "opero:{api/rate_limit}:due"),
        ("a {b}", work, "api", "opero:{a%20%7Bb%7D/rate_limit}:due"),
        (None, work, None, f"opero:{{{__name__}:work/rate_limit}}:due"),
    ],
)
def test_a_budget_has_the_name_of_its_profile_or_function(
    redis_url: str, share_as: str | None, function: Any, profile: str | None, key: str
) -> None:
    policy = Policy.model_validate({"rate_limit": {**LIMIT, "url": redis_url, "share_as": share_as}})
    bound: Any = policy.apply(function) if profile is None else Registry({profile: policy}).bind(function, profile)
    bound()
    assert keys_of(redis_url) == [key]


def test_the_server_of_the_variable_is_used_where_a_policy_has_none(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERO_REDIS_URL", redis_url)
    assert passing(Policy.model_validate({"rate_limit": LIMIT}).apply(work)) == 10
    assert len(keys_of(redis_url)) == 1
    cached: Any = Policy.model_validate({"cache": {"backend": "redis", "ttl": 60}}).apply(work)
    cached(1)
    assert len(keys_of(redis_url)) == 2


def test_a_server_that_forgets_its_scripts_is_told_them_again(redis_url: str) -> None:
    bound = limited(redis_url)
    bound()
    client = redis.Redis.from_url(redis_url)
    client.script_flush()
    client.close()
    assert passing(bound) == 9


def test_a_server_that_was_started_anew_between_two_calls_has_not_failed(server: RedisServer, heard: list[Any]) -> None:
    bound = limited(server.url)
    assert passing(bound, 2) == 2
    server.kill()
    server.start()
    assert passing(bound) == 8
    assert not heard


def test_a_permit_takes_one_round_trip(redis_url: str) -> None:
    bound = limited(redis_url, rate=10**6, burst=1000)
    bound()
    client = redis.Redis.from_url(redis_url)
    client.config_resetstat()
    for _ in range(50):
        bound()
    stats = client.info("commandstats")
    client.close()
    assert stats["cmdstat_evalsha"]["calls"] == 50
    assert set(stats) <= {
        f"cmdstat_{each}"
        for each in ("evalsha", "get", "set", "time", "hincrby", "hdel", "hget", "pexpire", "config|resetstat", "info")
    }


def test_nothing_stays_on_the_server_for_ever(redis_url: str) -> None:
    bound = limited(redis_url, rate=10)
    bound()
    executor_of(bound).home._next_report = 0
    bound()
    client = redis.Redis.from_url(redis_url)
    left = [client.pttl(each) for each in client.scan_iter()]
    client.close()
    assert len(left) == 2
    assert all(0 < each <= 62_000 for each in left)


# Reserving


def reserving(url: str, **options: Any) -> Any:
    return limited(url, **{"rate": 100.0, "burst": 200, "reserve": 100, **options})


def count_trips(url: str, use: Callable[[], object]) -> int:
    client = redis.Redis.from_url(url)
    client.config_resetstat()
    use()
    stats = client.info("commandstats")
    client.close()
    return sum(int(stats.get(f"cmdstat_{each}", {"calls": 0})["calls"]) for each in ("evalsha", "eval"))


def test_permits_that_are_reserved_take_no_round_trip(redis_url: str) -> None:
    bound = reserving(redis_url)
    assert count_trips(redis_url, lambda: [bound() for _ in range(95)]) <= 12


def test_reserved_permits_are_taken_by_tasks_without_another_thread(redis_url: str) -> None:
    bound = reserving(redis_url, function=work_async)

    async def use() -> None:
        for _ in range(95):
            await bound()

    assert count_trips(redis_url, lambda: asyncio.run(use())) <= 12


def test_all_processes_together_get_no_more_than_the_burst(redis_url: str) -> None:
    both = [reserving(redis_url, rate=0.01) for _ in range(2)]
    assert sum(passing(both[number % 2], 1) for number in range(400)) <= 200
    assert sum(passing(each, 20) for each in both) == 0


def test_reserved_permits_lapse(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = reserving(redis_url, rate=0.01)
    for _ in range(10):
        bound()
    own = executor_of(bound).own
    assert own._reserved
    own._until = 0.0  # reserved for longer than 100 permits take
    assert count_trips(redis_url, bound) == 1


def test_a_process_that_calls_less_reserves_less(redis_url: str) -> None:
    bound = reserving(redis_url)
    own = executor_of(bound).own
    for _ in range(40):
        bound()
    assert own._calls > 8
    for _ in range(8):
        own._until = 0.0
        bound()
    assert own._calls <= 2


def test_a_forked_child_has_none_of_the_permits_that_its_parent_has_reserved(redis_url: str) -> None:
    bound = reserving(redis_url)
    for _ in range(10):
        bound()
    own = executor_of(bound).own
    assert own._reserved
    own.after_fork()
    assert not own._reserved


def test_calls_that_wait_ask_one_by_one(redis_url: str) -> None:
    bound = reserving(redis_url, rate=100.0, burst=4, reserve=2, max_wait=None)
    for _ in range(6):
        bound()
    assert count_trips(redis_url, lambda: [bound() for _ in range(5)]) >= 4


# Configuration


def test_a_reload_moves_the_state_to_the_server_and_back(redis_url: str) -> None:
    bound: Any = Policy.model_validate({"rate_limit": {"rate": 0.01, "burst": 10, "max_wait": 0}}).apply(work)
    assert passing(bound, 4) == 4
    shared = Policy.model_validate({"rate_limit": {**LIMIT, "url": redis_url, "share_as": "work"}})
    bound.binding.swap(shared)
    assert passing(limited(redis_url), 1) == 1  # before the state is there: nothing is sent until the first call
    assert passing(bound) in (5, 6)
    bound.binding.swap(shared.replace(rate_limit={**LIMIT, "url": redis_url, "share_as": "work", "max_wait": 1}))
    assert executor_of(bound).home.is_shared
    assert passing(bound, 3) == 0
    bound.binding.swap(Policy.model_validate({"rate_limit": {"rate": 0.01, "burst": 10, "max_wait": 0}}))
    assert executor_of(bound).home is executor_of(bound).own
    assert passing(bound) == 0


def test_a_reload_moves_the_state_to_another_server(redis_url: str, server: RedisServer) -> None:
    bound = limited(redis_url)
    assert passing(bound, 4) == 4
    bound.binding.swap(Policy.model_validate({"rate_limit": {**LIMIT, "url": server.url, "share_as": "work"}}))
    assert passing(bound) == 6
    assert passing(limited(server.url)) == 0


def test_the_newest_rate_is_in_force_for_all_and_the_others_say_so_once(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = limited(redis_url), limited(redis_url, rate=0.005, burst=4)
    with caplog.at_level(logging.WARNING, "opero"):
        assert passing(old, 2) == 2
        assert passing(new, 2) == 2
        assert passing(old, 9) == 2
        with pytest.raises(RateLimitExceededError) as caught:
            old()
    assert caught.value.retry_in == pytest.approx(200, abs=10)
    (told,) = [each.getMessage() for each in caplog.records if "differs" in each.getMessage()]
    assert "0.005/s with burst 4 is in force, which has been configured later than 0.01/s with burst 10" in told


def test_virtual_time_is_not_shared() -> None:
    policy = Policy.model_validate({"rate_limit": {**LIMIT, "url": "redis://127.0.0.1:1"}})
    assert passing(policy.apply(work, clock=VirtualClock())) == 10


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://host"}, "rate_limit.url: invalid redis URL: use redis://host:port"),
        ({"url": "redis://u:s3cret@host/x"}, "rate_limit.url: invalid redis URL"),
        ({"url": "redis+cluster://host/3"}, "rate_limit.url: a redis cluster has no database but 0"),
        ({"url": "redis://host?nonsense=1"}, "rate_limit.url: url: redis-py has no option 'nonsense'"),
    ],
)
def test_a_wrong_address_is_an_error_of_the_binding_and_of_check(options: dict[str, str], text: str) -> None:
    policy = Policy.model_validate({"rate_limit": {**LIMIT, **options}})
    with pytest.raises(ConfigError) as caught:
        policy.apply(work)
    assert text in str(caught.value)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Registry({"api": policy}).check()
    assert text in str(caught.value)


def test_a_missing_extra_is_an_error_of_the_binding_and_of_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    policy = Policy.model_validate({"rate_limit": {**LIMIT, "url": "redis://missing.extra"}})
    with pytest.raises(MissingExtraError, match=r"rate_limit.share 'redis' requires an extra: pip install"):
        policy.apply(work)
    with pytest.raises(ConfigError, match=r"api.rate_limit.share 'redis' requires an extra"):
        Registry({"api": policy}).check()


# Without the server


def test_an_outage_is_told_once_and_so_is_its_end(server: RedisServer, heard: list[Any]) -> None:
    bound = limited(server.url, rate=1000, burst=1, max_wait=None)
    bound()
    server.kill()
    for _ in range(20):
        bound()
    assert [each.name for each in heard] == ["store_failed"]
    assert heard[0].store == f"redis at 127.0.0.1:{server.port}/0"
    server.start()
    until(lambda: bound() or len(heard) > 1)
    assert [each.name for each in heard] == ["store_failed", "store_restored"]


PROGRAM = """
import sys, threading, time
from opero import RateLimitPolicy
policy = RateLimitPolicy(rate=100, share="redis", share_as="work", url=sys.argv[1], store_timeout=1)
limited = policy.apply(time.monotonic)
print("ready", flush=True)
moments, ends = [], threading.Event()
def work():
    while not ends.is_set():
        moments.append(limited())
threads = [threading.Thread(target=work) for _ in range(2)]
for each in threads:
    each.start()
sys.stdin.read()
ends.set()
for each in threads:
    each.join()
print(*moments)
"""


def test_processes_go_on_within_the_limit_while_the_server_is_gone_and_after(server: RedisServer) -> None:
    """`python -m tests.chaos.limits` does it with more processes, for longer, and by a server that counts."""
    run = [sys.executable, "-c", PROGRAM, server.url]
    processes = [subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    time.sleep(1.5)
    gone = time.monotonic()
    server.kill()
    time.sleep(1.5)
    server.start()
    back = time.monotonic()
    time.sleep(1.5)
    moments = sorted(float(each) for process in processes for each in process.communicate(timeout=WAIT)[0].split())
    assert any(gone + 0.1 < each < back for each in moments)
    assert any(each > back + 0.5 for each in moments)
    first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1:
            first += 1
        assert last - first + 1 <= 100 + 1 + 25  # a busy machine wakes threads late, so calls come closer to each other


def test_a_server_that_answers_nothing_delays_one_call(server: RedisServer) -> None:
    bound = limited(server.url, rate=1000, burst=1, max_wait=None, store_timeout=0.2)
    bound()
    store: RedisStore = executor_of(bound).home.store
    asked, run = [], store.run

    def noting(*args: Any) -> Any:
        asked.append(sys._getframe(1).f_code.co_name)
        return run(*args)

    store.run = noting  # type: ignore[method-assign]
    server.freeze()
    try:
        for _ in range(30):
            bound()
        assert asked.count("ask") == 1  # the others have not waited for it
    finally:
        server.thaw()
    until(lambda: bound() or not store.trouble)


def test_calls_pass_or_are_rejected_without_the_server_as_the_policy_says() -> None:
    nowhere = "redis://127.0.0.1:1"
    assert passing(limited(nowhere, on_store_error="open")) == 20
    closed = limited(nowhere, on_store_error="closed", max_wait=None)
    with pytest.raises(RateLimitExceededError, match="cannot be reached, and on_store_error is closed: ConnectionErr"):
        closed()

    async def use() -> None:
        with pytest.raises(RateLimitExceededError, match="on_store_error is closed"):
            await limited(nowhere, work_async, on_store_error="closed", max_wait=None)()

    asyncio.run(use())
    assert closed.stats.rejected_by == {"rate_limit": 1}
    shadow = limited(nowhere, on_store_error="closed", shadow=True)
    assert shadow(1) == 1


def test_a_process_that_has_never_reached_the_server_uses_a_fiftieth() -> None:
    bound = limited("redis://127.0.0.1:1", rate=1000, burst=1, max_wait=None)
    began = time.monotonic()
    for _ in range(6):
        bound()
    assert time.monotonic() - began >= 4 / 20


@pytest.mark.parametrize("function", [work, work_async])
def test_a_call_that_would_wait_for_long_asks_again_whether_the_server_is_back(
    server: RedisServer, function: Any
) -> None:
    bound = limited(server.url, function, rate=0.001, burst=2, max_wait=None)
    server.kill()
    done: list[Any] = []

    def call() -> None:
        done.append(asyncio.run(bound(1)) if function is work_async else bound(1))

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: executor_of(bound).home.trouble)
    assert not done  # by itself, this process has a permit in hours
    server.start()
    thread.join(WAIT)
    assert done == [1]


def test_a_server_that_lost_its_data_grants_no_second_burst(server: RedisServer) -> None:
    bound = limited(server.url)
    assert passing(bound) == 10
    server.kill()
    server.start()
    until(lambda: (passing(bound, 1), executor_of(bound).home.trouble)[1] == "")
    assert passing(bound) == 0


def test_a_server_that_accepts_no_writes_is_an_outage(server: RedisServer, heard: list[Any]) -> None:
    bound = limited(server.url, on_store_error="open")
    client = redis.Redis(port=server.port)
    client.config_set("maxmemory", 1)
    assert passing(bound) == 20
    assert [each.name for each in heard] == ["store_failed"]
    assert "OutOfMemory" in heard[0].message or "OOM" in heard[0].message
    client.config_set("maxmemory", 0)
    client.close()
    until(lambda: (passing(bound, 1), executor_of(bound).home.trouble)[1] == "")
    until(lambda: passing(bound) < 20)


def test_health_knows_that_the_server_cannot_be_used() -> None:
    policy = Policy.model_validate({"rate_limit": {**LIMIT, "url": "redis://127.0.0.1:1", "on_store_error": "open"}})
    registry = Registry({"api": policy})
    bound: Any = registry.bind(work, "api")
    bound()
    health = HealthMonitor(registry).run_all_health_checks_sync()["api.rate_limit"]
    assert health.status == "degraded"
    assert "on_store_error is open: ConnectionError" in str(health)


def test_an_interrupted_wait_for_the_server_leaves_no_reply_for_the_next_call(server: RedisServer) -> None:
    bound = limited(server.url, store_timeout=WAIT)
    bound()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    server.freeze()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            bound()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        server.thaw()
    assert passing(bound) in (8, 9)  # the server may have booked the permit of the interrupted call
