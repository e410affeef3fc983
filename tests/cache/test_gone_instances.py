"""Instances that are gone leave nothing in a memory cache, and `cache_entry` tells what it holds."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from opero import CacheEntry, Policy, opero
from opero.cache import instances
from opero.cache.content import freeze
from opero.testing import VirtualClock


class Report:
    @opero(cache=True)
    def load(self, part: int = 0) -> bytearray:
        return bytearray(100_000)

    @opero(cache={"ttl": 600, "tags": "reports", "serializer": "pickle"})
    def copied(self) -> bytearray:
        return bytearray(1000)

    @opero(cache=True)
    async def load_async(self) -> bytearray:
        return bytearray(1000)


@opero(cache=True)
def size(report: Any, *more: Any) -> bytearray:
    return bytearray(1000)


def test_results_of_instances_that_are_gone_are_freed_and_push_nothing_out() -> None:
    living = Report()
    value = living.load()
    for _ in range(1500):
        Report().load()
    gc.collect()
    assert Report.load.cache_info()[2:] == (1, 0, 1000)
    assert living.load() is value
    reference = weakref.ref(living)
    del living
    gc.collect()
    assert reference() is None
    assert Report.load.cache_info().size == 0


@pytest.mark.parametrize("method", ["load", "copied", "load_async"])
def test_every_kind_of_entry_of_an_instance_goes_with_it(method: str) -> None:
    bound = getattr(Report, method)
    for _ in range(5):
        call = getattr(Report(), method)
        for _ in range(2):
            found = call()
            assert len(asyncio.run(found) if method == "load_async" else found)
    del call
    gc.collect()
    assert bound.cache_info().size == 0
    backend = bound.binding.cache.store.backend
    indexes = (backend.values, backend._due, backend._tags, backend._tags_of, backend._with, backend._gone)
    assert not any(indexes)


@pytest.mark.parametrize(
    "wrap", [lambda each: each, lambda each: [each], lambda each: {"k": (each,)}, lambda each: lambda: each]
)
def test_results_for_arguments_that_are_gone_are_freed(wrap: Any) -> None:
    before = len(instances.tokens)
    for _ in range(20):
        report = Report()
        size(wrap(report), report)
        size(1, report)
    assert size.cache_info().size >= 1
    del report
    gc.collect()
    assert size.cache_info().size == 0
    assert len(instances.tokens) <= before


def test_an_instance_that_ends_while_its_cache_works_is_forgotten_by_the_next_operation() -> None:
    report = Report()
    report.load()
    backend = Report.load.binding.cache.store.backend
    with backend._lock:  # as in a garbage collection within a method of the cache
        del report
        gc.collect()
        assert len(backend.values) == 1
    Report.load.cache_set(bytearray(), Report())
    assert Report.load.cache_info().size == 0


def test_an_instance_that_ends_while_another_thread_holds_the_cache_is_forgotten_later() -> None:
    report = Report()
    report.load()
    backend = Report.load.binding.cache.store.backend
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with backend._lock:
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    del report
    gc.collect()
    go_on.set()
    thread.join()
    assert Report.load.cache_info().size == 0


def test_threads_that_make_and_drop_instances_leave_nothing() -> None:
    def work() -> None:
        for number in range(200):
            report = Report()
            report.copied()
            size(report, number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert (Report.copied.cache_info().size, size.cache_info().size) == (0, 0)


def test_classes_that_are_gone_are_not_kept_by_what_freezes_their_instances() -> None:
    def use() -> weakref.ref[type]:
        local = type("Local", (), {"__eq__": lambda self, other: True, "__hash__": lambda self: 1})
        freeze(local())
        return weakref.ref(local)

    reference = use()
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("store", ["memory", "pickled", "disk", "redis"])
def test_an_entry_has_its_value_its_age_and_the_time_left(store: str, tmp_path: Any, request: Any) -> None:
    clock = VirtualClock()
    policy: dict[str, Any] = {"ttl": 60, "stale_ttl": 600, "backend": store, "errors": True}
    if store == "disk":
        policy["cache_dir"] = tmp_path
    elif store == "redis":
        policy["url"] = request.getfixturevalue("redis_url")
    elif store == "pickled":
        policy |= {"backend": "memory", "serializer": "pickle"}

    def nothing(x: int) -> None:
        if x > 5:
            raise ValueError

    bound: Any = Policy(cache=policy).apply(nothing, clock=clock)
    assert bound.cache_entry(1) is None
    assert bound(1) is bound.cache_get(1) is None
    clock.advance(15)
    entry = bound.cache_entry(1)
    assert isinstance(entry, CacheEntry)
    assert entry.value is None
    assert (entry.age, entry.time_left) == (pytest.approx(15), pytest.approx(45))
    clock.advance(50)
    assert bound.cache_entry(1)[1:] == (pytest.approx(65), pytest.approx(-5))
    with pytest.raises(ValueError, match="^$"):
        bound(7)
    assert bound.cache_entry(7) is None
    clock.advance(1000)
    assert bound.cache_entry(1) is None
    forever: Any = Policy(cache={**policy, "ttl": None, "stale_ttl": None, "errors": False}).apply(nothing, clock=clock)
    forever(2)
    assert forever.cache_entry(2).time_left is None


def test_a_methods_entry_is_its_instances_and_a_cache_that_is_off_has_none() -> None:
    one, other = Report(), Report()
    one.load(3)
    assert one.load.cache_entry(3).value == one.load(3)
    assert other.load.cache_entry(3) is None
    off: Any = Policy(cache={"enabled": False}).apply(lambda x: x)
    assert off.cache_entry(1) is None
