"""How permits fall due after a pause."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import RateLimitPolicy
from opero.executors.state.budget import FOREVER, Budget, LocalBudget, LockedBudget, Terms, book, due_after
from opero.executors.state.pace import FIRST, RAMP, STEADY, Pace, paused

INTERVALS = st.floats(1e-6, 10)
SECONDS = st.floats(0.001, 100)


@given(into=st.floats(0, 20), seconds=SECONDS, ramp=st.floats(0.01, RAMP), interval=INTERVALS)
def test_a_ramp_is_slower_than_the_rate_and_not_slower_than_where_it_begins(
    into: float, seconds: float, ramp: float, interval: float
) -> None:
    step = Pace(100.0, ramp).step(100.0 + into, seconds, interval)
    least = FIRST if interval > 1e-6 else 1e-6
    assert seconds * (1 - 1e-9) <= step <= seconds / least * (1 + 1e-9) + 1e-9
    if (100.0 + into) - 100.0 >= ramp:  # as it is rounded
        assert step == seconds


@given(parts=st.lists(st.floats(0.001, 3), min_size=2, max_size=8), ramp=st.floats(0.1, RAMP))
def test_steps_add_up(parts: list[float], ramp: float) -> None:
    pace, moment = Pace(100.0, ramp), 100.0
    for each in parts:
        moment += pace.step(moment, each, 0.01)
    assert moment - 100 == pytest.approx(pace.step(100.0, sum(parts), 0.01), rel=1e-6)


def test_without_a_pause_permits_fall_due_at_the_rate() -> None:
    assert STEADY.step(5.0, 0.1, 0.1) == 0.1


@pytest.mark.parametrize("seconds", [0.5, 2.0, 60.0])
def test_the_ramp_is_not_longer_than_the_pause(seconds: float) -> None:
    assert paused(10 + seconds, 10) == (10 + seconds, min(seconds, RAMP))


@given(burst=st.integers(1, 20), rate=st.floats(0.5, 200), cost=st.floats(0.5, 3))
def test_no_permit_is_saved_up_in_a_pause(burst: int, rate: float, cost: float) -> None:
    terms = Terms(1 / rate, burst, 1.0)
    pace = paused(20.0, 10.0)
    due, now = due_after(20.0, *terms), 10.0
    moments = []
    for _ in range(30):
        wait, due = book(due, now, 1.0, FOREVER, terms, pace)
        moments.append(now + wait)
    assert moments[0] == pytest.approx(20.0)
    gaps = [b - a for a, b in pairwise(moments)]
    assert all(each >= 1 / rate - 1e-6 for each in gaps)
    assert gaps[0] > gaps[-1] or moments[-1] < 21


@pytest.mark.parametrize("kind", [LocalBudget, LockedBudget])
def test_a_budget_is_paused_by_the_longest_pause(kind: type[LocalBudget]) -> None:
    now = 100.0
    budget: Budget = kind(RateLimitPolicy(rate=10, burst=5), lambda: now)
    assert budget.take()
    assert budget.pause(now, 10)
    assert not budget.pause(now, 5)
    assert budget.resumes() == 110
    assert not budget.take()
    assert budget.book(now, 1.0, 9.0)[0] == pytest.approx(10)
    assert budget.book(now, 1.0, FOREVER)[0] == pytest.approx(10)
    assert budget.book(now, 1.0, FOREVER)[0] > 10.5
    assert budget.pause(now, 20)
    assert budget.book(now, 1.0, -1.0)[0] == pytest.approx(20)


def test_after_the_ramp_permits_are_taken_at_once_again() -> None:
    now = [100.0]
    budget = LocalBudget(RateLimitPolicy(rate=10, burst=5), lambda: now[0])
    budget.pause(now[0], 10)
    now[0] = 109.0
    assert not budget.take()
    now[0] = 140.0
    assert not budget.take(), "it has not noticed yet"
    assert budget.book(now[0], 1.0, 0.0)[0] == 0
    assert [budget.take() for _ in range(5)] == [True] * 4 + [False]


def test_a_next_permit_that_is_put_off_leaves_reservations_alone() -> None:
    budget = LocalBudget(RateLimitPolicy(rate=10), lambda: 100.0)
    assert budget.book(100.0, 1.0, FOREVER)[0] == 0
    budget.slow_down(100.0, 3.0)
    assert budget.resumes() == 0
    assert budget.book(100.0, 1.0, FOREVER)[0] == pytest.approx(3.0)
    budget.slow_down(100.0, 1.0)
    assert budget.book(100.0, 1.0, FOREVER)[0] == pytest.approx(3.1)


def test_threads_that_pause_together_make_one_pause() -> None:
    budget = LocalBudget(RateLimitPolicy(rate=1000), lambda: 100.0)
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(budget.pause(100.0, 10))) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert budget.resumes() == 110
    assert any(told)
