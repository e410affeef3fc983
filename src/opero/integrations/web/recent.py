"""The last events, kept while a page is open."""

from __future__ import annotations

import threading
import time
from typing import Any

from opero.errors import describe, one_line, shortened
from opero.events import (
    EVENTS,
    AttemptFailed,
    CircuitChanged,
    Event,
    FallbackUsed,
    HedgeStarted,
    Rejected,
    RetryScheduled,
    TimedOut,
    ValueRestored,
    ValueSetAside,
)
from opero.observe.subscriptions import on
from opero.policies.quantities import without_password
from opero.policies.types import approximate_duration
from opero.runtime.forking import renew_in_child

MOST_KEPT = 200
LONGEST_TEXT = 240
FOLDED_WITHIN = 10.0
"""Seconds within which an event like the last one of its function is counted with it."""
UNWATCHED = 60.0
"""Seconds without a look after which no more events are kept."""
LEFT_OUT = frozenset(
    {
        # They would put every successful call on the slower path, on which events are built.
        *("call_succeeded", "call_failed", "cache_hit", "cache_miss", "cache_stale"),
        *("waited", "map_progressed"),  # many, and the statistics have them
    }
)
OF_ALL = ("function", "policy", "time")


class RecentEvents:
    """The last 200 events, newest last. Thread-safe.

    Equal events in a row, as of a storm of retries, are one with a count, so that they do not displace the others.

    Args:
        for_good: whether to keep them from `start` until `stop`. If not, only from the first `look` on, and until a
            minute after the last one.
    """

    def __init__(self, *, for_good: bool = False) -> None:
        self._for_good = for_good
        self._kept: dict[int, dict[str, Any]] = {}
        self._latest: dict[tuple[str, str, Any], dict[str, Any]] = {}
        self._number = 0
        self._looked = 0.0
        self._offs: list[Any] = []
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def start(self) -> None:
        """Subscribe to the events."""
        with self._lock:
            if not self._offs:
                self._offs = [on(event, self._add) for name, event in EVENTS.items() if name not in LEFT_OUT]

    def stop(self) -> None:
        """End the subscriptions; what has been kept stays."""
        with self._lock:
            offs, self._offs = self._offs, []
        for off in offs:
            off()

    def look(self) -> None:
        """Note that a page is open."""
        self._looked = time.monotonic()
        if not self._for_good and not self._offs:
            self.start()

    @property
    def number(self) -> int:
        """How often something has been added."""
        return self._number

    def since(self, number: int) -> list[dict[str, Any]]:
        """Return the events that have been added or counted again since then, the newest last."""
        with self._lock:
            return [dict(each) for each in self._kept.values() if each["number"] > number]

    def _add(self, event: Event) -> None:
        if not self._for_good and time.monotonic() - self._looked > UNWATCHED:
            self.stop()
            return
        error = getattr(event, "error", None)
        key = event.name, event.function or event.policy, type(error)
        with self._lock:
            before = self._latest.get(key)
            if before is not None and event.time - before["time"] < FOLDED_WITHIN and before["id"] in self._kept:
                self._number += 1
                before |= {"count": before["count"] + 1, "time": event.time, "number": self._number}
                self._kept[before["id"]] = self._kept.pop(before["id"])
                return
        text = detail(event)
        with self._lock:
            if len(self._latest) > 10 * MOST_KEPT:
                self._latest.clear()
            if len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._number += 1
            self._latest[key] = self._kept[self._number] = {
                "id": self._number,
                "number": self._number,
                "event": event.name,
                "function": event.function,
                "policy": event.policy,
                "time": event.time,
                "text": text,
                "count": 1,
            }


def detail(event: Event) -> str:
    """Return what an event says beside its name, function and profile, as one line without passwords."""
    text = _of_call(event)
    return shortened(without_password(one_line(_of_fields(event) if text is None else text)), LONGEST_TEXT)


def _of_call(event: Event) -> str | None:
    match event:
        case AttemptFailed(kind=kind, error=error):
            return f"{kind.value}: {describe(error)}"
        case RetryScheduled(attempt=attempt, delay=delay, error=error):
            return f"attempt {attempt} in {approximate_duration(delay)}, after {describe(error)}"
        case HedgeStarted(attempt=attempt, delay=delay):
            return f"attempt {attempt}, as the one before took longer than {approximate_duration(delay)}"
        case Rejected(error=error) | TimedOut(error=error):
            return describe(error)
        case FallbackUsed(what=what, error=error):
            return f"on {'another value' if what == 'value' else f'the {what}'}, after {describe(error)}"
        case ValueSetAside(argument=argument, position=position, kind=kind, seconds=seconds):
            return f"value {position + 1} of {argument}, {kind.value}, for {approximate_duration(seconds)}"
        case ValueRestored(argument=argument, position=position):
            return f"value {position + 1} of {argument}"
        case CircuitChanged(before=before, state=state, reason=reason):
            return f"{before} → {state}{f', after {reason}' if reason else ''}".replace("_", " ")
    return None


def _of_fields(event: Event) -> str:
    parts = []
    for name in (each for cls in type(event).__mro__ for each in getattr(cls, "__slots__", ())):
        value = getattr(event, name)
        if name in OF_ALL or value is None or value in ("", ()):
            continue
        if isinstance(value, BaseException):
            parts.append(describe(value))
        elif isinstance(value, bool):
            parts.append(name.removeprefix("is_") if value else "")
        elif isinstance(value, float):
            parts.append(f"{name.replace('_', ' ')} {value:.3g} s")
        elif isinstance(value, tuple):
            parts.append("; ".join(map(str, value)))
        elif isinstance(value, str | int):
            parts.append(f"{name.replace('_', ' ')} {getattr(value, 'value', value)}")
    return " · ".join(each for each in parts if each)
