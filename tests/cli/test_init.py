"""`opero init` and `opero schema`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import yaml

from cli.conftest import Command

REFERENCE = Path(__file__).parents[2] / "policies"
NAMES = ["base.yaml", "development.yaml", "production.yaml", "staging.yaml", "schema.json"]
MODELINE = "# yaml-language-server: $schema=schema.json\n"


def test_what_it_writes_passes_the_check_and_the_schema(command: Command) -> None:
    ran = command("init", "new/policies")
    assert ran.code == 0
    assert ran.out.splitlines()[: len(NAMES)] == [f"wrote new/policies/{name}" for name in NAMES]
    checked = command("check", "--all-envs", "--config", "new/policies", "--json")
    assert checked.json["ok"] is True
    assert checked.json["environments"] == ["development", "production", "staging"]
    folder = command.directory / "new/policies"
    schema = json.loads((folder / "schema.json").read_text())
    for path in folder.glob("*.yaml"):
        assert path.read_text("utf-8").startswith(MODELINE)
        jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), schema)


def test_it_writes_what_the_repository_has_as_its_reference(command: Command) -> None:
    command("init", "new")
    for name in NAMES[:-1]:
        written, reference = (path.read_text("utf-8") for path in (command.directory / "new" / name, REFERENCE / name))
        assert written.removeprefix(MODELINE) == reference.removeprefix(MODELINE), name


def test_every_number_that_it_says_is_commented(command: Command) -> None:
    command("init", "new")
    for name in NAMES[:-1]:
        text = (command.directory / "new" / name).read_text("utf-8")
        assert text.count("#") > 1, name


def test_nothing_is_overwritten_unless_forced(command: Command) -> None:
    before = (command.directory / "policies/base.yaml").read_text()
    ran = command("init")
    assert (ran.code, ran.out) == (2, "")
    assert "policies has base.yaml, development.yaml, production.yaml already: nothing was written" in ran.err
    assert sorted(path.name for path in (command.directory / "policies").iterdir()) == [
        "base.yaml",
        "development.yaml",
        "production.yaml",
    ]
    assert (command.directory / "policies/base.yaml").read_text() == before
    assert command("init", "--force").code == 0
    assert (command.directory / "policies/base.yaml").read_text() != before


def test_init_has_a_shape_in_json(command: Command) -> None:
    assert command("init", "new", "--json").json == {
        "directory": "new",
        "written": [f"new/{name}" for name in NAMES],
    }


def test_a_file_in_the_place_of_the_directory_is_told_of(command: Command) -> None:
    command.write("taken", "")
    ran = command("init", "taken")
    assert ran.code == 2
    assert "taken" in ran.err
    assert "Traceback" not in ran.err


def test_the_schema_is_printed_or_written(command: Command) -> None:
    schema = command("schema").json
    assert "policies" in schema["properties"]
    assert command("schema", "-o", "s.json", "--json").json == {"written": "s.json"}
    assert json.loads((command.directory / "s.json").read_text("utf-8")) == schema
    assert command("schema", "-o", "nowhere/s.json").code == 2
