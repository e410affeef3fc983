"""Maps in threads, and what all modes have in common."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from opero import ConfigError, MapError, ParallelPolicy, Policy, RetryPolicy, opero, opmap

if TYPE_CHECKING:
    from collections.abc import Iterator


def half(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number // 2


def mapped(function: Any = half, **options: Any) -> Any:
    return opmap(**{"mode": "thread", "workers": 4, "retries": 0, **options})(function)


def test_results_have_the_order_of_the_items() -> None:
    turns = [threading.Event() for _ in range(4)]
    turns[3].set()

    @opmap(mode="thread", workers=4)
    def backwards(number: int) -> int:
        assert turns[number].wait(60)
        if number:
            turns[number - 1].set()
        return number

    assert backwards(range(4)) == [0, 1, 2, 3]


def test_unordered_results_come_as_they_are_ready() -> None:
    first = threading.Event()

    @opmap(mode="thread", workers=2, ordered=False)
    def last_first(number: int) -> int:
        if number == 0:
            assert first.wait(60)
        elif number == 1:
            first.set()
        return number

    results = last_first([0, 1])
    assert sorted(results) == [0, 1]


def test_items_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=60)

    @opmap(mode="thread", workers=3)
    def together(_: int) -> int:
        barrier.wait()
        return threading.get_ident()

    assert len(set(together(range(3)))) == 3


def test_no_more_items_run_at_a_time_than_there_are_workers() -> None:
    running, most, lock = 0, 0, threading.Lock()

    @opmap(mode="thread", workers=2)
    def count(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.002)
        with lock:
            running -= 1

    count(range(20))
    assert most == 2


@pytest.mark.parametrize("items", [[0, 2, 4], (0, 2, 4), range(0, 5, 2)], ids=repr)
def test_any_iterable_can_be_mapped(items: Any) -> None:
    assert mapped()(items) == [0, 1, 2]
    assert mapped()(iter(items)) == [0, 1, 2]
    assert mapped()(each for each in items) == [0, 1, 2]


def test_an_empty_source_gives_an_empty_list_and_starts_no_threads() -> None:
    before = threading.active_count()
    for mode in ("thread", "process", "auto"):
        assert mapped(mode=mode)([]) == []
    assert threading.active_count() == before


def test_an_error_of_the_source_is_raised() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise KeyError("from the input")

    with pytest.raises(KeyError, match="from the input"):
        mapped()(broken())


@pytest.mark.parametrize("text", ["items", b"items", bytearray(b"items")])
def test_a_string_is_refused_with_a_suggestion(text: Any) -> None:
    with pytest.raises(
        TypeError, match=r"half is mapped over items and got the bare (str|bytes|bytearray) .*wrap it in a list"
    ):
        mapped()(text)


@pytest.mark.parametrize("thing", [3, None, object()])
def test_a_value_that_is_not_iterable_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="is not iterable; pass a list"):
        mapped()(thing)


def test_a_map_without_items_is_refused() -> None:
    with pytest.raises(TypeError, match="half is mapped over items and got none: pass an iterable"):
        mapped()()


def test_items_can_be_passed_by_keyword() -> None:
    assert mapped()(number=[0, 2]) == [0, 1]


def test_further_arguments_are_passed_with_every_item() -> None:
    def join(item: str, sep: str, *rest: int, end: str = "") -> str:
        return f"{item}{sep}{rest}{end}"

    assert mapped(join)(["a", "b"], "-", 1, 2, end="!") == ["a-(1, 2)!", "b-(1, 2)!"]
    assert mapped(join)(item=["a"], sep="-") == ["a-()"]


# Errors


def test_a_failed_item_raises_a_map_error_with_all_results_so_far() -> None:
    with pytest.raises(MapError, match=r"half: 1 of 4 items failed.*item 1: ValueError: 3") as caught:
        mapped(workers=1)([2, 3, 4, 6])
    error = caught.value
    assert error.results[0] == 1
    assert [type(each.exception) for each in error.failures] == [ValueError]
    assert [tuple(each)[:2] for each in error.failures] == [(1, 3)]
    assert set(error.results) <= {0, 2, 3}


def test_after_a_failure_no_more_items_start_and_all_failures_are_reported() -> None:
    started: list[int] = []

    def fail_at_once(number: int) -> int:
        started.append(number)
        raise ValueError(number)

    with pytest.raises(MapError, match="not finished") as caught:
        mapped(fail_at_once, workers=2)(range(1000))
    assert len(started) < 50
    assert sorted(started) == [each.index for each in caught.value.failures]


def test_on_error_skip_omits_failed_items() -> None:
    assert mapped(on_error="skip")([0, 1, 2, 3, 4]) == [0, 1, 2]
    assert mapped(on_error="skip")([1, 3]) == []


def test_an_exception_that_an_item_returns_is_a_result() -> None:
    def give(number: int) -> Exception:
        return ValueError(number)

    assert [str(each) for each in mapped(give, on_error="skip")([1, 2])] == ["1", "2"]


def test_an_interrupt_ends_the_map_in_the_main_thread_only() -> None:
    def leave(number: int) -> int:
        raise KeyboardInterrupt

    for failure in mapped(leave, on_error="return")([1, 2]):
        assert isinstance(failure.__cause__, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        mapped(leave, on_error="return", mode="auto")([1, 2])


def test_each_item_has_its_own_retries() -> None:
    seen: dict[int, int] = {}

    @opmap(mode="thread", workers=1, retries=2, min_delay=0)
    def third_time(number: int) -> int:
        seen[number] = seen.get(number, 0) + 1
        if seen[number] < 3:
            raise ValueError(number)
        return number

    assert third_time([1, 2]) == [1, 2]
    assert third_time.stats.calls == 2
    assert third_time.stats.attempts == 6
    assert third_time.stats.recoveries == 2


# Methods


class Service:
    def __init__(self, base: int) -> None:
        self.base = base

    @opmap(mode="thread")
    def add(self, number: int, *, times: int = 1) -> int:
        return (self.base + number) * times

    @opmap(mode="thread", batch_size=2)
    def add_batch(self, numbers: list[int]) -> list[int]:
        return [self.base + number for number in numbers]

    @opmap
    @classmethod
    def named(cls, number: int) -> str:
        return f"{cls.__name__}{number}"

    @opmap
    @staticmethod
    def double(number: int) -> int:
        return 2 * number

    @opero(mode="thread")
    def single(self, number: int) -> int:
        return self.base + number


def test_methods_are_mapped_on_their_instance() -> None:
    service = Service(10)
    assert service.add([1, 2], times=2) == [22, 24]
    assert service.add_batch([1, 2, 3]) == [11, 12, 13]
    assert service.add.map([1]) == [11]
    assert service.single(1) == 11
    assert service.single.map([1, 2]) == [11, 12]
    assert Service.add(service, [1]) == [11]
    assert service.add(number=[1]) == [11]


def test_class_and_static_methods_are_mapped() -> None:
    assert Service.named([1, 2]) == Service(1).named([1, 2]) == ["Service1", "Service2"]
    assert Service.double([1, 2]) == Service(1).double([1, 2]) == [2, 4]


# Context


def test_a_map_within_a_map_does_not_hang() -> None:
    @opmap(mode="thread", workers=2)
    def inner(number: int) -> int:
        return number

    @opmap(mode="thread", workers=2)
    def outer(number: int) -> int:
        return sum(inner(range(number)))

    assert outer([1, 2, 3, 4]) == [0, 1, 3, 6]


def test_threads_are_kept_between_maps() -> None:
    @opmap(mode="thread", workers=4)
    def ident(_: int) -> int:
        threading.Event().wait(0.005)
        return threading.get_ident()

    idents = {each for _ in range(10) for each in ident(range(8))}
    assert len(idents) < 20


# The cache


def test_cached_items_are_not_run() -> None:
    called: list[int] = []

    @opmap(mode="thread", cache=True)
    def look(number: int) -> int:
        called.append(number)
        return number * 10

    assert look([1, 2]) == [10, 20]
    assert look([2, 3, 1]) == [20, 30, 10]
    assert sorted(called) == [1, 2, 3]
    assert look.stats.cache_hits == 2
    assert look.stats.cache_misses == 3
    assert look.stats.calls == 5
    assert look.cache_get(3) == 30


def test_cached_items_of_a_batch_are_removed_from_it() -> None:
    batches: list[list[int]] = []

    @opmap(mode="thread", cache=True, batch_size=10)
    def look(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        return [number * 10 for number in numbers]

    assert look([1, 2]) == [10, 20]
    assert look([2, 3, 1, 4]) == [20, 30, 10, 40]
    assert batches == [[1, 2], [3, 4]]


def test_equal_items_are_computed_once_with_a_cache() -> None:
    called: list[int] = []

    @opmap(mode="thread", workers=4, cache=True)
    def look(number: int) -> int:
        called.append(number)
        return number

    assert look([1, 1, 2, 1]) == [1, 1, 2, 1]
    assert sorted(called) == [1, 2]


def test_failures_are_not_cached() -> None:
    failing = mapped(cache=True, on_error="skip")
    assert failing([1, 2]) == [1]
    assert failing([1, 2]) == [1]
    assert failing.stats.cache_misses == 3


# Refused functions, and policies without maps


def test_an_async_function_is_refused_in_thread_and_process_mode() -> None:
    async def fetch(item: int) -> int:
        return item

    for mode in ("thread", "process"):
        with pytest.raises(
            ConfigError, match=rf"fetch is an async function, which mode '{mode}' cannot run; use mode='async'"
        ):
            opmap(mode=mode)(fetch)  # type: ignore[call-overload]


def test_a_generator_function_cannot_be_mapped() -> None:
    def items(number: int) -> Iterator[int]:
        yield number

    with pytest.raises(ConfigError, match="items is a generator function"):
        opmap(mode="thread")(items)
    with pytest.raises(ConfigError, match="items is a generator function"):
        Policy(parallel=ParallelPolicy(mode="thread")).apply(items)


def test_a_policy_without_parallel_can_map() -> None:
    assert RetryPolicy(retries=0).apply(half).map([0, 2]) == [0, 1]


def test_a_parallel_policy_that_is_switched_off_has_no_effect() -> None:
    assert Policy(parallel=ParallelPolicy(mode="thread", enabled=False)).apply(half).map([0, 2]) == [0, 1]


def test_slow_items_after_quick_ones_are_distributed_again() -> None:
    ids: set[int] = set()

    def one(number: int) -> int:
        if number >= 5000:
            ids.add(threading.get_ident())
            time.sleep(0.03)
        return number

    # Chunks have some thousands of the first items, and one of the others.
    assert list(opmap(mode="thread", workers=8, progress=False)(one).stream(iter(range(5040)))) == list(range(5040))
    assert len(ids) >= 4


def test_the_last_items_are_distributed_to_all_workers() -> None:
    together = threading.Barrier(4)

    def one(number: int) -> int:
        if number >= 5000:
            together.wait(30)
        return number

    assert opmap(mode="thread", workers=4, retries=0, progress=False)(one)(range(5004)) == list(range(5004))
