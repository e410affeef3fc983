"""The retry budget of a profile."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opero
from opero import AllFailedError, Policy, Registry, RetryPolicy, trace
from opero.executors.state.allowance import (
    FLOOR,
    RESERVE,
    WINDOW,
    LocalAllowance,
    SharedAllowance,
    Terms,
    draw,
    opened,
)
from opero.runtime.state_file import StateFile
from opero.testing import VirtualClock, virtual_clock

QUICK = {"retries": 3, "min_delay": 0}


def down(_: object = None) -> None:
    raise ConnectionError("down")


def registry(**retry: Any) -> Registry:
    return Registry({"api": Policy(retry={**QUICK, **retry})})


def fail(bound: Any, times: int = 1) -> None:
    for number in range(times):
        with pytest.raises((ConnectionError, AllFailedError)):
            bound(number)


# The arithmetic


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200), st.integers(1, 4)), max_size=200),
    st.sampled_from([0.1, 0.2, 1.0]),
)
def test_retries_never_exceed_what_calls_the_reserve_and_time_have_paid_for(
    asks: list[tuple[float, int, int]], share: float
) -> None:
    terms = Terms(share, RESERVE)
    now, calls, retries = 1000.0, 0, 0
    account = opened(now, terms)
    for pause, new, wanted in asks:
        now += pause
        calls += new
        allowed, account = draw(account, now, terms, new, wanted)
        retries += wanted * allowed
        assert retries <= share * calls + RESERVE + FLOOR * (now - 1000) + 1e-6


def test_calls_pay_for_their_share_at_any_even_rate() -> None:
    terms = Terms(0.2, RESERVE)
    for interval in (0.001, 0.02, 0.1):
        now, retries = 0.0, 0
        account = opened(now, terms)
        for _ in range(10_000):
            now += interval
            allowed, account = draw(account, now, terms, 1, 1)
            retries += allowed
        assert retries >= 0.19 * 10_000


def test_calls_pay_for_ten_seconds() -> None:
    terms = Terms(0.2, 0)
    _, account = draw(opened(0.0, terms), 0.0, terms, 100, 21)
    assert draw(account, WINDOW - 1, terms, 0, 1)[0]
    assert not draw(account, 2 * WINDOW, terms, 0, 20)[0]
    assert not draw(account, 10 * WINDOW, terms, 0, 20)[0]


def test_the_reserve_fills_up_by_one_a_second() -> None:
    terms = Terms(0.2, RESERVE)
    spent, account = draw(opened(0.0, terms), 0.0, terms, 0, RESERVE)
    assert spent
    assert not draw(account, 0.9, terms, 0, 1)[0]
    assert draw(account, 1.0, terms, 0, 1)[0]
    assert draw(account, 1000.0, terms, 0, RESERVE)[0]
    assert not draw(account, 1000.0, terms, 0, RESERVE + 1)[0]


def test_a_single_call_is_never_refused_its_retries_in_a_quiet_process(bind: Any) -> None:
    attempts: list[int] = []

    def act() -> None:
        attempts.append(1)
        down()

    with pytest.raises(AllFailedError):
        bind(Policy(retry={"retries": 200, "min_delay": 0, "budget": True}), act)()
    assert len(attempts) == 201


# In calls


def test_retries_of_a_profile_add_at_most_a_fifth_and_a_reserve_to_10_000_calls() -> None:
    bound: Any = registry().bind(down, "api")
    fail(bound, 10_000)
    assert 11_900 <= bound.stats.attempts <= 12_500
    assert bound.stats.calls == 10_000


def test_threads_share_a_budget() -> None:
    bound: Any = registry().bind(down, "api")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fail(bound, 500), range(8)))
    assert bound.stats.attempts <= 4000 * 1.2 + RESERVE + 300


def test_tasks_share_a_budget() -> None:
    async def act(_: object) -> None:
        down()

    bound: Any = registry().bind(act, "api")

    async def main() -> None:
        await asyncio.gather(*(bound(each) for each in range(4000)), return_exceptions=True)

    asyncio.run(main())
    assert 4700 <= bound.stats.attempts <= 4000 * 1.2 + RESERVE + 300


def test_functions_of_a_profile_share_a_budget_and_pay_for_each_other() -> None:
    own = registry()
    healthy: Any = own.bind(lambda _: 1, "api")
    ill: Any = own.bind(down, "api")
    with pytest.raises(AllFailedError):
        ill(0)
    for each in range(1000):
        healthy(each)
    fail(ill, 200)
    assert ill.stats.retries == pytest.approx(0.2 * 1201 + RESERVE, abs=20)


def test_functions_without_a_profile_have_no_budget() -> None:
    bound: Any = Policy(retry=RetryPolicy(retries=3, min_delay=0)).apply(down)
    fail(bound, 200)
    assert bound.stats.attempts == 800


def test_false_switches_the_budget_of_a_profile_off() -> None:
    bound: Any = registry(budget=False).bind(down, "api")
    fail(bound, 200)
    assert bound.stats.attempts == 800


def test_a_function_without_a_profile_may_have_a_budget() -> None:
    bound: Any = opero.opero(retries=3, min_delay=0, budget="10%")(down)
    fail(bound, 2000)
    assert 2200 <= bound.stats.attempts <= 2300


def test_a_larger_share_allows_more() -> None:
    bound: Any = registry(budget="100%").bind(down, "api")
    fail(bound, 500)
    assert bound.stats.retries == pytest.approx(500 + RESERVE, abs=20)


def test_when_it_is_spent_a_call_fails_at_once_with_its_last_error_and_says_so(heard: list[Any]) -> None:
    bound: Any = registry().bind(down, "api")
    fail(bound, 101)  # the calls so far have paid for no whole retry
    with trace() as receipt, pytest.raises(ConnectionError) as caught:
        bound(0)
    text = "not retried: the retry budget of api (20% of the calls, and 1/s) is spent"
    assert caught.value.__notes__ == [text]
    assert "retry_budget" in str(receipt)
    assert bound.stats.rejected_by["retry_budget"] > 50
    rejected = [event for event in heard if event.name == "rejected"]
    assert {(event.by, event.policy) for event in rejected} == {("retry_budget", "api")}


def test_after_an_earlier_retry_the_call_fails_with_all_errors() -> None:
    clock = VirtualClock()
    bound: Any = Policy(retry={"retries": 3, "min_delay": 0, "budget": True}).apply(down, clock=clock)
    budget = bound.binding.pipeline.executors["retry_budget"]
    budget.ask(lambda home: home.draw(clock.monotonic(), 0, RESERVE - 1))
    with pytest.raises(AllFailedError, match="all 2 attempts failed") as caught:
        bound()
    assert caught.value.__notes__ == caught.value.__cause__.__notes__  # type: ignore[union-attr]


def test_with_reraise_the_last_error_itself_is_raised() -> None:
    bound: Any = registry(reraise=True).bind(down, "api")
    fail(bound, 100)
    with pytest.raises(ConnectionError):
        bound(0)


def test_a_fallback_answers_when_the_budget_is_spent() -> None:
    own = Registry({"api": Policy(retry=QUICK, fallback={"default": "plan b"})})
    bound: Any = own.bind(down, "api")
    assert {bound(each) for each in range(200)} == {"plan b"}
    assert bound.stats.retries < 120


def test_it_recovers_with_time() -> None:
    with virtual_clock() as clock:
        bound: Any = registry().bind(down, "api")
        fail(bound, 300)
        before = bound.stats.retries
        clock.advance(30)
        fail(bound, 100)
        assert before + 30 <= bound.stats.retries <= before + 30 + 0.2 * 100 + 0.2 * 300


def test_a_reload_keeps_what_has_been_spent() -> None:
    own = registry()
    bound: Any = own.bind(down, "api")
    fail(bound, 300)
    spent = bound.stats.retries
    with own.override(api={"retry": {"retries": 5}}):
        fail(bound, 10)
        assert bound.stats.retries <= spent + 5
    with own.override(api={"retry": {"budget": "100%"}}):
        fail(bound, 10)
        assert bound.stats.retries >= spent + 9


# Worker processes


def test_processes_share_an_allowance_in_a_file(tmp_path: Path) -> None:
    policy = RetryPolicy(retries=3, budget="20%")
    own = LocalAllowance(policy, 0.0)
    assert own.draw(0.0, 0, 50)
    shared = SharedAllowance(StateFile.create(tmp_path / "budget", 8192))
    own.move_to(shared)
    other = SharedAllowance(StateFile(str(tmp_path / "budget")))
    assert shared.draw(0.0, 0, 6)
    assert other.draw(0.0, 0, 4)
    assert not other.draw(0.0, 0, 1)
    assert not shared.draw(0.0, 0, 1)
    assert other.draw(0.0, 10, 1)  # calls of one process pay for all
    assert shared.draw(0.0, 0, 1)
    assert not shared.draw(0.0, 0, 1)
    shared.apply(RetryPolicy(budget="100%"))
    assert other.draw(0.0, 0, 8)


def test_worker_processes_of_a_map_share_the_budget() -> None:
    own = Registry({"batch": Policy(retry=QUICK, parallel={"mode": "process", "workers": 2, "on_error": "return"})})
    mapped: Any = own.bind(down, "batch")
    mapped.map(range(1000), progress=False)
    assert mapped.stats.calls == 1000
    assert 1000 + RESERVE <= mapped.stats.attempts <= 1000 * 1.2 + RESERVE + 120


def test_a_child_that_threads_ask_at_once_loses_no_call() -> None:
    clock = VirtualClock()
    bound: Any = Policy(retry={"retries": 1, "min_delay": 0, "budget": "100%"}).apply(down, clock=clock)
    threads = [threading.Thread(target=fail, args=(bound, 200)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert bound.stats.attempts == 1600
