"""What is counted from events, as nothing else keeps it: changes of circuit breakers, and the progress of maps.

Such events are rare, so listening to them costs calls nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from opero.events import EVENTS, CircuitChanged, MapFinished, MapProgressed, MapStarted
from opero.observe.subscriptions import Subscription, attach, detach
from opero.runtime.forking import RenewedLock, renew_in_child

if TYPE_CHECKING:
    from opero.values import Progress

Labels = tuple[str, ...]
CIRCUIT = tuple(each for each in EVENTS.values() if issubclass(each, CircuitChanged))


class CountedEvents:
    """Counts events of this process, from its creation until it is closed."""

    def __init__(self) -> None:
        self._lock = RenewedLock()
        self._transitions: Counter[Labels] = Counter()
        self._items: Counter[Labels] = Counter()
        self._maps: dict[int, tuple[Labels, Progress | None, int | None]] = {}
        """The maps under way: number → function, progress, number of items."""
        self._subscription = Subscription(self._count, most_seconds=float("inf"))  # it is never slow by itself
        attach(self._subscription, (*CIRCUIT, MapStarted, MapProgressed, MapFinished))
        renew_in_child(self)

    def close(self) -> None:
        """Listen to events no longer."""
        detach(self._subscription)

    def add_to(self, values: dict[str, dict[Labels, Any]]) -> None:
        """Add the metrics."""
        with self._lock:
            running = Counter(dict.fromkeys((labels[:-1] for labels in self._items), 0))
            pending: Counter[Labels] = Counter(running)
            for labels, progress, total in self._maps.values():
                running[labels] += 1
                pending[labels] += max(0, (total or 0) - (0 if progress is None else progress.done))
            if self._transitions:
                values["opero_circuit_breaker_transitions"] = dict(self._transitions)
            if running:
                values["opero_map_items"] = dict(self._items)
                values["opero_map_running"], values["opero_map_pending"] = dict(running), dict(pending)

    def after_fork(self) -> None:
        """Forget the maps under way: they are the parent's."""
        self._maps.clear()

    def _count(self, event: Any) -> None:
        labels = event.policy, event.function
        with self._lock:
            if isinstance(event, CircuitChanged):
                self._transitions[*labels, event.state] += 1
            elif isinstance(event, MapStarted):
                self._maps[event.map] = labels, None, event.total
                for outcome in ("succeeded", "failed"):
                    self._items[*labels, outcome] += 0
            else:
                self._advance(labels, event.map, event.progress)
                if isinstance(event, MapFinished):
                    del self._maps[event.map]

    def _advance(self, labels: Labels, number: int, now: Progress) -> None:
        _, before, _ = self._maps.get(number, (labels, None, None))
        done, failures = (0, 0) if before is None else (before.done, before.failures)
        self._items[*labels, "failed"] += max(0, now.failures - failures)
        self._items[*labels, "succeeded"] += max(0, now.done - now.failures - (done - failures))
        self._maps[number] = labels, now, now.total
