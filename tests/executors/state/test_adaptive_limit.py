"""The search for the best limit, on simulated services."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.service import USUAL, Service, rate, run
from opero.executors.state.adaptive_limit import AdaptiveLimit, Sample, bounded, learn, levels_between, new_limit

KINDS = [{"variation": variation, "thrashing": thrashing} for variation in (0, 0.1, 0.3) for thrashing in (0, 0.03)]
"""How durations vary, and whether the service gets slower or only calls wait."""


def fresh(first: int = 4) -> AdaptiveLimit:
    return new_limit(1, 200, first)


def best_fixed(calls: int = 3000, **kind: Any) -> float:
    return max(rate(run(Service(**kind), calls, limit)[0], 300, calls) for limit in (7, 8, 9, 10, 12, 16))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_from_the_300th_call_on_it_is_as_good_as_the_best_fixed_limit_and_does_not_drift(kind: Any) -> None:
    best = best_fixed(**kind)
    for seed in range(3):
        ended, _, found = run(Service(seed=seed, **kind), 10_000, fresh())
        assert rate(ended, 300, 1000) >= (0.95 if kind["variation"] < 0.3 else 0.93) * best
        assert rate(ended, 300, 10_000) >= 0.95 * best
        assert rate(ended, 9000, 10_000) >= (0.95 if kind["variation"] < 0.3 else 0.92) * best
        assert all(6 <= each <= 15 for each in found[1000:])


@pytest.mark.parametrize("first", [1, 20, 200])
def test_it_finds_the_knee_from_wherever_it_begins(first: int) -> None:
    ended, state, _ = run(Service(), 4000, fresh(first))
    assert state is not None
    assert 7 <= state.found <= 10
    assert rate(ended, 3000, 4000) >= 0.95 * best_fixed()


@pytest.mark.parametrize("knee", [1, 3, 5, 13, 30, 60])
def test_it_finds_knees_anywhere(knee: int) -> None:
    ended, state, _ = run(Service(knee), 6000, fresh())
    assert state is not None
    assert 0.8 * knee <= state.found <= 1.3 * knee + 1
    assert rate(ended, 2000, 6000) >= 0.95 * knee / USUAL


@pytest.mark.parametrize("thrashing", [0, 0.03])
@pytest.mark.parametrize(("before", "after"), [(8, 16), (16, 4), (4, 12), (12, 6)])
def test_it_follows_a_knee_that_moves(before: int, after: int, thrashing: float) -> None:
    moment = 30.0

    def knee(now: float) -> int:
        return before if now < moment else after

    ended, state, _ = run(Service(knee, 0.1, thrashing), before * 600 + 4000, fresh())
    assert state is not None
    moved = sum(each < moment for each in ended)
    assert rate(ended, moved + 1000, moved + 3000) >= 0.95 * after / USUAL
    assert 0.8 * after <= state.found <= 1.4 * after + 1


def test_a_service_that_takes_longer_has_the_same_limit() -> None:
    state: AdaptiveLimit | None = fresh()
    assert state is not None
    for seconds in (1, 10, 0.1, 3):
        service = Service()
        ends = service.ends
        service.ends = lambda now, ends=ends, seconds=seconds: seconds * ends(now / seconds)  # type: ignore[method-assign]
        ended, state, _ = run(service, 3000, state)
        assert state is not None
        assert 7 <= state.found <= 10
        assert rate(ended, 1500, 3000) >= 0.95 * 8 / USUAL / seconds


def test_where_callers_do_not_need_the_limit_it_stays() -> None:
    _, state, found = run(Service(), 3000, fresh(20), most_wanted=3)
    assert state is not None
    assert (state.limit, set(found)) == (20, {20})


def test_failures_are_no_throughput() -> None:
    """From the ninth call at once on, calls fail at once."""
    state = fresh()
    for _ in range(3000):
        in_flight = state.limit
        fails = in_flight > 8 and state.measured.calls % in_flight >= 8
        state = learn(
            state, Sample(state.era, in_flight, 0.05 * (in_flight / 8 if in_flight > 8 else 1), float(not fails))
        )
    assert state.found in (7, 8)


def test_overload_lowers_the_limit_at_once() -> None:
    state = fresh(30)
    before = state.limit
    for number in range(2 * before):
        state = learn(state, Sample(state.era, before, 0.05, 0.0, overloaded=number % 5 == 0))
    assert state.limit < 0.75 * before
    assert state.found == state.limit


def test_it_goes_down_to_its_least_and_not_below() -> None:
    state = new_limit(3, 50, 10)
    for _ in range(500):
        state = learn(state, Sample(state.era, state.limit, 5.0, 0.0, overloaded=True))
    assert state.limit == 3


def test_a_call_of_an_earlier_limit_says_nothing() -> None:
    state = fresh()._replace(era=5)
    assert learn(state, Sample(4, 4, 0.05)) is state


def test_one_sample_may_stand_for_several_calls() -> None:
    one = many = new_limit(1, 200, 64)
    for _ in range(30):
        one = learn(one, Sample(0, 64, 0.25))
    for _ in range(10):
        many = learn(many, Sample(0, 64, 0.75, calls=3))
    assert one.measured == pytest.approx(many.measured)


@given(st.integers(1, 50), st.integers(0, 300))
def test_levels_reach_from_the_least_to_the_most_in_small_steps(least: int, more: int) -> None:
    levels = levels_between(least, least + more)
    assert (levels[0], levels[-1]) == (least, least + more)
    for lower, upper in itertools.pairwise(levels):
        assert lower < upper <= max(lower + 1, 1.25 * lower)


@given(
    st.tuples(st.integers(1, 20), st.integers(0, 60), st.integers(1, 80)),
    st.lists(
        st.tuples(st.integers(1, 90), st.floats(0, 10), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=90
    ),
    st.tuples(st.integers(1, 20), st.integers(0, 60)),
)
def test_it_is_within_its_bounds_whatever_happens(first: Any, samples: Any, later: Any) -> None:
    least, more, begins = first
    state = new_limit(least, least + more, begins)
    for in_flight, seconds, ok, overloaded in samples:
        state = learn(state, Sample(state.era, in_flight, seconds, ok, overloaded, calls=5))
        assert least <= state.limit <= least + more
        assert least <= state.found <= least + more
    least, more = later
    moved = bounded(state, least, least + more)
    assert least <= moved.limit <= least + more
    nearest = min(moved.levels, key=lambda each: abs(each - state.found))
    assert abs(moved.found - state.found) == abs(nearest - state.found)


def test_it_is_as_high_as_callers_need_and_follows_when_they_need_more() -> None:
    service, wanted = Service(40), 5
    _, state, found = run(service, 1500, fresh(), most_wanted=wanted)
    assert state is not None
    assert set(found[-500:]) <= {5, 6}
    service = Service(40)
    ended, state, _ = run(service, 3000, state, most_wanted=1000)
    assert state is not None
    assert 35 <= state.found <= 50
    assert rate(ended, 1000, 3000) >= 0.95 * 40 / USUAL
