"""The rate limit with varying costs and cancelled reservations, and shared by sync callers, tasks and threads."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import Policy, RateLimitExceededError, RateLimitPolicy, Registry
from opero.executors.state.budget import LocalBudget
from opero.testing import VirtualClock

RATES = st.floats(0.5, 100)
Grant = tuple[float, float]
"""When, and for what cost."""


def make_budget(
    rate: float, burst: int, monotonic: Any = lambda: 0.0, cost: float = 1.0, kind: type[LocalBudget] = LocalBudget
) -> LocalBudget:
    return kind(RateLimitPolicy(rate=rate, burst=burst, cost=cost), monotonic)


def reserve(budget: LocalBudget, now: float, cost: float = 1.0, patience: float = float("inf")) -> float:
    """Seconds until the permits fall due, which are reserved if that is within `patience`."""
    return budget.book(now, cost, patience)[0]


def assert_no_window_is_overfull(grants: list[Grant], rate: float, burst: float) -> None:
    """In every window of time, from any grant to any other, at most the burst and what falls due meanwhile."""
    for begin, _ in grants:
        for end, _ in grants:
            held = sum(cost for moment, cost in grants if begin <= moment <= end)
            assert begin > end or held <= burst + (end - begin) * rate + 1e-6


@given(
    calls=st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 1)), min_size=1, max_size=30),
    rate=RATES,
    burst=st.integers(1, 6),
    patience=st.floats(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_calls_of_different_costs_keep_the_rate_together(
    calls: list[tuple[float, float]], rate: float, burst: int, patience: float
) -> None:
    budget, now = make_budget(rate, burst), 100.0
    grants: list[Grant] = []
    for step, share in calls:
        now += step
        cost = share * burst
        wait = reserve(budget, now, cost, patience)
        if wait <= patience:
            grants.append((now + wait, cost))
    assert_no_window_is_overfull(grants, rate, burst)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["book", "book", "give back"]), st.floats(0, 0.3), st.integers(0, 9)), max_size=40
    ),
    rate=RATES,
    burst=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_reservations_given_back_in_any_order_never_let_the_others_exceed_the_rate(
    steps: list[tuple[str, float, int]], rate: float, burst: int
) -> None:
    budget, now = make_budget(rate, burst), 100.0
    booked: list[tuple[float, tuple[float, float]]] = []  # when it falls due, and the receipt
    for step, seconds, which in steps:
        now += seconds
        waiting = [each for each in booked if each[0] > now]
        if step == "book":
            wait, receipt = budget.book(now, 1.0, float("inf"))
            booked.append((now + wait, receipt))
        elif waiting:
            gone = waiting[which % len(waiting)]
            before = reserve(budget, now, patience=-1.0)
            is_last = gone[1][1] == budget._due  # and none behind it has been given back for nothing
            budget.refund(gone[1])
            after = reserve(budget, now, patience=-1.0)
            if is_last:
                assert after == pytest.approx(max(0.0, before - 1 / rate), abs=1e-9)
            booked.remove(gone)
    assert_no_window_is_overfull([(moment, 1.0) for moment, _ in booked], rate, burst)


def test_a_reservation_given_back_takes_nothing_from_a_later_one() -> None:
    budget = make_budget(1, 1)
    budget.book(0.0, 5.0, 9.0)
    _, first = budget.book(0.0, 1.0, 9.0)
    wait, _ = budget.book(0.0, 1.0, 9.0)
    budget.refund(first)
    assert (wait, reserve(budget, 0.0)) == (6.0, 7.0)


def test_a_refused_call_reserves_nothing_even_when_it_gives_its_receipt_back() -> None:
    budget = make_budget(1, 1)
    budget.book(0.0, 3.0, 9.0)
    wait, receipt = budget.book(0.0, 1.0, 2.0)
    assert (wait, reserve(budget, 0.0, patience=-1.0)) == (3.0, 3.0)
    budget.refund(receipt)
    assert reserve(budget, 0.0, patience=-1.0) == 3.0


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 2), st.sampled_from([1, 1, 2, 3, 7]), st.one_of(st.none(), st.floats(0, 2))),
        min_size=1,
        max_size=15,
    ),
    rate=st.floats(2, 20),
    burst=st.integers(1, 4),
    max_wait=st.one_of(st.none(), st.floats(0, 2)),
)
@settings(max_examples=60, deadline=None)
def test_tasks_of_different_costs_are_served_in_order_within_the_rate_and_max_wait(
    arrivals: list[Any], rate: float, burst: int, max_wait: float | None
) -> None:
    clock = VirtualClock()
    grants: list[Grant] = []
    came: list[int] = []
    served: list[int] = []
    refused: set[int] = set()

    async def function(number: int, cost: int) -> None:
        grants.append((clock.monotonic(), min(cost, burst)))
        served.append(number)

    policy = Policy(rate_limit={"rate": rate, "burst": burst, "cost": "cost", "max_wait": max_wait})
    bound = policy.apply(function, clock=clock)

    async def caller(number: int, at: float, cost: int, patience: float | None) -> None:
        await asyncio.sleep(at)
        came.append(number)
        started = clock.monotonic()
        try:
            async with asyncio.timeout(patience):
                await bound(number, cost)
        except TimeoutError:
            return
        except RateLimitExceededError as error:
            refused.add(number)
            assert error.retry_in is not None
            assert error.retry_in > 0
        if max_wait is not None:
            assert clock.monotonic() - started <= max_wait + 1e-6

    async def main() -> None:
        await asyncio.gather(*(caller(number, *arrival) for number, arrival in enumerate(arrivals)))

    clock.run(main())
    assert_no_window_is_overfull(grants, rate, burst)
    assert served == [number for number in came if number in set(served)]
    patient = {number for number, arrival in enumerate(arrivals) if arrival[2] is None}
    assert patient <= set(served) | (refused if max_wait is not None else set())


@given(
    sync_at=st.lists(st.floats(0, 2), max_size=6),
    tasks_at=st.lists(st.floats(0, 2), max_size=10),
    rate=st.floats(2, 20),
)
@settings(max_examples=50, deadline=None)
def test_sync_callers_and_tasks_keep_one_rate_together(
    sync_at: list[float], tasks_at: list[float], rate: float
) -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(rate_limit=rate)})
    grants: list[Grant] = []

    def function() -> None:
        grants.append((clock.monotonic(), 1.0))

    async def function_async() -> None:
        function()

    sync = registry.bind(function, "api", clock=clock)
    asynchronous = registry.bind(function_async, "api", clock=clock)

    async def call_sync(at: float) -> None:
        await asyncio.sleep(at)
        sync()

    async def call(at: float) -> None:
        await asyncio.sleep(at)
        await asynchronous()

    async def main() -> None:
        await asyncio.gather(*map(call_sync, sync_at), *map(call, tasks_at))

    clock.run(main())
    assert len(grants) == len(sync_at) + len(tasks_at)
    assert_no_window_is_overfull_but_for_late_ones(grants, rate)


def assert_no_window_is_overfull_but_for_late_ones(grants: list[Grant], rate: float) -> None:
    """A task that a sync call holds up runs later than its permit fell due: only the whole can be judged."""
    moments = [moment for moment, _ in grants]
    if moments:
        assert len(moments) <= 1 + (max(moments) - 1000.0) * rate + 1e-6


def test_threads_hammering_a_bound_function_get_each_permit_once() -> None:
    clock = VirtualClock()
    bound = Policy(rate_limit={"rate": 1000, "burst": 500, "max_wait": 0}).apply(lambda: None, clock=clock)
    served: list[int] = []

    def hammer() -> None:
        for _ in range(400):
            with contextlib.suppress(RateLimitExceededError):
                bound()
                served.append(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (len(served), bound.stats.rejections, bound.stats.attempts) == (500, 2700, 500)


def test_a_refused_call_says_when_to_retry_and_then_succeeds(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": 2, "burst": 3, "max_wait": "200ms"}), lambda: 1)
    for _ in range(3):
        call()
    with pytest.raises(RateLimitExceededError) as caught:
        call()
    assert caught.value.retry_in == pytest.approx(0.5)
    bind.clock.advance(caught.value.retry_in)
    assert call() == 1
    assert bind.slept == []
