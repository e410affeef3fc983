"""`opero export`: what is printed and written; tests/integrations/test_exports.py tests what is in it."""

from __future__ import annotations

import json

import pytest
import yaml

from cli.conftest import Command


def test_rules_are_printed_as_yaml_of_the_environment(command: Command) -> None:
    ran = command("export", "alerts", "--env", "production")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("# Made by `opero export alerts` from environment production.\n")
    groups = [each["name"] for each in yaml.safe_load(ran.out)["groups"]]
    assert groups == ["opero", "opero-api", "opero-reports"]
    assert "OperoRateLimitSaturated" in ran.out
    assert "OperoRateLimitSaturated" not in command("export", "alerts", "--env", "development").out


def test_a_dashboard_is_written_to_a_file(command: Command) -> None:
    ran = command("export", "grafana", "-o", "opero.json", "--slo", "99")
    assert (ran.code, ran.out) == (0, "wrote opero.json\n")
    made = json.loads((command.directory / "opero.json").read_text("utf-8"))
    assert made["title"] == "opero, development"
    assert command("export", "grafana", "--slo", "99", "--json").json == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alert"], "opero export alert: unknown; did you mean 'alerts'?"),
        (["alerts", "--slo", "100"], "--slo 100 is invalid: give the percentage of calls that should succeed"),
        (["alerts", "--slo", "0"], "--slo 0 is invalid"),
        (["alerts", "-o", "none/rules.yaml"], "none/rules.yaml: No such file or directory"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, command: Command) -> None:
    ran = command("export", *arguments)
    assert ran.code == 2
    assert message in ran.err
