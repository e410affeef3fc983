"""What a map does when items fail, time runs out, or its end comes from elsewhere: nothing that was done is lost."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import AllFailedError, CallTimeoutError, Failure, MapError, OperoError, Policy, opmap
from opero.parallel.engine.results import JUDGED_FROM
from opero.testing import VirtualClock

MODES = ["thread", "process", "async", "async_process", "auto"]


def odd_only(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(number)
    return number


async def odd_only_async(number: int) -> int:
    return odd_only(number)


def bound(mode: str, **options: Any) -> Any:
    policy = Policy(parallel={"mode": mode, "workers": 2, "progress": False, **options})
    return policy.apply(odd_only_async if mode.startswith("async") else odd_only)


def run(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Map, whichever kind of function it is."""
    result = function.map(*args, **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


# on_error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ordered", [True, False])
def test_return_puts_exceptions_in_place_and_skip_leaves_items_out(mode: str, ordered: bool) -> None:
    returned = run(bound(mode, on_error="return", ordered=ordered), range(9))
    assert len(returned) == 9
    assert sorted(each for each in returned if isinstance(each, int)) == [1, 3, 5, 7]
    assert sorted(each.args[0] for each in returned if isinstance(each, ValueError)) == [0, 2, 4, 6, 8]
    if ordered:
        assert [isinstance(each, ValueError) for each in returned] == [True, False] * 4 + [True]
    skipped = run(bound(mode, on_error="skip", ordered=ordered), range(9))
    assert (skipped if ordered else sorted(skipped)) == [1, 3, 5, 7]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ordered", [True, False])
def test_raise_carries_every_result_and_failure_so_far_once(mode: str, ordered: bool) -> None:
    with pytest.raises(MapError) as caught:
        run(bound(mode, ordered=ordered), range(100))
    error = caught.value
    indices = [each.index for each in error.failures]
    assert indices == sorted(set(indices)) != []
    assert all(isinstance(each, Failure) and each.item == each.index for each in error.failures)
    assert all(isinstance(each.exception, ValueError) for each in error.failures)
    assert error.results == {index: index for index in error.results}
    assert not set(indices) & set(error.results)
    assert len(error.exceptions) == len(indices)
    assert error.__cause__ is error.failures[0].exception
    assert f"{len(indices)} of 100 items failed, {len(error.results)} succeeded" in str(error)
    assert "ValueError" in str(error)


def test_an_error_goes_to_other_processes_without_the_way_to_try_again() -> None:
    with pytest.raises(MapError) as caught:
        run(bound("thread"), range(5))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.results == caught.value.results
    assert [tuple(each)[:2] for each in copy.failures] == [tuple(each)[:2] for each in caught.value.failures]
    with pytest.raises(OperoError, match="map the items of its failures again"):
        copy.retry_failed()


# max_failures


@pytest.mark.parametrize("mode", MODES)
def test_a_map_goes_on_until_more_items_than_max_failures_have_failed(mode: str) -> None:
    with pytest.raises(MapError, match="more than max_failures=3 allows") as caught:
        run(bound(mode, on_error="skip", max_failures=3, window=8), range(1000))
    assert len(caught.value.failures) >= 4
    assert len(caught.value.failures) + len(caught.value.results) < 1000


@pytest.mark.parametrize("on_error", ["return", "skip"])
def test_as_many_failures_as_max_failures_do_not_matter(on_error: Any) -> None:
    assert len(run(bound("thread", on_error=on_error, max_failures=5), range(9))) == (9 if on_error == "return" else 4)


def test_with_raise_a_map_that_goes_on_ends_with_all_its_failures() -> None:
    with pytest.raises(MapError) as caught:
        run(bound("thread", max_failures=50), range(20))
    assert [each.index for each in caught.value.failures] == list(range(0, 20, 2))
    assert caught.value.results == {number: number for number in range(1, 20, 2)}
    assert "max_failures" not in str(caught.value)


def test_with_raise_and_max_failures_a_stream_hands_out_what_succeeds_and_raises_at_its_end() -> None:
    got = []
    with pytest.raises(MapError) as caught:
        got.extend(bound("thread", max_failures=50).stream(iter(range(20))))
    assert got == list(range(1, 20, 2))
    assert caught.value.results == {}
    assert [each.item for each in caught.value.failures] == list(range(0, 20, 2))


@pytest.mark.parametrize("share", ["25%", 0.25])
def test_a_share_of_failures_stops_a_map_once_enough_items_tell(share: Any) -> None:
    with pytest.raises(MapError, match=r"more than max_failures=0\.25 allows") as caught:
        run(bound("thread", on_error="skip", max_failures=share, window=8), itertools.count())
    assert len(caught.value.failures) + len(caught.value.results) >= 20


def test_a_share_counts_at_the_end_of_a_short_map() -> None:
    with pytest.raises(MapError, match=r"max_failures=0\.25"):
        run(bound("thread", on_error="skip", max_failures=0.25), range(4))
    assert run(bound("thread", on_error="skip", max_failures=0.5), range(4)) == [1, 3]


@given(
    count=st.integers(0, 80),
    failing=st.sets(st.integers(0, 79)),
    most=st.one_of(st.integers(0, 20), st.floats(0, 1, exclude_min=True, exclude_max=True)),
    on_error=st.sampled_from(["raise", "return", "skip"]),
    window=st.sampled_from(["auto", 5]),
)
def test_a_map_fails_just_where_its_failures_are_too_many(
    count: int, failing: set[int], most: Any, on_error: Any, window: Any
) -> None:
    def one(number: int) -> int:
        if number in failing:
            raise ValueError(number)
        return number

    options = {"on_error": on_error, "max_failures": most, "window": window}
    function = Policy(parallel={"mode": "thread", "workers": 2, "progress": False, **options}).apply(one)
    failed = len(failing & set(range(count)))
    allowed = failed <= (most if isinstance(most, int) else most * count)
    # A share is one of those that are finished, and which are, when it is judged, is a matter of time.
    may_end = isinstance(most, float) and count > JUDGED_FROM and failed > most * JUDGED_FROM
    if allowed and (on_error != "raise" or not failed):
        expected = [each for each in range(count) if on_error == "return" or each not in failing]
        try:
            got = function.map(range(count))
        except MapError:
            assert may_end
            return
        assert [each.args[0] if isinstance(each, ValueError) else each for each in got] == expected
        return
    with pytest.raises(MapError) as caught:
        function.map(range(count))
    assert set(caught.value.results) <= set(range(count)) - failing
    assert {each.index for each in caught.value.failures} <= failing


# Trying again


@pytest.mark.parametrize("mode", MODES)
def test_what_failed_and_what_was_not_begun_can_be_run_again(mode: str, tmp_path: Any) -> None:
    marker = tmp_path / "mended"
    policy = Policy(parallel={"mode": mode, "workers": 2, "progress": False})
    function = policy.apply(fragile_async if mode.startswith("async") else fragile)
    with pytest.raises(MapError) as caught:
        run(function, range(200), str(marker))
    done = dict(caught.value.results)
    marker.touch()
    again = caught.value.retry_failed()
    results = asyncio.run(again) if asyncio.iscoroutine(again) else again
    assert [number for number, _ in results] == list(range(200))
    # What was done before is not done again: it still says that it was made before the mend.
    assert all(results[index] == value for index, value in done.items())


def fragile(number: int, marker: str) -> tuple[int, bool]:
    import os

    mended = os.path.exists(marker)
    if number == 30 and not mended:
        raise ValueError(number)
    return number, mended


async def fragile_async(number: int, marker: str) -> tuple[int, bool]:
    return fragile(number, marker)


def test_a_second_failure_can_be_tried_again_too() -> None:
    left = [3, 2, 1]

    def one(number: int) -> int:
        if number == 4 and left:
            raise ValueError(left.pop())
        return number

    error: Any = None
    with pytest.raises(MapError) as caught:
        opmap(mode="thread", workers=2, retries=0, progress=False)(one)(range(10))
    error = caught.value
    for _ in range(2):
        with pytest.raises(MapError) as caught:
            error.retry_failed()
        assert set(error.results) <= set(caught.value.results)
        error = caught.value
    assert error.retry_failed() == list(range(10))


@pytest.mark.parametrize("is_sized", [True, False])
def test_items_that_wait_to_be_tried_again_survive_another_failure(is_sized: bool) -> None:
    left = [3, 2, 1]

    def one(number: int) -> int:
        if number == 100 and left:
            raise ValueError(left.pop())
        return number

    # Item 100 comes in a chunk of many, which end with it; tried again, it comes alone, and fails before the others.
    function = opmap(mode="thread", workers=1, retries=0, progress=False)(one)
    with pytest.raises(MapError) as caught:
        function(range(1000) if is_sized else iter(range(1000)))
    error: Any = caught.value
    for _ in range(2):
        with pytest.raises(MapError) as caught:
            error.retry_failed()
        error = caught.value
    assert error.retry_failed() == list(range(1000))


def test_items_of_a_generator_that_were_read_are_not_lost_to_a_second_try() -> None:
    is_broken = [True]

    def one(number: int) -> int:
        if number == 3 and is_broken[0]:
            raise ValueError(number)
        return number

    function = opmap(mode="thread", workers=2, retries=0, window=4, progress=False)(one)
    with pytest.raises(MapError, match="and there may be more|were not begun") as caught:
        function(number for number in range(5000))
    is_broken[0] = False
    assert caught.value.retry_failed() == list(range(5000))


def test_trying_again_keeps_the_options_of_the_map() -> None:
    is_broken = [True]

    def one(number: int) -> int:
        if number in (2, 4) and (is_broken[0] or number == 2):
            raise ValueError(number)
        return number

    function = opmap(mode="thread", workers=2, retries=0, on_error="skip", max_failures=1, progress=False)(one)
    with pytest.raises(MapError) as caught:
        function(range(6))
    is_broken[0] = False
    assert caught.value.retry_failed() == [0, 1, 3, 4, 5]


# Time


@pytest.mark.parametrize("mode", ["thread", "process", "async", "async_process"])
def test_a_deadline_ends_the_map_and_keeps_what_is_done(mode: str) -> None:
    policy = Policy(parallel={"mode": mode, "workers": 2, "progress": False, "deadline": 0.5, "window": 4})
    function = policy.apply(stuck_async if mode.startswith("async") else stuck)
    with pytest.raises(MapError, match=r"the map's deadline of 0\.5s has passed") as caught:
        run(function, itertools.count())
    error = caught.value
    assert isinstance(error.reason, CallTimeoutError)
    assert error.reason.scope == "deadline"
    assert {0, 1, 2} <= set(error.results) | {0, 1, 2}
    assert error.failures == ()


def stuck(number: int) -> int:
    if number >= 3:
        threading.Event().wait(20)
    return number


async def stuck_async(number: int) -> int:
    if number >= 3:
        await asyncio.sleep(20)
    return number


def test_a_map_that_ends_in_time_does_not_care_about_its_deadline() -> None:
    assert run(bound("thread", deadline=30, on_error="skip"), range(5)) == [1, 3]


def test_a_deadline_uses_the_clock_of_the_function() -> None:
    clock = VirtualClock()

    def one(number: int) -> int:
        clock.sleep(1)
        return number

    function = Policy(parallel={"mode": "thread", "workers": 1, "window": 1, "deadline": "10s"}).apply(one, clock=clock)
    with pytest.raises(MapError, match="deadline of 10s") as caught:
        function.map(range(100))
    assert 8 <= len(caught.value.results) <= 13


# Ends from elsewhere


def test_cancelling_the_awaiting_task_carries_what_was_done() -> None:
    async def main() -> MapError:
        reached = asyncio.Event()

        async def one(number: int) -> int:
            if number == 5:
                reached.set()
                await asyncio.sleep(60)
            return number

        function = Policy(parallel={"mode": "async", "workers": 2, "progress": False}).apply(one)
        task = asyncio.create_task(function.map(range(10)))
        await reached.wait()
        await asyncio.sleep(0.01)  # one more turn for what has been finished beside it
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, MapError)
        return caught.value.__cause__

    error = asyncio.run(main())
    assert {0, 1, 2, 3, 4} <= set(error.results)
    assert "it was ended by CancelledError" in str(error)


def test_an_exhausted_retry_is_the_failure_of_its_item() -> None:
    function = Policy(retry={"retries": 2, "min_delay": 0}, parallel={"mode": "thread"}).apply(odd_only)
    with pytest.raises(MapError) as caught:
        function.map([2])
    (failure,) = caught.value.failures
    assert isinstance(failure.exception, AllFailedError)
    assert len(failure.exception.errors) == 3


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": -1}, "workers"),
        ({"batch_size": 0}, "batch_size"),
        ({"window": 0}, "window"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_failures": -1}, "max_failures"),
        ({"max_failures": "150%"}, "max_failures"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": "soon"}, "deadline"),
        ({"max_memory": "much"}, "max_memory"),
        ({"worker_retries": -1}, "worker_retries"),
        ({"on_error": "ignore"}, "on_error"),
        ({"mode": "threads"}, "mode"),
        ({"executor": 3}, "executor"),
        ({"initializer": 3}, "initializer"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_when_it_is_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"1 validation error for Policy\nparallel\.{message}\n"):
        opmap(**options)


def test_an_option_of_maps_that_does_not_exist_is_an_unexpected_argument() -> None:
    with pytest.raises(
        TypeError,
        match="odd_only, mapped .* unexpected keyword argument 'jurnal'; did you mean 'journal'",
    ):
        bound("thread").map([1], jurnal="x")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'by'"),
        ((1, 2), {}, "too many positional arguments"),
        ((1,), {"by": 2}, "multiple values for argument 'by'"),
    ],
)
def test_common_arguments_that_the_function_does_not_take_are_reported_before_anything_is_run(
    args: Any, kwargs: Any, message: str
) -> None:
    begun = []

    def scaled(number: int, by: int) -> int:
        begun.append(number)
        return number * by

    with pytest.raises(TypeError, match=rf"scaled, mapped over items, {message}"):
        opmap(mode="thread")(scaled)(range(3), *args, **kwargs)
    assert begun == []


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_builtins_that_tell_no_signature_can_be_mapped(mode: Any) -> None:
    parallel = {"mode": mode, "workers": 1}
    assert Policy(parallel=parallel).apply(int).map(["1", "22"]) == [1, 22]
    assert Policy(parallel=parallel).apply(max).map([3, 1], 2) == [3, 2]
