"""Rejecting calls by the share that the service does not accept: the executor of a throttle, around the function."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opero.errors import ThrottledError
from opero.executors.conditions import Matcher
from opero.executors.state.traffic import Traffic, TrafficCell, faded, rejected_share
from opero.runtime.priorities import current

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.classifier import Classifier
    from opero.policies.throttle import ThrottlePolicy
    from opero.runtime.clock import Clock

AGAIN = 1.0
"""Seconds after which a call that was rejected may try again: by then the counts are others."""


class ThrottleExecutor:
    """A throttle, shared by all functions that are bound to its profile. Each worker process of a map has its own."""

    origin: Mapping[str, str] = MappingProxyType({})

    def __init__(self, policy: ThrottlePolicy, clock: Clock, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.cell = TrafficCell(clock.monotonic())

    def migrate_from(self, old: ThrottleExecutor) -> None:
        """Continue with the counts of an executor whose policy this one's replaces."""
        self.cell = old.cell

    def traffic(self) -> Traffic:
        """Return the counts of now."""
        return faded(self.cell.traffic, self.policy.window, self.clock.monotonic())

    def load(self) -> tuple[float, float, float]:
        """Return the share of attempts that is rejected now, and the counts: requests and accepts."""
        traffic = self.traffic()
        return rejected_share(traffic, self.policy.ratio), traffic.requests, traffic.accepts

    # Decisions

    def admit(self, call: Call) -> None:
        """Let an attempt through, or not.

        Raises:
            ThrottledError: it is one of those that are rejected.
        """
        traffic = self.cell.traffic
        if traffic.requests <= traffic.accepts:
            return
        now, policy = self.clock.monotonic(), self.policy
        traffic = faded(traffic, policy.window, now)
        share = rejected_share(traffic, policy.ratio, current.get())
        if not share or self.clock.random.random() >= share:
            return
        accepted = min(1.0, traffic.accepts / traffic.requests)
        text = f"{self.name}: throttled, as the service accepts only {accepted:.0%} of the attempts"
        if policy.shadow:
            call.stats.count_shadow("throttle", "reject", AGAIN, message=text)
            return
        self.cell.count(policy.window, now, accepted=False)
        call.turned_away = True
        error = ThrottledError(f"{text}; {share:.0%} of them are rejected here", retry_in=AGAIN)
        raise call.stats.count_rejection("throttle", error)

    def count(self, *, accepted: bool) -> None:
        """Count an attempt that was let through."""
        self.cell.count(self.policy.window, self.clock.monotonic(), accepted=accepted)

    # Around the function

    def wrap(self, layer: Layer, classifier: Classifier) -> Layer:
        counts = Matcher.of(self.policy.trip_on, classifier)

        def throttled(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            self.admit(call)
            try:
                result = layer(call, args, kwargs)
            except Exception as error:
                if not call.turned_away:
                    self.count(accepted=not counts(error, call.answers))
                raise
            self.count(accepted=True)
            return result

        return throttled

    def wrap_async(self, layer: Layer, classifier: Classifier) -> Layer:
        counts = Matcher.of(self.policy.trip_on, classifier)

        async def throttled(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            self.admit(call)
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                if not call.turned_away:
                    self.count(accepted=not counts(error, call.answers))
                raise
            self.count(accepted=True)
            return result

        return throttled
