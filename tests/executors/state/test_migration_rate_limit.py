"""What a rate limit keeps when its policy is replaced: the moment of the next permit, and what is reserved."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import Policy, RateLimitExceededError, RateLimitPolicy
from opero.executors.rate_limit import RateLimitExecutor
from opero.executors.state.budget import LocalBudget, LockedBudget
from opero.testing import VirtualClock


@pytest.fixture(params=[LocalBudget, LockedBudget], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opero.executors.state.budget.HAS_GLOBAL_LOCK", request.param is LocalBudget)


def make(clock: VirtualClock, rate: float, burst: int = 1, cost: Any = 1.0) -> RateLimitExecutor:
    return RateLimitExecutor(RateLimitPolicy(rate=rate, burst=burst, cost=cost), clock, "f")


def wait(limiter: RateLimitExecutor, cost: float = 1.0) -> float:
    """Reserve permits: seconds until they fall due."""
    return limiter.ask(lambda budget: budget.book(limiter.clock.monotonic(), cost, float("inf")))[0]


def replaced(old: RateLimitExecutor, rate: float, burst: int = 1, cost: Any = 1.0) -> RateLimitExecutor:
    new = make(old.clock, rate, burst, cost)  # type: ignore[arg-type]
    new.migrate_from(old)
    return new


@pytest.mark.parametrize("rate", [0.1, 1.0, 1000.0])
@pytest.mark.parametrize("burst", [1, 5])
def test_the_next_permit_keeps_its_moment_and_later_ones_follow_at_the_new_rate(rate: float, burst: int) -> None:
    limiter = make(VirtualClock(), rate=2.0, burst=3)
    assert [wait(limiter) for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    limiter = replaced(limiter, rate, burst)
    assert [wait(limiter) for _ in range(2)] == pytest.approx([1.5, 1.5 + 1 / rate])


def test_permits_that_are_saved_up_stay_as_many_as_the_new_burst_holds() -> None:
    for rate, burst, left in [(1000.0, 9, 3), (0.001, 9, 3), (1.0, 2, 2), (4.0, 3, 3)]:
        limiter = make(VirtualClock(), rate=1.0, burst=5)
        wait(limiter), wait(limiter)
        limiter = replaced(limiter, rate, burst)
        limiter.clock.advance(1e-6)  # type: ignore[attr-defined]  # what is rounded is less
        assert [limiter.own.take() for _ in range(left + 1)] == [True] * left + [False], (rate, burst)


def test_a_greater_burst_is_saved_up_at_the_rate_and_not_given_at_once() -> None:
    limiter = make(VirtualClock(), rate=1.0)
    limiter = replaced(limiter, rate=1.0, burst=4)
    assert [limiter.own.take() for _ in range(2)] == [True, False]
    limiter.clock.advance(100)  # type: ignore[attr-defined]
    assert [limiter.own.take() for _ in range(5)] == [True] * 4 + [False]


def test_a_new_cost_counts_from_the_next_call_on(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": 1, "burst": 10, "max_wait": 0}), lambda size=1: size)
    call()
    bind.bound.binding.swap(Policy(rate_limit={"rate": 1, "burst": 10, "max_wait": 0, "cost": 4}))
    call(), call()
    with pytest.raises(RateLimitExceededError, match="is 3s away"):
        call()
    bind.bound.binding.swap(Policy(rate_limit={"rate": 1, "burst": 10, "max_wait": 0, "cost": "size"}))
    call(1)
    with pytest.raises(RateLimitExceededError, match="is 2s away"):
        call(2)


def test_waiting_calls_keep_their_permits_and_max_wait_and_are_not_overtaken() -> None:
    clock = VirtualClock()
    started: list[tuple[str, float]] = []

    async def function(name: str) -> None:
        started.append((name, clock.now - 1000))

    bound: Any = Policy(rate_limit={"rate": 1, "max_wait": 100}).apply(function, clock=clock)

    async def main() -> None:
        tasks = [asyncio.create_task(bound(f"old {number}")) for number in range(3)]
        await asyncio.sleep(0.5)
        bound.binding.swap(Policy(rate_limit={"rate": 1000, "max_wait": 5}))
        tasks += [asyncio.create_task(bound(f"new {number}")) for number in range(2)]
        await asyncio.gather(*tasks)

    clock.run(main())
    assert [name for name, _ in started] == ["old 0", "old 1", "old 2", "new 0", "new 1"]
    assert [moment for _, moment in started] == pytest.approx([0, 1, 2, 3, 3.001], abs=1e-5)


def test_max_wait_is_the_old_one_for_calls_under_way_and_the_new_one_from_then_on(bind: Any) -> None:
    def function(do: Any = None) -> None:
        if do:
            do()

    call = bind(Policy(rate_limit={"rate": 1, "max_wait": 0}, retry={"retries": 1, "retry_on": KeyError}), function)

    def reload_and_fail() -> None:
        bind.bound.binding.swap(Policy(rate_limit={"rate": 1, "max_wait": 5}))
        raise KeyError

    with pytest.raises(RateLimitExceededError, match=r"max_wait is 0\.0s"):
        call(reload_and_fail)
    call()


def test_the_new_limit_refuses_what_the_old_one_has_spent(bind: Any) -> None:
    call = bind(Policy(rate_limit={"rate": 0.1, "max_wait": 0}), lambda: None)
    call()
    for rate in (100, 0.1, 7):
        bind.bound.binding.swap(Policy(rate_limit={"rate": rate, "max_wait": 1}))
        with pytest.raises(RateLimitExceededError, match="is 10s away"):
            call()
    bind.clock.advance(10)
    call()


def test_a_limit_that_is_removed_or_switched_off_loses_its_state(bind: Any) -> None:
    policy = Policy(rate_limit={"rate": 0.1, "max_wait": 0})
    call = bind(policy, lambda: None)
    for without in (Policy(), Policy(rate_limit={"rate": 1, "enabled": False})):
        call()
        bind.bound.binding.swap(without)
        call()
        bind.bound.binding.swap(policy)
    call()


def test_an_equal_policy_keeps_its_executor(bind: Any) -> None:
    bind(Policy(rate_limit=5), lambda: None)
    before = bind.bound.binding.pipeline.executors["rate_limit"].limiter
    bind.bound.binding.swap(Policy(rate_limit=5, retry=1))
    assert bind.bound.binding.pipeline.executors["rate_limit"].limiter is before


def test_an_executor_that_is_put_in_force_again_continues_with_the_current_state() -> None:
    clock = VirtualClock()
    first = make(clock, rate=1.0)
    second = replaced(first, rate=10.0)
    assert wait(second) == 0
    first.migrate_from(second)
    assert wait(second) == pytest.approx(0.1)
    assert wait(first) == pytest.approx(1.1)
    first.migrate_from(first)
    assert wait(second) == pytest.approx(2.1)


def test_an_executor_that_has_been_used_already_gives_no_permit_twice() -> None:
    clock = VirtualClock()
    old, new = make(clock, rate=1.0), make(clock, rate=2.0)
    assert (wait(new), wait(new)) == (0, 0.5)
    new.migrate_from(old)
    assert (wait(old), wait(new)) == (1.0, 1.5)


POLICIES = st.tuples(st.sampled_from([0.1, 1.0, 3.0, 50.0]), st.integers(1, 6))


@given(
    POLICIES,
    st.lists(st.one_of(POLICIES, st.floats(0, 4), st.integers(0, 2)), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.7, float("inf")]),
)
def test_no_window_of_time_holds_more_permits_than_the_greater_rate_and_burst_allow(
    first: tuple[float, int], steps: list[Any], patience: float
) -> None:
    clock = VirtualClock()
    executors = [make(clock, *first)]
    grants: list[float] = []
    for step in steps:
        if isinstance(step, tuple):
            executors.append(replaced(executors[-1], *step))
        elif isinstance(step, float):
            clock.advance(step)
        else:  # a call of the newest policy, or of one before it
            limiter = executors[-1 - min(step, len(executors) - 1)]
            if limiter.own.take():
                grants.append(clock.now)
            elif (wait := limiter.ask(lambda budget: budget.book(clock.now, 1.0, patience))[0]) <= patience:
                grants.append(clock.now + wait)
    assert grants == sorted(grants)  # no call overtakes one that has reserved
    rate, burst = (max(each) for each in zip(first, *(step for step in steps if isinstance(step, tuple)), strict=True))
    for at, start in enumerate(grants):
        for count, moment in enumerate(grants[at:], 1):
            assert count <= burst + (moment - start) * rate + 1e-6


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4), st.booleans()), max_size=40),
    st.sampled_from([0.5, 2.0, 20.0]),
    st.integers(1, 5),
)
def test_reloads_that_change_only_max_wait_change_no_permit(
    steps: list[tuple[float, int, bool]], rate: float, burst: int
) -> None:
    clock = VirtualClock()
    one, other = make(clock, rate, burst), make(clock, rate, burst)
    for passed, cost, reloads in steps:
        clock.advance(passed)
        if reloads:
            other = replaced(other, rate, burst)
        assert wait(one, cost) == pytest.approx(wait(other, cost), abs=1e-6)


def test_after_many_reloads_old_executors_are_gone_and_the_first_one_still_works() -> None:
    clock = VirtualClock()
    first = make(clock, rate=1.0)
    newest, gone = first, []
    for number in range(300):
        newest = replaced(newest, rate=1.0 + number)
        gone.append(weakref.ref(newest))
    assert wait(first) == 0
    assert wait(newest) == pytest.approx(1 / 300)
    gc.collect()
    assert [each for each in gone if each() not in (None, newest)] == []
    counted = [each for each in gc.get_objects() if isinstance(each, LocalBudget) and each.successor is newest.own]
    assert len(counted) == 2


@pytest.mark.parametrize("_", range(3))
def test_under_threads_each_permit_is_given_once_while_policies_are_replaced(_: int) -> None:
    bound: Any = Policy(rate_limit={"rate": 0.001, "burst": 600, "max_wait": 0}).apply(lambda: None)
    taken: list[int] = []
    barrier = threading.Barrier(5)

    def use() -> None:
        barrier.wait(30)
        count = 0
        for _ in range(400):
            try:
                bound()
                count += 1
            except RateLimitExceededError:
                pass
        taken.append(count)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait(30)
    for number in range(200):
        bound.binding.swap(Policy(rate_limit={"rate": 0.001, "burst": 600 + number % 2, "max_wait": 0}))
    for thread in threads:
        thread.join(30)
    assert sum(taken) == 600
