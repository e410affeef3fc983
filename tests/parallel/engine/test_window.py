"""Order, read-ahead and sources of maps, and streams that fail or whose reader stops."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import MapError, Policy, opmap
from parallel.functions import square, squares

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

WORKERS = 2
MODES = ["thread", "process", "async", "async_process", "auto"]


def plain(number: int) -> int:
    return number * 10


async def plain_async(number: int) -> int:
    await asyncio.sleep(0)
    return number * 10


def mapped(mode: str, **options: Any) -> Any:
    function = plain_async if mode.startswith("async") else plain
    return opmap(mode=mode, workers=WORKERS, progress=False, retries=0, **options)(function)  # type: ignore[call-overload]


class Source:
    """Numbers from 0 on, and how many of them were read."""

    def __init__(self, end: float = float("inf")) -> None:
        self.read = 0
        self.end = end

    def __iter__(self) -> Iterator[int]:
        while self.read < self.end:
            self.read += 1
            yield self.read - 1


class Reader:
    """Reads a stream of either kind, step by step."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.runner = asyncio.Runner() if hasattr(stream, "__anext__") else None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self.runner is None:
            self.stream.close()
        else:
            self.runner.run(self.stream.aclose())
            self.runner.close()

    def __next__(self) -> Any:
        return next(self.stream) if self.runner is None else self.runner.run(anext_of(self.stream))

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield next(self)
            except (StopIteration, StopAsyncIteration):
                return

    def read_into(self, got: list[Any]) -> None:
        for each in self:
            got += [each]


def listed(result: Any) -> Any:
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


async def anext_of(stream: Any) -> Any:
    return await anext(stream)


# Order


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_yields_every_result_once(mode: str, ordered: bool) -> None:
    with Reader(mapped(mode, ordered=ordered).stream(range(2500))) as reader:
        got = list(reader)
    assert (got if ordered else sorted(got)) == [number * 10 for number in range(2500)]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_result_does_not_wait_for_items_that_were_read_with_it(ordered: bool) -> None:
    async def run() -> list[int]:
        go_on = asyncio.Event()

        async def wait(number: int) -> int:
            if number:
                await go_on.wait()
            return number

        stream = opmap(mode="async", workers=8, ordered=ordered, progress=False)(wait).stream(range(8))
        got = [await anext(stream)]
        go_on.set()
        return got + [each async for each in stream]

    assert asyncio.run(asyncio.wait_for(run(), 30)) == list(range(8))


@given(
    count=st.integers(0, 60),
    workers=st.integers(1, 5),
    window=st.one_of(st.just("auto"), st.integers(1, 20)),
    batch_size=st.one_of(st.none(), st.integers(1, 7)),
    is_sized=st.booleans(),
    late=st.sets(st.integers(0, 59), max_size=4),
    failing=st.sets(st.integers(0, 59), max_size=5),
    on_error=st.sampled_from(["return", "skip"]),
    ordered=st.booleans(),
)
def test_results_are_those_of_a_loop_with_any_options(
    count: int,
    workers: int,
    window: Any,
    batch_size: int | None,
    is_sized: bool,
    late: set[int],
    failing: set[int],
    on_error: Any,
    ordered: bool,
) -> None:
    gate = threading.Event()

    def one(number: int) -> int:
        if number in late:
            gate.wait(0.001)
        if number in failing:
            raise ValueError(number)
        return number * 10

    def many(numbers: list[int]) -> list[int]:
        return [number * 10 for number in numbers]

    batched = batch_size is not None
    options = {"workers": workers, "window": window, "on_error": on_error, "ordered": ordered, "batch_size": batch_size}
    policy = Policy(parallel={"mode": "thread", "progress": False, **options})
    function = policy.apply(many if batched else one)
    expected: list[Any] = [number * 10 for number in range(count) if batched or number not in failing]
    if on_error == "return" and not batched:
        expected = [repr(ValueError(each)) if each in failing else each * 10 for each in range(count)]

    def shown(results: Any) -> list[Any]:
        plain = [repr(each) if isinstance(each, Exception) else each for each in results]
        return plain if ordered else sorted(plain, key=str)

    if not ordered:
        expected.sort(key=str)
    items = range(count) if is_sized else iter(range(count))
    assert shown(function.stream(items)) == expected
    assert shown(function.map(range(count) if is_sized else iter(range(count)))) == expected


# Read-ahead


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("window", [1, 7, 40])
def test_the_source_is_never_more_than_the_window_ahead_of_the_reader(mode: str, ordered: bool, window: int) -> None:
    source = Source()
    with Reader(mapped(mode, ordered=ordered, window=window).stream(source)) as reader:
        for consumed in range(100):
            next(reader)
            # The item that was just returned counts as consumed when the next one is requested.
            assert source.read <= consumed + 1 + window


@pytest.mark.parametrize("mode", MODES)
def test_the_automatic_window_bounds_what_is_read_of_an_endless_source(mode: str) -> None:
    source = Source()
    with Reader(mapped(mode).stream(source)) as reader:
        for _ in range(3):
            next(reader)
        read = source.read
    assert source.read == read  # closing reads nothing more
    assert read < 100_000


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_batches_are_read_within_the_window(mode: Any) -> None:
    source = Source()
    function = Policy(parallel={"mode": mode, "workers": 2, "batch_size": 5, "window": 20}).apply(tens)
    with Reader(function.stream(source)) as reader:
        for consumed in range(60):
            assert next(reader) == consumed * 10
            assert source.read <= consumed + 1 + 20


def tens(numbers: list[int]) -> list[int]:
    return [number * 10 for number in numbers]


def test_a_batch_that_is_larger_than_the_window_is_read_completely() -> None:
    sizes = []

    def sized(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        return numbers

    function = Policy(parallel={"mode": "thread", "workers": 2, "batch_size": 8, "window": 3}).apply(sized)
    assert list(function.stream(range(24))) == list(range(24))
    assert sizes == [8, 8, 8]


def test_a_window_of_one_reads_an_item_after_each_result() -> None:
    answers: list[int] = []

    def questions() -> Iterator[int]:
        for number in range(5):
            assert len(answers) == number
            yield number

    for answer in mapped("thread", window=1).stream(questions()):
        answers += [answer]
    assert answers == [0, 10, 20, 30, 40]


def test_consumed_results_are_released() -> None:
    class Thing:
        pass

    made: list[weakref.ref[Thing]] = []

    def things() -> Iterator[Thing]:
        for _ in range(200):
            thing = Thing()
            made.append(weakref.ref(thing))
            yield thing

    same = opmap(mode="thread", workers=2, window=10, progress=False)(lambda thing: thing)
    for number, result in enumerate(same.stream(things())):
        del result
        if number % 50 == 49:
            gc.collect()
            assert sum(each() is not None for each in made) <= 10 + 10 + 2  # read ahead, held by workers, and this one


class Result:
    """Can be referred to weakly, and travels between processes."""

    def __init__(self, number: int) -> None:
        self.number = number


def result_or_failure(number: int) -> Result:
    if number % 10 == 7:
        raise ValueError(number)
    return Result(number)


async def result_or_failure_async(number: int) -> Result:
    return result_or_failure(number)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("options", [{}, {"on_error": "skip"}, {"max_failures": 10**6}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_stream_keeps_nothing_that_it_has_handed_out(mode: str, ordered: bool, options: Any) -> None:
    function = result_or_failure_async if mode.startswith("async") else result_or_failure
    bound: Any = opmap(mode=mode, workers=2, ordered=ordered, retries=0, progress=False, **options)(function)
    numbers = (number for number in range(300) if options or number % 10 != 7)
    stream = bound.stream(numbers)
    count, last = 0, None

    def check(result: Result) -> None:
        nonlocal count, last
        assert last is None or last() is None, count
        last = weakref.ref(result)
        count += 1

    async def read() -> None:  # in one task: the frames of a failure refer to those of the event loop
        async for result in stream:
            check(result)
            del result

    gc.disable()
    try:
        with suppress(MapError):
            if mode.startswith("async"):
                asyncio.run(read())
            else:
                for result in stream:
                    check(result)
                    del result
    finally:
        gc.enable()
    assert count == 270


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_a_failure_does_not_keep_the_results_of_its_chunk(mode: str) -> None:
    bound: Any = opmap(mode=mode, workers=1, retries=0, on_error="return", progress=False)(result_or_failure)
    failures: list[Exception] = []
    results: list[weakref.ref[Result]] = []
    gc.disable()
    try:
        for result in bound.stream(range(300)):
            if isinstance(result, Exception):
                failures.append(result)
            else:
                results.append(weakref.ref(result))
            del result
        assert (len(failures), len(results)) == (30, 270)
        assert not any(each() for each in results)
    finally:
        gc.enable()


# Sources


def test_an_error_of_the_source_is_raised_after_the_items_before_it_have_finished() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the source broke")

    got = []
    with pytest.raises(OSError, match="the source broke") as caught:
        got.extend(mapped("thread").stream(source()))
    assert isinstance(caught.value.__cause__, MapError)
    assert got + [caught.value.__cause__.results[each] for each in range(len(got), 5)] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("mode", MODES)
def test_an_error_of_the_source_of_a_list_carries_all_results_so_far(mode: str) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke") as caught:
        listed(mapped(mode)(source()))
    cause = caught.value.__cause__
    assert isinstance(cause, MapError)
    assert cause.results == {number: number * 10 for number in range(5)}
    assert "the source of its items failed" in str(cause)


def test_an_async_iterable_can_be_mapped() -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(300):
            if number % 100 == 0:
                await asyncio.sleep(0)
            yield number

    async def both() -> None:
        assert await mapped("async")(source()) == [number * 10 for number in range(300)]
        got = [each async for each in mapped("async").stream(source())]
        assert got == [number * 10 for number in range(300)]
        assert await mapped("async_process")(source()) == got

    asyncio.run(both())


def test_a_result_does_not_wait_for_the_next_item_of_an_async_source() -> None:
    async def run() -> list[int]:
        seen = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            for number in range(4):
                yield number
                await asyncio.wait_for(seen.wait(), 30)
                seen.clear()

        got = []
        async for result in mapped("async").stream(source()):
            got.append(result)
            seen.set()
        return got

    assert asyncio.run(run()) == [0, 10, 20, 30]


def test_an_error_of_an_async_source_is_raised_after_the_items_before_it_have_finished() -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        raise OSError("the source broke")

    got: list[int] = []
    with Reader(mapped("async").stream(source())) as reader, pytest.raises(OSError, match="the source broke"):
        reader.read_into(got)
    assert got == [0, 10, 20]


def test_an_async_source_is_read_within_the_window() -> None:
    async def run() -> None:
        read = 0

        async def source() -> AsyncIterator[int]:
            nonlocal read
            while True:
                read += 1
                yield read

        stream = mapped("async", window=7).stream(source())
        for consumed in range(50):
            await anext(stream)
            assert read <= consumed + 1 + 7
        await stream.aclose()

    asyncio.run(run())


def test_an_async_iterable_is_refused_for_a_sync_function() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"plain is a sync function and cannot wait for the async iterable"):
        mapped("thread").stream(source())


@pytest.mark.parametrize("mode", MODES)
def test_wrong_items_are_refused_before_anything_is_read(mode: str) -> None:
    with pytest.raises(TypeError, match=r"got the bare str 'ab'; wrap it in a list, or pass list\(text\)"):
        mapped(mode).stream("ab")
    with pytest.raises(TypeError, match="3 is not iterable; pass a list"):
        mapped(mode).stream(3)


# Failures


@pytest.mark.parametrize("mode", ["thread", "process", "async", "async_process"])
def test_a_failure_ends_a_stream_after_earlier_results_and_its_error_carries_later_ones(mode: str) -> None:
    bound = failing_async if mode.startswith("async") else failing
    function = Policy(parallel={"mode": mode, "workers": 2, "window": 10, "progress": False}).apply(bound)
    got: list[int] = []
    with Reader(function.stream(range(30))) as reader, pytest.raises(MapError) as caught:
        reader.read_into(got)
    error = caught.value
    assert got == [0, 1, 2, 3, 4]
    assert [each.index for each in error.failures] == [5]
    assert set(error.results) <= set(range(16)) - set(got)
    assert all(value == index for index, value in error.results.items())


def failing(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number


async def failing_async(number: int) -> int:
    return failing(number)


def failing_often(number: int, first: int) -> int:
    """Fail at once from an item on; those before it take long enough for others to be ahead."""
    if number == first or (number > first and number % 4 == 0):
        raise ValueError(number)
    time.sleep((first - number) % 7 / 2000 if number < first else 0)
    return number


async def failing_often_async(number: int, first: int) -> int:
    if number == first or (number > first and number % 4 == 0):
        raise ValueError(number)
    await asyncio.sleep((first - number) % 7 / 2000 if number < first else 0)
    return number


@pytest.mark.parametrize(
    "options", [{}, {"window": 7}, {"batch_size": 3}, {"cache_ttl": 60}, {"journal": True}], ids=str
)
@pytest.mark.parametrize("mode", ["thread", "process", "async", "async_process", "auto"])
def test_an_ordered_stream_yields_all_before_its_first_failure(mode: str, options: Any, tmp_path: Path) -> None:
    function = failing_often_async if mode.startswith("async") else failing_often
    options = dict(options)
    journal = {"journal": tmp_path / "journal"} if options.pop("journal", False) else {}
    if "batch_size" in options:
        function = failing_batch_async if mode.startswith("async") else failing_batch
    for workers, first in ((1, 6), (2, 0), (3, 9), (4, 30)):
        bound: Any = opmap(mode=mode, workers=workers, retries=0, progress=False, **options)(function)
        got: list[int] = []
        with Reader(bound.stream(range(60), first, **journal)) as reader, pytest.raises(MapError) as caught:
            reader.read_into(got)
        error = caught.value
        if "batch_size" in options:  # items before it in its batch fail with it
            assert first - 3 < error.failures[0].index
        else:
            assert error.failures[0].index == first
        assert got == list(range(error.failures[0].index))
        assert not set(error.results) & set(got)
        assert all(value == index for index, value in error.results.items())
        if journal:
            journal["journal"].unlink()


def failing_batch(numbers: list[int], first: int) -> list[int]:
    return [failing_often(each, first) for each in numbers]


async def failing_batch_async(numbers: list[int], first: int) -> list[int]:
    return [await failing_often_async(each, first) for each in numbers]


def test_an_ordered_stream_stops_at_its_deadline_before_it_has_all_before_a_failure() -> None:
    release = threading.Event()

    def wait(number: int) -> int:
        if number == 1:
            raise ValueError(number)
        release.wait(60)
        return number

    got: list[int] = []
    try:
        with pytest.raises(MapError, match="deadline") as caught:
            got.extend(opmap(mode="thread", workers=2, deadline=0.2, progress=False)(wait).stream(range(9)))
        assert (got, caught.value.results) == ([], {})
    finally:
        release.set()


@pytest.mark.parametrize("mode", ["process"])
def test_a_killer_among_the_items_before_a_failure_is_not_run_for_ever(mode: str, tmp_path: Path) -> None:
    function = opmap(mode="process", workers=2, progress=False, retries=0)(die_or_fail)
    got: list[int] = []
    with pytest.raises(MapError) as caught:
        got.extend(function.stream(range(40), str(tmp_path)))
    assert got == [0, 1]
    assert caught.value.failures[0].index == 2
    assert (tmp_path / "deaths").read_text() == "xx"


def die_or_fail(number: int, folder: str) -> int:
    if number == 2:
        with open(f"{folder}/deaths", "a") as file:
            file.write("x")
        os._exit(1)
    if number > 9:
        while not os.path.exists(f"{folder}/deaths"):  # then item 2 waits for another worker
            time.sleep(0.001)
        raise ValueError(number)
    return number


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_async_items_that_fail_at_once_do_not_block_the_event_loop(workers: int) -> None:
    async def slow_before_three(number: int) -> int:
        await asyncio.sleep(0.02 if number < 3 else 0)
        if number >= 3:
            raise ValueError(number)
        return number

    got: list[int] = []
    stream = opmap(mode="async", workers=workers, retries=0, progress=False)(slow_before_three).stream(range(100))
    with Reader(stream) as reader, pytest.raises(MapError):
        reader.read_into(got)
    assert got == [0, 1, 2]


@pytest.mark.parametrize("mode", ["thread", "async"])
def test_an_unordered_stream_yields_or_reports_each_success_once(mode: str) -> None:
    bound = failing_async if mode == "async" else failing
    policy = Policy(parallel={"mode": mode, "workers": 2, "window": 10, "progress": False, "ordered": False})
    got: list[int] = []
    with Reader(policy.apply(bound).stream(range(30))) as reader, pytest.raises(MapError) as caught:
        reader.read_into(got)
    assert not set(got) & set(caught.value.results)  # nothing twice
    assert {0, 1, 2, 3, 4} <= set(got) | set(caught.value.results)
    assert [each.index for each in caught.value.failures] == [5]


def test_retry_failed_returns_the_remaining_results_of_a_stream() -> None:
    broken = {5}

    def fragile(number: int) -> int:
        if number in broken:
            raise ValueError(number)
        return number

    function = opmap(mode="thread", workers=2, window=6, retries=0, progress=False)(fragile)
    got = []
    with pytest.raises(MapError) as caught:
        got.extend(function.stream(iter(range(20))))
    broken.clear()
    assert got + caught.value.retry_failed() == list(range(20))


# Readers that stop


@pytest.mark.parametrize("mode", MODES)
def test_closing_a_stream_leaves_nothing_running(mode: str) -> None:
    function = mapped(mode)
    before = threading.active_count()
    for _ in range(3):
        with Reader(function.stream(itertools.count())) as reader:
            assert next(reader) == 0
    assert threading.active_count() <= before + 12  # pools are kept
    if not mode.startswith("async"):
        assert function(range(4)) == [0, 10, 20, 30]


def test_a_stream_that_is_garbage_collected_stops_its_workers() -> None:
    running, ended = threading.Event(), threading.Event()
    started = []

    def slow(number: int) -> int:
        started.append(number)
        if number == 1:
            running.set()
            ended.wait(30)
        return number

    stream = opmap(mode="thread", workers=1, progress=False)(slow).stream(itertools.count())
    assert next(stream) == 0
    assert running.wait(30)
    del stream
    gc.collect()
    ended.set()
    so_far = len(started)
    assert list(opmap(mode="thread", workers=1, progress=False)(plain).stream(range(3))) == [0, 10, 20]
    assert len(started) == so_far


def test_a_stream_that_is_not_read_reads_no_items() -> None:
    source = Source()
    mapped("thread").stream(source)
    mapped("process").stream(source)
    assert source.read == 0


def test_breaking_out_of_an_async_stream_cancels_running_items() -> None:
    cancelled = []

    async def run() -> None:
        async def wait(number: int) -> int:
            if number:
                try:
                    await asyncio.sleep(60)
                finally:
                    cancelled.append(number)
            return number

        function = opmap(mode="async", workers=4, progress=False)(wait)
        async for each in function.stream(itertools.count()):
            assert each == 0
            break
        while len(cancelled) < 3:  # the loop closes an abandoned generator in a task of its own
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(cancelled) >= 3


def test_streams_of_one_function_can_be_read_alternately() -> None:
    pairs = list(zip(square.stream(itertools.count()), square.stream(range(100, 105)), strict=False))
    assert pairs == [(number**2, (100 + number) ** 2) for number in range(5)]


def test_a_stream_can_be_read_in_another_thread() -> None:
    stream, got = squares.stream(iter(range(50))), []
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    reader.join(60)
    assert got == [number**2 for number in range(50)]


def test_streams_of_methods_pass_further_arguments() -> None:
    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        @opmap(mode="thread", workers=2, progress=False)
        def times(self, number: int, plus: int, *, minus: int = 0) -> int:
            return self.by * number + plus - minus

    assert list(Scale(3).times.stream(range(4), 5, minus=1)) == [4, 7, 10, 13]
