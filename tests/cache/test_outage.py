"""The circuit breaker of a store, and the throttling of its events."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from typing import Any

import pytest

from opero import Event, on
from opero.cache.outage import StoreBreaker, ThrottledFailure
from opero.events import CacheFailed, CacheRestored
from opero.testing import VirtualClock


class Store:
    def __init__(self) -> None:
        self.is_down = False
        self.asked = 0

    def get(self, key: str) -> str:
        self.asked += 1
        if self.is_down:
            raise ConnectionError("refused")
        return key.upper()


@pytest.fixture
def seen() -> Any:
    events: list[Event] = []
    offs = [on(name, events.append) for name in ("cache_failed", "cache_restored")]
    yield events
    for off in offs:
        off()


def test_a_failing_store_is_probed_with_exponential_backoff(seen: list[Event]) -> None:
    clock, store = VirtualClock(), Store()
    breaker = StoreBreaker("store", clock)
    assert breaker("", store.get, "a") == "A"
    store.is_down = True
    tries = []
    for _ in range(1200):
        before = store.asked
        assert breaker("none", store.get, "a") == "none"
        if store.asked > before:
            tries.append(round(clock.now - 1000, 1))
        clock.advance(0.1)
    gaps = [round(later - earlier, 1) for earlier, later in itertools.pairwise(tries)]
    assert [round(gap) for gap in gaps[:6]] == [1, 2, 4, 8, 16, 30]
    assert all(gap < 30.5 for gap in gaps)
    store.is_down = False
    clock.advance(31)
    assert breaker("", store.get, "a") == "A"
    assert breaker("", store.get, "a") == "A"
    failed, restored = seen
    assert isinstance(failed, CacheFailed)
    assert (failed.cache, failed.what) == ("store", "unavailable")
    assert "refused" in failed.message
    assert isinstance(failed.error, ConnectionError)
    assert isinstance(restored, CacheRestored)
    assert (restored.cache, restored.skipped) == ("store", 1200 - len(tries))


class Full:
    """A store that can be read, and accepts writes, or only small ones, or none."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.largest = 0
        self.is_down = False
        self.written: list[int] = []

    def ask(self) -> None:
        self.get()

    def ask_to_write(self) -> None:
        self.put(1)

    def get(self) -> str:
        if self.is_down:
            raise ConnectionError("refused")
        return "value"

    def put(self, size: int) -> bool:
        self.get()
        self.written.append(size)
        if size > self.largest:
            raise self.error
        return True


@pytest.mark.parametrize("error", [ValueError("OOM"), OSError(28, "No space left"), sqlite3.OperationalError("locked")])
def test_a_store_that_accepts_no_writes_is_read_and_asked_to_write_with_exponential_backoff(
    seen: list[Event], error: Exception
) -> None:
    clock, store = VirtualClock(), Full(error)
    breaker = StoreBreaker("store", clock)
    breaker.users.add(store)
    tries = []
    for _ in range(700):
        before = len(store.written)
        assert breaker.write(False, store.put, 5) is False
        assert breaker("none", store.get) == "value"
        if len(store.written) > before:
            tries.append(round(clock.now - 1000, 1))
        clock.advance(0.1)
    assert [round(later - earlier) for earlier, later in itertools.pairwise(tries)][:6] == [1, 2, 4, 8, 16, 30]
    assert (breaker.trouble, error.args[-1] in breaker.refusal) == ("", True)
    # A deletion is tried, whether it is accepted or not.
    assert breaker.delete(None, lambda: 3) == 3
    assert breaker.delete(None, store.put, 5) is None
    assert breaker("none", store.get) == "value"
    store.largest = 9
    clock.advance(31)
    assert breaker.write(False, store.put, 5)
    assert breaker.refusal == ""
    whats = [(each.name, each.what) for each in seen if isinstance(each, CacheFailed | CacheRestored)]
    assert whats == [("cache_failed", "read_only"), ("cache_failed", "refused"), ("cache_restored", "read_only")]
    assert seen[-1].skipped == 700 - len(tries)  # type: ignore[attr-defined]


def test_a_write_that_is_too_large_is_left_out_and_others_are_not(seen: list[Event]) -> None:
    store = Full(ValueError("too large"))
    store.largest = 4
    breaker = StoreBreaker("store", VirtualClock())
    breaker.users.add(store)
    assert [breaker.write(False, store.put, size) for size in (5, 3, 6, 2)] == [False, True, False, True]
    assert [each.what for each in seen if isinstance(each, CacheFailed)] == ["refused"]


def test_a_store_that_is_down_and_then_accepts_no_writes_is_reported_as_both(seen: list[Event]) -> None:
    clock, store = VirtualClock(), Full(ValueError("READONLY"))
    breaker = StoreBreaker("store", clock)
    breaker.users.add(store)
    store.is_down = True
    assert breaker.write(False, store.put, 5) is False
    assert (breaker("none", store.get), breaker.delete("none", store.get)) == ("none", "none")
    store.is_down = False
    clock.advance(2)
    assert breaker.write(False, store.put, 5) is False  # the probe finds that it can be read
    assert breaker("none", store.get) == "value"
    store.is_down = True
    assert breaker("none", store.get) == "none"
    store.is_down, store.largest = False, 9
    clock.advance(2)
    assert breaker.write(False, store.put, 5) is True
    whats = [(each.name, each.what) for each in seen if isinstance(each, CacheFailed | CacheRestored)]
    down, full = "unavailable", "read_only"
    assert whats == [
        ("cache_failed", down),
        ("cache_restored", down),
        ("cache_failed", full),
        ("cache_failed", down),
        ("cache_restored", down),
        ("cache_restored", full),
    ]


def test_the_event_of_an_outage_is_one_line(seen: list[Event]) -> None:
    def failing() -> None:
        raise ConnectionError("refused\nby the server")

    StoreBreaker("store", VirtualClock())(None, failing)
    assert seen[0].message == (
        "cache store failed (ConnectionError: refused by the server); functions run without it, next probe in 1s"
    )


def test_other_operations_do_not_wait_for_a_probe() -> None:
    clock, store = VirtualClock(), Store()
    breaker = StoreBreaker("store", clock)
    store.is_down = True
    breaker("", store.get, "a")
    clock.advance(2)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        leave.wait(60)
        return "answer"

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(breaker("none", slow)))
    thread.start()
    entered.wait(60)
    assert breaker("none", store.get, "a") == "none"
    leave.set()
    thread.join()
    assert results == ["answer"]
    store.is_down = False
    assert breaker("none", store.get, "a") == "A"


def test_concurrent_failures_count_as_one(seen: list[Event]) -> None:
    clock = VirtualClock()
    breaker = StoreBreaker("store", clock)
    barrier = threading.Barrier(8)

    def failing() -> None:
        barrier.wait(60)
        raise ConnectionError

    threads = [threading.Thread(target=breaker, args=(None, failing)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    clock.advance(1.01)
    assert breaker("", lambda: "answer") == "answer"


def test_an_exception_in_an_event_handler_is_logged_only(caplog: Any) -> None:
    def broken(event: Event) -> None:
        raise ValueError("mine")

    off = on(CacheFailed, broken)
    try:
        breaker = StoreBreaker("store", VirtualClock())
        assert breaker("none", lambda: 1 // 0) == "none"
    finally:
        off()
        off()
    assert "handler" in caplog.text


def test_a_failure_is_reported_once_a_minute_with_the_number_of_occurrences(seen: list[Event]) -> None:
    clock = VirtualClock()
    throttled = ThrottledFailure("not_stored", "f", clock)
    for _ in range(150):
        throttled.report("lost")
        clock.advance(1)
    assert [event.message for event in seen] == ["lost", *["lost (and 59 more since the last report)"] * 2]
