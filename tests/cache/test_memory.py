"""The memory backend: a bounded LRU cache that frees expired values."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any

import pytest
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import opero.cache  # registers the backend
from opero import Policy
from opero.cache.memory import MemoryBackend
from opero.executors.call import MISS

assert opero.cache


def test_dogpile_knows_the_backend_by_name() -> None:
    region = make_region().configure("opero.memory", arguments={"max_size": 2})
    region.set_multi({"a": 1, "b": 2})
    assert region.get_multi(["a", "b", "c"]) == [1, 2, NO_VALUE]
    region.delete_multi(["a"])
    assert region.get("a") is NO_VALUE


def test_the_least_recently_used_value_is_evicted_and_counted() -> None:
    backend = MemoryBackend({"max_size": 2})
    backend.set("a", 1)
    backend.set("b", 2)
    backend.get("a")
    backend.set("c", 3)
    assert [backend.get(key) for key in "abc"] == [1, NO_VALUE, 3]
    assert (len(backend), backend.evictions) == (2, 1)
    backend.clear()
    assert len(backend) == 0


class AgainstAModel(RuleBasedStateMachine):
    """The backend behaves like a plain ordered dictionary of (value, expiry, tags)."""

    SIZE = 4

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.backend = MemoryBackend({"max_size": self.SIZE, "clock": lambda: self.now})
        self.model: OrderedDict[str, tuple[int, float, tuple[str, ...]]] = OrderedDict()

    keys = st.sampled_from("abcdefg")
    tag_sets = st.lists(st.sampled_from("xyz"), max_size=2, unique=True).map(tuple)

    def forget_expired(self) -> None:
        for key in [key for key, (_, expires, _) in self.model.items() if expires <= self.now]:
            del self.model[key]

    @rule(key=keys, value=st.integers(), seconds=st.sampled_from([1, 2, 5, float("inf")]), tags=tag_sets)
    def put(self, key: str, value: int, seconds: float, tags: tuple[str, ...]) -> None:
        self.backend.put(key, value, self.now + seconds, tags)
        self.forget_expired()
        self.model.pop(key, None)
        self.model[key] = (value, self.now + seconds, tags)
        while len(self.model) > self.SIZE:
            self.model.popitem(last=False)

    @rule(key=keys)
    def get(self, key: str) -> None:
        self.backend.purge()
        self.forget_expired()
        held = self.model.get(key)
        assert self.backend.get(key) == (NO_VALUE if held is None else held[0])
        if held is not None:
            self.model.move_to_end(key)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.backend.delete(key)
        self.model.pop(key, None)

    @rule(tags=tag_sets)
    def delete_tagged(self, tags: tuple[str, ...]) -> None:
        self.backend.delete_tagged(tags)
        for key in [key for key, (_, _, own) in self.model.items() if set(own) & set(tags)]:
            del self.model[key]

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def clear(self) -> None:
        self.backend.clear()
        self.model.clear()

    @invariant()
    def holds_the_same(self) -> None:
        self.backend.purge()
        self.forget_expired()
        assert list(self.backend.values) == list(self.model)
        assert set(self.backend._tags_of) == {key for key, (_, _, tags) in self.model.items() if tags}
        assert set(self.backend._due) == {key for key, (_, due, _) in self.model.items() if due != float("inf")}
        assert all(self.backend._tags.values())


AgainstAModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstAModel = AgainstAModel.TestCase


def test_the_indexes_do_not_outgrow_the_values() -> None:
    backend = MemoryBackend({"max_size": 10, "clock": lambda: 0.0})
    for number in range(5000):
        backend.put(number % 30, number, 100.0 + number, ("t",))
    assert len(backend._expiries) <= 2 * 10 + 65
    assert (len(backend._due), len(backend._tags_of), len(backend._tags["t"])) == (10, 10, 10)


def test_putting_a_value_frees_expired_ones() -> None:
    now = 0.0
    backend = MemoryBackend({"max_size": 10, "clock": lambda: now})
    backend.put("a", 1, 1.0)
    backend.put("b", 2, 3.0)
    now = 2.0
    backend.put("c", 3)
    assert (list(backend.values), backend.expirations, backend.evictions) == (["b", "c"], 1, 0)


class Result:
    """A result that supports weak references."""


def test_expired_values_are_freed_in_the_background() -> None:
    made: list[weakref.ref[Result]] = []

    def make(key: int) -> Result:
        result = Result()
        made.append(weakref.ref(result))
        return result

    bound = Policy(cache={"ttl": 0.05}).apply(make)
    other = Policy(cache={"ttl": 60}).apply(make)
    for key in range(5):
        bound(key)
    other(1)
    until = time.monotonic() + 60
    while any(reference() is not None for reference in made[:5]) and time.monotonic() < until:
        time.sleep(0.01)
    gc.collect()
    assert [reference() is None for reference in made] == [True] * 5 + [False]
    assert bound.cache_info().size == 0


def test_a_cache_is_garbage_collected_with_its_function() -> None:
    bound: Any = Policy(cache={"ttl": 60}).apply(lambda: 1)
    bound()
    backend = weakref.ref(bound.binding.cache.store.backend)
    del bound
    gc.collect()
    assert backend() is None


class Slow:
    """A key whose comparison runs Python code, and so lets other threads run."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __hash__(self) -> int:
        return self.value % 3

    def __eq__(self, other: object) -> bool:
        time.sleep(0)
        return isinstance(other, Slow) and self.value == other.value


def test_only_keys_that_compare_without_python_code_are_looked_up_without_the_lock() -> None:
    bound: Any = Policy(cache=True).apply(lambda key: key)
    hit = bound.binding.cache.hit
    for key, at_once in ((1, True), ("a", True), ((1, [2.0, None]), True), ({"a": True}, True), (Slow(1), False)):
        bound(key)
        assert (hit(key) is not MISS) is at_once
        assert bound(key) is not MISS
    assert bound.stats.attempts == 5


@pytest.mark.parametrize("kind", [int, Slow])
def test_concurrent_threads_get_correct_results_from_a_full_cache(kind: Any) -> None:
    bound = Policy(cache={"max_size": 5, "ttl": 60}).apply(lambda key: key)
    wrong: list[Any] = []

    def hammer(number: int) -> None:
        for turn in range(400 if kind is int else 60):
            value = (turn * (number + 1)) % 12
            found = bound(kind(value))
            if (found.value if kind is Slow else found) != value:
                wrong.append(found)
            if turn % 50 == 0:
                bound.cache_delete(kind(value))
            if turn % 70 == 0:
                bound.cache_clear()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    backend = bound.binding.cache.store.backend  # type: ignore[union-attr]
    assert len(backend.values) <= 5
    assert set(backend._due) == set(backend.values)


def test_with_a_serializer_callers_cannot_modify_the_cached_value() -> None:
    plain, copying = (Policy(cache={"serializer": each}).apply(lambda: {"a": [1]}) for each in (None, "pickle"))
    assert plain() is plain()
    copying()["a"].append(2)
    assert copying() == {"a": [1]}
    assert copying.stats.cache_hits == 1
