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


def test_the_written_files_pass_the_check_and_the_schema(command: Command) -> None:
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


def test_the_written_files_equal_the_reference_in_the_repository(command: Command) -> None:
    command("init", "new")
    for name in NAMES[:-1]:
        written, reference = (path.read_text("utf-8") for path in (command.directory / "new" / name, REFERENCE / name))
        assert written.removeprefix(MODELINE) == reference.removeprefix(MODELINE), name


def test_the_written_files_are_commented(command: Command) -> None:
    command("init", "new")
    for name in NAMES[:-1]:
        text = (command.directory / "new" / name).read_text("utf-8")
        assert text.count("#") > 1, name


def test_existing_files_are_overwritten_only_with_force(command: Command) -> None:
    before = (command.directory / "policies/base.yaml").read_text()
    ran = command("init")
    assert (ran.code, ran.out) == (2, "")
    assert "policies already contains base.yaml, development.yaml, production.yaml; nothing was written" in ran.err
    assert sorted(path.name for path in (command.directory / "policies").iterdir()) == [
        "base.yaml",
        "development.yaml",
        "production.yaml",
    ]
    assert (command.directory / "policies/base.yaml").read_text() == before
    assert command("init", "--force").code == 0
    assert (command.directory / "policies/base.yaml").read_text() != before


def test_the_json_of_init(command: Command) -> None:
    assert command("init", "new", "--json").json == {
        "directory": "new",
        "written": [f"new/{name}" for name in NAMES],
    }


def test_a_file_with_the_name_of_the_directory_is_an_error(command: Command) -> None:
    command.write("taken", "")
    ran = command("init", "taken")
    assert ran.code == 2
    assert "taken" in ran.err
    assert "Traceback" not in ran.err


def test_the_schema_is_printed_or_written_to_a_file(command: Command) -> None:
    schema = command("schema").json
    assert "policies" in schema["properties"]
    assert command("schema", "-o", "s.json", "--json").json == {"written": "s.json"}
    assert json.loads((command.directory / "s.json").read_text("utf-8")) == schema
    assert command("schema", "-o", "nowhere/s.json").code == 2
