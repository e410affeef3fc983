"""docs/configuration.md: its file loads, its mistakes read as it says, and its table of rules is that of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opero import ConfigError, Registry
from opero.executors import state

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policies").mkdir()
    return tmp_path / "policies" / "base.yaml"


def test_its_file_loads_and_means_what_it_says(files: Path) -> None:
    files.write_text(re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[0], encoding="utf-8")
    registry = Registry.load(environ={"OPERO_FUNCTIONS__APP_USERS_GET_USER__CACHE__TTL": "1m"})
    reports = registry["reports"]
    assert reports.retry is not None
    assert (reports.retry.retries, reports.retry.min_delay) == (8, 0.25)
    assert reports.cache is reports.active("rate_limit") is None
    assert registry.configuration.import_from == ("app", "requests")


def test_its_variables_are_read(files: Path) -> None:
    files.write_text("policies: {api: {retry: 1}, batch: {parallel: {mode: process}}}", encoding="utf-8")
    rows = re.findall(r"^\| (?:flat|nested)[^|]*\| (.*) \|$", DOCUMENT, re.MULTILINE)
    examples = [pair for row in rows for pair in re.findall(r"`(OPERO_[A-Z_]+)=([^`]*)`", row)]
    assert len(examples) >= 8
    for name, value in examples:
        if not name.startswith("OPERO_FUNCTIONS"):
            Registry.load(environ={name: value})


def test_its_mistakes_read_as_it_shows_them(files: Path) -> None:
    shown = re.search(r"^    policies/base\.yaml:5:13: .*?\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert shown is not None
    lines = [line.removeprefix("    ") for line in shown[0].strip("\n").splitlines()]
    text = lines[1].partition("| ")[2]
    files.write_text(f"policies:\n  api:\n    cache: 5\n    bulkhead: 5\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Registry.load(environ={})
    first = str(caught.value.problems[0]).splitlines()
    assert first[0] == lines[0]
    assert [line.strip() for line in first[2:]] == [line.strip() for line in lines[2:]]


def test_its_rules_name_every_field_that_the_codes_table_names() -> None:
    table = (state.__doc__ or "").partition("circuit_breaker  ")[2].partition("A policy that is equal")[0]
    fields = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", table)) - {"circuit_breaker"}
    assert fields
    assert fields <= set(re.findall(r"`([a-z_]+)`", DOCUMENT)) | {"rate_limit"}


def test_its_alerts_load(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [each for each in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL) if each.startswith("alerts:")]
    files.write_text(block.replace("app.alerts:page", "os:getpid"), encoding="utf-8")
    alerts = Registry.load(environ={"ALERT_URL": "https://hooks.example/x"}).configuration.alerts
    assert list(alerts) == ["api-failing", "circuit-open", "outage"]
    assert alerts["api-failing"].when.until == 0.1
