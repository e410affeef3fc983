"""What the page is told: what has changed since, with few digits, and the last events, folded."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from integrations.web.conftest import Program, down
from opero import Policy
from opero.events import EVENTS
from opero.integrations.web import feed as feed_module
from opero.integrations.web import recent as recent_module
from opero.integrations.web.feed import Feed, compact, short
from opero.integrations.web.holds import Holds
from opero.integrations.web.recent import MOST_KEPT, RecentEvents
from opero.observe.latency import OFFSET, PER_OCTAVE
from opero.observe.subscriptions import emit


@pytest.fixture
def events() -> Any:
    made = RecentEvents(for_good=True)
    made.start()
    yield made
    made.stop()


def told(feed: Feed, since: str = "") -> tuple[str, Any]:
    """Return the next id, and what is sent."""
    identity, message = feed.message(since)
    lines = message.decode().splitlines()
    assert lines[:2] == ["retry: 1000", f"id: {identity}"]
    assert message.endswith(b"\n\n")
    return identity, json.loads(lines[2].removeprefix("data: "))


def test_idle_functions_are_not_sent_again(
    program: Program, events: RecentEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "FRESH", 0.0)
    feed = Feed(program.registry, events, Holds())
    for _ in range(50):
        program.charge(1)
    since, first = told(feed)
    assert first["whole"]
    assert set(first["profiles"]) == {"api", "quiet"}
    since, _ = told(feed, since)
    program.charge(1)
    since, later = told(feed, since)
    assert list(later["functions"]) == ["integrations.web.conftest:down"]
    assert later["functions"]["integrations.web.conftest:down"]["calls"] == 51
    assert not later["whole"]
    since, later = told(feed, since)
    assert later["functions"] == {}


def test_all_is_sent_where_a_function_has_gone(
    program: Program, events: RecentEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "FRESH", 0.0)
    feed = Feed(program.registry, events, Holds())
    since, first = told(feed)
    assert len(first["functions"]) == 2
    program.read = None
    gc.collect()
    since, later = told(feed, since)
    assert later["whole"]
    assert len(later["functions"]) == 1
    _, after = told(feed, since)
    assert not after["whole"]


def test_statistics_are_read_once_a_second_for_all_pages(
    program: Program, events: RecentEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "FRESH", 3600.0)
    feed = Feed(program.registry, events, Holds())
    told(feed)
    program.charge(1)
    _, again = told(feed)
    assert "calls" not in again["functions"]["integrations.web.conftest:down"]


@pytest.mark.parametrize("since", ["x", "-", "--", "a-b-c", "-1--1", "0-0-0", "9" * 5000])
def test_ids_that_are_none_are_answered_with_everything(program: Program, events: RecentEvents, since: str) -> None:
    assert told(Feed(program.registry, events, Holds()), since)[1]["whole"]


def counts(**given: Any) -> dict[str, Any]:
    return {"latency": {"weights": {}}, **given}


def test_rows_have_three_digits_and_no_zeros() -> None:
    assert compact(counts(calls=7, retries=0, waited=1.23456, errors={})) == {"calls": 7, "waited": 1.23}
    assert short({"a": [float("inf"), 1.0e9, 1234.5]}) == {"a": [None, 1_000_000_000, 1230.0]}


def test_latencies_are_sent_as_they_are_counted(program: Program, events: RecentEvents) -> None:
    program.charge(1)
    _, first = told(Feed(program.registry, events, Holds()))
    row = first["functions"]["integrations.web.conftest:down"]
    assert sum(row["latency"].values()) == 1
    assert first["scale"] == [OFFSET, PER_OCTAVE]


def test_limits_of_a_profile_are_sent_once_and_those_of_a_function_with_it(
    program: Program, events: RecentEvents
) -> None:
    own: Any = program.registry.bind(down, "api", circuit_breaker=7)
    own(1)
    program.fail(3)
    _, first = told(Feed(program.registry, events, Holds()))
    assert first["profiles"]["api"]["state"]["circuit_breaker"]["state"] == "open"
    names = {name: row for name, row in first["functions"].items() if row.get("policy") == "api"}
    [(_, row)] = names.items()
    assert row["calls"] == 4, "two functions of one name"
    assert row["shares"] == ["rate_limit"]
    assert row["state"]["circuit_breaker"]["state"] == "closed"


def test_a_circuit_that_changes_by_itself_is_sent(
    program: Program, events: RecentEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "FRESH", 0.0)
    feed = Feed(program.registry, events, Holds())
    program.charge(1)
    since, _ = told(feed)
    program.registry.state("api").circuit_breaker.force_open()
    since, later = told(feed, since)
    assert later["profiles"]["api"]["state"]["circuit_breaker"]["state"] == "forced_open"
    assert later["functions"] == {}
    with program.registry.override(quiet={"enabled": False}):
        _, later = told(feed, since)
    assert later["profiles"]["quiet"]["off"] is True


def test_names_of_many_errors_are_bounded() -> None:
    errors = {f"Error{number}": number for number in range(1, 500)}
    assert list(compact(counts(errors=errors))["errors"]) == [f"Error{number}" for number in range(499, 491, -1)]


# Events


def test_equal_events_in_a_row_are_counted(program: Program, events: RecentEvents) -> None:
    program.fail(3)
    program.fail(40)
    found = {each["event"]: each for each in events.since(0)}
    assert found["rejected"]["count"] >= 40
    assert found["circuit_opened"]["text"].startswith("closed → open, after ConnectionError: <img")
    assert found["attempt_failed"]["text"] == "transient: ConnectionError: <img src=x onerror=alert(1)> down"
    number = events.number
    assert events.since(number) == []
    program.fail(1)
    [again] = events.since(number)
    assert again["event"] == "rejected"
    assert again["id"] == found["rejected"]["id"], "the page replaces it"


def test_the_last_events_are_kept(events: RecentEvents) -> None:
    for number in range(3 * MOST_KEPT):
        emit(EVENTS["cache_refreshed"], function=f"app:f{number}")
    found = events.since(0)
    assert len(found) == MOST_KEPT
    assert found[-1]["function"] == f"app:f{3 * MOST_KEPT - 1}"


def test_texts_are_one_short_line_without_passwords(events: RecentEvents) -> None:
    error = RuntimeError("first\nsecond\x1b[31m redis://user:hunter2@host/0 " + "x" * 1000)
    emit(EVENTS["rejected"], function="app:f", by="bulkhead", retry_in=None, error=error)
    [found] = events.since(0)
    assert "\n" not in found["text"]
    assert "hunter2" not in found["text"]
    assert len(found["text"]) <= 240


def test_every_event_has_a_text(events: RecentEvents, heard: list[Any]) -> None:
    policy = Policy(cache={"ttl": 60}, fallback={"default": 1}, retry=1)

    def fail() -> int:
        raise ConnectionError("down")

    policy.apply(fail)()
    assert {each["event"] for each in events.since(0)} <= {each.name for each in heard}
    assert all(each["text"] for each in events.since(0))


def test_successful_calls_stay_on_the_short_path(program: Program, events: RecentEvents) -> None:
    for name in ("call_succeeded", "call_failed", "cache_hit", "cache_miss", "cache_stale"):
        assert EVENTS[name].handlers == ()


def test_nothing_is_kept_unless_somebody_looks(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = RecentEvents()
    assert EVENTS["rejected"].handlers == ()
    watching.look()
    program.fail(1)
    assert watching.number > 0
    monkeypatch.setattr(recent_module, "UNWATCHED", -1.0)
    program.fail(1)
    assert EVENTS["attempt_failed"].handlers == (), "a minute later"
