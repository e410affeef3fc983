"""The windows of a circuit breaker against a list of everything that happened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opero.executors.state.windows import Counts, CountWindow, TimeWindow

RESULTS = st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.booleans()), max_size=60)


@given(results=RESULTS, size=st.integers(1, 10))
def test_a_count_window_holds_the_last_calls(results: list[tuple[float, bool, bool]], size: int) -> None:
    window = CountWindow(size)
    for number, (_, failed, slow) in enumerate(results):
        window.add(0.0, failed, slow)
        last = results[max(0, number + 1 - size) : number + 1]
        assert window.counts(0.0) == Counts(len(last), sum(each[1] for each in last), sum(each[2] for each in last))


@given(results=RESULTS, seconds=st.floats(0.5, 30))
def test_a_time_window_holds_the_last_seconds_to_a_tenth(
    results: list[tuple[float, bool, bool]], seconds: float
) -> None:
    window = TimeWindow(seconds)
    now = 0.0
    happened = []
    for step, failed, slow in results:
        now += step
        window.add(now, failed, slow)
        happened.append((now, failed, slow))
        counts = window.counts(now)
        surely = [each for each in happened if each[0] > now - seconds * 0.9]
        perhaps = [each for each in happened if each[0] >= now - seconds * 1.001]
        assert len(surely) <= counts.calls <= len(perhaps)
        assert sum(each[1] for each in surely) <= counts.failures <= sum(each[1] for each in perhaps)
