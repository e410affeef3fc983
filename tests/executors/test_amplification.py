"""Nested bound functions: what an inner one has given up on, the outer ones do not retry."""

from __future__ import annotations

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import opero
from opero import AllFailedError, CallTimeoutError, Policy

QUICK = {"retries": 3, "min_delay": 0}


def layers(innermost: Any, *policies: dict[str, Any], convert: Any = None) -> Any:
    """Nested bound functions, the first policy being that of the innermost."""

    def outer(inner: Any) -> Any:
        return lambda: inner() if convert is None else convert(inner)

    bound: Any = innermost
    for number, policy in enumerate(policies):
        bound = Policy(retry={**QUICK, **policy}).apply(bound if number == 0 else outer(bound))
    return bound


def counted(error: Exception | None = None) -> tuple[list[int], Any]:
    attempts: list[int] = []

    def act() -> None:
        attempts.append(1)
        raise ConnectionError("down") if error is None else error

    return attempts, act


def test_three_layers_of_four_attempts_make_four() -> None:
    attempts, act = counted()
    with pytest.raises(AllFailedError):
        layers(act, {}, {}, {})()
    assert len(attempts) == 4


def test_three_async_layers_of_four_attempts_make_four() -> None:
    attempts, act = counted()

    async def innermost() -> None:
        act()

    def outer(inner: Any) -> Any:
        async def call() -> None:
            await inner()

        return call

    bound: Any = Policy(retry=QUICK).apply(innermost)
    for _ in range(2):
        bound = Policy(retry=QUICK).apply(outer(bound))
    with pytest.raises(AllFailedError):
        asyncio.run(bound())
    assert len(attempts) == 4


def test_allow_lets_attempts_multiply() -> None:
    attempts, act = counted()
    with pytest.raises(AllFailedError):
        layers(act, {}, {"amplification": "allow"})()
    assert len(attempts) == 16


def test_an_error_that_the_inner_function_raises_itself_is_guarded_too() -> None:
    attempts, act = counted()
    with pytest.raises(ConnectionError):
        layers(act, {"reraise": True}, {})()
    assert len(attempts) == 4


def test_naming_the_error_of_opero_retries_it() -> None:
    attempts, act = counted()
    with pytest.raises(AllFailedError):
        layers(act, {}, {"retry_on": ["transient", AllFailedError]})()
    assert len(attempts) == 16


def test_an_inner_call_that_may_not_retry_has_not_given_up() -> None:
    attempts, act = counted()
    with pytest.raises(AllFailedError):
        layers(act, {"retries": 0}, {})()
    assert len(attempts) == 4
    attempts, act = counted()
    with pytest.raises(AllFailedError):
        layers(act, {"retry_on": ["throttled"]}, {})()
    assert len(attempts) == 4


def test_the_outer_function_retries_its_own_failures() -> None:
    seen: list[int] = []
    inner: Any = Policy(retry=QUICK).apply(lambda: "fine")

    def act() -> str:
        seen.append(1)
        if len(seen) < 3:
            raise ConnectionError("mine")
        return str(inner())

    assert Policy(retry=QUICK).apply(act)() == "fine"
    assert len(seen) == 3


def raised_from(inner: Any) -> None:
    try:
        inner()
    except AllFailedError as error:
        raise ConnectionError("converted") from error


def raised_without(inner: Any) -> None:
    try:
        inner()
    except AllFailedError:
        raise ConnectionError("that of a backup")  # noqa: B904


def in_a_group(inner: Any) -> None:
    try:
        inner()
    except AllFailedError as error:
        raise ExceptionGroup("several", [ConnectionError("another"), error]) from None


def in_a_thread(inner: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(inner).result()


def in_another_process(inner: Any) -> None:
    try:
        inner()
    except AllFailedError as error:
        raise pickle.loads(pickle.dumps(error)) from None


@pytest.mark.parametrize(
    ("convert", "number"),
    [(raised_from, 4), (raised_without, 16), (in_a_group, 4), (in_a_thread, 4), (in_another_process, 4)],
)
def test_what_counts_as_given_up_when_it_is_converted(convert: Any, number: int) -> None:
    attempts, act = counted()
    with pytest.raises((ConnectionError, AllFailedError, ExceptionGroup)):
        layers(act, {}, {}, convert=convert)()
    assert len(attempts) == number


REUSED = ConnectionError("the same object each time")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_exception_object_that_is_raised_again_is_retried_in_other_calls(kind: str) -> None:
    attempts: list[int] = []

    def act() -> None:
        attempts.append(1)
        raise REUSED

    async def act_async() -> None:
        act()

    for _ in range(3):
        attempts.clear()
        bound: Any = Policy(retry={**QUICK, "reraise": True}).apply(act if kind == "sync" else act_async)
        for number in range(1, 4):
            with pytest.raises(ConnectionError):
                bound() if kind == "sync" else asyncio.run(bound())
            assert len(attempts) == 4 * number


def test_an_exception_that_the_outer_function_catches_and_raises_itself_is_guarded() -> None:
    attempts, act = counted()

    def again(inner: Any) -> None:
        try:
            inner()
        except ConnectionError as error:
            raise error

    with pytest.raises(ConnectionError):
        layers(act, {"reraise": True}, {}, convert=again)()
    assert len(attempts) == 4


def test_an_error_of_a_task_is_guarded() -> None:
    attempts, act = counted()

    async def innermost() -> None:
        act()

    inner: Any = Policy(retry={**QUICK, "reraise": True}).apply(innermost)

    async def outer() -> None:
        await asyncio.create_task(inner())

    with pytest.raises(ConnectionError):
        asyncio.run(Policy(retry=QUICK).apply(outer)())
    assert len(attempts) == 4


def test_a_call_that_ran_out_of_time_has_given_up() -> None:
    attempts, act = counted()
    inner: Any = Policy(retry={"retries": 3, "min_delay": 30, "jitter": "none"}, timeout=5).apply(act)
    with pytest.raises(CallTimeoutError):
        Policy(retry=QUICK).apply(lambda: inner())()  # noqa: PLW0108
    assert len(attempts) == 1


def test_an_outer_attempt_that_takes_too_long_is_retried_still() -> None:
    begun: list[int] = []
    inner: Any = Policy(retry=QUICK).apply(lambda: begun.append(1))
    clock = opero.testing.VirtualClock()

    def act() -> None:
        inner()
        clock.sleep(10)

    with pytest.raises(AllFailedError):
        Policy(retry=QUICK, timeout={"attempt": 1}).apply(act, clock=clock)()
    assert len(begun) == 4


def test_items_of_a_map_within_a_bound_function_are_not_mapped_again() -> None:
    attempts: list[int] = []

    def each(_: int) -> None:
        attempts.append(1)
        raise ConnectionError("down")

    mapped: Any = opero.opmap(mode="thread", workers=1, progress=False, retry=QUICK)(each)
    with pytest.raises(opero.MapError):
        Policy(retry=QUICK).apply(lambda: mapped([1]))()
    assert len(attempts) == 4


def test_saved_rounds_are_counted() -> None:
    _, act = counted()
    outer = layers(act, {}, {})
    with pytest.raises(AllFailedError):
        outer()
    assert (outer.stats.attempts, outer.stats.retries, outer.stats.retries_saved) == (1, 0, 3)
