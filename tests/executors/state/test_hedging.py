"""The budget of hedges, and the percentile of the latest attempts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.executors.state.hedging import GENERATION, LEAST, MOST_AT_ONCE, HedgeBudget, RecentLatency
from opero.observe.stats import Stats


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 30)), max_size=60), st.sampled_from([0.05, 0.1, 0.5, 1.0])
)
def test_hedges_never_exceed_their_share_of_the_other_attempts(asks: list[tuple[int, int]], share: float) -> None:
    stats = Stats()
    budget = HedgeBudget(stats, share)
    others = 0
    for attempts, hedges in asks:
        others += attempts
        stats.executed += attempts
        for _ in range(hedges):
            if budget.take():
                stats.hedges += 1
                stats.executed += 1
        assert stats.hedges <= share * others + 1e-6


def test_a_budget_that_is_not_spent_is_spent_in_full_later_but_for_what_is_too_much_at_once() -> None:
    stats = Stats()
    budget = HedgeBudget(stats, 0.05)
    stats.executed += 100
    assert [budget.take() for _ in range(6)] == [True] * 5 + [False]
    budget.give_back()
    assert budget.take()
    stats.executed += 100_000
    assert sum(budget.take() for _ in range(100)) == MOST_AT_ONCE


def test_counts_that_are_reset_leave_a_budget() -> None:
    stats = Stats()
    stats.executed = 1000
    budget = HedgeBudget(stats, 0.5)
    stats.drain()
    stats.executed = 4
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_a_percentile_is_known_from_the_first_thirty_on() -> None:
    recent = RecentLatency("p95")
    for _ in range(LEAST - 1):
        recent.add(0.1)
    assert recent.delay is None
    recent.add(0.1)
    assert recent.delay == pytest.approx(0.1, rel=0.1)
    assert recent.delay >= 0.1


@pytest.mark.parametrize("seed", range(10))
def test_a_share_of_slow_attempts_as_great_as_what_is_above_the_percentile_is_hedged_nearly_always(seed: int) -> None:
    random, recent = Random(seed), RecentLatency("p95")
    hedged = 0
    for number in range(5000):
        recent.add(1.0 if random.random() < 0.05 else 0.1)
        hedged += number >= 1000 and recent.delay is not None and recent.delay < 0.2
    assert hedged >= 0.8 * 4000


def test_only_the_latest_attempts_count() -> None:
    recent = RecentLatency("p90")
    for _ in range(GENERATION):
        recent.add(5.0)
    for _ in range(2 * GENERATION):
        recent.add(0.1)
    assert recent.delay == pytest.approx(0.1, rel=0.1)
    recent.watch("p50")
    assert recent.delay == pytest.approx(0.1, rel=0.1)


def test_nothing_is_measured_where_the_delay_is_fixed() -> None:
    recent = RecentLatency(0.2)
    for _ in range(100):
        recent.add(1.0)
    recent.watch("p95")
    assert recent.delay is None
