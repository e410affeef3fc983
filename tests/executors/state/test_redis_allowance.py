"""Retry budgets with `share: redis` and `share: machine`: one for all processes, and what holds without redis.

Functions whose policies have different `store_timeout`s stand for processes, as in `test_redis_circuit`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opero import AllFailedError, ConfigError, Policy, Registry, RetryPolicy
from opero.executors.state.allowance import RESERVE, WINDOW, Account, Terms, draw, opened
from opero.executors.state.redis_allowance import DRAW
from redis_server import RedisServer

RETRY: dict[str, Any] = {"retries": 1, "min_delay": 0, "share": "redis"}
FAILURES = (ConnectionError, AllFailedError)


def down() -> None:
    raise ConnectionError("down")


async def down_async() -> None:
    raise ConnectionError("down")


def bind(url: str, process: int, function: Any = down, **options: Any) -> Any:
    retry = {**RETRY, "url": url, "store_timeout": 10 + process, **options}
    return Policy.model_validate({"retry": retry}).apply(function)


def retried(bound: Any, times: int) -> int:
    """How many of some failing calls are retried."""
    for _ in range(times):
        with pytest.raises(FAILURES):
            bound()
    return int(bound.stats.retries)


@pytest.fixture(autouse=True)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.node.name.replace(" ", ""))
    monkeypatch.setitem(RETRY, "share_as", name)
    return name


# The arithmetic of the script is that of `draw`


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.floats(0, 40), *(st.integers(0, 300) for _ in range(4)), st.floats(0, 60), st.floats(0, 30)),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 4)), max_size=20),
    st.sampled_from([0.1, 0.2, 1.0]),
    st.sampled_from([5.0, RESERVE]),
)
def test_the_script_decides_as_the_function_does(
    redis_url: str, held: tuple[float, ...], asks: list[tuple[int, int]], share: float, most: float
) -> None:
    client = redis.Redis.from_url(redis_url)
    seconds, microseconds = client.time()  # type: ignore[misc]
    now = seconds * 1_000_000 + microseconds
    begun, calls, retries, calls_before, retries_before, reserve, idle = held
    counts = (calls, retries, calls_before, retries_before, min(reserve, most))
    write = "return redis.call('SET', KEYS[1], cmsgpack.pack(unpack(cjson.decode(ARGV[1]))))"
    values = f"[1,{share!r},{most!r},{now - begun * 1e6:.0f},{','.join(map(repr, counts))},{now - idle * 1e6:.0f}]"
    client.eval(write, 1, "account", values)
    account = Account(-begun, *counts, -idle)
    for number, (more, wanted) in enumerate(asks):
        # Where the decision depends on the time that has passed meanwhile, either may be right.
        soon, late = (draw(account, after, Terms(share, most), more, wanted) for after in (0.0, 5.0))
        found = client.eval(DRAW, 1, "account", 1, repr(share), repr(most), 60_000, more, wanted)
        if soon[0] != late[0] or begun % WINDOW > WINDOW - 5:
            break
        assert (number, bool(found[0])) == (number, soon[0])  # type: ignore[index]
        account = soon[1]
    client.close()


def test_an_account_that_is_missing_has_a_full_reserve(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.delete("account")
    account = opened(0.0, Terms(0.2, 3.0))
    for wanted in (1, 1, 1, 1):
        is_allowed, account = draw(account, 0.0, Terms(0.2, 3.0), 0, wanted)
        assert client.eval(DRAW, 1, "account", 1, "0.2", "3.0", 60_000, 0, wanted)[0] == is_allowed  # type: ignore[index]
    assert 0 < client.pttl("account") <= 60_000  # type: ignore[operator]
    client.close()


# One budget for all


def test_what_one_process_has_spent_is_spent_for_all(redis_url: str) -> None:
    begun = time.monotonic()
    first = retried(bind(redis_url, 0), 60)
    second = retried(bind(redis_url, 1), 60)
    passed = time.monotonic() - begun
    assert first == 60
    assert 20 <= second <= 0.2 * 120 + 2 + passed  # the share of all calls; and what one process alone would not have


def test_calls_of_one_process_pay_for_retries_of_another(redis_url: str) -> None:
    policy = Policy.model_validate({"retry": {**RETRY, "url": redis_url}})
    healthy = policy.apply(lambda fails: down() if fails else None)
    retried(bind(redis_url, 1), 75)
    with pytest.raises(FAILURES):
        bind(redis_url, 1)()
    for _ in range(500):
        healthy(False)
    with pytest.raises(FAILURES):
        healthy(True)  # is retried, and tells how many calls there were
    assert retried(bind(redis_url, 2), 50) == 50


def test_async_functions_share_it(redis_url: str) -> None:
    retried(bind(redis_url, 0), 75)
    bound = bind(redis_url, 1, down_async, budget="1%")

    async def main() -> None:
        await asyncio.gather(*(bound() for _ in range(20)), return_exceptions=True)

    asyncio.run(main())
    assert bound.stats.retries <= 2
    assert bound.stats.rejected_by["retry_budget"] >= 18


def test_programs_share_the_budget_of_a_profile(redis_url: str, name: str) -> None:
    program = f"""
from opero import Policy, Registry
retry = { ({**RETRY, "url": redis_url, "share_as": None})!r}
registry = Registry({{{name!r}: Policy.model_validate({{"retry": retry}})}})
def down():
    raise ConnectionError
bound = registry.bind(down, {name!r})
for _ in range(70):
    try:
        bound()
    except Exception:
        pass
print(bound.stats.retries)
"""
    found = [
        int(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert found[0] >= 60
    assert found[1] <= 35


def test_a_map_in_worker_processes_uses_it(redis_url: str) -> None:
    policy = Policy.model_validate(
        {
            "retry": {**RETRY, "url": redis_url},
            "parallel": {"mode": "process", "workers": 2, "progress": False, "on_error": "skip"},
        }
    )
    policy.apply(_fails).map(range(100))
    assert retried(bind(redis_url, 1), 20) <= 10


def _fails(number: int) -> None:
    raise ConnectionError(number)


def test_the_processes_of_a_machine_share_it() -> None:
    name = uuid.uuid4().hex  # the file outlives this process

    def bound() -> Any:
        return Policy.model_validate({"retry": {**RETRY, "share": "machine", "share_as": name}}).apply(down)

    assert retried(bound(), 60) == 60
    assert retried(bound(), 60) <= 40


# Without redis


def test_each_process_has_a_budget_of_its_own_while_redis_is_away(server: RedisServer) -> None:
    bound = [bind(server.url, number, store_timeout=0.2 + number / 100) for number in range(2)]
    assert retried(bound[0], 60) == 60
    server.kill()
    begun = time.monotonic()
    assert [retried(each, 80) - 60 * (each is bound[0]) >= 60 for each in bound] == [True, True]
    assert [each.stats.rejected_by["retry_budget"] >= 1 for each in bound] == [True, True]
    assert time.monotonic() - begun < 20
    server.start()
    home = bound[0].binding.resolved().executors["retry_budget"].home
    end = time.monotonic() + 30
    while home.trouble:
        retried(bound[0], 1)
        assert time.monotonic() < end
        time.sleep(0.05)
    assert retried(bind(server.url, 5), 50) >= 40  # the server has begun anew


def test_the_terms_that_were_configured_last_are_in_force(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    one, other = bind(redis_url, 0, budget="50%"), bind(redis_url, 1, budget="1%")
    with caplog.at_level(logging.WARNING, "opero"):
        retried(other, 61)
        assert retried(one, 40) <= 3
    (record,) = [each.message for each in caplog.records if "differs" in each.message]
    assert "1% of the calls, and 60 at once, are in force" in record
    assert "later than 50% and 60" in record


def test_a_reload_continues_with_what_is_spent(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"

    def write(retries: int) -> None:
        retry = {**RETRY, "url": redis_url, "retries": retries}
        file.write_text(json.dumps({"policies": {"api": {"retry": retry}}}))

    write(1)
    registry = Registry.load(tmp_path)
    bound = registry.bind(down, "api")
    retried(bound, 75)
    before = bound.stats.retries
    write(2)
    registry.reload()
    retried(bound, 10)
    assert bound.stats.retries - before <= 5


# What it accepts


def test_a_shared_budget_is_in_force_without_a_profile() -> None:
    assert RetryPolicy(share="redis").has_budget(None)
    assert not RetryPolicy().has_budget(None)
    assert not RetryPolicy(budget=False).has_budget("api")


@pytest.mark.parametrize(
    ("retry", "said"),
    [
        ({"share": "redis", "budget": False}, "share: redis would have no effect without a budget"),
        ({"share_as": "x"}, "share_as would have no effect without share: machine or redis"),
        ({"url": "redis://x"}, "url would have no effect without share: redis"),
        ({"share": "disk"}, "'disk' is not one of 'process', 'machine', 'redis'"),
    ],
)
def test_what_has_no_effect_is_refused(retry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Policy(retry=retry)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rate_limit", "circuit_breaker", "bulkhead", "retry"])
def test_an_invalid_url_is_found_by_a_check(kind: str) -> None:
    section = {
        "share": "redis",
        "url": "http://x",
        **{"rate_limit": {"rate": 1}, "bulkhead": {"max_concurrent": 1}}.get(kind, {}),
    }
    with pytest.raises(ConfigError, match=f"{kind}.url"):
        Registry({"api": Policy.model_validate({kind: section})}).check()
