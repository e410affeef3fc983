"""Reads the metrics of a registry when they are requested, so that calls pay nothing.

What happens too rarely to cost anything, and leaves no count behind, is counted from events: changes of circuit
breakers, and the progress of maps.
"""

from __future__ import annotations

import itertools
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.errors import OperoError, message_of
from opero.integrations.metrics import BOUNDS, BY_NAME, STATES, release
from opero.observe import latency
from opero.observe.stats import Stats
from opero.registry.default import get_default_registry
from opero.registry.keyed import of_keys
from opero.registry.parts import is_by_key, is_in_shadow, parts
from opero.registry.statistics import LOOKS as STATES_OF
from opero.registry.statistics import all_of
from opero.runtime.forking import RenewedLock
from opero.runtime.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.binding.binding import Binding
    from opero.executors.bulkhead import BulkheadExecutor
    from opero.executors.by_key import ByKey
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.executors.rate_limit import RateLimitExecutor
    from opero.executors.throttle import ThrottleExecutor
    from opero.executors.value_memory import ValueMemory
    from opero.observe.latency import Histogram
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry

Labels = tuple[str, ...]
Values = dict[str, dict[Labels, Any]]
"""The name of each metric → the values of its labels → a number, or a `Distribution`."""

ROOM = 1e-9
"""The share by which a bound may seem to be exceeded as numbers are rounded."""
PLACES = [*(bisect_left(BOUNDS, bound * (1 - ROOM)) for bound in latency.BOUNDS[:-1]), len(BOUNDS)]
"""Bucket of a histogram → the place of the exported one. One across an exported bound counts as above it."""
NEEDS = {
    "retries": ("retry",),
    "retries_saved": ("retry",),
    "recoveries": ("retry", "hedge"),
    "hedges": ("hedge",),
    "hedge_wins": ("hedge",),
    "fallbacks": ("fallback",),
    "timeouts": ("timeout",),
    "waits": ("rate_limit", "bulkhead", "fallback"),
}
"""Count → the policies without which it stays zero, and is not exported."""


KINDS_NEEDED = ("retry", "hedge", "fallback", "timeout", "rate_limit", "bulkhead", "cache")


class Distribution(NamedTuple):
    """How long calls took.

    Attributes:
        counts: the calls up to each of the bounds and above the bound before it; the last has no bound.
        seconds: all of them together.
    """

    counts: tuple[int, ...]
    seconds: float

    def __add__(self, other: Any) -> Distribution:
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, self.seconds + other.seconds)

    def __sub__(self, other: Any) -> Distribution:
        counts = tuple(max(0, one - another) for one, another in zip(self.counts, other.counts, strict=True))
        return Distribution(counts, max(0.0, self.seconds - other.seconds))

    def cumulative(self) -> list[int]:
        """Return the calls up to each of the bounds; the last number is all."""
        return list(itertools.accumulate(self.counts))


def merge(into: Values, other: Values, *, gauges: bool = True) -> None:
    """Add the values of another process.

    Args:
        into: is changed.
        other: the values to add.
        gauges: whether the process still runs, so that its gauges count.
    """
    for name, series in other.items():
        metric = BY_NAME.get(name)
        if metric is None or (metric.kind == "gauge" and not gauges):
            continue
        known = into.setdefault(name, {})
        for labels, value in series.items():
            if labels not in known:
                known[labels] = value
            elif metric.merge == "sum":
                known[labels] = known[labels] + value
            else:
                known[labels] = (max if metric.merge == "max" else min)(known[labels], value)


NOTHING = Distribution((0,) * (len(BOUNDS) + 1), 0.0)


class Known:
    """A function that has been seen.

    Attributes:
        binding: the function, by a weak reference.
        stats: its counts.
        policy: the one in force when it was read last, and `kinds` the kinds of it among `KINDS_NEEDED`.
        samples: the number of its durations when it was read last, and `durations` what they were divided into.
    """

    __slots__ = ("binding", "durations", "kinds", "policy", "samples", "stats")

    def __init__(self, stats: Stats, binding: Binding | None = None) -> None:
        self.binding = None if binding is None else weakref.ref(binding)
        self.stats = stats
        self.policy: Policy | None = None
        self.kinds: tuple[str, ...] = ()
        self.samples = 0
        self.durations = NOTHING

    def look(self, policy: Policy) -> None:
        """Look at the policy in force."""
        if policy is not self.policy:
            self.policy = policy
            self.kinds = tuple(kind for kind in KINDS_NEEDED if policy.active(kind) is not None)

    def divided(self, histogram: Histogram) -> Distribution:
        """Return the calls between the exported bounds."""
        if histogram.samples != self.samples:
            self.samples, counts = histogram.samples, [0] * (len(BOUNDS) + 1)
            for bucket, weight in histogram.weights.copy().items():
                counts[PLACES[bucket]] += weight
            self.durations = Distribution(tuple(counts), histogram.seconds)
        return self.durations


class Reader:
    """Reads the metrics of one registry.

    Args:
        registry: the registry. Default: the one that is the default when it reads.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry
        self._lock = RenewedLock()
        self._known: dict[int, Known] = {}
        self._gone: dict[Labels, Known] = {}
        """The counts of functions that do not exist any more: a counter must not fall."""
        self._ended: dict[Labels, int] = {}
        self._has_failed = False

    def target(self) -> Registry | None:
        """Return the registry that it reads now; None if the default one cannot be loaded, which is logged once."""
        if self.registry is not None:
            return self.registry
        try:
            return get_default_registry()
        except OperoError as error:
            if not self._has_failed:
                self._has_failed = True
                text = "there are no metrics, as the default registry cannot be loaded: %s"
                log("metrics_missing", text, message_of(error), error=error)
            return None

    def read(self, registry: Registry, *, only_counts: bool = False) -> Values:
        """Return all values.

        Args:
            registry: what `target` returned.
            only_counts: leave out gauges, for which state has to be read that other processes may share.
        """
        values: Values = {}
        bindings = all_of(registry)
        with self._lock:
            self._look(bindings)
            for known in (*self._known.values(), *self._gone.values()):
                _add_counts(values, known)
            self._keep_from_falling(values)
        if not only_counts:
            _add_states(values, registry, bindings)
            _add_configuration(values, registry)
        return values

    def _look(self, bindings: list[Binding]) -> None:
        for binding in bindings:
            for stats in binding.all_stats:
                key = id(binding) if stats is binding.stats else id(stats)
                known = self._known.get(key)
                if known is None or known.binding is None or known.binding() is not binding:
                    if known is not None:
                        self._keep(known.stats)
                    known = self._known[key] = Known(stats, binding)
                if stats is binding.stats:
                    known.look(binding.pipeline.policy)
        for key, known in list(self._known.items()):
            if known.binding is None or known.binding() is None:
                del self._known[key]
                self._keep(known.stats)

    def _keep(self, stats: Stats) -> None:
        kept = self._gone.setdefault((stats.policy, stats.function), Known(Stats(stats.function, stats.policy)))
        kept.stats.add(stats.as_counts())

    def _keep_from_falling(self, values: Values) -> None:
        """Keep the numbers of calls that have ended from falling, as those in flight are an estimate."""
        series = values.get("opero_calls", {})
        for labels, value in series.items():
            series[labels] = self._ended[labels] = max(value, self._ended.get(labels, 0))


def _add_counts(values: Values, known: Known) -> None:
    stats, kinds = known.stats, known.kinds
    labels = policy, function = stats.policy, stats.function

    def add(name: str, value: Any, *more: str) -> None:
        series = values.get(name)
        if series is None:
            series = values[name] = {}
        key = (policy, function, *more) if more else labels
        series[key] = series[key] + value if key in series else value  # several functions may have one name

    calls, failures, samples = stats.calls, stats.failures, stats._samples
    in_flight = 0 if samples is None else max(0, samples.in_flight)
    add("opero_calls", max(0, calls - failures - in_flight), "succeeded")
    add("opero_calls", failures, "failed")
    add("opero_calls_in_flight", in_flight)
    if not calls:
        return
    stats.sample_at = 0  # the next call shows whether calls are as frequent as before
    add("opero_attempts", stats.attempts)
    for name, needed in NEEDS.items():
        value = getattr(stats, name)
        if value or any(each in kinds for each in needed):
            add(f"opero_{name}", value)
    if stats.cache_hits or stats.cache_misses or "cache" in kinds:
        add("opero_cache_requests", stats.cache_hits, "hit")
        add("opero_cache_requests", stats.cache_misses, "miss")
    if stats._tables is not None:
        for table, name in TABLES.items():
            for word, value in list(getattr(stats._tables, table).items()):
                add(name, value, word)
        for decision, value in list(stats._tables.shadow.items()):
            what, _, by = decision.partition(".")
            if what in DECISIONS:
                kind, would = DECISIONS[what]
                add("opero_shadow_decisions", value, by or kind, would)
    if samples is not None and samples.histogram.samples:
        add("opero_call_duration_seconds", known.divided(samples.histogram))


DECISIONS = {
    "retries": ("retry", "retry"),
    "timeouts": ("timeout", "end"),
    "rejected_by": ("", "reject"),
    "waits": ("", "delay"),
}
"""What is counted of policies in shadow → their kind, if it is not counted by it, and what they would have done."""
TABLES = {"kinds": "opero_attempt_failures", "rejected_by": "opero_rejections", "waited_for": "opero_waited_seconds"}
"""Table of counts by name → metric."""


def _add_states(values: Values, registry: Registry, bindings: list[Binding]) -> None:
    """Add the gauges of what has a state: of each profile, and of each function that does not share that."""
    for part in parts(registry._in_force.shared, bindings):
        if part.kind == "store":
            breaker = part.holder.breaker
            series = values.setdefault("opero_cache_store_up", {})
            # Some functions may have other credentials for it than others.
            series[breaker.name,] = min(series.get((breaker.name,), 1.0), float(not breaker.trouble))
        elif not is_in_shadow(part.holder):  # what only watches is neither open nor full
            stats = None if part.binding is None else part.binding.stats
            labels = (part.profile, "") if stats is None else (stats.policy, stats.function)
            _add_state(values, labels, part.kind, part.holder)


def _add_state(values: Values, labels: Labels, kind: str, executor: Any) -> None:
    try:
        found = _of_keys(kind, executor) if is_by_key(executor) else LOOKS[kind](executor)
    except Exception:  # noqa: BLE001  # such as of a file in which processes keep a state; health checks report it
        return
    for name, more, value in found:
        series = values.setdefault(f"opero_{name}", {})
        key = (*labels, *more)
        series[key] = series[key] + value if key in series and BY_NAME[f"opero_{name}"].merge == "sum" else value


Found = list[tuple[str, Labels, float]]


def _of_circuit(breaker: CircuitBreakerExecutor) -> Found:
    now = breaker.state
    return [("circuit_breaker_state", (state,), float(state == now)) for state in STATES]


def _of_throttle(throttle: ThrottleExecutor) -> Found:
    return [("throttle_rejecting", (), throttle.load()[0])]


def _of_rate_limit(limiter: RateLimitExecutor) -> Found:
    saturation, next_permit, queue = limiter.load()
    loads = limiter.loads().items() if limiter.policy.limits else [("", (saturation, next_permit))]
    return [
        *(("rate_limit_saturation", (name,), used) for name, (used, _) in loads),
        *(("rate_limit_next_permit_seconds", (name,), soon) for name, (_, soon) in loads),
        ("rate_limit_queue", (), queue),
        ("rate_limit_rate", (), limiter.rate()),
        ("rate_limit_paused_seconds", (), limiter.paused_for()),
    ]


def _of_bulkhead(bulkhead: BulkheadExecutor) -> Found:
    in_use, slots, queue = bulkhead.load()
    return [("bulkhead_slots", (), slots), ("bulkhead_in_use", (), in_use), ("bulkhead_queue", (), queue)]


def _of_values(memory: ValueMemory) -> Found:
    return [("fallback_values_aside", (), sum(each["for"] > 0 for each in memory.aside()))]


def _of_keys(kind: str, by_key: ByKey) -> Found:
    """Of circuits the number in each state; of others the worst, as keys are no labels: there may be too many."""
    keys: Found = [("scope_keys", (kind,), by_key.size())]
    if kind == "circuit_breaker":
        states = dict.fromkeys(STATES, 0.0)
        for _, circuit in by_key.circuits():
            states[circuit["state"]] += 1
        states["closed"] = by_key.size() - sum(states.values())
        return [*keys, *(("circuit_breaker_state", (state,), number) for state, number in states.items())]
    found = of_keys(by_key, STATES_OF[kind])
    if kind == "fallback":
        return [*keys, ("fallback_values_aside", (), sum(each["for"] > 0 for each in found["aside"]))]
    if kind == "bulkhead":
        return [*keys, *((f"bulkhead_{name}", (), found[name]) for name in ("slots", "in_use", "queue"))]
    names = {"saturation": "saturation", "next_permit": "next_permit_seconds", "queue": "queue"}
    return [*keys, *((f"rate_limit_{metric}", (), found[name]) for name, metric in names.items())]


LOOKS: dict[str, Callable[[Any], Found]] = {
    "circuit_breaker": _of_circuit,
    "throttle": _of_throttle,
    "rate_limit": _of_rate_limit,
    "bulkhead": _of_bulkhead,
    "fallback": _of_values,
}
"""Kind of policy → what says how its state is."""


def _add_configuration(values: Values, registry: Registry) -> None:
    now = registry.configuration
    values["opero_configuration_info"] = {(now.version, now.environment, release()): 1.0}
    values["opero_configuration_loaded_timestamp_seconds"] = {(): now.loaded}
    values["opero_configuration_last_reload_successful"] = {(): float(registry.rejected is None)}
