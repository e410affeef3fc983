"""Counts are exact: on every path, across a change of policy, and under threads."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from opero import Policy
from opero.stats import Stats


@pytest.mark.parametrize("policy", [{}, {"retry": 2}, {"circuit_breaker": 5}, {"cache": True, "timeout": 5}])
def test_calls_and_attempts_are_counted_on_every_path(bind: Any, policy: Any) -> None:
    call = bind(Policy(**policy), lambda number: number)
    for number in range(5):
        call(number)
    assert (bind.bound.stats.calls, bind.bound.stats.attempts) == (5, 5)


def test_counts_go_on_when_another_policy_comes_into_force(bind: Any) -> None:
    call = bind(Policy(), lambda number: number)
    for policy in (Policy(retry=1), Policy(circuit_breaker=5), Policy(cache=True), Policy()):
        call(1)
        call(1)
        bind.bound.binding.swap(policy)
    call(1)
    stats = bind.bound.stats
    assert (stats.calls, stats.attempts, stats.cache_hits) == (9, 8, 1)


@pytest.mark.parametrize("policy", [{}, {"retry": 2}, {"circuit_breaker": 5}])
def test_under_threads_no_call_goes_uncounted(policy: Any) -> None:
    bound = Policy(**policy).apply(lambda: None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [bound() for _ in range(5000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (bound.stats.calls, bound.stats.attempts) == (40_000, 40_000)


@pytest.mark.parametrize("bare", [True, False])
def test_counts_taken_elsewhere_are_added_once(bare: bool) -> None:
    stats = Stats()
    stats.count_bare(bare)
    stats.calls += 2
    stats.executed += 0 if bare else 2
    stats.add({**Stats().as_dict(), "calls": 3, "attempts": 5, "retries": 2, "errors": {"KeyError": 2}})
    assert (stats.calls, stats.attempts, stats.retries, stats.errors) == (5, 7, 2, {"KeyError": 2})
    counts = stats.drain()
    assert (counts["calls"], counts["attempts"]) == (5, 7)
    assert (stats.calls, stats.attempts, stats.errors) == (0, 0, {})


def test_it_shows_only_what_has_happened() -> None:
    bound = Policy().apply(lambda: 1)
    bound()
    assert repr(bound.stats) == "Stats(attempts=1, calls=1)"
