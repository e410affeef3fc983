"""The laws of the rate limit and its budget over random arrivals, and what callers of every kind see of them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import ConfigError, Policy, RateLimitExceededError, RateLimitPolicy, Registry
from opero.executors.state.budget import LocalBudget, LockedBudget
from opero.testing import VirtualClock

RATES = st.floats(0.5, 100)
BURSTS = st.integers(1, 6)
STEPS = st.lists(st.floats(0, 0.5), min_size=1, max_size=60)


def make_budget(
    rate: float, burst: int, monotonic: Any = lambda: 0.0, cost: float = 1.0, kind: type[LocalBudget] = LocalBudget
) -> LocalBudget:
    return kind(RateLimitPolicy(rate=rate, burst=burst, cost=cost), monotonic)


def reserve(budget: LocalBudget, now: float, cost: float = 1.0, patience: float = float("inf")) -> float:
    """Seconds until the permits fall due, which are reserved if that is within `patience`."""
    return budget.book(now, cost, patience)[0]


def assert_keeps_the_rate(grants: list[tuple[float, float]], rate: float, burst: float) -> None:
    """No window of time holds more permits than the burst and what falls due within it; a costly call alone may."""
    for first in range(len(grants)):
        total = 0.0
        for moment, cost in grants[first:]:
            width = moment - grants[first][0]
            total += cost
            assert total - cost + min(cost, burst) <= burst + width * rate + 1e-6


@given(
    steps=STEPS,
    rate=RATES,
    burst=BURSTS,
    costs=st.lists(st.floats(0.1, 8), min_size=1, max_size=5),
    patience=st.floats(0, 3),
)
def test_reservations_keep_the_rate_and_refused_ones_take_nothing(
    steps: list[float], rate: float, burst: int, costs: list[float], patience: float
) -> None:
    budget = make_budget(rate, burst)
    now, grants = 100.0, []
    for number, step in enumerate(steps):
        now += step
        cost = costs[number % len(costs)]
        before = budget._due
        wait = reserve(budget, now, cost, patience)
        assert wait >= 0
        if wait <= patience:
            grants.append((now + wait, cost))
        else:
            assert budget._due == before
    assert [moment for moment, _ in grants] == sorted(moment for moment, _ in grants) or len(set(costs)) > 1
    if len(set(costs)) == 1:
        assert_keeps_the_rate(grants, rate, burst)


@given(count=st.integers(1, 50), rate=RATES, burst=BURSTS)
def test_no_permit_is_lost_when_all_come_at_once(count: int, rate: float, burst: int) -> None:
    budget = make_budget(rate, burst)
    waits = [reserve(budget, 5.0) for _ in range(count)]
    assert waits == pytest.approx([max(0.0, (number + 1 - burst) / rate) for number in range(count)])


@given(steps=STEPS, rate=RATES, burst=BURSTS, cost=st.floats(0.5, 4))
def test_take_grants_exactly_what_book_would_grant_without_a_wait(
    steps: list[float], rate: float, burst: int, cost: float
) -> None:
    now = 100.0
    taking, reserving = (make_budget(rate, burst, lambda: now, cost) for _ in range(2))
    for step in steps:
        now += step
        assert taking.take() is (reserve(reserving, now, cost, 0.0) <= 0.0)
        assert taking._due == pytest.approx(reserving._due)


@pytest.mark.parametrize("kind", [LocalBudget, LockedBudget])
def test_only_the_last_reservation_can_be_given_back(kind: type[LocalBudget]) -> None:
    budget = make_budget(1, 1, kind=kind)
    reserve(budget, 0.0)
    _, first = budget.book(0.0, 1.0, 9.0)
    _, second = budget.book(0.0, 1.0, 9.0)
    budget.refund(first)
    assert reserve(budget, 0.0, patience=-1) == 3
    budget.refund(second)
    assert reserve(budget, 0.0, patience=-1) == 2


def test_a_call_that_costs_more_than_the_burst_waits_for_a_full_budget_and_leaves_it_in_debt() -> None:
    budget = make_budget(10, 5)
    assert reserve(budget, 0.0, 20) == 0
    assert reserve(budget, 0.0, 1) == pytest.approx(2.0 - 0.4)


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 2), st.one_of(st.none(), st.floats(0, 1))), min_size=1, max_size=25),
    rate=st.floats(2, 50),
    burst=st.integers(1, 4),
)
@settings(max_examples=150)
def test_tasks_keep_the_rate_in_their_order_whatever_is_cancelled(
    arrivals: list[tuple[float, float | None]], rate: float, burst: int
) -> None:
    clock = VirtualClock()
    grants: list[tuple[float, int]] = []
    came: list[int] = []

    async def function(number: int) -> None:
        grants.append((clock.monotonic(), number))

    bound = Policy(rate_limit={"rate": rate, "burst": burst}).apply(function, clock=clock)

    async def caller(number: int, at: float, patience: float | None) -> None:
        await asyncio.sleep(at)
        came.append(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await bound(number)

    async def main() -> None:
        await asyncio.gather(*(caller(number, *arrival) for number, arrival in enumerate(arrivals)))

    clock.run(main())
    assert_keeps_the_rate([(moment, 1.0) for moment, _ in grants], rate, burst)
    patient = {number for number, (_, patience) in enumerate(arrivals) if patience is None}
    served = [number for _, number in grants]
    assert patient <= set(served)
    assert [number for number in served if number in patient] == [number for number in came if number in patient]


def test_cancelled_waiters_lose_no_permit_for_the_others() -> None:
    clock = VirtualClock()
    bound = Policy(rate_limit=1).apply(asyncio.sleep, clock=clock)

    async def main() -> float:
        await bound(0)
        started = clock.monotonic()
        tasks = [asyncio.create_task(bound(0)) for _ in range(20)]
        await asyncio.sleep(0.1)
        for task in tasks[5:15]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return clock.monotonic() - started

    assert clock.run(main()) == pytest.approx(10, abs=1.01)


def test_five_calls_at_ten_a_second_take_at_least_four_tenths(bind: Any) -> None:
    call = bind(Policy(rate_limit=10.0), lambda: 1)
    started = bind.clock.monotonic()
    for _ in range(5):
        call()
    assert bind.clock.monotonic() - started == pytest.approx(0.4)
    assert (bind.bound.stats.waits, bind.bound.stats.waited) == (4, pytest.approx(0.4))


def test_a_wait_longer_than_max_wait_is_refused_at_once(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": 1, "max_wait": 0.5}), lambda: 1)
    call()
    with pytest.raises(RateLimitExceededError, match="next permit of 1/s is 1s away, and max_wait is 500ms") as caught:
        call()
    assert caught.value.retry_in == pytest.approx(1)
    bind.clock.advance(0.6)
    assert call() == 1
    assert bind.bound.stats.rejections == 1


def test_max_wait_counts_those_who_queue_in_front() -> None:
    clock = VirtualClock()
    bound = Policy(rate_limit={"rate": 1, "max_wait": 3}).apply(asyncio.sleep, clock=clock)

    async def main() -> list[str]:
        results = await asyncio.gather(*(bound(0) for _ in range(8)), return_exceptions=True)
        return [type(each).__name__ for each in results]

    assert clock.run(main()) == ["NoneType"] * 4 + ["RateLimitExceededError"] * 4


@pytest.mark.parametrize("cost", ["tokens", lambda text, tokens=1: tokens, 3])
def test_a_call_takes_permits_for_its_cost(bind: Any, cost: Any) -> None:
    def function(text: str, tokens: int = 1) -> str:
        return text

    call = bind(Policy(rate_limit={"rate": 1, "cost": cost}), function)
    started = bind.clock.monotonic()
    for _ in range(3):
        call("x", tokens=3)
    assert bind.clock.monotonic() - started == pytest.approx(6)


def test_a_cost_that_is_no_number_is_refused_with_its_name_and_an_unknown_argument_when_bound() -> None:
    def function(tokens: Any) -> None: ...

    bound = Policy(rate_limit={"rate": 1, "cost": "tokens"}).apply(function)
    for wrong in ("many", -1, float("nan"), None, True):
        with pytest.raises(ValueError, match="cost of a call of .*function is .*must be a number"):
            bound(wrong)
    with pytest.raises(ConfigError, match="no parameter 'token' to take the cost from; did you mean 'tokens'?"):
        Policy(rate_limit={"rate": 1, "cost": "token"}).apply(function)


def test_the_argument_with_the_cost_is_found_however_it_is_passed(bind: Any) -> None:
    def function(first: str, *others: str, tokens: int = 2) -> str:
        return first

    call = bind(Policy(rate_limit={"rate": 1, "cost": "tokens"}), function)
    started = bind.clock.monotonic()
    call("a", "b", "c", "d", tokens=3)
    call("a", "b", "c", "d")
    call("a")
    assert bind.clock.monotonic() - started == pytest.approx(3 + 2)  # the last call leaves its cost to the next one


def test_a_call_without_the_argument_fails_as_the_function_does() -> None:
    def function(tokens: int) -> None: ...

    bound: Any = Policy(rate_limit={"rate": 1, "cost": "tokens"}).apply(function)
    with pytest.raises(TypeError, match="missing .* argument: 'tokens'"):
        bound()


def test_tasks_of_different_costs_take_turns_and_none_starves() -> None:
    clock = VirtualClock()
    served: list[int] = []

    async def function(cost: int) -> None:
        served.append(cost)

    bound = Policy(rate_limit={"rate": 10, "cost": "cost"}).apply(function, clock=clock)

    async def main() -> None:
        await asyncio.gather(*(bound(cost) for cost in [1, 50, 1, 1, 30, 1]))

    clock.run(main())
    assert served == [1, 50, 1, 1, 30, 1]


def test_two_event_loops_and_threads_share_one_budget_exactly() -> None:
    registry = Registry({"api": Policy(rate_limit=400)})
    moments: list[float] = []

    def now() -> None:
        moments.append(time.monotonic())

    async def now_async() -> None:
        now()

    sync, asynchronous = registry.bind(now, "api"), registry.bind(now_async, "api")

    async def tasks() -> None:
        await asyncio.gather(*(asynchronous() for _ in range(25)))

    threads = [threading.Thread(target=lambda: asyncio.run(tasks())) for _ in range(2)]
    threads += [threading.Thread(target=lambda: [sync() for _ in range(25)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moments) == 100
    assert max(moments) - min(moments) >= 99 / 400 - 0.02  # a late first one makes the span look shorter


@pytest.mark.parametrize("kind", [LocalBudget, LockedBudget])
def test_under_threads_no_permit_is_given_twice_and_every_receipt_is_its_own(kind: type[LocalBudget]) -> None:
    now = 1000.0
    budget = make_budget(1, 1, lambda: now, kind=kind)
    waits: list[float] = []
    receipts: list[tuple[float, float]] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def hammer() -> None:
        for _ in range(2000):
            if budget.take():
                waits.append(0.0)
            else:
                wait, receipt = budget.book(now, 1.0, float("inf"))
                waits.append(wait)
                receipts.append(receipt)

    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(waits) == [float(number) for number in range(16_000)]
    assert len(set(receipts)) == len(receipts)
