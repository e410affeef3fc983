"""docs/guide.md names every field of every policy with its default, every error, count and event."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import opero
from opero.events import EVENTS, Event
from opero.observe.counts import COUNTS, TABLES
from opero.policies.hooks import HOOKS
from opero.policies.policy import KINDS
from opero.policies.quantities import format_duration

DOCUMENT = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
TITLES = {
    "failures": "Kinds of failures",
    "retry": "Retry",
    "fallback": "Fallback",
    "timeout": "Timeout",
    "circuit_breaker": "Circuit breaker",
    "rate_limit": "Rate limit",
    "throttle": "Throttle",
    "bulkhead": "Bulkhead",
    "hedge": "Hedging",
    "priority": "Priorities",
    "cache": "Cache",
    "hooks": "Hooks",
    "canary": "Canary",
    "parallel": "Parallel map",
}


def section(title: str) -> str:
    return DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> dict[str, str]:
    """The fields of a section's table, each with its default as written there."""
    found: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", section(title), re.MULTILINE):
        fields, written = re.findall(r"`(\w+)`", names), defaults.replace("`", "").split(", ")
        shown = zip(fields, written if len(written) == len(fields) else written[:1] * len(fields), strict=True)
        found = {**dict(shown), **found}  # a name in a later table of the section is not a field
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_policys_table_has_its_fields(kind: str) -> None:
    fields = set(KINDS[kind].model_fields) - {"enabled"}
    assert fields <= set(rows(TITLES[kind]))


def test_the_tables_have_the_defaults() -> None:
    checked = 0
    for kind, model in KINDS.items():
        for name, field in model.model_fields.items():
            written = rows(TITLES[kind]).get(name, "")
            if field.is_required():
                assert written == "required"
            elif isinstance(field.default, bool):
                assert written in ("", str(field.default).lower()), name
                checked += written != ""
            elif isinstance(field.default, float | int):
                texts = (
                    f"{field.default:g}",
                    str(field.default),
                    format_duration(field.default),
                    f"{field.default:.0%}",
                )
                assert written in texts, name
                checked += 1
            elif isinstance(field.default, str):
                assert written == field.default, name
                checked += 1
    assert checked >= 30


def test_it_names_every_error_count_and_event() -> None:
    errors = [each for each in dir(opero) if each.endswith("Error") and each != "RejectedError"]
    assert len(errors) >= 12
    for name in (*errors, *COUNTS, *TABLES, "attempts", *EVENTS):
        assert f"`{name}`" in DOCUMENT, name


def test_the_table_of_events_has_each_with_its_fields_in_their_order() -> None:
    table = re.findall(r"^\| `([A-Z]\w+)`, `(\w+)` \| .*? \|(.*) \|$", section("Events"), re.MULTILINE)
    found = {name: (kind, re.findall(r"`(\w+)`(?=[:,]|$)", listed.strip())) for kind, name, listed in table}
    common = [each.name for each in fields(Event)]
    assert found == {
        name: (event.__name__, [each.name for each in fields(event) if each.name not in common])
        for name, event in EVENTS.items()
    }


def test_its_yaml_is_a_policy_file(tmp_path: Path) -> None:
    texts = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(texts[0])["policies"]["orders"].keys() == {"failures"}  # it names functions of an application
    policies: list[Any] = []
    (tmp_path / "base.yaml").write_text(texts.pop(), encoding="utf-8")
    assert opero.Registry.load(tmp_path, environ={})["api"].canary.share == 0.05
    (tmp_path / "base.yaml").write_text(texts.pop(), encoding="utf-8")
    assert opero.Registry.load(tmp_path, environ={})["api"].rate_limit.shadow
    hooks = yaml.safe_load(texts.pop())["policies"]["api"]["hooks"]  # they are in an application
    assert hooks.keys() <= HOOKS.keys()
    for text in texts[1:]:
        (tmp_path / "base.yaml").write_text(text, encoding="utf-8")
        policies.append(opero.Registry.load(tmp_path, environ={"API_KEY_1": "one", "API_KEY_2": "two"})["api"])
    assert len(policies[0].fallback.values) == 2
    says = {
        ("hedge", "budget", 0.05),
        ("throttle", "ratio", 2),
        ("bulkhead", "max_limit", 50),
        ("bulkhead", "max_concurrent", "adaptive"),
        ("bulkhead", "share", "machine"),
        ("rate_limit", "share", "redis"),
        ("rate_limit", "names", ("requests", "tokens")),
        ("cache", "backend", "redis"),
        ("cache", "tags", ("user:{user_id}",)),
        ("cache", "stale_ttl", 6 * 3600),
        ("cache", "ignore", ("session",)),
    }
    assert {
        (kind, field, value)
        for kind, field, value in says
        if any(getattr(getattr(policy, kind), field, None) == value for policy in policies)
    } == says
    assert any(policy.cache and (policy.cache.arguments or {}).get("ssl_ca_certs") for policy in policies)


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL))
def test_its_python_uses_names_that_exist(code: str) -> None:
    for name in re.findall(r"\bopero\.(\w+)\(", code):
        assert hasattr(opero, name)
    for name in re.findall(r"^from opero import (.*)$", code, re.MULTILINE):
        assert hasattr(opero, name)
    for name in re.findall(r"\bregistry\.(\w+)\(", code):
        assert hasattr(opero.Registry, name)
