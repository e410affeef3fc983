"""Latencies are sampled, weighted and bounded; rates are read off the counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import Policy, on
from opero.observe.counts import difference
from opero.observe.latency import BOUNDS, LAST, LONGEST_STRIDE, MOST_SAMPLES, Histogram, Samples
from opero.observe.stats import Stats

durations = st.floats(min_value=1e-6, max_value=3600)


@given(st.lists(durations, min_size=1, max_size=50))
def test_percentiles_are_within_a_bucket_of_the_true_ones(seconds: list[float]) -> None:
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    summary: Any = histogram.summary()
    ordered = sorted(seconds)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        true = ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
        assert summary[name] == pytest.approx(true, rel=0.0455)
    assert ordered[-1] <= summary["max"] <= ordered[-1] * 1.091
    assert summary["mean"] == pytest.approx(sum(seconds) / len(seconds))


@given(st.lists(st.tuples(durations, st.integers(1, 1000)), max_size=30), st.integers(0, 30))
def test_histograms_add_up(samples: list[tuple[float, int]], middle: int) -> None:
    whole, first, second = Histogram(), Histogram(), Histogram()
    for position, (seconds, weight) in enumerate(samples):
        whole.add(seconds, weight)
        (first if position < middle else second).add(seconds, weight)
    first.merge(json.loads(json.dumps(second.as_counts())))
    assert first.weights == whole.weights
    assert (first.samples, first.seconds) == (whole.samples, pytest.approx(whole.seconds))


@pytest.mark.parametrize("seconds", [0.0, -1e-9, 1e-300, 1e9])
def test_durations_out_of_range_are_in_the_first_or_last_bucket(seconds: float) -> None:
    histogram = Histogram()
    histogram.add(seconds)
    assert histogram.weights == {0 if seconds < 1 else LAST: 1}


def test_bounds_grow_by_a_power_of_two_every_eight_buckets() -> None:
    assert BOUNDS[159] == 1.0
    assert BOUNDS[167] == 2.0


@given(st.integers(1, 5_000_000))
def test_a_sample_stands_for_as_many_calls_as_passed(rate: int) -> None:
    samples, now, calls, weights = Samples(0), 0.0, 0, []
    samples._last = 0.0
    for _ in range(40):
        calls += samples.stride
        now += samples.stride / rate
        weights.append(samples.begin(calls, now))
    assert sum(weights) == calls
    if rate <= MOST_SAMPLES * 0.99:
        assert set(weights) == {1}
    assert weights[-1] == pytest.approx(min(LONGEST_STRIDE, max(1, rate // MOST_SAMPLES)), abs=1)


def test_every_call_is_timed_while_calls_are_rare() -> None:
    samples = Samples(0)
    samples._last = 0.0
    for calls in range(1, 21):
        assert samples.begin(calls, calls * 0.01) == samples.stride == 1


def test_the_first_call_says_nothing_of_how_frequent_calls_are() -> None:
    bound: Any = Policy(retry=1).apply(lambda: None)
    bound()
    assert bound.stats.snapshot()["latency"]["one_in"] == 1


def test_a_burst_is_sampled_and_the_samples_stand_for_nearly_all_calls() -> None:
    bound: Any = Policy(retry=1).apply(lambda: None)
    for _ in range(50_000):
        bound()
    latency = bound.stats.snapshot()["latency"]
    stood_for = sum(weight for _, weight in latency["buckets"])
    assert latency["count"] < 50_000
    assert 50_000 - LONGEST_STRIDE <= stood_for <= 50_000
    assert latency["one_in"] > 1


def test_exact_statistics_time_every_call() -> None:
    bound: Any = Policy(retry=1).apply(lambda: None)
    bound.stats.exact = True
    for _ in range(3000):
        bound()
    assert bound.stats.snapshot()["latency"]["count"] == 3000
    bound.stats.drain()
    assert bound.stats.exact
    bound.stats.exact = False
    assert bound.stats.exact is False


def test_a_listener_hears_of_every_call_from_its_subscription_on() -> None:
    bound: Any = Policy(retry=1).apply(lambda: None)
    for _ in range(20_000):
        bound()
    assert bound.stats.sample_at > bound.stats.calls
    heard: list[Any] = []
    off = on("call_succeeded", heard.append)
    try:
        for _ in range(10):
            bound()
    finally:
        off()
    assert len(heard) == 10


def test_calls_under_way_are_counted_however_they_end() -> None:
    entered, go = threading.Barrier(4), threading.Event()

    def wait(end: str) -> None:
        entered.wait(10)
        go.wait(10)
        if end != "return":
            raise {"error": ValueError, "exit": SystemExit}[end]

    bound: Any = Policy(retry=0).apply(wait)
    bound.stats.exact = True

    def call(end: str) -> None:
        with contextlib.suppress(ValueError, SystemExit):
            bound(end)

    threads = [threading.Thread(target=call, args=(end,)) for end in ("return", "error", "exit")]
    for each in threads:
        each.start()
    entered.wait(10)
    assert bound.stats.snapshot()["in_flight"] == 3
    go.set()
    for each in threads:
        each.join()
    snapshot = bound.stats.snapshot()
    assert snapshot["in_flight"] == 0
    assert snapshot["latency"]["count"] == 3


def test_a_cancelled_call_is_no_longer_under_way() -> None:
    async def forever() -> None:
        await asyncio.sleep(3600)

    bound: Any = Policy(retry=1).apply(forever)

    async def main() -> None:
        task = asyncio.ensure_future(bound())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert bound.stats.snapshot()["in_flight"] == 1
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert bound.stats.snapshot()["in_flight"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_calls_under_way_in_the_parent_are_not_under_way_in_a_forked_child() -> None:
    def fork() -> int:
        child = os.fork()
        if child == 0:
            os._exit(10 + bound.stats.snapshot()["in_flight"])
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    bound: Any = Policy(retry=0).apply(fork)
    assert bound() == 10


def test_rates_are_moving_averages_of_the_counts() -> None:
    samples = Samples(0)
    start = samples.since
    for second in range(1, 121):
        samples.tick(second * 50, second * 5, start + second)
    rates = samples.rates(start + 120)
    assert rates["calls"] == pytest.approx({"1s": 50, "1m": 50, "1h": 50})
    assert rates["failures"] == pytest.approx({"1s": 5, "1m": 5, "1h": 5})
    samples.tick(6000, 600, start + 130)
    later = samples.rates(start + 130)["calls"]
    assert later["1s"] < 0.01
    assert 40 < later["1m"] < 50
    assert later["1h"] == pytest.approx(50 * 120 / 130, rel=0.01)


def test_a_snapshot_can_be_written_as_json_before_and_after_calls() -> None:
    bound: Any = Policy(retry=0).apply(lambda: 1)
    before = bound.stats.snapshot()
    assert (before["latency"], before["in_flight"], before["rates"]["calls"]["1m"]) == (None, 0, 0.0)
    bound()
    after = json.loads(json.dumps(bound.stats.snapshot()))
    assert after["latency"]["count"] == 1
    assert after["age"] > before["age"] == 0


def test_statistics_can_be_pickled_with_their_counts_and_without_calls_under_way() -> None:
    stats = Stats("app:f", "api")
    stats.calls += 3
    stats.count_error(OSError())
    stats.end_sample(0.5, stats.begin_sample(0.0))
    stats.begin_sample(1.0)
    copy = pickle.loads(pickle.dumps(stats))
    assert copy.as_counts() == stats.as_counts()
    assert copy.snapshot()["in_flight"] == 0


def test_differences_of_counts_add_up_to_the_later_ones() -> None:
    stats = Stats()
    stats.calls += 1
    stats.count_error(KeyError("k"))
    before = stats.as_counts()
    stats.calls += 2
    stats.count_error(ConnectionError())
    stats.count_wait("bulkhead", 1.5)
    stats.end_sample(0.25, stats.begin_sample(0.0))
    grown = difference(stats.as_counts(), before)
    assert grown["errors"] == {"ConnectionError": 1}
    other = Stats()
    other.add(before)
    other.add(grown)
    assert other.as_counts() == stats.as_counts()
