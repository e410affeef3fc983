"""docs/guide.md names every field of every policy with its default, every error, count and event."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import opero
from opero.observe.events import EVENTS
from opero.observe.stats import Stats
from opero.policies.policy import KINDS
from opero.policies.types import format_duration

DOCUMENT = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
TITLES = {
    "retry": "Retry",
    "fallback": "Fallback",
    "timeout": "Timeout",
    "circuit_breaker": "Circuit breaker",
    "rate_limit": "Rate limit",
    "bulkhead": "Bulkhead",
    "cache": "Cache",
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
                assert written in (f"{field.default:g}", str(field.default), format_duration(field.default)), name
                checked += 1
            elif isinstance(field.default, str):
                assert written == field.default, name
                checked += 1
    assert checked >= 30


def test_it_names_every_error_count_and_event() -> None:
    errors = [each for each in dir(opero) if each.endswith("Error") and each != "RejectedError"]
    assert len(errors) >= 12
    counts = [name for name in Stats.__slots__ if name not in ("executed", "_bare_since")]
    for name in (*errors, *counts, "attempts", *EVENTS):
        assert f"`{name}`" in DOCUMENT, name


def test_its_yaml_is_a_policy_file(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    (tmp_path / "base.yaml").write_text(text, encoding="utf-8")
    policy: Any = opero.Registry.load(tmp_path, environ={})["api"]
    assert (policy.cache.backend, policy.cache.tags) == ("redis", ("user:{user_id}",))
    assert yaml.safe_load(text)["policies"]["api"]["cache"]["stale_ttl"] == "6h"


def test_its_anchors_exist() -> None:
    titles = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", DOCUMENT)) <= anchors


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL))
def test_its_python_uses_names_that_exist(code: str) -> None:
    for name in re.findall(r"\bopero\.(\w+)\(", code):
        assert hasattr(opero, name)
    for name in re.findall(r"^from opero import (.*)$", code, re.MULTILINE):
        assert hasattr(opero, name)
    for name in re.findall(r"\bregistry\.(\w+)\(", code):
        assert hasattr(opero.Registry, name)
