"""The engine of every map, on executors that do only what the test says."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.executors.call import Outcome
from opero.parallel.window import AHEAD, MOST, run_chunk, run_window


class Immediate(Executor):
    """Runs a chunk at once, and breaks where an item is deadly, as a process pool does."""

    made = 0

    def __init__(self, deadly: frozenset[int] = frozenset(), seconds: float = 0.001) -> None:
        self.deadly = deadly
        self.seconds = seconds
        self.chunks: list[list[int]] = []
        self.broken = False

    def work(self, chunk: list[int]) -> Future[Any]:
        if self.broken:
            raise BrokenExecutor("broken before")
        self.chunks.append(chunk)
        future: Future[Any] = Future()
        if self.deadly & set(chunk):
            self.broken = True
            future.set_exception(BrokenExecutor("a worker died"))
        else:
            future.set_result((run_chunk(half, chunk)[0], self.seconds * len(chunk)))
        return future


def half(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number // 2


def run(pools: Any, items: Any, workers: int = 2, *, keep_going: bool = True) -> list[tuple[int, Outcome]]:
    return list(run_window(pools, lambda pool, chunk: pool.work(chunk), items, workers, keep_going=keep_going))


def one_pool(**options: Any) -> tuple[Any, list[list[int]]]:
    pool = Immediate(**options)
    return (lambda: pool), pool.chunks


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 5))
def test_every_item_has_its_own_outcome(items: list[int], workers: int) -> None:
    pools, _ = one_pool()
    outcomes = dict(run(pools, items, workers))
    assert sorted(outcomes) == list(range(len(items)))
    for index, item in enumerate(items):
        if item % 2:
            assert isinstance(outcomes[index].error, ValueError)
        else:
            assert outcomes[index].value == item // 2


@given(st.sets(st.integers(0, 40), max_size=4), st.integers(1, 60), st.integers(1, 4))
def test_only_deadly_items_fail_when_workers_die(deadly: set[int], count: int, workers: int) -> None:
    items = [2 * each for each in range(count)]
    made: list[Immediate] = []

    def pools() -> Immediate:
        if not made or made[-1].broken:
            made.append(Immediate(frozenset(2 * each for each in deadly)))
        return made[-1]

    outcomes = dict(run(pools, items, workers))
    assert sorted(outcomes) == list(range(count))
    died = {index for index, outcome in outcomes.items() if outcome.error is not None}
    assert died == {each for each in deadly if each < count}
    assert all(outcome.value == index for index, outcome in outcomes.items() if outcome.error is None)


def test_nothing_is_sent_for_no_items() -> None:
    def never() -> Immediate:
        raise AssertionError("an executor was asked for")

    assert run(never, []) == []


def test_no_more_chunks_are_under_way_than_the_window_holds() -> None:
    pending: list[Future[Any]] = []
    most = 0

    class Slow(Executor):
        def work(self, chunk: list[int]) -> Future[Any]:
            future: Future[Any] = Future()
            pending.append(future)
            nonlocal most
            most = max(most, sum(not each.done() for each in pending))
            if most == 3 * AHEAD:
                for each in pending:
                    if not each.done():
                        each.set_result(([Outcome(0)], 1.0))
            return future

    slow = Slow()
    items = list(range(3 * AHEAD * 4))
    assert len(run(lambda: slow, items, workers=3)) == len(items)
    assert most == 3 * AHEAD


def test_chunks_grow_while_items_are_quick_and_shrink_towards_the_end() -> None:
    pools, chunks = one_pool(seconds=1e-6)
    run(pools, [0] * 100_000)
    sizes = [len(chunk) for chunk in chunks]
    assert sizes[0] == 1
    assert 1000 < max(sizes) <= MOST
    assert sizes[-1] <= max(sizes) // 4
    assert len(sizes) < 500


def test_items_that_take_long_are_sent_one_by_one() -> None:
    pools, chunks = one_pool(seconds=1.0)
    run(pools, [0] * 50)
    assert {len(chunk) for chunk in chunks} == {1}


def test_after_a_failure_nothing_more_is_sent() -> None:
    pools, chunks = one_pool(seconds=1.0)
    outcomes = run(pools, [0, 0, 1, *[0] * 100], keep_going=False)
    assert len(outcomes) == len(chunks) <= 2 * AHEAD + 3
    assert [index for index, outcome in outcomes if outcome.error is not None] == [2]


def test_leaving_early_cancels_what_has_not_begun() -> None:
    futures: list[Future[Any]] = []

    class Never(Executor):
        def work(self, chunk: list[int]) -> Future[Any]:
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_result(([Outcome(0)], 1.0))
            return futures[-1]

    never = Never()
    outcomes = run_window(lambda: never, lambda pool, chunk: pool.work(chunk), [0] * 10, 2, keep_going=True)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert all(future.cancelled() for future in futures[1:])


def test_an_exception_of_the_system_is_not_carried() -> None:
    def leave(_: int) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_chunk(leave, [1])
