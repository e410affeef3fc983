"""What a map returns or raises when items fail, its deadline passes or it is cancelled: no result is lost."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import AllFailedError, CallTimeoutError, ConfigError, Failure, MapError, OperoError, Policy, opmap
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
    """Map a sync or an async function."""
    result = function.map(*args, **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


# on_error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ordered", [True, False])
def test_on_error_return_keeps_exceptions_in_place_and_skip_omits_failed_items(mode: str, ordered: bool) -> None:
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
def test_on_error_raise_reports_each_result_and_failure_once(mode: str, ordered: bool) -> None:
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
    assert error.__cause__ is None  # a traceback shows each failure once
    assert f"{len(indices)} of 100 items failed, {len(error.results)} succeeded" in str(error)
    assert "ValueError" in str(error)


def test_a_map_error_that_was_pickled_cannot_retry() -> None:
    with pytest.raises(MapError) as caught:
        run(bound("thread"), range(5))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.results == caught.value.results
    assert [tuple(each)[:2] for each in copy.failures] == [tuple(each)[:2] for each in caught.value.failures]
    with pytest.raises(OperoError, match="map the items of its failures again"):
        copy.retry_failed()


# max_failures


@pytest.mark.parametrize("mode", MODES)
def test_a_map_ends_when_more_than_max_failures_items_have_failed(mode: str) -> None:
    with pytest.raises(MapError, match="more than max_failures=3 allows") as caught:
        run(bound(mode, on_error="skip", max_failures=3, window=8), range(1000))
    assert len(caught.value.failures) >= 4
    assert len(caught.value.failures) + len(caught.value.results) < 1000


@pytest.mark.parametrize("on_error", ["return", "skip"])
def test_as_many_failures_as_max_failures_are_allowed(on_error: Any) -> None:
    assert len(run(bound("thread", on_error=on_error, max_failures=5), range(9))) == (9 if on_error == "return" else 4)


def test_with_max_failures_on_error_raise_raises_at_the_end_with_all_failures() -> None:
    with pytest.raises(MapError) as caught:
        run(bound("thread", max_failures=50), range(20))
    assert [each.index for each in caught.value.failures] == list(range(0, 20, 2))
    assert caught.value.results == {number: number for number in range(1, 20, 2)}
    assert "max_failures" not in str(caught.value)


def test_with_max_failures_a_stream_yields_all_successes_and_raises_at_its_end() -> None:
    got = []
    with pytest.raises(MapError) as caught:
        got.extend(bound("thread", max_failures=50).stream(iter(range(20))))
    assert got == list(range(1, 20, 2))
    assert caught.value.results == {}
    assert [each.item for each in caught.value.failures] == list(range(0, 20, 2))


@pytest.mark.parametrize("share", ["25%", 0.25])
def test_a_share_of_failures_ends_a_map_once_enough_items_have_finished(share: Any) -> None:
    with pytest.raises(MapError, match=r"more than max_failures=0\.25 allows") as caught:
        run(bound("thread", on_error="skip", max_failures=share, window=8), itertools.count())
    assert len(caught.value.failures) + len(caught.value.results) >= 20


def test_a_share_of_failures_is_checked_at_the_end_of_a_short_map() -> None:
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
def test_a_map_fails_if_and_only_if_it_has_too_many_failures(
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
    # A share counts the finished items, and which have finished depends on timing.
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


# retry_failed


@pytest.mark.parametrize("mode", MODES)
def test_retry_failed_runs_the_items_that_failed_or_were_not_started(mode: str, tmp_path: Any) -> None:
    marker = tmp_path / "repaired"
    policy = Policy(parallel={"mode": mode, "workers": 2, "progress": False})
    function = policy.apply(fragile_async if mode.startswith("async") else fragile)
    with pytest.raises(MapError) as caught:
        run(function, range(200), str(marker))
    done = dict(caught.value.results)
    marker.touch()
    again = caught.value.retry_failed()
    results = asyncio.run(again) if asyncio.iscoroutine(again) else again
    assert [number for number, _ in results] == list(range(200))
    # Finished items are not run again: their results are from before the repair.
    assert all(results[index] == value for index, value in done.items())


def fragile(number: int, marker: str) -> tuple[int, bool]:
    import os

    repaired = os.path.exists(marker)
    if number == 30 and not repaired:
        raise ValueError(number)
    return number, repaired


async def fragile_async(number: int, marker: str) -> tuple[int, bool]:
    return fragile(number, marker)


def test_retry_failed_can_fail_and_be_called_again() -> None:
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
def test_retry_failed_keeps_items_that_have_not_run_when_it_fails_again(is_sized: bool) -> None:
    left = [3, 2, 1]

    def one(number: int) -> int:
        if number == 100 and left:
            raise ValueError(left.pop())
        return number

    # Item 100 ends its chunk, so many items of it are left; retried, it is sent alone, and fails before the others.
    function = opmap(mode="thread", workers=1, retries=0, progress=False)(one)
    with pytest.raises(MapError) as caught:
        function(range(1000) if is_sized else iter(range(1000)))
    error: Any = caught.value
    for _ in range(2):
        with pytest.raises(MapError) as caught:
            error.retry_failed()
        error = caught.value
    assert error.retry_failed() == list(range(1000))


def test_retry_failed_includes_items_that_were_read_from_a_generator() -> None:
    is_broken = [True]

    def one(number: int) -> int:
        if number == 3 and is_broken[0]:
            raise ValueError(number)
        return number

    function = opmap(mode="thread", workers=2, retries=0, window=4, progress=False)(one)
    with pytest.raises(MapError, match="and there may be more|not finished") as caught:
        function(number for number in range(5000))
    is_broken[0] = False
    assert caught.value.retry_failed() == list(range(5000))


def test_retry_failed_keeps_the_options_of_the_map() -> None:
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


# Deadlines


@pytest.mark.parametrize("mode", ["thread", "process", "async", "async_process"])
def test_a_deadline_ends_the_map_and_keeps_the_results(mode: str) -> None:
    policy = Policy(parallel={"mode": mode, "workers": 2, "progress": False, "deadline": 0.5, "window": 4})
    function = policy.apply(stuck_async if mode.startswith("async") else stuck)
    with pytest.raises(MapError, match=r"the map's deadline of 0\.5s has passed") as caught:
        run(function, itertools.count())
    error = caught.value
    assert isinstance(error.reason, CallTimeoutError)
    assert error.reason.scope == "deadline"
    assert error.results.items() <= {0: 0, 1: 1, 2: 2}.items()
    assert error.failures == ()


def stuck(number: int) -> int:
    if number >= 3:
        threading.Event().wait(20)
    return number


async def stuck_async(number: int) -> int:
    if number >= 3:
        await asyncio.sleep(20)
    return number


def test_a_map_that_ends_before_its_deadline_returns_its_results() -> None:
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


# Cancellation and retries


def test_cancelling_the_task_raises_with_all_results_so_far() -> None:
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
        await asyncio.sleep(0.01)  # so that the result of item 4 is received, too
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, MapError)
        return caught.value.__cause__

    error = asyncio.run(main())
    assert {0, 1, 2, 3, 4} <= set(error.results)
    assert "ended by CancelledError" in str(error)


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
def test_a_wrong_option_is_refused_when_it_is_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{message}: "):
        opmap(**options)


def test_an_unknown_option_of_a_map_is_an_unexpected_argument() -> None:
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
def test_common_arguments_that_the_function_does_not_take_are_reported_before_any_item_runs(
    args: Any, kwargs: Any, message: str
) -> None:
    started = []

    def scaled(number: int, by: int) -> int:
        started.append(number)
        return number * by

    with pytest.raises(TypeError, match=rf"scaled, mapped over items, {message}"):
        opmap(mode="thread")(scaled)(range(3), *args, **kwargs)
    assert started == []


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_builtins_without_a_signature_can_be_mapped(mode: Any) -> None:
    parallel = {"mode": mode, "workers": 1}
    assert Policy(parallel=parallel).apply(int).map(["1", "22"]) == [1, 22]
    assert Policy(parallel=parallel).apply(max).map([3, 1], 2) == [3, 2]
