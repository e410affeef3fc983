"""Statistics are exact on every path, across policy changes, and with threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from opero import Policy, RateLimitExceededError, Registry, opero
from opero.observe.counts import MOST_NAMES
from opero.observe.stats import Stats


@pytest.mark.parametrize("policy", [{}, {"retry": 2}, {"circuit_breaker": 5}, {"cache": True, "timeout": 5}])
def test_calls_and_attempts_are_counted_on_every_path(bind: Any, policy: Any) -> None:
    call = bind(Policy(**policy), lambda number: number)
    for number in range(5):
        call(number)
    assert (bind.bound.stats.calls, bind.bound.stats.attempts) == (5, 5)


def test_counts_continue_after_a_policy_change(bind: Any) -> None:
    call = bind(Policy(), lambda number: number)
    for policy in (Policy(retry=1), Policy(circuit_breaker=5), Policy(cache=True), Policy()):
        call(1)
        call(1)
        bind.bound.binding.swap(policy)
    call(1)
    stats = bind.bound.stats
    assert (stats.calls, stats.attempts, stats.cache_hits) == (9, 8, 1)


def in_threads(target: Callable[[], Any], count: int = 8) -> None:
    """Run a function in several threads that switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=target) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("policy", [{}, {"retry": 2}, {"circuit_breaker": 5}])
def test_every_call_is_counted_with_threads(policy: Any) -> None:
    bound = Policy(**policy).apply(lambda: None)
    in_threads(lambda: [bound() for _ in range(5000)])
    assert (bound.stats.calls, bound.stats.attempts) == (40_000, 40_000)


def test_calls_stay_exact_while_others_change_which_one_is_timed_next() -> None:
    bound = opero(lambda: None)
    stats, numbers, finished, seen = bound.stats, itertools.count(-2), [], []

    def call_or_disturb() -> None:
        if next(numbers) >= 0:
            for _ in range(30_000):
                bound()
            finished.append(True)
            return
        while len(finished) < 6:
            seen.append(stats.snapshot()["calls"])
            stats.count_calls(3)
            stats.count_calls(-3)

    in_threads(call_or_disturb)
    assert stats.calls == 180_000
    assert max(seen) <= 180_003


def test_draining_leaves_a_bound_function_that_counts() -> None:
    bound = opero(lambda: None)
    for _ in range(3000):
        bound()
    assert bound.stats.drain()["calls"] == 3000
    assert bound.stats.calls == 0
    bound()
    assert (bound.stats.calls, bound.stats.attempts) == (1, 1)


@pytest.mark.parametrize("name", ["countdown", "holder", "stats"])
def test_a_parameter_may_have_the_name_of_a_variable_of_the_wrapper(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def function({name}): return {name}", namespace)
    bound = opero(namespace["function"])
    assert [bound(1), bound(**{name: 2})] == [1, 2]
    assert bound.stats.calls == 2


@pytest.mark.parametrize(
    "policy", [{}, {"retry": {"retries": 1, "min_delay": 0}}, {"fallback": {"default": 0}}, {"bulkhead": 20}]
)
def test_every_failure_is_counted_with_threads(policy: Any) -> None:
    kinds = itertools.cycle([ConnectionError, OSError, ValueError])

    def function() -> None:
        raise next(kinds)

    bound = Policy(**policy).apply(function)

    def fail() -> None:
        for _ in range(600):
            with contextlib.suppress(OSError, ValueError, ExceptionGroup):
                bound()

    in_threads(fail)
    stats, attempts = bound.stats, 9600 if "retry" in policy else 4800
    assert (stats.calls, stats.attempts) == (4800, attempts)
    assert stats.failures == (0 if "fallback" in policy else 4800)
    assert (sum(stats.errors.values()), set(stats.errors)) == (attempts, {"ConnectionError", "OSError", "ValueError"})
    assert stats.retries == attempts - 4800


def test_calls_of_tasks_in_several_threads_are_counted() -> None:
    registry = Registry({"api": Policy(retry=1)})

    @opero(policy="api", registry=registry)
    async def function() -> None:
        await asyncio.sleep(0)

    bound = registry.bind(function.__wrapped__, "api")

    async def many() -> None:
        for _ in range(20):
            await asyncio.gather(*(bound() for _ in range(10)))

    in_threads(lambda: asyncio.run(many()), 4)
    assert (bound.stats.calls, bound.stats.attempts) == (800, 800)


@pytest.mark.parametrize("policy", [{}, {"retry": 1}, {"circuit_breaker": 5}])
def test_the_call_that_resolves_a_profile_is_counted_once(policy: Any) -> None:
    late = opero(policy="api", registry=Registry({"api": Policy(**policy)}))(lambda: 1)
    for number in range(1, 4):
        late()
        assert (late.stats.calls, late.stats.attempts) == (number, number)


def test_every_call_is_counted_during_policy_changes() -> None:
    bound = Policy().apply(lambda: None)
    # Several threads that swap policies at once may find a bulkhead full for a moment.
    bulkhead = Policy(bulkhead={"max_concurrent": 50, "max_wait": None})
    policies = itertools.cycle([Policy(circuit_breaker=5), Policy(retry=1), bulkhead, Policy()])

    def call_and_swap() -> None:
        for number in range(400):
            bound()
            if number % 40 == 0:
                bound.binding.swap(next(policies))

    in_threads(call_and_swap)
    assert bound.stats.calls == 3200


def test_every_error_is_counted_with_threads() -> None:
    def broken() -> None:
        raise ValueError

    bound = Policy(fallback={"default": None}).apply(broken)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [bound() for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert bound.stats.errors == {"ValueError": 8000}


@pytest.mark.parametrize("bare", [True, False])
def test_counts_of_another_process_are_added_once(bare: bool) -> None:
    stats = Stats()
    stats.count_bare(bare)
    stats.calls += 2
    stats.executed += 0 if bare else 2
    stats.add({**Stats().as_dict(), "calls": 3, "attempts": 5, "retries": 2, "errors": {"ValueError": 2}})
    assert (stats.calls, stats.attempts, stats.retries, stats.errors) == (5, 7, 2, {"ValueError": 2})
    counts = stats.drain()
    assert (counts["calls"], counts["attempts"]) == (5, 7)
    assert (stats.calls, stats.attempts, stats.errors) == (0, 0, {})


def test_the_repr_shows_only_nonzero_counts() -> None:
    bound = Policy().apply(lambda: 1)
    bound()
    assert repr(bound.stats) == "Stats(attempts=1, calls=1)"


class AnswerError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status_code = status


def test_failed_attempts_are_counted_by_kind_and_status(bind: Any) -> None:
    failures = iter([AnswerError(503), AnswerError(503), AnswerError(429), KeyError("k"), ConnectionError()])

    def fail() -> None:
        raise next(failures)

    call = bind(Policy(retry=0), fail)
    for _ in range(5):
        with contextlib.suppress(AnswerError, KeyError, ConnectionError):
            call()
    stats = bind.bound.stats
    assert stats.kinds == {"transient": 3, "throttled": 1, "permanent": 1}
    assert stats.statuses == {"503": 2, "429": 1}
    assert stats.errors == {"AnswerError": 3, "KeyError": 1, "ConnectionError": 1}


def test_retries_that_could_not_help_are_counted_as_saved(bind: Any) -> None:
    failures = iter([ConnectionError(), KeyError("k")])

    def fail() -> None:
        raise next(failures)

    call = bind(Policy(retry={"retries": 4, "min_delay": 0}), fail)
    with contextlib.suppress(KeyError, ExceptionGroup):
        call()
    stats = bind.bound.stats
    assert (stats.retries, stats.retries_saved) == (1, 3)


def test_rejections_and_waits_are_counted_by_what_caused_them(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": "20/s", "burst": 1, "max_wait": 1}), lambda: 1)
    call()
    call()
    stats = bind.bound.stats
    assert stats.waits == 1
    assert stats.waited_for == {"rate_limit": stats.waited}
    call = bind(Policy(rate_limit={"rate": "1/h", "burst": 1, "max_wait": 0}), lambda: 1)
    call()
    with contextlib.suppress(RateLimitExceededError):
        call()
    assert bind.bound.stats.rejected_by == {"rate_limit": 1}


def test_the_names_of_errors_are_bounded() -> None:
    stats = Stats()
    for number in range(MOST_NAMES + 50):
        stats.count_error(type(f"Error{number}", (Exception,), {})())
    assert len(stats.errors) == MOST_NAMES + 1
    assert stats.errors["other"] == 50
    assert stats.kinds == {"unknown": MOST_NAMES + 50}
