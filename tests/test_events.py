"""Events are plain values: each class has a name, survives pickling, and becomes JSON."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from opero import events
from opero.events import EVENTS, CircuitChanged, Event
from opero.failures import Kind
from opero.values import Progress

SAMPLES: dict[str, Any] = {
    "error": ConnectionError("reset by peer"),
    "kind": Kind.TRANSIENT,
    "status": 503,
    "progress": Progress("get", 1, None, 0, 0, 0, 2.0),
    "changes": ("api.retry.retries: 4 → 6",),
    "profiles": ("api",),
    "functions": ("app:get",),
    "retry_in": float("inf"),
    "seconds": 0.25,
    "delay": 0.5,
    "is_asked": True,
    "total": None,
}
"""A value for each field; others are numbers or texts."""


def sample(event: type[Event]) -> Event:
    values = {
        each.name: SAMPLES.get(each.name, 3 if each.type == "int" else "text")
        for each in fields(event)
        if each.name != "time"
    }
    return event(**values)


def test_every_class_has_a_name_and_is_found_by_it() -> None:
    public = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)]
    assert set(EVENTS.values()) == set(public) - {Event, CircuitChanged}
    assert len(EVENTS) == 36
    assert {event.__name__.lower() for event in EVENTS.values()} == {name.replace("_", "") for name in EVENTS}
    assert all(event.name == name for name, event in EVENTS.items())


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_every_event_becomes_json(event: type[Event]) -> None:
    one = sample(event)
    data = json.loads(json.dumps(one.as_dict(), allow_nan=False))
    assert list(data) == ["event", *(each.name for each in fields(event))]
    assert (data["event"], data["function"], data["policy"]) == (event.name, "text", "text")
    assert abs(data["time"] - time.time()) < 3600
    if "error" in data:
        assert data["error"] == {"type": "ConnectionError", "message": "reset by peer"}
    if "kind" in data:
        assert data["kind"] == "transient"
    if "progress" in data:
        assert (data["progress"]["name"], data["progress"]["done"]) == ("get", 1)
    if "retry_in" in data:
        assert data["retry_in"] is None  # JSON has no infinity
    if "changes" in data:
        assert data["changes"] == ["api.retry.retries: 4 → 6"]


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_every_event_can_be_pickled(event: type[Event]) -> None:
    one = sample(event)
    again = pickle.loads(pickle.dumps(one))
    assert type(again) is event
    assert again.as_dict() == one.as_dict()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_cannot_be_changed_or_extended(event: type[Event]) -> None:
    one = sample(event)
    with pytest.raises(FrozenInstanceError):
        one.policy = "other"  # type: ignore[misc]
    assert not hasattr(one, "__dict__")


def test_the_text_of_an_exception_that_cannot_be_read_is_no_obstacle() -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    data = EVENTS["configuration_rejected"](error=UnreadableError()).as_dict()  # type: ignore[call-arg]
    assert data["error"]["type"] == "UnreadableError"
    json.dumps(data)


def test_changes_of_circuits_have_a_common_base() -> None:
    assert {name for name, event in EVENTS.items() if issubclass(event, CircuitChanged)} == {
        "circuit_opened",
        "circuit_half_opened",
        "circuit_closed",
        "circuit_forced",
    }
