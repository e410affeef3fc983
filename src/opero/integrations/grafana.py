"""A dashboard for Grafana, made from policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from opero.policies.policy import Policy

OURS = 'job=~"$job",policy=~"$policy"'
THESE = f'{OURS},function=~"$function"'
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
STATE_COLORS = {
    "closed": "green",
    "half_open": "yellow",
    "open": "red",
    "forced_open": "purple",
    "forced_closed": "blue",
}


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: its title.
        queries: query → legend.
        unit: Grafana's name of the unit.
        description: what to make of it.
        kind: the type of the panel.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    description: str = ""
    kind: str = "timeseries"


def rate(name: str, by: str, labels: str = THESE, more: str = "") -> str:
    """Return the query of a counter's rate."""
    return f"sum by ({by}) (rate({name}{{{labels}{more}}}[$__rate_interval]))"


def percentile(share: float) -> str:
    rates = f"rate(opero_call_duration_seconds_bucket{{{THESE}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by (policy, function, le) ({rates}))"


def in_state(state: str) -> str:
    """Return the query of the circuit breakers in a state: its number, where `STATE_COLORS` has it."""
    number = list(STATE_COLORS).index(state) + 1
    return f'max by (policy, function) (opero_circuit_breaker_state{{{THESE},state="{state}"}} > 0) * 0 + {number}'


FAILED = ',outcome="failed"'
FUNCTION = "{{policy}} {{function}}"
SHARE_FAILED = f"{rate('opero_calls_total', 'policy', more=FAILED)} / {rate('opero_calls_total', 'policy')}"

CALLS = (
    Panel("Calls", {rate("opero_calls_total", "policy, function"): FUNCTION}, "cps"),
    Panel(
        "Failed calls",
        {SHARE_FAILED: "{{policy}}"},
        "percentunit",
        "The share that fails after all retries and fallbacks.",
    ),
    Panel("Duration, 95th percentile", {percentile(0.95): FUNCTION}, "s", "With all waits."),
    Panel("Duration, median", {percentile(0.5): FUNCTION}, "s"),
    Panel(
        "Failed attempts by kind",
        {rate("opero_attempt_failures_total", "policy, kind"): "{{policy}} {{kind}}"},
        "cps",
        "Transient and throttled failures may go away by themselves; denied and permanent ones need an operator.",
    ),
    Panel("In flight", {f"sum by (policy, function) (opero_calls_in_flight{{{THESE}}})": FUNCTION}),
    Panel("Rejections", {rate("opero_rejections_total", "policy, by"): "{{policy}} {{by}}"}, "cps"),
)

OF_KINDS: dict[str, tuple[Panel, ...]] = {
    "retry": (
        Panel(
            "Retries per call",
            {f"{rate('opero_retries_total', 'policy')} / {rate('opero_calls_total', 'policy')}": "{{policy}}"},
            "short",
            "What a service gets on top of its load while it fails.",
        ),
        Panel(
            "Recoveries",
            {rate("opero_recoveries_total", "policy, function"): FUNCTION},
            "cps",
            "Calls that a retry has saved.",
        ),
    ),
    "circuit_breaker": (
        Panel(
            "Circuit breakers",
            {" or ".join(map(in_state, ("open", "forced_open", "half_open", "forced_closed", "closed"))): FUNCTION},
            "short",
            "The worst of all instances.",
            kind="state-timeline",
        ),
        Panel(
            "Circuits opened",
            {rate("opero_circuit_breaker_transitions_total", "policy, function", more=',state="open"'): FUNCTION},
            "cps",
        ),
    ),
    "throttle": (
        Panel(
            "Throttles",
            {f"max by (policy, function) (opero_throttle_rejecting{{{THESE}}})": FUNCTION},
            "percentunit",
            "The share of attempts that is rejected, as the service accepts too few.",
        ),
    ),
    "rate_limit": (
        Panel(
            "Rate limit, used",
            {f"max by (policy, function) (opero_rate_limit_saturation{{{THESE}}})": FUNCTION},
            "percentunit",
            "At 100% calls wait or are rejected.",
        ),
        Panel(
            "Calls that wait for a permit",
            {f"sum by (policy, function) (opero_rate_limit_queue{{{THESE}}})": FUNCTION},
        ),
        Panel(
            "Next permit",
            {f"max by (policy, function) (opero_rate_limit_next_permit_seconds{{{THESE}}})": FUNCTION},
            "s",
        ),
        Panel(
            "Rate limit, paused by the service",
            {f"max by (policy, function) (opero_rate_limit_paused_seconds{{{THESE}}})": FUNCTION},
            "s",
            "Until calls go on.",
        ),
    ),
    "bulkhead": (
        Panel(
            "Bulkhead, used",
            {
                f"sum by (policy, function) (opero_bulkhead_in_use{{{THESE}}}) / "
                f"sum by (policy, function) (opero_bulkhead_slots{{{THESE}}})": FUNCTION
            },
            "percentunit",
        ),
        Panel("Calls that wait for a slot", {f"sum by (policy, function) (opero_bulkhead_queue{{{THESE}}})": FUNCTION}),
    ),
    "timeout": (Panel("Timeouts", {rate("opero_timeouts_total", "policy, function"): FUNCTION}, "cps"),),
    "fallback": (
        Panel("Fallbacks", {rate("opero_fallbacks_total", "policy, function"): FUNCTION}, "cps"),
        Panel(
            "Values set aside",
            {f"max by (policy, function) (opero_fallback_values_aside{{{THESE}}})": FUNCTION},
            description="Keys that were denied, or throttled.",
        ),
    ),
    "cache": (
        Panel(
            "Cache hits",
            {
                rate("opero_cache_requests_total", "policy, function", more=',outcome="hit"')
                + f" / {rate('opero_cache_requests_total', 'policy, function')}": FUNCTION
            },
            "percentunit",
        ),
        Panel("Cache stores", {'min by (store) (opero_cache_store_up{job=~"$job"})': "{{store}}"}, "bool_on_off"),
    ),
    "parallel": (
        Panel(
            "Items of maps",
            {rate("opero_map_items_total", "policy, function, outcome"): f"{FUNCTION} {{{{outcome}}}}"},
            "cps",
        ),
        Panel("Items left", {f"sum by (policy, function) (opero_map_pending{{{THESE}}})": FUNCTION}),
    ),
}
"""Kind of policy → its panels, which a dashboard has if a profile has the policy."""
WAITING = Panel(
    "Time spent waiting",
    {rate("opero_waited_seconds_total", "policy, what"): "{{policy}} {{what}}"},
    "s",
    "Seconds a second.",
)
CONFIGURATION = (
    Panel(
        "Configuration in force",
        {'max by (version, environment) (opero_configuration_info{job=~"$job"})': "{{environment}} {{version}}"},
        description="More than one: a change is being rolled out, or some instances have rejected it.",
    ),
    Panel(
        "Reload rejected",
        {'1 - min by (job, instance) (opero_configuration_last_reload_successful{job=~"$job"})': "{{instance}}"},
        "bool_yes_no",
    ),
    Panel(
        "Age of the configuration",
        {'time() - max by (job, instance) (opero_configuration_loaded_timestamp_seconds{job=~"$job"})': "{{instance}}"},
        "s",
    ),
)


def dashboard(policies: Mapping[str, Policy], *, slo: float = 99.9, environment: str = "") -> dict[str, Any]:
    """Return a dashboard: of all calls, and of each kind of policy that a profile has.

    Args:
        policies: the profiles.
        slo: the percentage of calls that should succeed.
        environment: the name of the environment, for the title.
    """
    kinds = [kind for kind in OF_KINDS if any(policy.active(kind) is not None for policy in policies.values())]
    burn = Panel(
        "Error budget, speed of use",
        {f"({SHARE_FAILED}) / {round(1 - slo / 100, 9):g}": "{{policy}}"},
        "short",
        f"At 1, {slo:g}% of calls succeed. Alerts are raised at 6 and 14.4.",
    )
    rows = {"Calls": (*CALLS, burn), **{kind.replace("_", " ").capitalize(): OF_KINDS[kind] for kind in kinds}}
    if {"rate_limit", "bulkhead", "fallback"}.intersection(kinds):
        rows["Waiting"] = (WAITING,)
    rows["Configuration"] = CONFIGURATION
    title = f"opero, {environment}" if environment else "opero"
    return {
        "title": title,
        "uid": f"opero-{environment}"[:40] if environment else "opero",
        "description": f"Calls under the profiles {', '.join(policies) or '(none)'}. Made by `opero export grafana`.",
        "tags": ["opero"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": list(_variables(policies))},
        "annotations": {"list": [_reloads()]},
        "panels": list(_placed(rows)),
    }


def _variables(policies: Mapping[str, Policy]) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    yield _variable("job", "label_values(opero_configuration_info, job)")
    choices = ",".join(policies)
    known = {"text": "All", "value": "$__all"}
    yield {
        "name": "policy",
        "label": "Policy",
        "type": "custom",
        "query": choices,
        "options": [
            {**known, "selected": True},
            *({"text": each, "value": each, "selected": False} for each in policies),
        ],
        "current": known,
        "includeAll": True,
        "allValue": ".*",  # of functions without a profile, too
        "multi": True,
    }
    yield _variable("function", f"label_values(opero_calls_total{{{OURS}}}, function)")


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",  # also where there is no such label: limits that functions share have no function
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _reloads() -> dict[str, Any]:
    return {
        "name": "New configuration",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": 'changes(opero_configuration_loaded_timestamp_seconds{job=~"$job"}[$__interval]) > 0',
        "titleFormat": "Configuration reloaded",
        "textFormat": "{{instance}}",
    }


def _placed(rows: Mapping[str, tuple[Panel, ...]]) -> Iterator[dict[str, Any]]:
    numbers, top = count(1), 0
    for title, panels in rows.items():
        yield {
            "id": next(numbers),
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        top += 1
        for position, panel in enumerate(panels):
            line, column = divmod(position, COLUMNS // WIDTH)
            place = {"x": column * WIDTH, "y": top + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield {"id": next(numbers), "gridPos": place, **_panel(panel)}
        top += -(-len(panels) * WIDTH // COLUMNS) * HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if panel.kind == "state-timeline":
        shown = {
            str(number): {"text": state.replace("_", " "), "color": color}
            for number, (state, color) in enumerate(STATE_COLORS.items(), 1)
        }
        defaults = {"mappings": [{"type": "value", "options": shown}]}
        options = {"mergeValues": True, "showValue": "auto", "legend": {"displayMode": "list", "placement": "bottom"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(panel.queries.items())
        ],
    }
