"""Alerting rules for Prometheus, made from policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.policies.types import format_duration

if TYPE_CHECKING:
    from opero.policies.policy import Policy

BAD_SHARE = 0.05
"""The share of failed calls from which `OperoErrorRate` is raised."""
FEWEST_FAILURES = 5
"""Failed calls in five minutes below which it is not, so that one failure of a function that is rarely called is no
alert."""
RETRIES_PER_CALL = 0.5
BURNS = (
    ("OperoErrorBudgetBurnsFast", "critical", 14.4, "1h", "5m", "2m", "2% of a 30-day error budget in an hour"),
    ("OperoErrorBudgetBurns", "warning", 6.0, "6h", "30m", "15m", "5% of a 30-day error budget in six hours"),
)
"""Name, severity, speed relative to a budget that lasts for 30 days, a long and a short window, patience, meaning."""

Rule = dict[str, Any]


def alerts(policies: Mapping[str, Policy], *, slo: float = 99.9) -> dict[str, Any]:
    """Return a file of alerting rules: a group for each profile, and one for the program.

    Args:
        policies: the profiles. A rule exists only where its policy is set.
        slo: the percentage of calls that should succeed.
    """
    groups = [{"name": "opero", "rules": _of_program()}]
    for name, policy in policies.items():
        rules = _of_profile(name, policy, slo)
        for each in rules:
            each["labels"]["policy"] = name
        groups.append({"name": f"opero-{name}", "rules": rules})
    return {"groups": groups}


def _rule(name: str, expr: str, severity: str, patience: str, summary: str, description: str) -> Rule:
    annotations = {"summary": summary, "description": description}
    return {"alert": name, "expr": expr, "for": patience, "labels": {"severity": severity}, "annotations": annotations}


def _of_program() -> list[Rule]:
    return [
        _rule(
            "OperoConfigurationRejected",
            "min by (job, instance) (opero_configuration_last_reload_successful) == 0",
            "warning",
            "1m",
            "A changed configuration was rejected",
            "{{ $labels.instance }} runs on the configuration from before, as a reload was rejected. Its log has the "
            "reasons; so does opero check.",
        ),
        _rule(
            "OperoCacheStoreDown",
            "min by (job, store) (opero_cache_store_up) == 0",
            "warning",
            "1m",
            "Cache store {{ $labels.store }} is down",
            "Functions of {{ $labels.job }} run without their cache until a probe of {{ $labels.store }} succeeds.",
        ),
    ]


def matcher(name: str) -> str:
    """Return the label matcher of a profile."""
    return 'policy="{}"'.format(name.replace("\\", r"\\").replace('"', r"\""))


def failing(selector: str, window: str) -> str:
    """Return the query of the share of calls that fail."""
    comma = "," if selector else ""
    failed = f'sum by (job, policy) (rate(opero_calls_total{{{selector}{comma}outcome="failed"}}[{window}]))'
    return f"{failed} / sum by (job, policy) (rate(opero_calls_total{{{selector}}}[{window}]))"


def _of_profile(name: str, policy: Policy, slo: float) -> list[Rule]:
    this = matcher(name)
    failures = f'sum by (job, policy) (increase(opero_calls_total{{{this},outcome="failed"}}[5m]))'
    rules = [
        _rule(
            "OperoErrorRate",
            f"({failing(this, '5m')}) > {BAD_SHARE}\nand {failures} >= {FEWEST_FAILURES}",
            "warning",
            "5m",
            f"Calls under {name} fail",
            "{{ $value | humanizePercentage }} of the calls of {{ $labels.job }} under "
            + name
            + " fail, after all retries.",
        )
    ]
    budget = round(1 - slo / 100, 9)
    for alert, severity, speed, long, short, patience, meaning in BURNS:
        limit = f"{speed:g} * {budget:g}"
        rules.append(
            _rule(
                alert,
                f"({failing(this, long)}) > {limit}\nand ({failing(this, short)}) > {limit}",
                severity,
                patience,
                f"The error budget of {name} burns",
                f"More than {meaning}: {{{{ $value | humanizePercentage }}}} of calls fail; {slo:g}% should succeed.",
            )
        )
    for kind, of_kind in OF_KINDS.items():
        found = policy.active(kind)
        if found is not None:
            rules += of_kind(name, this, found)
    return rules


def _of_retry(name: str, this: str, retry: Any) -> list[Rule]:
    if not retry.retries:
        return []
    calls = f"sum by (job, policy) (rate(opero_calls_total{{{this}}}[5m]))"
    return [
        _rule(
            "OperoRetryStorm",
            f"sum by (job, policy) (rate(opero_retries_total{{{this}}}[5m])) / {calls} > {RETRIES_PER_CALL}",
            "warning",
            "5m",
            f"Calls under {name} are retried again and again",
            "{{ $value | humanize }} retries a call in {{ $labels.job }}; "
            f"{name} allows {retry.retries}. They add to the load of what is failing.",
        )
    ]


def _of_circuit_breaker(name: str, this: str, breaker: Any) -> list[Rule]:
    # A circuit that stays open is half open for a moment after every `open_for`.
    window = max(60, round(2 * breaker.open_for))
    state = f'opero_circuit_breaker_state{{{this},state=~"open|forced_open"}}'
    return [
        _rule(
            "OperoCircuitOpen",
            f"max by (job, policy, function) (max_over_time({state}[{window}s])) > 0",
            "critical",
            "1m",
            f"A circuit breaker of {name} is open",
            f"Calls of {{{{ $labels.job }}}} under {name}{{{{ with $labels.function }}}} ({{{{ . }}}}){{{{ end }}}} "
            f"are rejected without being tried; a probe follows after {format_duration(breaker.open_for)} or more.",
        )
    ]


def _of_rate_limit(name: str, this: str, limit: Any) -> list[Rule]:
    each = zip(limit.names, limit.each, strict=True)
    limits = f"the limit is {_limit_in_words(limit)}"
    if limit.limits:
        limits = f"the limits are {', '.join(f'{own.rate:g} {one} a second' for one, own in each)}"
    return [
        _rule(
            "OperoRateLimitSaturated",
            f"avg by (job, policy, function) (avg_over_time(opero_rate_limit_saturation{{{this}}}[5m])) > 0.9",
            "warning",
            "10m",
            f"The rate limit of {name} is used up",
            "Calls of {{ $labels.job }} under " + name + f" wait or are rejected: {limits}.",
        )
    ]


def _limit_in_words(limit: Any) -> str:
    return f"{limit.rate:g} a second" if isinstance(limit.rate, float) else "what the service accepts"


def _of_bulkhead(name: str, this: str, bulkhead: Any) -> list[Rule]:
    in_use = f"avg_over_time(opero_bulkhead_in_use{{{this}}}[5m])"
    return [
        _rule(
            "OperoBulkheadFull",
            f"avg by (job, policy, function) ({in_use} / (opero_bulkhead_slots{{{this}}} > 0)) > 0.95",
            "warning",
            "5m",
            f"The bulkhead of {name} is full",
            "Calls of {{ $labels.job }} under " + name + " queue or are rejected: nearly all slots are in use.",
        )
    ]


def _of_fallback(name: str, this: str, fallback: Any) -> list[Rule]:
    if not fallback.arg:
        return []
    return [
        _rule(
            "OperoValueSetAside",
            f"max by (job, policy, function) (opero_fallback_values_aside{{{this}}}) > 0",
            "warning",
            "1m",
            f"Values of {fallback.arg} are set aside",
            "{{ $value }} values of "
            + fallback.arg
            + f" under {name} were denied or throttled, such as a key that was "
            "revoked or whose quota is used up. The log of {{ $labels.job }} says which.",
        )
    ]


OF_KINDS = {
    "retry": _of_retry,
    "circuit_breaker": _of_circuit_breaker,
    "rate_limit": _of_rate_limit,
    "bulkhead": _of_bulkhead,
    "fallback": _of_fallback,
}
"""Kind of policy → what makes its rules."""
