"""The metrics of opero: their names, labels and units, in Prometheus and in OpenTelemetry.

They are a contract, which docs/metrics.md documents.

No label takes a value from a call, an exception or a response: each has as many values as there are profiles,
functions, stores, or words of a fixed list.
"""

from __future__ import annotations

import sys
from typing import Literal, NamedTuple

from opero.failures.kinds import Kind

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper bounds of the latency histogram, in seconds."""
STATES = ("closed", "open", "half_open", "forced_open", "forced_closed")
"""The states of a circuit breaker."""
KINDS = tuple(map(str, Kind))
"""The kinds of failures."""


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: its name in Prometheus, without `_total`.
        kind: "counter", "gauge" or "histogram".
        labels: the names of its labels. In OpenTelemetry they are attributes, "opero.policy" and so on.
        unit: its unit in OpenTelemetry.
        help: what it counts or measures, in one sentence.
        merge: how the values of several processes make one: "sum", "max" or "min".
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    unit: str
    help: str
    merge: Literal["sum", "max", "min"] = "sum"

    @property
    def series(self) -> str:
        """The name of its series in Prometheus; those of a histogram have a suffix."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @property
    def otel_name(self) -> str:
        """Its name in OpenTelemetry, which has the unit beside the name, and dots between what belongs together."""
        name = self.name.removesuffix("_seconds").removeprefix("opero_")
        for group in GROUPS:
            if name.startswith(f"{group}_"):
                return f"opero.{group}.{name.removeprefix(f'{group}_')}"
        return f"opero.{name}"


GROUPS = (
    *("call", "attempt", "circuit_breaker", "throttle", "rate_limit", "bulkhead", "fallback"),
    *("cache", "map", "scope", "configuration"),
)
"""The beginnings of names that OpenTelemetry separates by a dot."""

OF_FUNCTION = ("policy", "function")
"""The labels of what belongs to a function. Where the functions of a profile share it, "function" is empty."""


def release() -> str:
    """Return the version of opero."""
    found: str = sys.modules["opero"].__version__
    return found


METRICS = (
    Metric(
        "opero_calls", "counter", (*OF_FUNCTION, "outcome"), "{call}", "Calls that have ended: succeeded or failed."
    ),
    Metric(
        "opero_calls_in_flight", "gauge", OF_FUNCTION, "{call}", "Calls under way; an estimate while calls are sampled."
    ),
    Metric(
        "opero_call_duration_seconds",
        "histogram",
        OF_FUNCTION,
        "s",
        "How long calls take, with all waits. Busy functions are sampled: a timed call counts for all since the last "
        "one, so that rates are right. Bounds are exact within 9 %.",
    ),
    Metric("opero_attempts", "counter", OF_FUNCTION, "{attempt}", "Executions of the function."),
    Metric(
        "opero_attempt_failures", "counter", (*OF_FUNCTION, "kind"), "{attempt}", "Failed attempts, by kind of failure."
    ),
    Metric("opero_retries", "counter", OF_FUNCTION, "{retry}", "Rounds of attempts after the first."),
    Metric(
        "opero_retries_saved",
        "counter",
        OF_FUNCTION,
        "{retry}",
        "Rounds that a policy still allowed when a failure showed that none would help.",
    ),
    Metric("opero_recoveries", "counter", OF_FUNCTION, "{call}", "Calls that succeeded after a failed attempt."),
    Metric("opero_hedges", "counter", OF_FUNCTION, "{attempt}", "Attempts that were made beside one that took long."),
    Metric("opero_hedge_wins", "counter", OF_FUNCTION, "{attempt}", "Hedges whose result was the first."),
    Metric(
        "opero_fallbacks",
        "counter",
        OF_FUNCTION,
        "{fallback}",
        "Attempts with another value of the fallback argument, and calls that a fallback result answered.",
    ),
    Metric("opero_timeouts", "counter", OF_FUNCTION, "{timeout}", "Attempts and calls that a timeout ended."),
    Metric(
        "opero_rejections",
        "counter",
        (*OF_FUNCTION, "by"),
        "{attempt}",
        "Attempts that a policy rejected, by the policy.",
    ),
    Metric("opero_waits", "counter", OF_FUNCTION, "{wait}", "Waits for a permit, a slot or a fallback value."),
    Metric(
        "opero_waited_seconds",
        "counter",
        (*OF_FUNCTION, "what"),
        "s",
        "Seconds that attempts have waited, by what for.",
    ),
    Metric(
        "opero_shadow_decisions",
        "counter",
        (*OF_FUNCTION, "by", "would"),
        "{decision}",
        "What policies in shadow would have done: reject, delay, retry or end.",
    ),
    Metric(
        "opero_cache_requests",
        "counter",
        (*OF_FUNCTION, "outcome"),
        "{request}",
        "Calls that asked the cache: hit (a stale result, too) or miss.",
    ),
    Metric(
        "opero_cache_store_up",
        "gauge",
        ("store",),
        "1",
        "1 while a shared cache store works, 0 while it is passed over.",
        "min",
    ),
    Metric(
        "opero_circuit_breaker_state",
        "gauge",
        (*OF_FUNCTION, "state"),
        "{breaker}",
        "Circuit breakers in a state: 1 or 0, and with several processes or a keyed scope how many of them.",
    ),
    Metric(
        "opero_scope_keys",
        "gauge",
        (*OF_FUNCTION, "kind"),
        "{key}",
        "Values of an argument for each of which a policy keeps a state.",
    ),
    Metric(
        "opero_circuit_breaker_transitions",
        "counter",
        (*OF_FUNCTION, "state"),
        "{transition}",
        "Changes of the state of a circuit breaker, by the new state.",
    ),
    Metric(
        "opero_throttle_rejecting",
        "gauge",
        OF_FUNCTION,
        "1",
        "The share of attempts that a throttle rejects now.",
        "max",
    ),
    Metric(
        "opero_rate_limit_saturation",
        "gauge",
        (*OF_FUNCTION, "limit"),
        "1",
        "How much of a rate limit's burst is used up: at 1 the next call waits.",
        "max",
    ),
    Metric(
        "opero_rate_limit_next_permit_seconds",
        "gauge",
        (*OF_FUNCTION, "limit"),
        "s",
        "Seconds until a call would get a permit.",
        "max",
    ),
    Metric("opero_rate_limit_queue", "gauge", OF_FUNCTION, "{call}", "Calls that wait for a permit."),
    Metric(
        "opero_rate_limit_rate",
        "gauge",
        OF_FUNCTION,
        "{permit}/s",
        "Permits per second, also where the rate is found.",
        "max",
    ),
    Metric(
        "opero_rate_limit_paused_seconds",
        "gauge",
        OF_FUNCTION,
        "s",
        "Seconds until calls go on after a pause for which the service has asked; else 0.",
        "max",
    ),
    Metric("opero_bulkhead_slots", "gauge", OF_FUNCTION, "{slot}", "Slots of a bulkhead."),
    Metric("opero_bulkhead_in_use", "gauge", OF_FUNCTION, "{slot}", "Slots of a bulkhead that are in use."),
    Metric("opero_bulkhead_queue", "gauge", OF_FUNCTION, "{call}", "Calls that wait for a slot."),
    Metric(
        "opero_fallback_values_aside",
        "gauge",
        OF_FUNCTION,
        "{value}",
        "Values of the fallback argument that are set aside.",
    ),
    Metric(
        "opero_map_items",
        "counter",
        (*OF_FUNCTION, "outcome"),
        "{item}",
        "Items that maps have finished: succeeded or failed.",
    ),
    Metric(
        "opero_map_pending", "gauge", OF_FUNCTION, "{item}", "Items that running maps have not finished, where known."
    ),
    Metric("opero_map_running", "gauge", OF_FUNCTION, "{map}", "Maps under way."),
    Metric(
        "opero_configuration_info",
        "gauge",
        ("version", "environment", "release"),
        "1",
        "Always 1: the version of the configuration in force, its environment, and the release of opero.",
        "max",
    ),
    Metric(
        "opero_configuration_loaded_timestamp_seconds",
        "gauge",
        (),
        "s",
        "When the configuration in force was loaded, in seconds since the epoch.",
        "min",
    ),
    Metric(
        "opero_configuration_last_reload_successful",
        "gauge",
        (),
        "1",
        "0 if the last reload was rejected, so that the configuration before it stays in force; else 1.",
        "min",
    ),
)

BY_NAME = {each.name: each for each in METRICS}
