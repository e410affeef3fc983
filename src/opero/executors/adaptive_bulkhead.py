"""A bulkhead that finds out how many calls at once its service serves best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.errors import CallTimeoutError
from opero.events import LimitChanged
from opero.executors.bulkhead import BulkheadExecutor
from opero.executors.state.adaptive_limit import Sample
from opero.executors.state.adaptive_slots import AdaptiveSlots
from opero.executors.state.home import Moved
from opero.failures import Kind, kind_of
from opero.observe.subscriptions import emit
from opero.runtime.generators import Started

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.classifier import Classifier
    from opero.executors.state.home import Holder
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.runtime.clock import Clock

AT_MOST_EVERY = 1.0
"""Seconds between two events of one bulkhead."""


class AdaptiveBulkheadExecutor(BulkheadExecutor):
    """A bulkhead whose limit follows what calls take, from when they have a slot until they end."""

    home: Any  # `AdaptiveSlots`, or the home that its state has moved to

    def __init__(self, policy: BulkheadPolicy, clock: Clock, name: str) -> None:
        super().__init__(policy, clock, name)
        self.own = self.home = AdaptiveSlots(policy)
        self._told = self.home.state.found, clock.monotonic()

    def migrate_from(self, old: Holder[Any]) -> None:
        super().migrate_from(old)
        if not isinstance(self.home, AdaptiveSlots):  # a file, for the worker processes of maps under the old policy
            self.own = AdaptiveSlots(self.policy)
            self.move_to(self.own)
        self._told = self.home.state.found, self.clock.monotonic()

    # Around the function

    def wrap(self, layer: Layer, classifier: Classifier | None = None) -> Layer:
        monotonic, judge = self.clock.monotonic, kind_of if classifier is None else classifier.kind_of

        def measured(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            begun, started = self._begun(), monotonic()
            try:
                result = layer(call, args, kwargs)
            except Exception as error:
                self._ended(begun, monotonic() - started, call, None if call.turned_away else judge(error), error)
                raise
            if type(result) is Started:
                result.on_end(lambda _: self._ended(begun, monotonic() - started, call))
            else:
                self._ended(begun, monotonic() - started, call)
            return result

        return super().wrap(measured)

    def wrap_async(self, layer: Layer, classifier: Classifier | None = None) -> Layer:
        monotonic, judge = self.clock.monotonic, kind_of if classifier is None else classifier.kind_of

        async def measured(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            begun, started = self._begun(), monotonic()
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                self._ended(begun, monotonic() - started, call, None if call.turned_away else judge(error), error)
                raise
            if type(result) is Started:
                result.on_end(lambda _: self._ended(begun, monotonic() - started, call))
            else:
                self._ended(begun, monotonic() - started, call)
            return result

        return super().wrap_async(measured)

    def _begun(self) -> tuple[int, int] | None:
        home = self.home
        return home.begun() if isinstance(home, AdaptiveSlots) else None

    def _ended(
        self,
        begun: tuple[int, int] | None,
        seconds: float,
        call: Call,
        kind: Kind | None = None,
        error: Exception | None = None,
    ) -> None:
        """Learn from a call that had a slot. One that was cancelled, or turned away by a timeout, says nothing."""
        if begun is None or call.turned_away:
            return
        era, in_flight = begun
        if error is None:
            sample = Sample(era, in_flight, seconds)
        else:
            overloaded = kind is Kind.THROTTLED or isinstance(error, CallTimeoutError)
            sample = Sample(era, in_flight, seconds, 0.0, overloaded)
        while isinstance(home := self.home, AdaptiveSlots):  # else another policy has a number
            try:
                found = home.ended(sample)
                break
            except Moved:
                self.follow()
        else:
            return
        if found != self._told[0]:
            self._tell(found)

    def _tell(self, found: int) -> None:
        """Emit an event, unless the last one has been just now: then a later call does."""
        with self.own.lock:
            told, at = self._told
            now = self.clock.monotonic()
            if found == told or now - at < AT_MOST_EVERY:
                return
            self._told = found, now
        emit(LimitChanged, self.hooks, **self.origin, what="bulkhead", before=told, after=found)
