"""Alerts of files run while their registry is the default one, and follow its reloads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opero import Registry, opero, set_default_registry
from opero.events import EVENTS
from opero.registry.watch import Watch

told: list[Any] = []


def tell(event: Any) -> None:
    told.append(event)


STORM = f"{{when: {{event: retry_scheduled}}, notify: '{__name__}:tell'}}"


@pytest.fixture(autouse=True)
def _no_default() -> Iterator[None]:
    told.clear()
    set_default_registry(None)
    yield
    set_default_registry(None)
    assert not EVENTS["retry_scheduled"].handlers


def load(folder: Path, text: str) -> Registry:
    (folder / "base.yaml").write_text(text, "utf-8")
    return Registry.load(folder, environ={})


def test_alerts_run_while_the_registry_is_the_default_one(tmp_path: Path) -> None:
    registry = load(tmp_path, f"alerts: {{storm: {STORM}}}\n")
    assert registry.alerts is None
    set_default_registry(registry)
    assert registry.alerts is not None
    outcomes: list[Any] = [ConnectionError("reset"), 1]

    @opero(retries=1, min_delay=0)
    def flaky() -> None:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome

    flaky()
    registry.alerts.check()
    assert [each.alert for each in told] == ["storm"]
    set_default_registry(None)
    assert registry.alerts is None


def test_a_reload_replaces_them_and_keeps_what_is_unchanged(tmp_path: Path) -> None:
    registry = load(tmp_path, f"alerts: {{storm: {STORM}, other: {STORM}}}\n")
    set_default_registry(registry)
    manager = registry.alerts
    assert manager is not None
    kept = manager._tracked["storm"]
    (tmp_path / "base.yaml").write_text(f"alerts: {{storm: {STORM}, new: {STORM}}}\n")
    changes = registry.reload()
    assert changes
    assert (changes.alerts, changes.profiles) == (("new", "other"), ())
    assert registry.alerts is manager
    assert list(manager.alerts) == ["storm", "new"]
    assert manager._tracked["storm"] is kept


def test_they_begin_and_end_with_a_reload(tmp_path: Path) -> None:
    registry = load(tmp_path, "policies: {api: {retry: 1}}\n")
    set_default_registry(registry)
    assert registry.alerts is None
    (tmp_path / "base.yaml").write_text(f"alerts: {{storm: {STORM}}}\n")
    registry.reload()
    assert registry.alerts is not None
    (tmp_path / "base.yaml").write_text("alerts: {}\n")
    registry.reload()
    assert registry.alerts is None


def test_a_mistake_keeps_those_of_before(tmp_path: Path) -> None:
    registry = load(tmp_path, f"alerts: {{storm: {STORM}}}\n")
    set_default_registry(registry)
    (tmp_path / "base.yaml").write_text("alerts: {storm: {when: {evnt: x}}}\n")
    with pytest.raises(ValueError, match="unknown field 'evnt'"):
        registry.reload()
    assert registry.alerts is not None
    assert list(registry.alerts.alerts) == ["storm"]


def test_a_watch_names_the_alerts_that_changed(tmp_path: Path, heard: list[Any]) -> None:
    registry = load(tmp_path, "policies: {api: {retry: 1}}\n")
    (tmp_path / "base.yaml").write_text(f"policies: {{api: {{retry: 1}}}}\nalerts: {{storm: {STORM}}}\n")
    watch: Any = object.__new__(Watch)
    watch._reported, watch._reload_registry = frozenset(), registry.reload
    watch._reload("a file has changed")
    assert [each.changes for each in heard if each.name == "configuration_reloaded"] == [
        ("alerts.storm: missing → present",)
    ]


def test_a_configuration_that_is_valid_again_ends_its_state(tmp_path: Path, heard: list[Any]) -> None:
    text = "policies: {api: {retry: 1}}\n"
    registry = load(tmp_path, text)
    watch: Any = object.__new__(Watch)
    watch._reported, watch._reload_registry = frozenset(), registry.reload
    for each in ("policies: {api: {retyr: 1}}\n", text):
        (tmp_path / "base.yaml").write_text(each)
        watch._reload("a file has changed")
    assert [each.name for each in heard] == ["configuration_rejected", "configuration_reloaded"]
    assert heard[-1].changes == ()


PROGRAM = """
from opero import opero

@opero(policy="api")
def fails():
    raise ConnectionError("reset")

for _ in range(25):
    try:
        fails()
    except ConnectionError:
        pass
"""


def test_a_program_needs_no_code_for_them(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "base.yaml").write_text(
        "policies: {api: {timeout: 5s}}\nalerts: {failing: {when: {share: 50%}, policy: api, text: call Ada}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PATH": "", "OPERO_LOG_LEVEL": "INFO"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (line,) = [each for each in done.stderr.splitlines() if "alert" in each]
    assert "ERROR opero: alert failing: __main__:fails: " in line
    assert "failures in" in line
