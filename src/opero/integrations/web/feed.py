"""What the live page receives each second: what has changed since the last message."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.cache.stores import MemoryStore
from opero.observe.counts import COUNTS, TABLES
from opero.observe.latency import OFFSET, PER_OCTAVE
from opero.observe.stats import Stats
from opero.registry.parts import executors_of
from opero.registry.statistics import LOOKS, about, all_of, profile_of, state_of
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.integrations.web.holds import Holds
    from opero.integrations.web.recent import RecentEvents
    from opero.registry.registry import Registry

FRESH = 0.9
"""Seconds for which the statistics are not read again, however many pages ask."""
NUMBERS = ("attempts", *COUNTS)
MOST_IN_A_TABLE = 8
FINGERPRINT = attrgetter(*COUNTS, "executed", "in_flight")
"""What changes in the statistics of a function with whatever it does."""

Row = dict[str, Any]


class _Function(NamedTuple):
    """What a page receives about the functions of one name, and the counts behind it.

    Attributes:
        seen: their pipelines and counts.
        own: kind → the executors that they do not share with their profile.
        made: the part of the row that depends on `seen` alone.
        version: since when the row is as it is.
        row: what is sent.
    """

    seen: Any
    own: dict[str, Any]
    made: Row
    version: int
    row: Row


class Feed:
    """The state of a registry as changes since any earlier state. Thread-safe.

    It is computed on request, once a second at most for all clients. What is sent are counts: the
    page computes rates, percentiles and the sums of profiles itself, so a function that does nothing costs next to
    nothing.

    Args:
        registry: the registry.
        events: the last events.
        holds: what actions have changed for a while.
    """

    def __init__(self, registry: Registry, events: RecentEvents, holds: Holds) -> None:
        self.registry = registry
        self.events = events
        self.holds = holds
        self._identity = secrets.token_hex(4)
        self._version = 0
        self._complete_since = 0
        """Pages with an older version receive everything, as something is no longer there."""
        self._functions: dict[str, _Function] = {}
        self._profiles: dict[str, tuple[int, Row]] = {}
        self._head: dict[str, Any] = {}
        self._read = float("-inf")
        self._lock = threading.RLock()
        renew_in_child(self, "_lock")

    def after_fork(self) -> None:
        """Numbers of the parent say nothing about this process."""
        self._identity = secrets.token_hex(4)

    def whole(self) -> dict[str, Any]:
        """Return the whole state, as `Registry.stats()`, with the last events and what actions hold."""
        self.events.look()
        return {**self.registry.stats(), "events": self.events.since(0), "holds": self.holds.listed()}

    def message(self, since: str) -> tuple[str, bytes]:
        """Return what has changed as a server-sent event, and its id.

        Args:
            since: the id of the last message that the page has received; "" for none.
        """
        self.events.look()
        with self._lock:
            self._refresh()
            known, seen = self._parsed(since)
            number = self.events.number
            update = {
                **self._head,
                "whole": known < 0,
                "profiles": {name: row for name, (version, row) in self._profiles.items() if version > known},
                "functions": {name: each.row for name, each in self._functions.items() if each.version > known},
                "events": self.events.since(seen),
                "holds": self.holds.listed(),
            }
            here = f"{self._identity}-{self._version}-{number}"
        return here, f"retry: 1000\nid: {here}\ndata: {json.dumps(update, separators=(',', ':'))}\n\n".encode()

    def _parsed(self, since: str) -> tuple[int, int]:
        """Return which version of the rows and how many events a page knows; -1 and 0 if it has to be told all."""
        identity, _, rest = since.partition("-")
        version, _, number = rest.partition("-")
        if identity != self._identity or not (version.isdecimal() and number.isdecimal()):
            return -1, 0
        known, seen = int(version[:18]), int(number[:18])
        return (-1, 0) if known < self._complete_since else (known, seen)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._read < FRESH:
            return
        self._read = now
        self._version += 1
        self._head = {**about(self.registry), "scale": [OFFSET, PER_OCTAVE]}
        shared: dict[str, dict[str, Any]] = {}
        for profile, executor in self.registry._in_force.shared.held():
            shared.setdefault(profile, {})[executor.policy.kind] = executor
        profiles = dict(self._rows_of_profiles(shared))
        functions = dict(self._rows_of_functions({id(each) for kinds in shared.values() for each in kinds.values()}))
        if not (self._profiles.keys() <= profiles.keys() and self._functions.keys() <= functions.keys()):
            self._complete_since = self._version
        self._profiles, self._functions = profiles, functions

    def _rows_of_profiles(self, shared: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, tuple[int, Row]]]:
        configuration = self.registry.configuration
        for name in configuration.policies:
            row: Row = {"state": _states(shared.get(name, {}))}
            if not configuration.is_enabled(name):
                row["off"] = True
            before = self._profiles.get(name)
            yield name, before if before is not None and before[1] == row else (self._version, row)

    def _rows_of_functions(self, shared: set[int]) -> Iterator[tuple[str, _Function]]:
        configuration = id(self.registry.configuration)
        by_name: dict[str, list[Binding]] = {}
        for binding in all_of(self.registry):
            by_name.setdefault(binding.stats.function, []).append(binding)
        for name, bindings in by_name.items():
            seen = (
                configuration,
                [(id(each.pipeline), *[FINGERPRINT(stats) for stats in each.all_stats]) for each in bindings],
            )
            before = self._functions.get(name)
            if before is not None and before.seen == seen:
                own, made = before.own, before.made
            else:
                own, made = self._made(bindings, shared)
            row = {**made, "state": _states(own)} if own else made
            if before is not None and before.row == row:
                yield name, before._replace(seen=seen, own=own, made=made)
            else:
                yield name, _Function(seen, own, made, self._version, row)

    def _made(self, bindings: list[Binding], shared: set[int]) -> tuple[dict[str, Any], Row]:
        """Return the executors that functions have for themselves, and what is sent of their counts."""
        every = [stats for each in bindings for stats in each.all_stats]
        counts = every[0].as_counts()
        if len(every) > 1:
            total = Stats()
            for stats in every:
                total.include(stats)
            counts = total.as_counts()
        row = compact(counts)
        if in_flight := sum(stats.in_flight for stats in every):
            row["in_flight"] = in_flight
        executors = {} if bindings[-1].is_late else executors_of(bindings[-1])
        limits = {kind: each for kind, each in executors.items() if kind in LOOKS and each is not None}
        own = {kind: each for kind, each in limits.items() if id(each) not in shared}
        if common := [kind for kind in limits if kind not in own]:
            row["shares"] = common
        if profile := profile_of(self.registry, bindings[-1]):
            row["policy"] = profile
        cache = executors.get("cache")
        if cache is not None and isinstance(cache.store, MemoryStore):
            row["cached"] = cache.store.size()
        return own, row


def compact(counts: Mapping[str, Any]) -> Row:
    """Return what the page receives of counts, as `Stats.as_counts` has them: only what is not 0."""
    row: Row = {name: short(counts[name]) for name in NUMBERS if counts.get(name)}
    for name in TABLES:
        if table := counts.get(name):
            most = sorted(table.items(), key=lambda item: -item[1])[:MOST_IN_A_TABLE]
            row[name] = {key: short(value) for key, value in most}
    if weights := counts["latency"]["weights"]:
        row["latency"] = weights
    return row


def _states(executors: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: short(state_of(kind, executor)) for kind, executor in executors.items() if kind in LOOKS}


def short(value: Any) -> Any:
    """Return plain data with three digits for each number: no more is shown, and so it changes less often."""
    if type(value) is float:
        if not isfinite(value):
            return None
        return round(value) if abs(value) >= 1e6 else float(f"{value:.3g}")  # such as a time of the day
    if isinstance(value, dict):
        return {name: short(each) for name, each in value.items()}
    return [short(each) for each in value] if isinstance(value, list) else value
