"""Timeouts of attempts and calls; a wait that would exceed the total timeout does not start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from opero import AllFailedError, CallTimeoutError, Policy
from opero.testing import VirtualClock


class Slow:
    """Sync and async functions whose calls take given times of a virtual clock, one after the other."""

    def __init__(self, clock: VirtualClock, *seconds: float) -> None:
        self.clock = clock
        self.seconds = list(seconds)
        self.ended: list[str] = []

    def sync(self) -> str:
        try:
            self.clock.sleep(self.seconds.pop(0))
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        return "done"

    async def asynchronous(self) -> str:
        try:
            await asyncio.sleep(self.seconds.pop(0))
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        return "done"


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    """`run(policy, *seconds)` calls a slow function and returns its result or exception, its duration, and itself."""

    def run(policy: Policy, *seconds: float) -> tuple[Any, float, Any, Slow]:
        clock = VirtualClock()
        slow = Slow(clock, *seconds)
        bound: Any = policy.apply(slow.sync if request.param == "sync" else slow.asynchronous, clock=clock)
        started = clock.monotonic()
        try:
            result = bound() if request.param == "sync" else clock.run(bound())
        except Exception as error:
            result = error
        return result, round(clock.monotonic() - started, 6), bound, slow

    return run


def test_an_attempt_that_takes_too_long_is_interrupted(run: Any) -> None:
    error, took, bound, slow = run(Policy(timeout={"attempt": 2}), 5)
    assert (type(error), error.scope, error.seconds, took) == (CallTimeoutError, "attempt", 2.0, 2.0)
    assert isinstance(error, TimeoutError)
    assert slow.ended in (["Interruption"], ["CancelledError"])
    assert (bound.stats.timeouts, bound.stats.errors) == (1, {"CallTimeoutError": 1})


def test_an_attempt_that_timed_out_is_retried(run: Any) -> None:
    result, took, bound, _ = run(Policy(timeout={"attempt": 2}, retry={"jitter": False, "min_delay": 1}), 5, 1)
    assert (result, took, bound.stats.recoveries) == ("done", 4.0, 1)


def test_an_attempt_that_ends_in_time_is_not_affected(run: Any) -> None:
    assert run(Policy(timeout={"attempt": 2, "total": 3}), 1.9)[:2] == ("done", 1.9)


def test_the_total_timeout_covers_attempts_and_delays(run: Any) -> None:
    policy = Policy(timeout={"attempt": 3, "total": 5}, retry={"jitter": False, "min_delay": 1, "retries": 9})
    error, took, _, slow = run(policy, 4, 4, 4)
    assert (type(error), error.scope, took) == (CallTimeoutError, "total", 5.0)
    assert [type(each) for each in error.errors] == [CallTimeoutError]
    assert error.__cause__ is error.errors[-1]
    assert len(slow.ended) == 2  # the second attempt was interrupted at the total timeout


def test_a_delay_that_exceeds_the_total_timeout_does_not_start(run: Any) -> None:
    policy = Policy(timeout={"attempt": 1, "total": 5}, retry={"jitter": False, "min_delay": 10})
    error, took, bound, _ = run(policy, 2)
    assert (type(error), error.scope, took) == (CallTimeoutError, "total", 1.0)
    assert "the next attempt would start in 10s, after the total timeout in 4s" in str(error)
    assert [type(each) for each in error.errors] == [CallTimeoutError]
    assert bound.stats.retries == 0


def test_a_wait_for_a_permit_that_exceeds_the_total_timeout_does_not_start(bind: Any) -> None:
    call = bind(Policy(timeout=2, rate_limit=0.1, retry=3), lambda: 1)
    assert call() == 1
    before = bind.clock.monotonic()
    with pytest.raises(CallTimeoutError, match="next rate-limit permit is 10s away, and the total timeout leaves 2s"):
        call()
    assert bind.clock.monotonic() == before
    assert bind.bound.stats.attempts == 1


def test_a_wait_for_a_bulkhead_slot_ends_at_the_total_timeout() -> None:
    clock = VirtualClock()

    async def function() -> None:
        await asyncio.sleep(10)

    bound = Policy(timeout={"total": 2}, bulkhead={"max_concurrent": 1, "max_wait": None}).apply(function, clock=clock)
    other = Policy(bulkhead={"max_concurrent": 1}).apply(function, clock=clock)
    assert other is not None

    async def main() -> None:
        first = asyncio.create_task(bound())
        await asyncio.sleep(0.5)
        started = clock.monotonic()
        with pytest.raises(CallTimeoutError) as caught:
            await bound()
        assert clock.monotonic() - started <= 2.0
        assert caught.value.scope == "total"
        with pytest.raises(CallTimeoutError):
            await first

    clock.run(main())


def test_a_timeout_error_of_the_function_itself_is_not_converted(bind: Any, script: Any) -> None:
    own = TimeoutError("mine")
    with pytest.raises(TimeoutError) as caught:
        bind(Policy(timeout={"attempt": 5, "total": 9}), script(own))()
    assert caught.value is own


def test_the_timeout_error_contains_earlier_errors_even_with_reraise(bind: Any, script: Any) -> None:
    policy = Policy(
        timeout=3, retry={"retries": 9, "jitter": False, "min_delay": 1, "backoff_factor": 1, "reraise": True}
    )
    with pytest.raises(CallTimeoutError) as caught:
        bind(policy, script(ConnectionError("down")))()
    assert [str(error) for error in caught.value.errors] == ["down"] * 3
    assert bind.slept == [1, 1]


def test_a_nested_call_has_its_own_deadline(bind: Any) -> None:
    clock = VirtualClock()
    inner = Policy(timeout=1).apply(lambda: clock.sleep(5), clock=clock)
    outer: Any = Policy(timeout=9, retry={"retries": 2, "jitter": False, "min_delay": 1, "backoff_factor": 1}).apply(
        inner, clock=clock
    )
    started = clock.monotonic()
    with pytest.raises(AllFailedError) as caught:
        outer()
    assert [error.scope for error in caught.value.errors] == ["total"] * 3  # type: ignore[attr-defined]
    assert clock.monotonic() - started == pytest.approx(5)


def test_a_cancelled_caller_stays_cancelled() -> None:
    clock = VirtualClock()
    slow = Slow(clock, 9)
    bound = Policy(timeout={"attempt": 5}, retry=3).apply(slow.asynchronous, clock=clock)

    async def main() -> None:
        task = asyncio.create_task(bound())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run(main())
    assert slow.ended == ["CancelledError"]
    assert bound.stats.attempts == 1
