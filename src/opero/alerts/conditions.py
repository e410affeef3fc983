"""Whether the conditions of an alert hold: counts within a window, lasting states, and combinations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple, Protocol

from opero.events import (
    CacheFailed,
    CacheRestored,
    CircuitChanged,
    ConfigurationRejected,
    ConfigurationReloaded,
    ValueRestored,
    ValueSetAside,
)
from opero.policies.types import approximate_duration, format_duration

if TYPE_CHECKING:
    from opero.events import Event
    from opero.policies.alert import Alert, Condition

STEPS = 30
"""Into how many steps a window is divided: it contains up to one step more than its time."""
MOST_GROUPS = 1000
"""Functions that a condition counts apart; others are counted together."""
SELDOM = 32
"""Idle functions are looked at only every that many looks, to drop calls that have left the window."""
OWN = "opero.alerts."
"""What the names of opero's own functions here begin with: a webhook that fails causes no alert."""


class Group(NamedTuple):
    """What is counted apart: a function of a profile; each "" for any."""

    policy: str = ""
    function: str = ""

    def __str__(self) -> str:
        return self.function or self.policy or "all"

    def meets(self, other: Group) -> bool:
        """Return whether both concern the same, as far as they say."""
        return all(one == another or not one or not another for one, another in zip(self, other, strict=True))


OTHERS = Group("", "(others)")


class Counts(NamedTuple):
    """What a function has counted since the last look. The names are those of `Stats`."""

    calls: int = 0
    failures: int = 0
    retries: int = 0
    rejections: int = 0
    timeouts: int = 0
    fallbacks: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


POLLED: dict[str, Callable[[Counts], int]] = {
    "call_succeeded": lambda counts: counts.calls - counts.failures,
    "call_failed": lambda counts: counts.failures,
    "cache_hit": lambda counts: counts.cache_hits,
    "cache_miss": lambda counts: counts.cache_misses,
}
"""Events that are counted by the statistics of functions: a handler would delay every call."""


class Window:
    """Counts within a time: of what is looked for, and of all.

    Attributes:
        seconds: the time.
        hits: what has been counted, as of the last `total`.
    """

    __slots__ = ("_calls", "_steps", "hits", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.hits = self._calls = 0
        self._steps: deque[list[int]] = deque()

    def add(self, now: float, hits: int, calls: int) -> None:
        """Count at a moment."""
        step = int(now / self.seconds * STEPS)
        if not self._steps or self._steps[-1][0] != step:
            self._steps.append([step, 0, 0])
        self._steps[-1][1] += hits
        self._steps[-1][2] += calls
        self.hits += hits
        self._calls += calls

    def total(self, now: float) -> tuple[int, int]:
        """Return both counts, and forget what is older."""
        oldest = int((now - self.seconds) / self.seconds * STEPS)
        while self._steps and self._steps[0][0] < oldest:
            _, hits, calls = self._steps.popleft()
            self.hits -= hits
            self._calls -= calls
        return self.hits, self._calls


class Tested(Protocol):
    """A condition that is being watched. Its lock is that of its manager."""

    def events(self) -> set[str]:
        """Return the names of the events that it wants."""

    def receive(self, event: Event, group: Group, now: float) -> None:
        """Take notice of an event."""

    def count(self, counts: Counts, group: Group, now: float) -> None:
        """Take notice of what a function has counted."""

    def holds(self, now: float) -> dict[Group, str]:
        """Return for which groups it holds, each with what holds there."""


class Counted:
    """Holds while enough events, or a large enough share of the calls, fall within a period."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self._windows: dict[Group, Window] = {}
        self._holding: set[Group] = set()
        self._looks = 0

    def events(self) -> set[str]:
        event = self.condition.event
        return {event} if event is not None and event not in POLLED else set()

    def receive(self, event: Event, group: Group, now: float) -> None:
        if event.name == self.condition.event:
            self._add(group, now, 1, 0)

    def count(self, counts: Counts, group: Group, now: float) -> None:
        condition = self.condition
        if condition.share is not None:
            self._add(group, now, getattr(counts, condition.of), counts.calls)
        elif condition.event in POLLED:
            self._add(group, now, POLLED[condition.event](counts), 0)

    def _add(self, group: Group, now: float, hits: int, calls: int) -> None:
        window = self._windows.get(group)
        if window is None and (hits or calls):
            if len(self._windows) >= MOST_GROUPS:
                group = OTHERS
            window = self._windows.setdefault(group, Window(self.condition.over))
        if window is not None and (hits or calls):
            window.add(now, hits, calls)

    def holds(self, now: float) -> dict[Group, str]:
        condition, found = self.condition, {}
        self._looks += 1
        for group, window in list(self._windows.items()):
            if not window.hits and self._looks % SELDOM:
                continue
            hits, calls = window.total(now)
            if not hits and not calls:
                del self._windows[group]
                continue
            is_share = condition.share is not None
            value = hits / calls if is_share and calls else 0.0 if is_share else hits
            least = condition.share if condition.share is not None else condition.count
            if group in self._holding and condition.until is not None:
                least = condition.until
            elif is_share and calls < condition.min_calls:
                continue
            if value >= least:
                found[group] = self._text(hits, calls)
        self._holding = set(found)
        return found

    def _text(self, hits: int, calls: int) -> str:
        over = format_duration(self.condition.over)
        if self.condition.share is None:
            return f"{hits} × {self.condition.event} within {over}"
        return f"{hits} {self.condition.of} in {calls} calls within {over} ({hits / max(1, calls):.0%})"


class Lasting:
    """Holds while a state has lasted for a time."""

    WANTED = ("circuit_opened", "circuit_closed", "circuit_forced", "circuit_half_opened")
    EVENTS: Mapping[str, tuple[str, ...]] = {
        "circuit_open": WANTED,
        "cache_unavailable": ("cache_failed", "cache_restored"),
        "value_set_aside": ("value_set_aside", "value_restored"),
        "configuration_rejected": ("configuration_rejected", "configuration_reloaded"),
    }
    """State → the events that begin and end it."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self._since: dict[tuple[Group, str], tuple[float, float]] = {}
        """What is in the state → since when, and until when at most."""

    def events(self) -> set[str]:
        return set(self.EVENTS[self.condition.state or ""])

    def receive(self, event: Event, group: Group, now: float) -> None:
        if event.name not in self.EVENTS[self.condition.state or ""]:
            return
        if isinstance(event, CacheFailed | CacheRestored) and event.what != "unavailable":
            return  # a single result that was not stored, for example
        what, begins, until = _change(event)
        if not begins:
            self._since.pop((group, what), None)
        elif len(self._since) < MOST_GROUPS or (group, what) in self._since:
            since, _ = self._since.get((group, what), (now, 0.0))
            self._since[group, what] = since, now + until

    def count(self, counts: Counts, group: Group, now: float) -> None:
        """Counts say nothing about states."""

    def holds(self, now: float) -> dict[Group, str]:
        found: dict[Group, str] = {}
        for (group, what), (since, until) in list(self._since.items()):
            if now >= until:
                del self._since[group, what]
            elif now - since >= self.condition.lasts:
                state = (self.condition.state or "").replace("_", " ")
                found[group] = f"{what}{': ' if what else ''}{state} for {approximate_duration(now - since)}"
        return found


def _change(event: Event) -> tuple[str, bool, float]:
    """Return what an event is about, whether the state begins there, and for how many seconds it lasts at most."""
    for_ever = float("inf")
    if isinstance(event, CircuitChanged):  # half open is not closed: what was open still is not as it should be
        return event.breaker, event.state in ("open", "half_open", "forced_open"), for_ever
    if isinstance(event, CacheFailed | CacheRestored):
        return event.cache, isinstance(event, CacheFailed), for_ever
    if isinstance(event, ValueSetAside):
        return f"{event.argument}[{event.position}]", True, event.seconds
    if isinstance(event, ValueRestored):
        return f"{event.argument}[{event.position}]", False, 0.0
    assert isinstance(event, ConfigurationRejected | ConfigurationReloaded)
    return "", isinstance(event, ConfigurationRejected), for_ever


class Combined:
    """Holds while one or all of several conditions hold."""

    def __init__(self, parts: Iterable[Tested], *, every: bool) -> None:
        self.parts = tuple(parts)
        self.every = every

    def events(self) -> set[str]:
        return set().union(*(each.events() for each in self.parts))

    def receive(self, event: Event, group: Group, now: float) -> None:
        for each in self.parts:
            each.receive(event, group, now)

    def count(self, counts: Counts, group: Group, now: float) -> None:
        for each in self.parts:
            each.count(counts, group, now)

    def holds(self, now: float) -> dict[Group, str]:
        first, *others = [each.holds(now) for each in self.parts]
        for other in others:
            if not self.every:
                first = first | {
                    group: f"{first[group]}, {text}" if group in first else text for group, text in other.items()
                }
                continue
            both: dict[Group, str] = {}
            for group, text in first.items():
                for another, more in other.items():
                    if group.meets(another):  # such as a function, and the circuit that its profile shares
                        one = Group(group.policy or another.policy, group.function or another.function)
                        both[one] = f"{text}, {more}"
            first = both
        return first


def tested(condition: Condition) -> Tested:
    """Return what watches a condition."""
    if condition.state is not None:
        return Lasting(condition)
    parts = condition.all if condition.all is not None else condition.any
    if parts is not None:
        return Combined(map(tested, parts), every=condition.all is not None)
    return Counted(condition)


def group_of(alert: Alert, policy: str, function: str) -> Group | None:
    """Return what an alert counts something as; None if it does not concern it."""
    if function.startswith(OWN):
        return None
    for name, pattern in ((policy, alert.policy), (function, alert.function)):
        if pattern is not None and not fnmatchcase(name, pattern):
            return None
    return Group("" if alert.each == "all" else policy, function if alert.each == "function" else "")
