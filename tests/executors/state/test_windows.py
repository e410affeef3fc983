"""The windows of a circuit breaker against a list of everything that happened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opero.executors.state.windows import Counts, CountWindow, TimeWindow, new_window

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


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 12), st.booleans(), st.booleans(), st.none() | st.integers(0, 20)), max_size=40
    ),
    length=st.sampled_from([1, 4, 9, 10.0, 40.0]),
    resized=st.none() | st.sampled_from([2, 6, 20.0, 80.0]),
)
def test_the_result_of_a_failed_call_can_be_replaced_while_the_window_holds_it(
    steps: list[tuple[float, bool, bool, int | None]], length: int | float, resized: int | float | None
) -> None:
    """A window in which results are replaced counts as one in which calls had those results from the beginning."""

    def expected() -> Counts:
        window = new_window(length)
        for number, end in enumerate(ends):
            window = window.resized(resized) if number == resized_at and resized is not None else window
            window.add(*end)
        if resized_at == len(ends) and resized is not None:
            window = window.resized(resized)
        return window.counts(now)

    now, resized_at = 0.0, -1
    ends: list[tuple[float, bool, bool]] = []
    tested = new_window(length)
    for number, (seconds, failed, slow, which) in enumerate(steps):
        now += seconds
        if number == len(steps) // 2 and resized is not None:
            tested, resized_at = tested.resized(resized), len(ends)
        if which is None or which >= len(ends):
            ends.append((now, failed, slow))
            tested.add(now, failed, slow)
        else:
            then, was_failed, was_slow = ends[-1 - which]
            is_held = which < tested.counts(now).calls
            if was_failed:
                assert tested.replace(now, which, failed, slow, was_slow=was_slow) is is_held
                if is_held:
                    ends[-1 - which] = (then, failed, slow)
        assert tested.counts(now) == expected()
