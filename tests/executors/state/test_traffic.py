"""What a throttle counts, and which share it rejects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.executors.state.traffic import LAST, MOST, Traffic, counted, faded, rejected_share

COUNTS = st.builds(Traffic, st.just(0.0), st.floats(0, 50), st.floats(0, 50)).filter(
    lambda each: each.accepts <= each.requests
)


def test_the_share_is_that_of_the_published_rule() -> None:
    assert rejected_share(Traffic(0, 20, 20), 2) == 0
    assert rejected_share(Traffic(0, 20, 10), 2) == 0
    assert rejected_share(Traffic(0, 20, 4), 2) == pytest.approx((20 - 2 * 4) / 21)
    assert rejected_share(Traffic(0, 20, 4), 1.5) == pytest.approx((20 - 1.5 * 4) / 21)


@given(COUNTS, st.floats(1.01, 10))
def test_the_important_are_rejected_last_and_some_always_go_through(traffic: Traffic, ratio: float) -> None:
    shares = [rejected_share(traffic, ratio, each) for each in ("critical", "normal", None, "background")]
    assert shares == sorted(shares)
    assert shares[1] == shares[2]
    assert all(0 <= each <= MOST for each in shares)
    if traffic.accepts == traffic.requests:
        assert shares == [0, 0, 0, 0]


@given(COUNTS, st.floats(0.1, 100), st.floats(0, 1000), st.booleans())
def test_counts_fade_out_and_are_never_more_than_the_last(
    traffic: Traffic, window: float, later: float, accepted: bool
) -> None:
    after = faded(traffic, window, later)
    assert after.requests <= traffic.requests
    assert after.accepts <= after.requests + 1e-9
    more = counted(traffic, window, later, accepted=accepted)
    assert more.requests <= max(traffic.requests, LAST) + 1e-9
    assert more.accepts <= more.requests + 1e-9
    assert faded(traffic, window, 60 * window).requests < 1e-20 * 50
