"""Timeouts of attempts and calls; a wait that would exceed the total timeout does not start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from opero import AllFailedError, CallTimeoutError, ConfigError, Policy, Registry, TimeoutPolicy, opero
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


# Other ways than to interrupt


@pytest.fixture(params=["sync", "async"])
def watched(request: pytest.FixtureRequest) -> Any:
    """As `run`; the function may neither be interrupted nor run in another thread."""

    def run(policy: Policy, *seconds: float) -> tuple[Any, float, Any, Slow]:
        clock = VirtualClock()
        slow = Slow(clock, *seconds)

        def sync() -> str:
            clock.advance(slow.seconds.pop(0))
            return "done"

        async def asynchronous() -> str:
            await asyncio.sleep(slow.seconds.pop(0))
            return "done"

        bound: Any = policy.apply(sync if request.param == "sync" else asynchronous, clock=clock)
        started = clock.monotonic()
        try:
            result = bound() if request.param == "sync" else clock.run(bound())
        except Exception as error:
            result = error
        return result, round(clock.monotonic() - started, 6), bound, slow

    return run


def test_an_attempt_that_is_waited_for_runs_to_its_end_and_is_judged_then(watched: Any) -> None:
    error, took, bound, _ = watched(Policy(timeout={"attempt": 2, "enforce": "wait"}), 5)
    assert (type(error), error.scope, error.seconds, took) == (CallTimeoutError, "attempt", 2.0, 5.0)
    assert bound.stats.timeouts == 1
    error, took, _, _ = watched(Policy(timeout={"total": 2, "enforce": "wait"}), 5)
    assert (type(error), error.scope, took) == (CallTimeoutError, "total", 5.0)
    assert watched(Policy(timeout={"attempt": 2, "enforce": "wait"}), 1.5)[:2] == ("done", 1.5)
    policy = Policy(timeout={"attempt": 2, "enforce": "wait"}, retry={"retries": 1, "min_delay": 1, "jitter": False})
    assert watched(policy, 5, 1)[:2] == ("done", 7.0)


def test_an_exception_of_an_attempt_that_is_waited_for_is_raised_however_late(bind: Any) -> None:
    def fails() -> None:
        bind.clock.advance(5)
        raise KeyError("late")

    call = bind(Policy(timeout={"attempt": 2, "enforce": "wait"}), fails)
    with pytest.raises(KeyError, match="late"):
        call()


def test_a_timeout_that_is_not_enforced_limits_waits_and_retries_only(watched: Any) -> None:
    assert watched(Policy(timeout={"total": 2, "enforce": "none"}), 5)[:2] == ("done", 5.0)


def test_a_timeout_that_is_not_enforced_begins_no_attempt_after_the_deadline(bind: Any, script: Any) -> None:
    policy = Policy(timeout={"total": 3, "enforce": "none"}, retry={"retries": 9, "min_delay": 2, "jitter": False})
    call = bind(policy, script(ConnectionError("down")))
    with pytest.raises(CallTimeoutError, match="the next attempt would start in 3s"):
        call()
    assert bind.slept == [2]


def test_a_result_that_came_after_the_cancellation_is_too_late() -> None:
    clock = VirtualClock()

    async def stubborn() -> str:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError:
            return "late"
        return "slept"

    async def converts() -> None:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError as error:
            raise KeyError("converted") from error

    for function, cause in ((stubborn, type(None)), (converts, KeyError)):
        bound: Any = Policy(timeout=2).apply(function, clock=clock)
        with pytest.raises(CallTimeoutError) as caught:
            clock.run(bound())
        assert type(caught.value.__cause__) is cause


# Streams


class Ticker:
    """A sync and an async generator function whose items take given times of a virtual clock."""

    def __init__(self, clock: VirtualClock, *seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.closed = 0

    def sync(self) -> Iterator[int]:
        try:
            for number, seconds in enumerate(self.seconds):
                self.clock.sleep(seconds)
                yield number
        finally:
            self.closed += 1

    async def asynchronous(self) -> AsyncIterator[int]:
        try:
            for number, seconds in enumerate(self.seconds):
                await asyncio.sleep(seconds)
                yield number
        finally:
            self.closed += 1


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Any:
    """`read(policy, *seconds)` reads a stream, and returns its items, the exception that ended it, and the function."""

    def read(policy: Policy, *seconds: float, pause: float = 0.0) -> tuple[list[int], Any, Any, Ticker]:
        clock = VirtualClock()
        ticker = Ticker(clock, *seconds)
        bound: Any = policy.apply(ticker.sync if request.param == "sync" else ticker.asynchronous, clock=clock)
        items: list[int] = []

        async def main() -> None:
            async for item in bound():
                items.append(item)
                await asyncio.sleep(pause)

        try:
            if request.param == "async":
                clock.run(main())
            else:
                for item in bound():
                    items.append(item)
                    clock.sleep(pause)
        except Exception as error:
            return items, error, bound, ticker
        return items, None, bound, ticker

    return read


@pytest.mark.parametrize("enforce", ["interrupt", "wait"])
def test_the_wait_for_each_item_is_limited(read: Any, enforce: str) -> None:
    policy = Policy(timeout={"idle": 2, "enforce": enforce})
    items, error, bound, ticker = read(policy, 1, 1.5, 3, 1)
    assert items == [0, 1]
    assert (type(error), error.scope, error.seconds) == (CallTimeoutError, "idle", 2.0)
    assert "took longer than its idle timeout of 2s for the next item" in str(error)
    assert ticker.closed == 1
    assert (bound.stats.timeouts, bound.stats.failures, bound.stats.executed) == (1, 1, 1)
    assert read(policy, 1, 1.9, 1)[:2] == ([0, 1, 2], None)


def test_the_first_item_is_limited_as_well_and_its_attempt_is_retried(read: Any) -> None:
    items, error, _, _ = read(Policy(timeout={"idle": 2}), 3)
    assert items == []
    assert (type(error), error.scope) == (CallTimeoutError, "idle")
    assert "for the first item" in str(error)
    items, error, bound, ticker = read(Policy(timeout={"idle": 2}, retry={"retries": 2, "jitter": False}), 3)
    assert [each.scope for each in error.errors] == ["idle"] * 3
    assert (bound.stats.attempts, ticker.closed) == (3, 3)


def test_the_time_that_the_reader_takes_does_not_count(read: Any) -> None:
    assert read(Policy(timeout={"idle": 2}), 1, 1, 1, pause=60)[:2] == ([0, 1, 2], None)


def test_the_shorter_of_the_limits_of_the_first_item_ends_it(read: Any) -> None:
    assert read(Policy(timeout={"idle": 5, "attempt": 2}), 3)[1].scope == "attempt"
    assert read(Policy(timeout={"idle": 2, "attempt": 5}), 3)[1].scope == "idle"
    assert read(Policy(timeout={"idle": 3, "total": 2}), 3)[1].scope == "total"
    # The others end with the first item.
    assert read(Policy(timeout={"idle": 9, "attempt": 2, "total": 4}), 1, 8, 8)[:2] == ([0, 1, 2], None)


def test_a_limit_between_items_is_refused_for_a_function_without_items() -> None:
    def sync() -> int:
        return 1

    async def asynchronous() -> int:
        return 1

    message = "is not a generator function: it has no items for timeout.idle to wait for; use timeout.attempt or"
    for function in (sync, asynchronous):
        for bind in (
            Policy(timeout={"idle": 1}).apply,
            TimeoutPolicy(idle=1).apply,
            opero(timeout={"idle": 1}),
            opero(policy=Policy(timeout={"idle": 1})),
            opero(policy="api", timeout={"idle": 1}),
        ):
            with pytest.raises(ConfigError, match=message):
                bind(function)  # type: ignore[operator]
        assert Policy(timeout={"idle": 1, "enabled": False}).apply(function) is not None


def test_in_a_profile_it_is_for_the_generators_among_its_functions() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(timeout={"idle": 2, "attempt": 20})})

    @opero(policy="api", registry=registry, clock=clock)
    def plain() -> str:
        clock.sleep(5)
        return "done"

    @opero(policy="api", registry=registry, clock=clock)
    def stream() -> Iterator[int]:
        clock.sleep(5)
        yield 1

    assert plain() == "done"
    with pytest.raises(CallTimeoutError, match="idle timeout of 2s"):
        next(stream())
    registry.check()
