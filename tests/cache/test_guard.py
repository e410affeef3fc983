"""A store that does not answer: what it costs, and how often one hears of it."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from opero import Event, on
from opero.cache.guard import Guard, Limited
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
    offs = [on(name, events.append) for name in ("cache_unavailable", "cache_available", "cache_not_stored")]
    yield events
    for off in offs:
        off()


def test_a_store_that_fails_is_left_alone_for_longer_and_longer(seen: list[Event]) -> None:
    clock, store = VirtualClock(), Store()
    guard = Guard("store", clock)
    assert guard("", store.get, "a") == "A"
    store.is_down = True
    tries = []
    for _ in range(1200):
        before = store.asked
        assert guard("none", store.get, "a") == "none"
        if store.asked > before:
            tries.append(round(clock.now - 1000, 1))
        clock.advance(0.1)
    gaps = [round(later - earlier, 1) for earlier, later in itertools.pairwise(tries)]
    assert [round(gap) for gap in gaps[:6]] == [1, 2, 4, 8, 16, 30]
    assert all(gap < 30.5 for gap in gaps)
    store.is_down = False
    clock.advance(31)
    assert guard("", store.get, "a") == "A"
    assert guard("", store.get, "a") == "A"
    assert [event.name for event in seen] == ["cache_unavailable", "cache_available"]
    assert "refused" in seen[0].message
    assert isinstance(seen[0].error, ConnectionError)
    assert seen[1].details["lost"] == 1200 - len(tries)


def test_while_one_tries_the_others_do_not_wait_for_it() -> None:
    clock, store = VirtualClock(), Store()
    guard = Guard("store", clock)
    store.is_down = True
    guard("", store.get, "a")
    clock.advance(2)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        leave.wait(60)
        return "answer"

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(guard("none", slow)))
    thread.start()
    entered.wait(60)
    assert not guard.is_up
    assert guard("none", store.get, "a") == "none"
    leave.set()
    thread.join()
    assert results == ["answer"]
    assert guard.is_up


def test_those_that_were_under_way_when_it_failed_do_not_lengthen_the_pause(seen: list[Event]) -> None:
    clock = VirtualClock()
    guard = Guard("store", clock)
    barrier = threading.Barrier(8)

    def failing() -> None:
        barrier.wait(60)
        raise ConnectionError

    threads = [threading.Thread(target=guard, args=(None, failing)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    clock.advance(1.01)
    assert guard("", lambda: "answer") == "answer"


def test_a_handler_that_fails_costs_nothing(caplog: Any) -> None:
    def broken(event: Event) -> None:
        raise ValueError("mine")

    off = on("cache_unavailable", broken)
    try:
        guard = Guard("store", VirtualClock())
        assert guard("none", lambda: 1 // 0) == "none"
    finally:
        off()
        off()
    assert "the handler" in caplog.text


def test_an_event_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no event 'cache_unavailible'; did you mean 'cache_unavailable'"):
        on("cache_unavailible", print)


def test_one_kind_of_mishap_is_told_once_a_minute_with_how_many_there_were(seen: list[Event]) -> None:
    clock = VirtualClock()
    limited = Limited("cache_not_stored", "f", clock)
    for _ in range(150):
        limited.report("lost")
        clock.advance(1)
    assert [event.message for event in seen] == ["lost", *["lost (and 59 times more since the last report)"] * 2]
