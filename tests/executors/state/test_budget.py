"""The decisions about a rate limit's budget, as functions of values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import RateLimitPolicy
from opero.executors.state.budget import FOREVER, Terms, book, migrated, refund

NOW = 100.0
RATES = st.floats(0.1, 100)
BURSTS = st.integers(1, 6)
TERMS = st.builds(lambda rate, burst: Terms.of(RateLimitPolicy(rate=rate, burst=burst)), RATES, BURSTS)
DEBTS = st.floats(-10, 10)
"""Seconds from now to `due`."""


def wait_for(cost: float, due: float, terms: Terms, now: float = NOW) -> float:
    return book(due, now, cost, -1.0, terms)[0]


def test_terms_are_those_of_the_policy() -> None:
    assert Terms.of(RateLimitPolicy(rate=4, burst=3, cost=2)) == (0.25, 3, 2)
    assert Terms.of(RateLimitPolicy(rate=4, cost="size")) == (0.25, 1, 0)


def test_permits_fall_due_one_interval_after_the_other_once_the_burst_is_used_up() -> None:
    terms, due, waits = Terms.of(RateLimitPolicy(rate=2, burst=3)), 0.0, []
    for _ in range(5):
        wait, due = book(due, NOW, 1.0, FOREVER, terms)
        waits.append(wait)
    assert waits == [0, 0, 0, 0.5, 1.0]


@given(DEBTS, st.floats(0, 8), st.floats(-1, 5), TERMS)
def test_what_would_wait_longer_than_its_patience_reserves_nothing(
    debt: float, cost: float, patience: float, terms: Terms
) -> None:
    due = NOW + debt
    wait, booked = book(due, NOW, cost, patience, terms)
    assert wait >= 0
    assert wait == wait_for(cost, due, terms)
    if wait > patience:
        assert booked == max(due, NOW)
    else:
        assert booked == max(due, NOW) + cost * terms.interval


@given(DEBTS, st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 4)), min_size=1, max_size=40), TERMS)
def test_no_span_of_time_has_more_permits_than_the_burst_and_what_falls_due_in_it(
    debt: float, calls: list[tuple[float, float]], terms: Terms
) -> None:
    due, now = NOW + debt, NOW
    grants: list[tuple[float, float]] = []
    for step, share in calls:
        now += step
        cost = share / 4 * terms.burst
        wait, due = book(due, now, cost, FOREVER, terms)
        grants.append((now + wait, cost))
    for begin, _ in grants:
        for end, _ in grants:
            if end >= begin:
                held = sum(cost for moment, cost in grants if begin <= moment <= end)
                assert held <= terms.burst + (end - begin) / terms.interval + 1e-6


@given(DEBTS, st.floats(0.1, 4), st.floats(0.1, 4), TERMS)
def test_a_reservation_is_given_back_only_while_no_other_follows_it(
    debt: float, cost: float, other: float, terms: Terms
) -> None:
    before = NOW + debt
    _, after = book(before, NOW, cost, FOREVER, terms)
    assert refund(after, (before, after)) == before
    _, later = book(after, NOW, other, FOREVER, terms)
    assert refund(later, (before, after)) == later


@given(DEBTS, TERMS, TERMS)
def test_a_new_policy_keeps_the_moment_of_the_next_permit(debt: float, before: Terms, after: Terms) -> None:
    due = NOW + debt
    wait = wait_for(1.0, due, before)
    assert wait_for(1.0, migrated(due, NOW, before, after), after) == pytest.approx(wait, abs=1e-6)


@given(DEBTS, TERMS, TERMS)
def test_a_new_policy_keeps_permits_that_are_saved_up_as_many_as_its_burst_holds(
    debt: float, before: Terms, after: Terms
) -> None:
    def saved(due: float, terms: Terms) -> float:
        return terms.burst - max(0.0, due - NOW) / terms.interval

    due = NOW + debt
    if saved(due, before) >= 1:
        kept = saved(migrated(due, NOW, before, after), after)
        assert kept == pytest.approx(min(saved(due, before), after.burst), abs=1e-4)


@given(DEBTS, st.floats(0, 8), TERMS)
def test_equal_terms_change_nothing(debt: float, cost: float, terms: Terms) -> None:
    due = NOW + debt
    kept = migrated(due, NOW, terms, terms)
    assert wait_for(cost, kept, terms) == pytest.approx(wait_for(cost, due, terms), abs=1e-6)
