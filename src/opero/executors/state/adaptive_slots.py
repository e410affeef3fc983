"""The slots of a bulkhead whose limit is found by what calls take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.executors.state.adaptive_limit import bounded, learn, new_limit
from opero.executors.state.slots import NOWHERE, LocalSlots, SlotValues

if TYPE_CHECKING:
    from opero.executors.state.adaptive_limit import AdaptiveLimit, Sample
    from opero.policies.bulkhead import BulkheadPolicy


class AdaptiveValues(SlotValues):
    """What moves from home to home: `SlotValues`, with what has been found.

    Attributes:
        found: the limit, and what it has been found by.
    """

    found: AdaptiveLimit


class AdaptiveSlots(LocalSlots):
    """Keeps the slots in this process, as many as an `AdaptiveLimit` says.

    Attributes:
        state: what has been found.
    """

    def __init__(self, policy: BulkheadPolicy) -> None:
        super().__init__(policy)
        self.policy = policy
        self.state = new_limit(policy.min_limit, policy.max_limit, policy.first_limit)
        self._set_limit(self.state.limit)

    def begun(self) -> tuple[int, int]:
        """Return the era of the limit, and how many calls are under way, for a call that has just got a slot."""
        free = self._free
        return (-1, 0) if free == NOWHERE else (self.state.era, int(self.limit - free))

    def ended(self, sample: Sample) -> int:
        """Learn from a call that has ended; return the best limit that is known."""
        with self.lock:
            self.check()
            self._continue(learn(self.state, sample))
            return self.state.found

    def _continue(self, state: AdaptiveLimit) -> None:
        self.state = state
        if state.limit != self.limit:
            self._set_limit(state.limit)

    def apply(self, policy: BulkheadPolicy) -> None:
        with self.lock:
            self.policy = policy
            self._continue(bounded(self.state, policy.min_limit, policy.max_limit))

    def values(self) -> SlotValues:
        values = AdaptiveValues(*super().values())
        values.found = self.state
        return values

    def receive(self, values: SlotValues) -> None:
        if isinstance(values, AdaptiveValues):
            self.state = bounded(values.found, self.policy.min_limit, self.policy.max_limit)
        super().receive(values)
        self._continue(self.state)
