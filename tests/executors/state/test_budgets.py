"""The laws of several budgets that are booked together, and of estimates that are corrected later."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import RateLimitPolicy
from opero.executors.state.budget import FOREVER
from opero.executors.state.budgets import MOST_MARKS, booked, expressed, terms_of
from opero.executors.state.local_budgets import LocalBudgets, LockedBudgets

RATES = st.floats(0.5, 100)
BURSTS = st.integers(1, 30)


class Time:
    now = 1000.0


class Holder:
    permits: Any = None


def make(*limits: dict[str, Any], kind: type[LocalBudgets] = LocalBudgets) -> tuple[LocalBudgets, Time]:
    time = Time()
    return kind(RateLimitPolicy(limits=list(limits)), lambda: time.now), time


def assert_keeps_the_rate(used: list[tuple[float, float]], rate: float, burst: float) -> None:
    """No window of time has more permits than the burst and what falls due in it; a costly call alone may."""
    used = sorted(used)
    for first in range(len(used)):
        total, most = 0.0, burst
        for moment, cost in used[first:]:
            total, most = total + cost, max(most, cost)
            assert total <= most + (moment - used[first][0]) * rate + 1e-3


STEP = st.tuples(
    st.sampled_from(["call", "call", "end", "end", "cancel", "again"]),
    st.floats(0, 1),  # which share of the burst a call takes
    st.floats(0, 1),  # which share of that it uses
    st.floats(0, 3),  # intervals that pass
    st.integers(0, 1000),  # which call ends
)


@given(st.lists(STEP, min_size=1, max_size=120), RATES, BURSTS, st.booleans())
def test_no_window_has_more_than_the_burst_and_the_rate_however_late_estimates_are_corrected(
    steps: list[tuple[str, float, float, float, int]], rate: float, burst: int, overdraws: bool
) -> None:
    budgets, time = make({"rate": rate, "burst": burst, "cost": "n"}, {"rate": 7 * rate, "burst": 3})
    used: list[tuple[float, float]] = []
    began: list[tuple[Any, float, float, float]] = []
    call: Any = Holder()
    for what, share, of_that, passed, which in steps:
        time.now += passed / rate
        if what == "call":
            cost = max(0.01, share * burst * (1.5 if overdraws else 1))
            booking = budgets.book_all(time.now, (cost, 1.0), FOREVER)
            began.append((booking, time.now + booking.wait, cost, cost * of_that))
        elif what == "end" and began:
            booking, at, cost, actual = began.pop(which % len(began))
            if at > time.now:
                began.append((booking, at, cost, actual))
                continue
            budgets.settle(booking, (actual - cost, 0.0))
            used.append((at, actual))
        elif what in ("cancel", "again") and began:
            booking, at, cost, actual = began.pop(which % len(began))
            if at <= time.now:
                began.append((booking, at, cost, actual))
            elif what == "cancel":
                budgets.cancel(booking)
            else:
                new = budgets.book_again(time.now, booking, call)
                began.append((new, at if new is booking else time.now + new.wait, cost, actual))
    used += [(at, cost) for _, at, cost, _ in began]
    assert_keeps_the_rate(used, rate, max([burst, *(cost for _, cost in used)]) if overdraws else burst)


@given(
    st.lists(st.tuples(st.floats(0.1, 40), st.floats(0, 40), st.floats(0, 2), st.floats(0, 5)), min_size=1, max_size=40)
)
def test_permits_are_taken_together_or_not_at_all(calls: list[tuple[float, float, float, float]]) -> None:
    budgets, time = make({"rate": 2}, {"rate": 10, "burst": 20, "cost": "a"}, {"rate": 3, "burst": 5, "cost": "b"})
    for first, second, passed, patience in calls:
        time.now += passed
        before, costs = budgets.state, (1.0, first, second)
        waits = budgets.waits(time.now, costs)
        booking = budgets.book_all(time.now, costs, patience)
        assert booking.wait == max(waits)
        assert booking.slowest == waits.index(max(waits))
        if booking.wait > patience:
            assert budgets.state is before
            assert not booking.parts
        else:
            assert [part.cost for part in booking.parts] == [1.0, first, second]
            assert all(part.at == time.now + booking.wait for part in booking.parts if part.cost)


@given(st.lists(st.floats(0.1, 40), min_size=1, max_size=20), st.data())
def test_a_reservation_that_is_cancelled_as_the_last_leaves_no_trace(costs: list[float], data: st.DataObject) -> None:
    budgets, time = make({"rate": 2, "burst": 3}, {"rate": 10, "burst": 20, "cost": "n"})
    for cost in costs:
        time.now += data.draw(st.floats(0, 2))
        before = budgets.waits(time.now, (1.0, 15.0))
        booking = budgets.book_all(time.now, (1.0, cost), FOREVER)
        budgets.cancel(booking)
        assert budgets.waits(time.now, (1.0, 15.0)) == pytest.approx(before, abs=1e-6)
        budgets.book_all(time.now, (1.0, cost), FOREVER)


def test_what_is_given_back_is_there_for_the_next_call() -> None:
    budgets, time = make({"rate": 10, "burst": 100, "cost": "n"})
    bookings = [budgets.book_all(time.now, (20.0,), FOREVER) for _ in range(10)]
    assert [each.wait for each in bookings] == [0, 0, 0, 0, 0, 2, 4, 6, 8, 10]
    for each in bookings[:4]:
        budgets.settle(each, (-15.0,))
    assert budgets.waits(time.now, (20.0,)) == (6.0,)


def test_what_had_filled_up_by_itself_is_not_given_back() -> None:
    budgets, time = make({"rate": 10, "burst": 100, "cost": "n"})
    old = budgets.book_all(time.now, (100.0,), FOREVER)
    time.now += 20
    budgets.book_all(time.now, (100.0,), FOREVER)
    budgets.settle(old, (-90.0,))
    assert budgets.waits(time.now, (50.0,)) == (5.0,)


def test_an_overdraft_is_paid_by_those_who_come_after() -> None:
    budgets, time = make({"rate": 10, "burst": 20, "cost": "n"})
    booking = budgets.book_all(time.now, (10.0,), FOREVER)
    budgets.settle(booking, (50.0,))
    assert budgets.waits(time.now, (10.0,)) == (5.0,)


def test_a_call_that_costs_more_than_the_burst_waits_until_the_budget_is_full_and_overdraws_it() -> None:
    budgets, time = make({"rate": 1}, {"rate": 10, "burst": 20, "cost": "n"})
    assert budgets.book_all(time.now, (1.0, 50.0), FOREVER).wait == 0
    assert budgets.book_all(time.now, (1.0, 50.0), FOREVER).wait == 5
    assert budgets.book_all(time.now, (1.0, 1.0), FOREVER).wait == pytest.approx(10 - 1.9)


def test_a_call_that_costs_nothing_of_a_limit_does_not_wait_for_it() -> None:
    budgets, time = make({"rate": 10, "burst": 5}, {"rate": 10, "cost": "n"})
    budgets.book_all(time.now, (1.0, 500.0), FOREVER)
    assert budgets.book_all(time.now, (1.0, 0.0), FOREVER).wait == 0
    assert budgets.book_all(time.now, (1.0, 1.0), FOREVER).wait == 50


def test_the_number_of_marks_is_limited() -> None:
    budgets, time = make({"rate": 1, "burst": 1000, "cost": "n"})
    random_ = random.Random(1)
    bookings = []
    for _ in range(500):
        time.now += random_.random() * 40
        bookings.append(budgets.book_all(time.now, (random_.random() * 100,), FOREVER))
        if len(bookings) > 50:
            each = bookings.pop(0)
            budgets.settle(each, (-each.parts[0].cost * random_.random(),))
        assert len(budgets.state.accounts[0].marks) <= MOST_MARKS


def test_permits_are_reserved_anew_only_if_they_fall_due_sooner() -> None:
    budgets, time = make({"rate": 10, "burst": 100, "cost": "n"})
    first = budgets.book_all(time.now, (100.0,), FOREVER)
    waiting = budgets.book_all(time.now, (50.0,), FOREVER)
    assert waiting.wait == 5
    call: Any = Holder()
    assert budgets.book_again(time.now, waiting, call) is waiting
    budgets.settle(first, (-80.0,))
    assert budgets.book_again(time.now, waiting, call).wait == 0
    assert budgets.waits(time.now, (30.0,)) == (0.0,)
    assert budgets.waits(time.now, (31.0,)) == (pytest.approx(0.1),)


@pytest.mark.parametrize("kind", [LocalBudgets, LockedBudgets])
def test_another_policy_keeps_the_budgets_of_limits_with_the_same_name(kind: type[LocalBudgets]) -> None:
    budgets, time = make({"rate": 2}, {"rate": 10, "cost": "n"}, kind=kind)
    booking = budgets.book_all(time.now, (1.0, 100.0), FOREVER)
    budgets.apply(RateLimitPolicy(limits=[{"rate": 10, "cost": "n"}, {"rate": 1, "name": "other"}, {"rate": 2}]))
    assert budgets.waits(time.now, (1.0, 1.0, 1.0)) == (10.0, 0.0, 0.5)
    budgets.settle(booking, (-50.0, 0.0, 0.0))  # in the order of the policy in force
    assert budgets.waits(time.now, (1.0, 1.0, 1.0)) == (5.0, 0.0, 0.5)


def test_a_refused_call_leaves_the_state_as_it_is() -> None:
    state = expressed({}, terms_of(RateLimitPolicy(limits=[1, {"rate": 2}])), 0.0)
    state, _ = booked(state, 5.0, (1.0, 1.0), 0.0)
    assert booked(state, 5.0, (1.0, 1.0), 0.9)[0] is state
