"""Deadlines that calls inherit from the code that makes them."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import opero
from opero import (
    AllFailedError,
    CallTimeoutError,
    ConfigError,
    Policy,
    deadline,
    remaining,
)
from opero.runtime import deadlines
from opero.runtime.clock import SYSTEM, Clock
from opero.testing import VirtualClock, disabled, virtual_clock


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def failing(_: object = None) -> None:
    raise ConnectionError("down")


# What a block says


def test_code_without_a_deadline_has_no_remaining_time() -> None:
    assert remaining() is None


@pytest.mark.parametrize("given", [2, "2s", timedelta(seconds=2)])
def test_a_block_has_the_rest_of_its_deadline(clock: VirtualClock, given: Any) -> None:
    with deadline(given):
        assert remaining() == pytest.approx(2)
        clock.advance(1.5)
        assert remaining() == pytest.approx(0.5)
        clock.advance(1)
        assert remaining() == 0
    assert remaining() is None


def test_an_inner_block_only_ever_shortens_the_time(clock: VirtualClock) -> None:
    with deadline(2):
        with deadline(5):
            assert remaining() == pytest.approx(2)
        with deadline(1):
            assert remaining() == pytest.approx(1)
        assert remaining() == pytest.approx(2)


def test_a_block_for_work_in_the_background_has_no_deadline() -> None:
    with deadline(0), deadline(None):
        assert remaining() is None
        assert Policy(retry=1).apply(lambda: 1)() == 1


def test_a_block_begins_once() -> None:
    block = deadline(1)
    with block, pytest.raises(RuntimeError, match=r"call opero.deadline\(\) again"), block:
        pass


@pytest.mark.parametrize("given", ["2 sec onds", -1, True, float("nan"), [1]])
def test_what_is_no_duration_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"opero\.deadline: "):
        deadline(given)


def test_a_task_inherits_the_deadline_and_its_parent_does_not_inherit_its(clock: VirtualClock) -> None:
    async def child() -> float | None:
        async with deadline(1):
            return remaining()

    async def main() -> None:
        async with deadline(3):
            assert await asyncio.create_task(child()) == pytest.approx(1)
            assert remaining() == pytest.approx(3)

    asyncio.run(main())


# Nothing begins after it


POLICIES: dict[str, dict[str, Any]] = {
    "retry": {"retry": {"retries": 3}},
    "rounds": {"retry": {"retries": 3, "retry_if_result": lambda _: False}},
    "timeout": {"timeout": {"attempt": 5}},
    "total": {"timeout": {"total": 5}},
    "unlimited": {"timeout": {"total": 5, "enforce": "none"}},
    "waiting": {"timeout": {"total": 5, "enforce": "wait"}},
    "breaker": {"circuit_breaker": {"consecutive_failures": 2}},
    "rate_limit": {"rate_limit": "10/s"},
    "bulkhead": {"bulkhead": 2},
    "cache": {"cache": {}},
    "all": {
        "retry": {"retries": 3},
        "timeout": {"total": 5, "attempt": 3},
        "circuit_breaker": {"consecutive_failures": 2},
        "rate_limit": "10/s",
        "bulkhead": 2,
        "cache": {},
    },
}


@pytest.mark.parametrize("name", POLICIES)
def test_no_attempt_begins_after_the_deadline(bind: Any, clock: VirtualClock, name: str) -> None:
    begun = []
    call = bind(Policy(**POLICIES[name]), lambda: begun.append(1))
    for _ in range(3):
        with deadline(0), pytest.raises(CallTimeoutError, match="the deadline of its caller has passed") as caught:
            call()
        assert (caught.value.scope, caught.value.waiting_for, caught.value.is_unbegun) == ("deadline", "attempt", True)
    assert not begun
    call()
    assert begun == [1]  # no permit, slot or probe has been taken, and the circuit has counted nothing


@pytest.mark.parametrize("name", POLICIES)
def test_a_call_within_the_deadline_is_as_any_other(bind: Any, name: str) -> None:
    call = bind(Policy(**POLICIES[name]), lambda: "done")
    with deadline(60):
        assert call() == "done"
    assert (bind.bound.stats.attempts, bind.bound.stats.calls, bind.bound.stats.timeouts) == (1, 1, 0)


def test_a_cache_hit_is_answered_after_the_deadline(bind: Any) -> None:
    call = bind(Policy(cache={}), lambda: "kept")
    call()
    with deadline(0):
        assert call() == "kept"


def test_a_fallback_answers_after_the_deadline(bind: Any) -> None:
    call = bind(Policy(retry=1, fallback={"default": "plan b"}), lambda: "never")
    with deadline(0):
        assert call() == "plan b"


def test_a_retry_that_would_begin_after_the_deadline_is_not_waited_for(bind: Any) -> None:
    call = bind(Policy(retry={"retries": 5, "min_delay": 1, "jitter": "none", "backoff_factor": 1}), failing)
    with deadlines_on(bind.clock, 2.5), pytest.raises(CallTimeoutError, match="after the deadline of its caller") as e:
        call()
    assert (e.value.scope, e.value.waiting_for, len(e.value.errors), e.value.is_unbegun) == (
        "deadline",
        "retry",
        3,
        False,
    )
    assert isinstance(e.value.__cause__, ConnectionError)
    assert bind.clock.now == 1002.0


def test_a_permit_after_the_deadline_is_not_waited_for(bind: Any) -> None:
    call = bind(Policy(rate_limit="1/min"), lambda: 1)
    call()
    with deadlines_on(bind.clock, 2), pytest.raises(CallTimeoutError, match="the deadline of its caller leaves 2") as e:
        call()
    assert (e.value.scope, e.value.waiting_for, bind.clock.now) == ("deadline", "rate_limit", 1000.0)


def deadlines_on(clock: Clock, seconds: float) -> Any:
    """A block with a deadline on a clock of its own."""
    return _On(deadlines.Deadline(clock.monotonic() + seconds, clock.monotonic))


class _On:
    def __init__(self, at: deadlines.Deadline) -> None:
        self.at = at

    def __enter__(self) -> None:
        self.token = deadlines.current.set(self.at)

    def __exit__(self, *_: object) -> None:
        deadlines.restore(self.token)


def test_a_slot_is_waited_for_until_the_deadline(clock: VirtualClock) -> None:
    async def main() -> None:
        hold = Policy(bulkhead={"max_concurrent": 1, "max_wait": 100}).apply(asyncio.sleep)
        first = asyncio.create_task(hold(50))
        await asyncio.sleep(0)
        with deadline(2), pytest.raises(CallTimeoutError, match="the deadline of its caller leaves no time") as caught:
            await hold(0)
        assert (caught.value.scope, caught.value.waiting_for) == ("deadline", "bulkhead")
        first.cancel()

    before = clock.now
    asyncio.run(main())
    assert clock.now == pytest.approx(before + 2)


def test_an_attempt_with_a_timeout_ends_at_the_deadline(clock: VirtualClock) -> None:
    slow = Policy(timeout={"attempt": 10}, circuit_breaker={"consecutive_failures": 1}).apply(asyncio.sleep)

    async def main() -> None:
        with deadline(2), pytest.raises(CallTimeoutError, match="took longer than the deadline") as caught:
            await slow(5)
        assert (caught.value.scope, caught.value.waiting_for) == ("deadline", None)

    before = clock.now
    asyncio.run(main())
    assert clock.now == pytest.approx(before + 2)
    assert slow.stats.timeouts == 1


# Limits of an outer call


def nested(outer: Policy, inner: Policy, act: Callable[[], Any], clock: Clock | None = None) -> Any:
    """An outer bound function that calls an inner one, which does `act`."""
    bound = inner.apply(act, clock=clock)
    return outer.apply(bound, clock=clock)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"total": 4}, 4),
        ({"attempt": 3}, 3),
        ({"total": 4, "attempt": 3}, 3),
        ({"total": 4, "enforce": "wait"}, 4),
        ({"total": 4, "enforce": "none"}, 4),
    ],
)
def test_an_inner_call_has_what_the_timeout_of_the_outer_one_leaves(bind: Any, limits: Any, seconds: float) -> None:
    found = []
    bind(Policy(timeout=limits), lambda: found.append(remaining()))()
    assert found == [pytest.approx(seconds)]
    assert remaining() is None


def test_a_timeout_in_shadow_sets_no_deadline(bind: Any) -> None:
    assert bind(Policy(timeout={"total": 4, "shadow": True}), remaining)() is None


@pytest.mark.parametrize("limits", [{"total": 10}, {"attempt": 10}])
def test_inner_retries_end_with_the_outer_timeout(clock: VirtualClock, limits: Any) -> None:
    begun: list[float] = []

    def act() -> None:
        begun.append(clock.now)
        raise ConnectionError("down")

    inner = Policy(retry={"retries": 50, "min_delay": 3, "jitter": "none", "backoff_factor": 1})
    start = clock.now
    with pytest.raises((CallTimeoutError, AllFailedError)):
        nested(Policy(timeout=limits), inner, act)()
    assert begun == [pytest.approx(start + each) for each in (0, 3, 6, 9)]
    assert clock.now == pytest.approx(start + 9)  # the refused wait has not been begun


def test_a_shorter_timeout_of_the_inner_call_stays_its_own(clock: VirtualClock) -> None:
    inner = Policy(timeout={"total": 2}).apply(lambda: clock.sleep(5))
    with deadline(10), pytest.raises(CallTimeoutError, match="its total timeout of 2s") as caught:
        inner()
    assert (caught.value.scope, caught.value.seconds) == ("total", 2)


def refused(call: Callable[[], Any]) -> None:
    with pytest.raises(CallTimeoutError):
        call()


def test_a_function_left_behind_in_its_thread_begins_no_more_calls() -> None:
    begun: list[float] = []
    ended = threading.Event()
    inner = Policy(retry=1).apply(lambda: begun.append(time.monotonic()))

    def act() -> None:
        try:
            inner()
            time.sleep(0.3)
            with pytest.raises(CallTimeoutError, match="the deadline of its caller has passed"):
                inner()
        finally:
            ended.set()

    outer = Policy(timeout={"attempt": 0.1}).apply(act)
    thread = threading.Thread(target=refused, args=(outer,))
    thread.start()
    thread.join(60)
    assert ended.wait(60)
    assert len(begun) == 1


def test_the_next_item_of_a_stream_has_the_idle_timeout(clock: VirtualClock) -> None:
    def numbers() -> Iterator[float | None]:
        for _ in range(3):
            clock.sleep(3)
            yield remaining()

    stream = Policy(timeout={"total": 10, "idle": 4}).apply(numbers)
    assert [*stream()] == [pytest.approx(1)] * 3
    assert remaining() is None


# The circuit breakers


def test_no_breaker_counts_what_a_deadline_has_kept_from_beginning(bind: Any) -> None:
    breaker = {"consecutive_failures": 1}
    inner: Any = Policy(circuit_breaker=breaker).apply(lambda: 1)

    def late() -> Any:
        with deadline(0):
            return inner()

    call = bind(Policy(circuit_breaker=breaker), late)
    for _ in range(3):
        with pytest.raises(CallTimeoutError, match="not begun"):
            call()
    assert bind.bound.binding.circuit_breaker.state == inner.binding.circuit_breaker.state == "closed"


def test_a_breaker_counts_an_attempt_that_the_deadline_has_ended(clock: VirtualClock) -> None:
    policy = Policy(timeout={"attempt": 10}, circuit_breaker={"consecutive_failures": 1})
    slow: Any = policy.apply(lambda: clock.sleep(5))
    with deadline(2), pytest.raises(CallTimeoutError, match="took longer than the deadline"):
        slow()
    assert slow.binding.circuit_breaker.state == "open"


# Caches


def test_a_caller_with_less_time_leaves_a_computation_to_the_others(clock: VirtualClock) -> None:
    done = []

    async def compute() -> str:
        await asyncio.sleep(5)
        done.append(1)
        return "value"

    cached = Policy(cache={}).apply(compute)

    async def hurried() -> None:
        async with deadline(1):
            await cached()

    async def main() -> None:
        patient = asyncio.create_task(cached())
        await asyncio.sleep(0)
        with pytest.raises(CallTimeoutError, match="another call computes the result") as caught:
            await hurried()
        assert (caught.value.scope, caught.value.waiting_for) == ("deadline", "cache")
        assert await patient == "value"

    asyncio.run(main())
    assert done == [1]


@pytest.mark.parametrize("options", [{}, {"errors": ["transient"], "error_ttl": 60}])
@pytest.mark.parametrize("fallback", [None, {"default": "plan b"}])
def test_what_fails_for_a_short_deadline_fails_no_caller_that_has_more_time(
    clock: VirtualClock, options: Any, fallback: Any
) -> None:
    attempts = 0

    async def compute() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.sleep(1)
            raise ConnectionError("once")
        return "value"

    policy = Policy(
        cache=options, retry={"retries": 3, "min_delay": 4, "jitter": "none", "backoff_factor": 1}, fallback=fallback
    )
    cached = policy.apply(compute)

    async def hurried() -> str:
        async with deadline(2):
            result: str = await cached()
            return result

    async def main() -> None:
        first = asyncio.create_task(hurried())
        await asyncio.sleep(0)
        patient = [asyncio.create_task(cached()) for _ in range(3)]
        if fallback is None:
            with pytest.raises(CallTimeoutError, match="after the deadline of its caller"):
                await first
        else:
            assert await first == "plan b"
        assert await asyncio.gather(*patient) == ["value"] * 3
        assert await cached() == "value"

    asyncio.run(main())
    assert attempts == 2


def test_a_refresh_in_the_background_is_not_under_the_deadline_of_the_call_that_begins_it() -> None:
    found = []
    done = threading.Event()

    def compute() -> int:
        found.append(remaining())
        if len(found) == 2:
            done.set()
        return len(found)

    cached = Policy(cache={"ttl": 0.01, "stale_ttl": 60}).apply(compute)
    cached()
    time.sleep(0.02)
    with deadline(30):
        assert cached() == 1
    assert done.wait(60)
    assert found == [None, None]


# Other processes


def test_a_deadline_arrives_in_another_process_as_the_same_moment() -> None:
    there: deadlines.Deadline = pickle.loads(
        pickle.dumps(deadlines.Deadline(SYSTEM.monotonic() + 30, SYSTEM.monotonic))
    )
    assert there.left() == pytest.approx(30, abs=5)
    assert there.monotonic is time.monotonic


def test_a_deadline_goes_to_other_machines_by_the_time_of_day() -> None:
    _, (_, time_of_day, machine) = deadlines.Deadline(SYSTEM.monotonic() + 30, SYSTEM.monotonic).__reduce__()
    there = deadlines._arrived(0.0, time_of_day, f"not {machine}")
    assert there.left() == pytest.approx(30, abs=5)


def left(_: int) -> float | None:
    return remaining()


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_items_of_a_map_have_the_deadline_of_its_caller(mode: str) -> None:
    mapped = opero.opmap(mode=mode, workers=2, progress=False)(left)
    with deadline(100):
        assert all(each is not None and 0 < each <= 100 for each in mapped(range(4)))
    assert mapped(range(4)) == [None] * 4


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_items_of_a_map_have_its_own_deadline(mode: str) -> None:
    mapped = opero.opmap(mode=mode, workers=2, progress=False, deadline=100)(left)
    assert all(each is not None and 0 < each <= 100 for each in mapped(range(4)))
    assert remaining() is None


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_map_after_the_deadline_begins_no_item(mode: str) -> None:
    mapped = opero.opmap(mode=mode, workers=2, progress=False, retries=1)(left)
    with deadline(0), pytest.raises(opero.MapError) as caught:
        mapped(range(4))
    assert not caught.value.results
    assert all(opero.errors.is_by_deadline(each) for each in caught.value.exceptions)


def test_an_async_map_has_the_deadline_of_its_caller() -> None:
    async def async_left(_: int) -> float | None:
        return remaining()

    mapped = opero.opmap(progress=False)(async_left)

    async def main() -> list[Any]:
        async with deadline(100):
            found: list[Any] = await mapped(range(3))
            return found

    assert all(0 < each <= 100 for each in asyncio.run(main()))


def test_policies_that_are_switched_off_know_no_deadline() -> None:
    bound = Policy(retry=2).apply(lambda: "plain")
    with disabled(), deadline(0):
        assert bound() == "plain"
