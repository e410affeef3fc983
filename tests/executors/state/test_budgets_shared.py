"""Several limits that processes share: in a locked file and in redis, with estimates that are corrected."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from opero import Policy, RateLimitExceededError, RateLimitPolicy
from opero.executors.state.budget import FOREVER
from opero.executors.state.local_budgets import LocalBudgets
from opero.executors.state.redis_budgets import RedisBudgets
from opero.executors.state.redis_store import RedisStore
from opero.executors.state.shared_budgets import SharedBudgets
from opero.executors.state.sharing import size_of
from opero.runtime.state_file import StateFile
from redis_server import RedisServer

LIMITS = [{"rate": 0.01, "burst": 10}, {"rate": 0.01, "burst": 100, "cost": "n", "cost_from_result": "n"}]


@pytest.fixture(params=["machine", "redis"])
def share(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    if request.param == "machine":
        return {"share": "machine", "share_as": "shared"}
    url = request.getfixturevalue("redis_url")
    return {"share": "redis", "url": url, "share_as": "shared", "store_timeout": 10}


def bound(share: dict[str, Any], function: Any = lambda n: {"n": n}, **options: Any) -> Any:
    return Policy.model_validate({"rate_limit": {"limits": LIMITS, "max_wait": 0, **share, **options}}).apply(function)


def loads(function: Any) -> dict[str, float]:
    limiter = function.binding.resolved().executors["rate_limit"].limiter
    return {name: round(100 * used, 1) for name, (used, _) in limiter.loads().items()}


def test_two_executors_take_permits_together_from_the_same_budgets(share: dict[str, Any]) -> None:
    one, other = bound(share), bound(share)
    one(n=60)
    with pytest.raises(RateLimitExceededError, match=r"the next permit of n \(0.01/s\)"):
        other(n=50)
    other(n=30)
    assert loads(other) == {"requests": pytest.approx(20, abs=1), "n": pytest.approx(90, abs=1)}


def test_what_a_call_has_not_used_is_given_back_and_what_it_has_used_besides_is_taken(share: dict[str, Any]) -> None:
    costs = iter([10, 40])
    one, other = bound(share, lambda n: {"n": next(costs)}), bound(share)
    one(n=90)
    assert loads(one)["n"] == pytest.approx(10, abs=1)
    one(n=20)
    other(n=45)
    with pytest.raises(RateLimitExceededError):
        other(n=10)
    assert loads(other)["n"] == pytest.approx(95, abs=1)


def test_a_call_that_the_bulkhead_rejects_gives_its_permits_back(share: dict[str, Any]) -> None:
    policy = Policy.model_validate({"rate_limit": {"limits": LIMITS, "max_wait": 0, **share}, "bulkhead": 1})

    def outer(n: float) -> dict[str, float]:
        if n == 5:
            for _ in range(20):
                with pytest.raises(Exception, match="bulkhead full"):
                    function(n=80)
        return {"n": n}

    function: Any = policy.apply(outer)
    function(n=5)
    assert loads(function) == {"requests": pytest.approx(10, abs=1), "n": pytest.approx(5, abs=1)}


def test_a_limit_with_an_estimated_cost_shares_its_budget_with_one_of_fixed_cost(share: dict[str, Any]) -> None:
    limit = {"rate": 0.01, "burst": 10, "max_wait": 0, **share}
    fixed = Policy.model_validate({"rate_limit": limit}).apply(lambda: None)
    varying = Policy.model_validate({"rate_limit": {**limit, "cost": "n", "cost_from_result": "n"}}).apply(
        lambda n: {"n": 2}
    )
    fixed()
    varying(n=8)
    for _ in range(7):
        fixed()
    with pytest.raises(RateLimitExceededError):
        fixed()
    with pytest.raises(RateLimitExceededError):
        varying(n=1)


PROGRAM = """
import json, random, sys, threading, time
from opero import Policy
random.seed(int(sys.argv[1]))
policy = Policy.model_validate(json.loads(sys.argv[2]))
used = []
def ask(n):
    used.append((time.time(), n / 4))
    time.sleep(0.05)
    return {"n": n / 4}
bound = policy.apply(ask)
bound(n=1)
end = time.time() + float(sys.argv[3])
def work():
    while time.time() < end:
        bound(n=200 + 100 * random.random())
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
print(json.dumps(used))
"""


def test_processes_use_a_quota_although_their_estimates_are_four_times_too_high(share: dict[str, Any]) -> None:
    rate, burst, seconds = 1000, 4000, 6.0
    limits = [{"rate": 1000, "burst": 100}, {"rate": rate, "burst": burst, "cost": "n", "cost_from_result": "n"}]
    policy = json.dumps({"rate_limit": {"limits": limits, **share}})
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    processes = [
        subprocess.Popen([*command, str(number), policy, str(seconds)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    used = sorted(tuple(each) for process in processes for each in json.loads(process.communicate(timeout=120)[0]))
    took = used[-1][0] - used[0][0]
    total = sum(tokens for _, tokens in used)
    assert total >= 0.95 * rate * took
    for first, (moment, _) in enumerate(used):
        within = [tokens for at, tokens in used[first:] if at <= moment + 1]
        assert sum(within) <= burst + 1.1 * rate  # clocks are read a little later than permits fall due


# The same operations come to the same in each home


class Time:
    now = 1000.0


def test_a_file_keeps_budgets_as_a_process_does(tmp_path: Path) -> None:
    policy = RateLimitPolicy(limits=[{"rate": 2}, {"rate": 10, "burst": 50, "cost": "n"}])
    local, own = LocalBudgets(policy, lambda: Time.now), LocalBudgets(policy, lambda: Time.now)
    executor = type("Executor", (), {"own": own, "policy": policy})
    file = StateFile.create(tmp_path / "budgets", size_of("rate_limit", executor))
    shared = SharedBudgets(file, own)
    own.move_to(shared)
    for number in range(200):
        Time.now += 0.1 * (number % 7)
        costs = (1.0, 5.0 + number % 30)
        one, other = (each.book_all(Time.now, costs, FOREVER) for each in (local, shared))
        assert one == other
        if number % 3 == 0:
            for home, booking in ((local, one), (shared, other)):
                home.settle(booking, (0.0, -costs[1] / 2))
        if number % 5 == 0:
            for home, booking in ((local, one), (shared, other)):
                home.cancel(booking)
        assert local.state == shared._state()


def test_redis_keeps_budgets_as_a_process_does(redis_url: str) -> None:
    policy = RateLimitPolicy(
        limits=[{"rate": 20, "burst": 10}, {"rate": 100, "burst": 500, "cost": "n"}], share="redis", url=redis_url
    )
    own = LocalBudgets(policy, time.monotonic)
    redis = RedisBudgets(RedisStore(redis_url, 10), "same/rate_limits", policy, own, "same")
    local = LocalBudgets(policy, time.monotonic)
    held: list[tuple[Any, Any, tuple[float, float]]] = []
    holder: Any = type("Holder", (), {"permits": None})
    for number in range(120):
        costs = (1.0, 5.0 + 7 * number % 90)
        one, other = (each.book_all(time.monotonic(), costs, FOREVER) for each in (local, redis))
        assert other.wait == pytest.approx(one.wait, abs=0.05)
        held.append((one, other, costs))
        if number % 3 == 0:
            first, second, of = held.pop(number % len(held))
            local.settle(first, (0.0, -0.75 * of[1]))
            redis.settle(second, (0.0, -0.75 * of[1]))
        if number % 4 == 1:
            first, second, _ = held.pop()
            local.cancel(first)
            redis.cancel(second)
        if number % 7 == 2 and held:
            first, second, of = held.pop()
            pair = local.book_again(time.monotonic(), first, holder), redis.book_again(time.monotonic(), second, holder)
            held.append((*pair, of))
        if number % 10 == 9:
            local.settle(held[0][0], (0.0, 3.0))
            redis.settle(held[0][1], (0.0, 3.0))
    waits = [local.waits(time.monotonic(), (1.0, 50.0)), redis.waits(time.monotonic(), (1.0, 50.0))]
    assert waits[1] == pytest.approx(waits[0], abs=0.05)


def test_a_server_that_is_gone_leaves_each_process_its_share_and_is_used_again(
    redis_program: str, tmp_path: Path
) -> None:
    server = RedisServer(redis_program, str(tmp_path))
    server.start()
    limits = [{"rate": 100, "burst": 5}, {"rate": 1000, "burst": 50, "cost": "n", "cost_from_result": "n"}]
    limit = {"limits": limits, "share": "redis", "url": server.url, "share_as": "lost", "store_timeout": 1}
    function: Any = Policy.model_validate({"rate_limit": limit}).apply(lambda n: {"n": n})
    try:
        for _ in range(20):
            function(n=10)
        server.kill()
        began = time.monotonic()
        function(n=1)
        assert time.monotonic() - began < 20
        server.start()
        limiter = function.binding.resolved().executors["rate_limit"].limiter
        until = time.monotonic() + 30
        while limiter.home.trouble and time.monotonic() < until:
            function(n=1)
        assert not limiter.home.trouble
        function(n=10)
    finally:
        server.kill()


@pytest.mark.parametrize(("rule", "passes"), [("open", True), ("closed", False)])
def test_without_a_server_calls_pass_or_are_rejected_as_the_policy_says(rule: str, passes: bool) -> None:
    limit = {"limits": LIMITS, "share": "redis", "url": "redis://127.0.0.1:1/0", "on_store_error": rule}
    function: Any = Policy.model_validate({"rate_limit": limit}).apply(lambda n: {"n": n})
    for _ in range(20):
        if passes:
            assert function(n=50) == {"n": 50}
        else:
            with pytest.raises(RateLimitExceededError, match="cannot be reached, and on_store_error is closed"):
                function(n=50)


def test_threads_book_and_settle_in_redis_at_once(redis_url: str) -> None:
    limits = [{"rate": 1e6, "burst": 10**6}, {"rate": 0.001, "burst": 10**6, "cost": "n", "cost_from_result": "n"}]
    limit = {"limits": limits, "share": "redis", "url": redis_url, "share_as": "threads", "store_timeout": 10}
    function: Any = Policy.model_validate({"rate_limit": limit}).apply(lambda n: {"n": n / 4})

    def work() -> None:
        for _ in range(50):
            function(n=400)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads(function)["n"] == pytest.approx(100 * 200 * 100 / 10**6, abs=0.1)
