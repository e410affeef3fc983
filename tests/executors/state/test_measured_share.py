"""The shares of a limit that processes use by themselves: no two of them use the same moment."""

from __future__ import annotations

import itertools
import math

import pytest

from opero.executors.state.measured_share import KNOWN, WHOLE, Claim, Turns, period_of


def claims(*used: int) -> list[Claim]:
    found = [
        Claim.of(before, own, sum(used)) for before, own in zip(itertools.accumulate((0, *used)), used, strict=False)
    ]
    assert all(found)
    return found  # type: ignore[return-value]


def moments(claim: Claim, count: int, end: float = math.inf) -> list[int]:
    found, number = [], 1000
    while len(found) < count and (number := claim.first(number)) < end:
        found.append(number)
        number += 1
    return found


@pytest.mark.parametrize("used", [(1,), (1, 1), (50, 25, 13, 12), (997, 1, 1, 1), (3,) * 40])
def test_no_moment_belongs_to_two_processes_and_each_has_its_share(used: tuple[int, ...]) -> None:
    within = [set(moments(claim, 3000, 3000)) for claim in claims(*used)]
    assert sum(map(len, within)) == len(set().union(*within))
    for own, mine in zip(used, within, strict=True):
        assert len(mine) == pytest.approx(0.9 * 2000 * own / sum(used), abs=3)


def test_the_moments_of_a_process_are_spread_evenly() -> None:
    for claim in claims(50, 30, 19, 1):
        found = moments(claim, 500)
        gaps = [after - before for before, after in itertools.pairwise(found)]
        assert max(gaps) <= 3 * WHOLE / (claim.high - claim.low)


def test_processes_without_a_share_use_what_is_left_for_them() -> None:
    for _ in range(100):
        claim = Claim.unknown()
        assert KNOWN <= claim.low < claim.high <= WHOLE
        assert len(moments(claim, 50)) == 50


def test_a_tiny_share_is_found_at_once() -> None:
    claim = Claim(5, 5 + WHOLE // 100_000)
    one, two, three = moments(claim, 3)
    assert two - one == three - two == pytest.approx(100_000, rel=0.01)


def test_turns_begin_where_others_may_have_permits_no_more_and_cost_what_they_cost() -> None:
    (claim,) = claims(1)
    turns = Turns(claim, 10.0, 995.0)
    first = turns.book(900.0, 1.0, 1e9)
    assert first == pytest.approx(100.0, abs=20)
    assert turns.book(900.0, 1.0, 5.0) > 5.0  # not booked
    second = turns.book(900.0, 1.0, 1e9)
    assert second > first
    turns.book(900.0, 50.0, 1e9)
    assert turns.book(900.0, 1.0, 1e9) == pytest.approx(second + 550, abs=60)
    assert turns.booked_ahead(900.0) == pytest.approx(0.9 * (second - first + 560), rel=0.3)


def test_a_period_has_about_a_hundred_permits() -> None:
    assert [period_of(each) for each in (0.001, 0.1, 1.0, 60.0)] == [5.0, 10.0, 100.0, 600.0]
