"""Statements about policies, in all forms that files, variables and code share, and what several of them mean."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from opero.policies.base import BasePolicy
from opero.policies.policy import KINDS

numbers = st.integers(1, 20)
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "retry": {"retries": numbers, "min_delay": st.sampled_from([0.05, "50ms"]), "jitter": st.booleans()},
    "fallback": {"arg": st.just("item"), "default": st.none() | numbers},
    "cache": {"ttl": st.sampled_from([60, "5m", None]), "max_size": numbers, "errors": st.booleans()},
    "rate_limit": {
        "rate": st.sampled_from([3, "50/s"]),
        "burst": numbers,
        "max_wait": st.sampled_from([0, "2s"]),
    },
    "timeout": {
        "total": st.sampled_from([60, "30s"]),
        "attempt": st.sampled_from([1, "2s", None]),
        "enforce": st.sampled_from(["interrupt", "wait"]),
    },
    "circuit_breaker": {
        "consecutive_failures": numbers,
        "failure_rate": st.sampled_from([0.25, "50%"]),
        "open_for": st.sampled_from([5, "1m"]),
    },
    "bulkhead": {"max_concurrent": numbers, "max_wait": st.sampled_from([0, "2s", None])},
    "hedge": {"after": st.sampled_from(["p95", "p99.9", 0.2]), "max": numbers, "budget": st.sampled_from([0.5, "5%"])},
    "throttle": {"ratio": st.sampled_from([1.5, 2, "3"]), "window": st.sampled_from([10, "1m"])},
    "priority": {"level": st.sampled_from(["critical", "background"])},
    "hooks": {
        "on_retry": st.sampled_from([None, "policies.named:hears", ["policies.named:hears", "builtins:print"]]),
        "on_success": st.sampled_from(["policies.named:hears", []]),
    },
    "canary": {"share": st.sampled_from([0, 0.25, "5%"]), "policy": st.sampled_from(["next", "b"])},
    "failures": {"permanent": st.sampled_from([410, [404, "KeyError"]]), "responses": st.booleans()},
    "parallel": {"mode": st.sampled_from(["thread", "process"]), "workers": numbers, "ordered": st.booleans()},
}
"""Kind → some fields, with values that never contradict each other, and fit any function."""
COMPLETE: dict[str, dict[str, Any]] = {
    "retry": {"retries": 2, "jitter": False},
    "fallback": {"default": 1},
    "cache": {"ttl": "5m", "max_size": 7},
    "rate_limit": {"rate": "50/s", "burst": 3},
    "timeout": {"total": "30s", "attempt": 2},
    "circuit_breaker": {"consecutive_failures": 7},
    "bulkhead": {"max_concurrent": 7},
    "hedge": {"after": "200ms", "max": 2},
    "throttle": {"ratio": 3},
    "priority": {"level": "background"},
    "failures": {"permanent": [410]},
    "hooks": {"on_retry": "policies.named:hears"},
    "parallel": {"mode": "thread", "workers": 2},
    "canary": {"share": "5%", "policy": "next"},
}
"""Kind → fields that make a policy on their own."""


def mappings(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={"enabled": st.booleans(), **FIELDS[kind]})


def statements(kind: str, *, objects: bool = False) -> st.SearchStrategy[Any]:
    """None, true, false, a mapping, the short form; or a policy object, too."""
    short = KINDS[kind].short
    forms = [st.none(), st.booleans(), mappings(kind)]
    if short is not None:
        forms.append(FIELDS[kind][short].filter(lambda value: value is not None))
    if objects:
        forms.append(mappings(kind).map(lambda fields: made(kind, fields)).filter(lambda policy: policy is not None))
    return st.one_of(forms)


def made(kind: str, fields: dict[str, Any]) -> BasePolicy | None:
    try:
        return KINDS[kind].model_validate(fields)
    except ValueError:
        return None


def meaning(kind: str, said: list[Any]) -> BasePolicy | None:
    """The policy that statements, lowest precedence first, mean together, in the words of the documentation.

    Raises:
        ValueError: a value that the policy needs is missing.
    """
    model = KINDS[kind]
    fields: dict[str, Any] | BasePolicy | None = None
    for each in said:
        if each is None or isinstance(each, BasePolicy):
            fields = each  # removes what is below; so does an object, and sets all of its fields
            continue
        if isinstance(fields, BasePolicy):
            fields = {name: getattr(fields, name) for name in fields.model_fields_set}
        new = {"enabled": each} if isinstance(each, bool) else each if isinstance(each, dict) else {model.short: each}
        fields = {**(fields or {}), **new}
    if fields is None or fields == {"enabled": False}:
        return None  # off, with no values to keep
    return fields if isinstance(fields, BasePolicy) else model.model_validate(fields)


@st.composite
def series(draw: st.DrawFn, kind: str, *, longest: int, objects: bool = False) -> list[Any]:
    """Statements of which each, with those before it, makes a policy or none."""

    def is_valid(said: list[Any]) -> bool:
        try:
            meaning(kind, said)
        except ValueError:
            return False
        return True

    said: list[Any] = []
    for _ in range(draw(st.integers(1, longest))):
        said.append(
            draw(
                (statements(kind, objects=objects) | st.just(COMPLETE[kind])).filter(
                    lambda each: is_valid([*said, each])
                )
            )
        )
    return said
