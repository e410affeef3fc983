"""The alert manager: watches conditions over events and counts of calls, and notifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

import opero.parallel
from opero.alerts.conditions import OWN, Counts, Group, group_of, tested
from opero.alerts.notify import notify
from opero.alerts.thread import thread
from opero.binding.roster import all_bindings
from opero.dataclass import dataclass
from opero.events import EVENTS, AlertFired, AlertResolved, Event
from opero.observe.subscriptions import Subscription, attach, detach
from opero.policies.alert import Alert
from opero.policies.refusals import made
from opero.runtime.clock import SYSTEM, default_clock
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.runtime.clock import Clock

MOST_KNOWN = 10_000
"""Functions of which an alert remembers whether they concern it."""
MOST_LISTED = 50
"""Functions and profiles that a notification lists."""
_counts_of: Callable[[Any], Any] = attrgetter(*Counts._fields)


@dataclass(frozen=True, slots=True)
class AlertStatus:
    """The state of an alert.

    Attributes:
        firing: whether it has fired and is not resolved.
        since: for how many seconds; None if it is not firing.
        functions, policies: the names of what is concerned now, or was last.
        message: what holds, or held last.
    """

    firing: bool = False
    since: float | None = None
    functions: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    message: str = ""


class AlertManager:
    """Notifies operators of failure patterns of functions.

        manager = AlertManager({
            "api-failing": Alert(when={"share": "20%", "over": "5m"}, policy="api", notify=["log", "secret:ALERT_URL"]),
            "circuit": Alert(when={"state": "circuit_open", "lasts": "2m"}, notify=page),
        })
        manager.start()

    Conditions are looked at once a second, in a thread that all managers share and in which functions and webhooks are
    called. Calls are counted by their statistics, so a call that succeeds pays nothing. Every function of the process
    is watched, whichever registry or policy it is bound by.

    Alerts in the files of the default registry need no manager: they run by themselves.

    In a forked child the alerts go on, with what happens there. In the worker processes of maps there are none: their
    events and counts reach the process that runs the map.

    Args:
        alerts: name → alert, or the fields of one.
        clock: the source of time. Default: the default clock. On another clock than the system's, such as that of a
            test, there is no thread: call `check()`.

    Raises:
        ConfigError: an alert is invalid.
        TypeError: the alerts are no mapping.
    """

    def __init__(self, alerts: Mapping[str, Alert | Mapping[str, Any]], *, clock: Clock | None = None) -> None:
        self._lock = RenewedLock()
        self._telling = RenewedLock()
        """Held while notifications are sent."""
        self._clock = clock or default_clock()
        self._subscription = Subscription(self._receive, most_seconds=float("inf"))  # it waits for nothing but a lock
        self._tracked: dict[str, _Tracked] = {}
        self._known: dict[int, tuple[Stats, Counts]] | None = None
        """What each function had counted at the last look, by the identity of its statistics; None before the first."""
        self.is_running = False
        self.replace(alerts)

    @property
    def alerts(self) -> Mapping[str, Alert]:
        """The alerts by name."""
        return {name: each.alert for name, each in self._tracked.items()}

    def replace(self, alerts: Mapping[str, Alert | Mapping[str, Any]]) -> None:
        """Watch other alerts from now on. One that has the same name and is unchanged keeps its state.

        Raises:
            ConfigError: an alert is invalid; nothing has changed.
            TypeError: the alerts are no mapping.
        """
        if not isinstance(alerts, Mapping):
            raise TypeError(f"alerts expects a mapping of names to alerts, not a value of type {type(alerts).__name__}")
        parsed = {str(name): made(Alert, each) for name, each in alerts.items()}
        with self._lock:
            before = self._tracked
            self._tracked = {
                name: before[name] if name in before and before[name].alert == alert else _Tracked(name, alert)
                for name, alert in parsed.items()
                if alert.enabled
            }
            if self.is_running:
                self._listen()

    # Running

    def start(self) -> Self:
        """Begin to watch. Starting again does nothing, and so does starting in a worker process of a map."""
        with self._lock:
            if not self.is_running and not opero.parallel.is_worker:
                self.is_running = True
                self._known = None
                self._poll(self._clock.monotonic())
                self._listen()
                if self._clock is SYSTEM:
                    thread.add(self)
        return self

    def stop(self) -> None:
        """Stop watching, and forget what has happened. A notification under way is finished."""
        thread.remove(self)
        with self._lock:
            self.is_running = False
            self._listen()
            self._tracked = {name: _Tracked(name, each.alert) for name, each in self._tracked.items()}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _listen(self) -> None:
        """Subscribe to the events that the conditions want. The lock is held."""
        detach(self._subscription)
        wanted = sorted(set().union(*(each.condition.events() for each in self._tracked.values())))
        if self.is_running:
            attach(self._subscription, [EVENTS[name] for name in wanted])

    def _receive(self, event: Event) -> None:
        with self._lock:
            now = self._clock.monotonic()
            for each in self._tracked.values():
                group = each.group_of(event.policy, event.function)
                if group is not None:
                    each.condition.receive(event, group, now)

    # Looking

    def check(self) -> None:
        """Look at all conditions now, and notify before this returns. It is called once a second by itself."""
        self._look(patient=True)

    def _look(self, *, patient: bool) -> None:
        """As `check`. Unless `patient`, a webhook that fails is not called again."""
        with self._lock:
            if not self.is_running or opero.parallel.is_worker:  # a module may start it before that is known
                return
            now = self._clock.monotonic()
            self._poll(now)
            found = [(each, event) for each in self._tracked.values() for event in each.update(now, self._clock.time())]
        if found:
            with self._telling:
                for each, event in found:
                    notify(event, each.alert.notify, patient=patient)

    def _poll(self, now: float) -> None:
        """Count what functions have counted since the last look. The lock is held."""
        before, self._known = self._known, {}
        for binding in all_bindings():
            stats = binding.stats
            if not stats.calls or id(stats) in self._known or stats.function.startswith(OWN):
                continue
            counts = Counts._make(_counts_of(stats))
            self._known[id(stats)] = stats, counts
            if before is None:
                continue
            known, old = before.get(id(stats), (None, None))
            if known is stats and old is not None:
                if counts == old:
                    continue
                if counts.calls >= old.calls:  # else they have been reset
                    counts = Counts._make(max(0, new - each) for new, each in zip(counts, old, strict=True))
            for tracked in self._tracked.values():
                group = tracked.group_of(stats.policy, stats.function)
                if group is not None:
                    tracked.condition.count(counts, group, now)

    def status(self) -> dict[str, AlertStatus]:
        """Return the state of each alert by name, as of the last look."""
        with self._lock:
            now = self._clock.monotonic()
            return {name: each.status(now) for name, each in self._tracked.items()}


class _Tracked:
    """An alert, and what has become of it. The lock of the manager is held.

    Attributes:
        alert: the alert.
        condition: what watches its condition.
    """

    def __init__(self, name: str, alert: Alert) -> None:
        self.name = name
        self.alert = alert
        self.condition = tested(alert.when)
        self._groups: dict[tuple[str, str], Group | None] = {}
        self._found: dict[Group, str] = {}
        self._since: float | None = None
        """Since when it holds; None if the alert is not firing."""
        self._held = 0.0
        """When it held last."""
        self._sent: float | None = None
        """When it was last notified that it fires."""
        self._is_told = False
        """Whether the alert that fires has been notified."""

    def group_of(self, policy: str, function: str) -> Group | None:
        """Return what a function of a profile counts as; None if it does not concern the alert."""
        try:
            return self._groups[policy, function]
        except KeyError:
            if len(self._groups) >= MOST_KNOWN:
                self._groups.clear()
            found = self._groups[policy, function] = group_of(self.alert, policy, function)
            return found

    def update(self, now: float, moment: float) -> list[AlertFired]:
        """Look at the condition, and return the notifications to send."""
        found = self.condition.holds(now)
        if found:
            self._found, self._held = found, now
            if self._since is None:
                self._since = now
            if self._sent is None or now - self._sent >= self.alert.repeat:
                self._sent, self._is_told = now, True
                return [self._event(AlertFired, now, moment)]
        elif self._since is not None and now - self._held >= self.alert.calm:
            event = self._event(AlertResolved, self._held, moment)
            told, self._is_told, self._since = self._is_told, False, None
            return [event] if told else []
        return []

    def _event(self, kind: type[AlertFired], until: float, moment: float) -> AlertFired:
        status = self.status(until)
        one = next(iter(self._found)) if len(self._found) == 1 else Group()
        return kind(
            function=one.function,
            policy=one.policy,
            time=moment,
            alert=self.name,
            message=status.message,
            text=self.alert.text or "",
            functions=status.functions,
            policies=status.policies,
            seconds=status.since or 0.0,
        )

    def status(self, now: float) -> AlertStatus:
        listed = list(self._found.items())[:MOST_LISTED]
        texts = [text if group == Group() else f"{group}: {text}" for group, text in listed]
        if len(self._found) > len(listed):
            texts.append(f"and {len(self._found) - len(listed)} more")
        return AlertStatus(
            firing=self._since is not None,
            since=None if self._since is None else max(0.0, now - self._since),
            functions=tuple(sorted({group.function for group, _ in listed if group.function})),
            policies=tuple(sorted({group.policy for group, _ in listed if group.policy})),
            message="; ".join(texts),
        )
