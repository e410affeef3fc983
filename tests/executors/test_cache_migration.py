"""What a cache keeps when its policy is replaced: entries in the same store, and running computations."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import Policy, clear_cache
from opero.cache.lru import Memory
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from pathlib import Path

    from opero.executors.cache import CacheExecutor

WAIT = 30
"""Seconds after which a test counts as hung."""


def whole(*args: Any) -> Any:
    return args


class Counting:
    """A bound function that records the arguments of its executions."""

    __opero_key__ = "counting"

    def __init__(self, bind: Any, **cache: Any) -> None:
        self.ran: list[Any] = []
        self.clock = bind.clock
        self.error: Exception | None = None
        self.call = bind(Policy(cache=cache), self.function)
        self.bound = bind.bound

    def function(self, x: Any = 0) -> Any:
        self.ran.append(x)
        if self.error is not None:
            raise self.error
        return x

    def reload(self, **cache: Any) -> None:
        self.bound.binding.swap(Policy(cache=cache))

    def runs(self, *values: Any) -> list[Any]:
        """Return the calls among these that the cache does not answer."""
        self.ran.clear()
        for value in values:
            self.call(value)
        return list(self.ran)

    @property
    def cache(self) -> CacheExecutor:
        found: CacheExecutor = self.bound.binding.cache
        return found


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": 5},
        {"ttl": "adaptive"},
        {"ttl": lambda: 1},
        {"stale_ttl": 50},
        {"early_refresh": 1},
        {"ttl_jitter": 0.5},
        {"cache_if": bool},
        {"errors": True, "error_ttl": 1},
        {"tags": "a"},
        {"max_size": 50},
        {"backend": "opero.memory"},
        {"store_timeout": 3, "lock_timeout": 4},
    ],
)
def test_entries_in_memory_stay_with_the_times_they_were_stored_with(bind: Any, change: dict[str, Any]) -> None:
    counting = Counting(bind, ttl=60)
    counting.runs(1, 2)
    counting.reload(**{"ttl": 60, **change})
    assert counting.bound.binding.pipeline.hit(1) == 1  # without a layer
    counting.clock.advance(30)
    assert counting.runs(1, 2, 3) == [3]
    counting.clock.advance(30)
    assert 1 in counting.runs(1)


def test_a_new_ttl_applies_to_results_stored_from_then_on(bind: Any) -> None:
    counting = Counting(bind, ttl=60)
    counting.runs(1)
    counting.reload(ttl=5)
    counting.runs(2)
    counting.clock.advance(6)
    assert counting.runs(1, 2) == [2]
    counting.reload()
    counting.runs(3)
    counting.clock.advance(1000)
    assert counting.runs(1, 2, 3) == [1, 2]


@pytest.mark.parametrize(
    "change", [{"namespace": "other"}, {"key": whole}, {"ignore": "x"}, {"version": 2}, {"serializer": "pickle"}]
)
def test_another_store_begins_empty(bind: Any, change: dict[str, Any]) -> None:
    counting = Counting(bind, ttl=60)
    counting.runs(1)
    counting.reload(ttl=60, **change)
    assert counting.runs(1, 1) == [1]
    counting.reload(ttl=61, **change)
    assert counting.runs(1) == []


def test_another_secret_of_signed_entries_in_memory_is_another_store(bind: Any) -> None:
    counting = Counting(bind, serializer="signed_pickle", secret="one")
    counting.runs(1)
    counting.reload(serializer="signed_pickle", secret="one", ttl=60)
    assert counting.runs(1) == []
    counting.reload(serializer="signed_pickle", secret="two", ttl=60)
    assert counting.runs(1) == [1]


def test_a_smaller_max_size_evicts_at_once_and_a_larger_one_makes_room(bind: Any) -> None:
    counting = Counting(bind, max_size=5)
    counting.runs(1, 2, 3, 4, 5, 1)
    counting.reload(max_size=3)
    assert counting.bound.cache_info()[2:] == (3, 2, 3)
    assert counting.runs(4, 5, 1) == []
    assert counting.runs(2) == [2]
    counting.reload(max_size=10)
    counting.runs(*range(20, 27))
    assert counting.runs(*range(20, 27), 2) == []
    assert counting.bound.cache_info()[2] == 10


def test_cached_exceptions_are_not_raised_after_cache_errors_is_switched_off(bind: Any) -> None:
    counting = Counting(bind, errors=True)
    counting.error = ConnectionError("down")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            counting.call(1)
    assert counting.ran == [1]
    counting.error = None
    counting.reload(errors=True, ttl=60)
    with pytest.raises(ConnectionError):
        counting.call(1)
    counting.reload(ttl=60)
    assert counting.runs(1, 1) == [1]


def test_a_map_does_not_raise_cached_exceptions_after_cache_errors_is_switched_off() -> None:
    fails = True

    def function(x: int) -> int:
        if fails:
            raise ConnectionError
        return x

    parallel = {"mode": "thread", "progress": False, "on_error": "return"}
    bound: Any = Policy(cache={"errors": True}, parallel=parallel).apply(function)
    assert isinstance(bound.map([1])[0], ConnectionError)
    fails = False
    assert isinstance(bound.map([1])[0], ConnectionError)
    bound.binding.swap(Policy(cache={"ttl": 60}, parallel=parallel))
    assert bound.map([1]) == [1]


def test_request_counts_are_kept_while_the_ttl_stays_adaptive(bind: Any) -> None:
    ttl = {"cold": 1, "warm": 10, "hot": 100, "warm_after": 3, "hot_after": 6}
    counting = Counting(bind, ttl=ttl)
    counting.runs(*[1] * 4)
    counting.reload(ttl={**ttl, "warm": 50})
    counting.clock.advance(1.5)
    assert counting.runs(1) == [1]
    counting.clock.advance(40)
    assert counting.runs(1, 1, 1) == []
    counting.reload(ttl={**ttl, "warm": 51})
    assert counting.cache.retention.popularity is not None
    assert counting.cache.retention.popularity.of(counting.cache.key((1,), {})) == 8


def test_clearing_reaches_the_migrated_cache_once(bind: Any) -> None:
    namespace = f"mine {bind.kind}"
    counting = Counting(bind, namespace=namespace, tags="all")
    counting.runs(1)
    old = counting.cache
    for number in range(3):
        counting.reload(namespace=namespace, tags="all", ttl=60 + number)
    assert clear_cache(namespace) == 1
    assert (old.get(1), counting.cache.get(1)) == (None, None)
    counting.runs(1)
    assert clear_cache(namespace, tags="all") == 1
    assert counting.runs(1) == [1]


def test_removing_or_disabling_the_cache_drops_it_and_an_equal_policy_keeps_it(bind: Any) -> None:
    counting = Counting(bind, ttl=60)
    counting.runs(1)
    before = counting.cache
    counting.bound.binding.swap(Policy(cache=60, retry=2))
    assert counting.cache is before
    counting.bound.binding.swap(Policy(cache={"ttl": 60, "enabled": False}))
    assert counting.runs(1) == [1]
    counting.reload(ttl=60)
    assert counting.runs(1) == [1]


def test_a_prepared_but_unused_pipeline_changes_nothing(bind: Any) -> None:
    counting = Counting(bind, max_size=3)
    counting.runs(1, 2, 3)
    counting.bound.binding.prepare(Policy(cache={"max_size": 1}))
    prepared = counting.bound.binding.prepare(Policy(cache={"max_size": 2}))
    assert counting.runs(1, 2, 3) == []
    counting.reload(max_size=3, ttl=9)
    counting.runs(4)
    counting.bound.binding.enforce(prepared)
    assert counting.runs(3, 4) == []
    assert counting.runs(2) == [2]


# Running computations


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_caller_under_the_new_policy_waits_for_a_computation_of_the_old_one(store: str, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    runs: list[int] = []
    place = {"backend": "disk", "ttl": None, "cache_dir": tmp_path} if store == "disk" else {}

    def function() -> int:
        runs.append(1)
        begun.set()
        assert go_on.wait(WAIT)
        return len(runs)

    bound: Any = Policy(cache={"ttl": 60, **place}).apply(function)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(bound())) for _ in range(4)]
    threads[0].start()
    assert begun.wait(WAIT)
    bound.binding.swap(Policy(cache={"ttl": 30, **place}))
    for thread in threads[1:]:
        thread.start()
    (computation,) = bound.binding.cache.single_flight.running.values()
    while computation.callers < 4:
        threading.Event().wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert answers == [1] * 4
    assert bound() == 1
    assert bound.binding.cache.single_flight.running == {}


@pytest.mark.parametrize("cancelled", [False, True])
def test_tasks_join_a_computation_of_the_old_policy_whose_result_has_the_old_ttl(cancelled: bool) -> None:
    clock, runs = VirtualClock(), []

    async def function() -> int:
        runs.append(clock.now)
        await asyncio.sleep(1)
        return len(runs)

    bound: Any = Policy(cache={"ttl": 60}).apply(function, clock=clock)

    async def main() -> None:
        first = asyncio.create_task(bound())
        await asyncio.sleep(0.5)
        bound.binding.swap(Policy(cache={"ttl": 5}))
        second = asyncio.create_task(bound())
        await asyncio.sleep(0)
        if cancelled:
            first.cancel()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert answers[1] == 1
        await asyncio.sleep(30)
        assert await bound() == 1  # stored for 60 seconds
        await asyncio.sleep(31)
        assert await bound() == 2

    clock.run(main())


def test_a_key_deleted_under_the_new_policy_is_not_stored_by_a_computation_of_the_old_one() -> None:
    clock, runs = VirtualClock(), []

    async def function() -> int:
        runs.append(1)
        number = len(runs)
        await asyncio.sleep(1)
        return number

    bound: Any = Policy(cache={"ttl": 60}).apply(function, clock=clock)

    async def main() -> None:
        first = asyncio.create_task(bound())
        await asyncio.sleep(0.5)
        bound.binding.swap(Policy(cache={"ttl": 5}))
        bound.cache_delete()
        assert (await bound(), await first) == (2, 1)
        assert await bound() == 2

    clock.run(main())


def test_a_caller_under_the_new_policy_does_not_get_an_error_that_the_old_one_caches() -> None:
    clock, runs = VirtualClock(), []

    async def function() -> int:
        runs.append(1)
        await asyncio.sleep(1)
        if len(runs) == 1:
            raise ConnectionError
        return len(runs)

    bound: Any = Policy(cache={"errors": True}).apply(function, clock=clock)

    async def main() -> None:
        first = asyncio.create_task(bound())
        await asyncio.sleep(0.5)
        bound.binding.swap(Policy(cache={"ttl": 5}))
        second = asyncio.create_task(bound())
        with pytest.raises(ConnectionError):
            await first
        assert await second == 2

    clock.run(main())


# Stores


def test_results_on_disk_are_kept_and_no_connection_is_left_open(bind: Any, tmp_path: Path) -> None:
    from opero.cache.database import Database

    counting = Counting(bind, backend="disk", cache_dir=tmp_path, ttl=60)
    counting.runs(1)
    for number in range(5):
        counting.reload(backend="disk", cache_dir=tmp_path, ttl=50, store_timeout=1 + number)
        assert counting.runs(1) == []
    gc.collect()
    assert len([each for each in Database.open.values() if each.path.parent == tmp_path]) == 1
    counting.reload(backend="disk", ttl=None, cache_dir=tmp_path / "other")
    assert counting.runs(1) == [1]
    counting.reload(backend="disk", ttl=None, cache_dir=tmp_path, namespace="other")
    assert counting.runs(1) == [1]


def test_a_third_party_backend_that_holds_the_entries_is_kept(bind: Any) -> None:
    counting = Counting(bind, backend="dogpile.cache.memory", ttl=60)
    counting.runs(1)
    counting.reload(backend="dogpile.cache.memory", ttl=50)
    assert counting.runs(1) == []
    counting.reload(backend="dogpile.cache.memory", ttl=50, arguments={"cache_dict": {}})
    assert counting.runs(1) == [1]


# Everything together


@given(
    st.lists(
        st.one_of(
            st.integers(0, 7),
            st.floats(0, 6),
            st.tuples(st.sampled_from([None, 2.0, 10.0]), st.integers(1, 5), st.booleans()),
        ),
        max_size=50,
    )
)
def test_calls_are_answered_as_by_a_model_of_the_rules(steps: list[Any]) -> None:
    clock, ran = VirtualClock(), []
    bound: Any = Policy(cache={"max_size": 3, "namespace": "a"}).apply(ran.append, clock=clock)
    held: dict[int, float] = {}
    ttl, size, other = None, 3, False
    for step in steps:
        if isinstance(step, tuple):
            moved = step[2] is not other
            ttl, size, other = step
            bound.binding.swap(Policy(cache={"ttl": ttl, "max_size": size, "namespace": "b" if other else "a"}))
            held = {} if moved or not held else held
        elif isinstance(step, float):
            clock.advance(step)
        else:
            ran.clear()
            bound(step)
            is_held = held.get(step, 0.0) > clock.now
            assert ran == ([] if is_held else [step])
            until = held.pop(step) if is_held else clock.now + (float("inf") if ttl is None else ttl)
            held[step] = until
        held = {key: until for key, until in held.items() if until > clock.now}
        held = dict(list(held.items())[-size:])


def test_after_many_reloads_old_executors_and_stores_are_garbage_collected(bind: Any) -> None:
    def stores() -> int:
        gc.collect()
        return sum(type(each) is Memory for each in gc.get_objects())

    counting = Counting(bind, ttl=60)
    counting.runs(1)
    before = stores()
    gone: list[weakref.ref[Any]] = []
    for number in range(100):
        gone.append(weakref.ref(counting.cache))
        counting.reload(ttl=61 + number)
    assert counting.runs(1) == []
    gc.collect()
    assert [each for each in gone if each() is not None] == []
    assert stores() == before


def test_threads_get_correct_answers_during_repeated_reloads() -> None:
    runs: list[int] = []
    bound: Any = Policy(cache={"ttl": 600}).apply(lambda x: runs.append(x) or x * 2)
    wrong: list[Any] = []

    def use() -> None:
        wrong.extend(x for number in range(4000) if bound(x := number % 10) != x * 2)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    number = 0
    while any(thread.is_alive() for thread in threads):
        number += 1
        bound.binding.swap(Policy(cache={"ttl": 600 + number % 7, "max_size": 10 + number % 5}))
    for thread in threads:
        thread.join(WAIT)
    assert wrong == []
    assert sorted(runs) == list(range(10))
