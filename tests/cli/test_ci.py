"""What CI systems read of `opero check`, the hook for pre-commit, and the GitHub action."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from cli.conftest import Command, environment
from opero.cli.findings import FORMATS

ROOT = Path(__file__).parents[2]
BROKEN = """\
    policies:
      api:
        retry: {retries: -5, "100%: a,b": 1}
"""
HEALTHY = {"development": "policies: {}\n", "production": "policies: {}\n"}


@pytest.fixture
def broken(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Two problems in production.yaml, one of a variable, and a warning."""
    command.policies(production=BROKEN)
    command.write("policies/schema.json", "{}")
    monkeypatch.setenv("OPERO_SERVE", "nowhere")
    return command


def test_github_annotates_the_lines(broken: Command) -> None:
    ran = broken("check", "--all-envs", "--format", "github")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert lines[0].startswith(
        "::error file=policies/production.yaml,line=3,col=22,title=opero check::policies.api.retry.retries: -5 "
    )
    assert any("unknown key '100%25:" in line and ",line=3," in line for line in lines)
    assert any(line.startswith("::error title=opero check::OPERO_SERVE: 'nowhere' is invalid") for line in lines)
    assert any(line.startswith("::warning title=opero check::policies/schema.json: is not") for line in lines)
    assert all(line.startswith("::") for line in lines)
    broken.policies(**HEALTHY)


def test_sarif_has_what_its_schema_requires(broken: Command) -> None:
    ran = broken("check", "--all-envs", "--format", "sarif")
    assert ran.code == 1
    log = ran.json
    assert log["version"] == "2.1.0"
    assert log["$schema"].startswith("https://")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "opero"
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(run["results"]) == 4
    for result in run["results"]:
        assert result["message"]["text"]
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        (location,) = result["locations"]  # which code scanning requires
        place = location["physicalLocation"]
        assert (broken.directory / place["artifactLocation"]["uri"]).is_file()
        assert place["artifactLocation"]["uriBaseId"] == "%SRCROOT%"
        assert place["region"]["startLine"] >= 1
    first = run["results"][0]["locations"][0]["physicalLocation"]
    assert first["artifactLocation"]["uri"] == "policies/production.yaml"
    assert first["region"] == {"startLine": 3, "startColumn": 22, "endColumn": 24}
    variable = next(each for each in run["results"] if "nowhere" in each["message"]["text"])
    assert variable["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "OPERO_SERVE"}]


def test_junit_has_a_test_for_each_problem_and_each_healthy_environment(broken: Command) -> None:
    root = ElementTree.fromstring(broken("check", "--all-envs", "--format", "junit").out)
    assert root.tag == "testsuites"
    (suite,) = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "3",
        "errors": "0",
        "skipped": "0",
    }
    cases = suite.findall("testcase")
    assert all(case.get("classname") and case.get("name") and case.get("time") for case in cases)
    first = next(case for case in cases if "-5" in str(case.get("name")))
    assert first.get("classname") == "opero.check.production"
    assert (first.get("file"), first.get("line")) == ("policies/production.yaml", "3")
    failure = first.find("failure")
    assert failure is not None
    assert "should be greater than or equal to 0" in str(failure.get("message"))
    assert "   3 |" in str(failure.text)
    assert "is not the schema" in str(suite.findtext("system-out"))


def test_without_problems_every_format_says_so(command: Command) -> None:
    for form in FORMATS:
        ran = command("check", "--all-envs", "--format", form)
        assert ran.code == 0, form
    assert command("check", "--json").out == command("check", "--format", "json").out
    root = ElementTree.fromstring(command("check", "--all-envs", "--format", "junit").out)
    assert [case.get("name") for case in root.iter("testcase")] == ["development", "production"]
    assert command("check", "--all-envs", "--format", "sarif").json["runs"][0]["results"] == []
    assert "no problems" in command("check", "--all-envs", "--format", "github").out
    ran = command("check", "--format", "sarf")
    assert ran.code == 2
    assert "did you mean 'sarif'?" in ran.err


def test_texts_of_any_characters_are_valid_in_every_format(command: Command) -> None:
    command.policies(production='policies: {"a\\u0007]]>&<\\u2028\\ud800b": {retry: "<\\u0000>"}}\n')
    assert command("check", "--all-envs", "--format", "sarif").json["runs"][0]["results"]
    assert ElementTree.fromstring(command("check", "--all-envs", "--format", "junit").out) is not None
    assert "\x07" not in command("check", "--all-envs", "--format", "github").out


def test_there_has_to_be_a_directory_of_policy_files(command: Command, tmp_path: Path) -> None:
    for path in (tmp_path / "policies").iterdir():
        path.unlink()
    (tmp_path / "policies").rmdir()
    command.write("alone.py", "from opero import opero\n@opero(retries=1)\ndef f(): ...\n")
    for arguments in ((), ("--all-envs",), ("--env", "production"), ("--format", "github")):
        ran = command("check", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert "directory 'policies' does not exist: set --config, or create it with opero init" in ran.err
    assert command("check", "--config", "nowhere").code == 2
    assert command("check", "--import", "alone", "--config", "nowhere").code == 2
    assert command("check", "--import", "alone").code == 0, "functions may have policies of their own"


def test_names_in_files_are_imported_from_the_working_directory(command: Command) -> None:
    command.write("mine/__init__.py", "")
    command.write("mine/errors.py", "class Busy(Exception): ...\n")
    command.policies(production="policies: {api: {retry: {retry_on: 'mine.errors:Busy'}}}\n")
    script = Path(sys.executable).parent / "opero"  # unlike `python -m opero`, it begins without the working directory
    program = [str(script)] if script.exists() else [sys.executable, "-c", "from opero.cli import main; main()"]
    environ = {name: value for name, value in environment().items() if name != "PYTHONPATH" or not script.exists()}
    done = subprocess.run(
        [*program, "check", "--env", "production"],
        cwd=command.directory,
        env=environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


MISSING = """\
    import_from: [nowhere, builtins]
    policies:
      api:
        retry: {retry_on: [nowhere.HTTPError, "nowhere:Busy", ConnectionError], retry_if_result: "nowhere:bad"}
        cache: {ttl: "nowhere:ttl", key: "nowhere:key", cache_if: "nowhere:keep", errors: ["nowhere:X"]}
        rate_limit: {rate: 5/s, cost: "nowhere:cost"}
        circuit_breaker: {trip_on: ["nowhere:Y"], ignore: ["nowhere:Z"]}
        fallback: {function: "nowhere:other", on: ["nowhere:Q"]}
        failures: {permanent: ["nowhere:P"], classify: "nowhere:classify"}
        hooks: {on_retry: ["nowhere:hook"]}
        parallel: {executor: "nowhere:pool", initializer: "nowhere:start"}
    alerts:
      failing: {policy: api, when: {share: 20%}, notify: "nowhere:tell"}
"""


def test_names_that_cannot_be_imported_are_shown_as_they_are_written(command: Command) -> None:
    command.policies(base=MISSING, production="policies: {api: {retry: {retries: 9}}}\n")
    names = {*re.findall(r"nowhere[.:]\w+", MISSING)}
    shown = command("show")
    assert shown.code == 0
    assert names <= {*re.findall(r"nowhere[.:]\w+", shown.out)}
    assert shown.err.startswith("warning: cannot import nowhere.HTTPError, nowhere:Busy, nowhere:bad, nowhere:ttl and ")
    assert shown.err.endswith(" here (No module named 'nowhere'); names are shown as they are written\n")
    assert shown.err.count("\n") == 1
    explained = command("explain", "api")
    assert explained.code == 0
    assert "nowhere.HTTPError" in explained.out
    plain = command("explain", "api", "--plain")
    assert "is a nowhere.HTTPError, nowhere:Busy or ConnectionError" in " ".join(plain.out.split())
    differing = command("diff", "development", "production")
    assert (differing.code, len(differing.out.splitlines())) == (0, 2), "the names do not differ"
    assert differing.err.count("warning") == 1
    assert command("env", "api").code == 0
    assert command("export", "alerts").code == 0
    checked = command("check", "--json")
    assert checked.code == 1
    assert len(checked.json["problems"]) == len(names)
    lenient = command("check", "--json", "--allow-missing", "--all-envs")
    assert lenient.code == 0
    assert len(lenient.json["warnings"]) == 1
    assert command("check", "--allow-missing", "--import", "app").code == 2


def test_what_is_wrong_with_a_name_on_every_machine_is_still_an_error(command: Command) -> None:
    for name, message in (
        ("ConectionError", "did you mean 'ConnectionError'?"),
        ("a..b", "a part of the name is empty"),
        ("os:system", "import_from allows only json, a"),
    ):
        command.policies(base=f"import_from: [json, a]\npolicies: {{api: {{retry: {{retry_on: '{name}'}}}}}}\n")
        for arguments in (("show",), ("explain", "api"), ("check", "--allow-missing")):
            ran = command(*arguments)
            assert ran.code == (1 if arguments[0] == "check" else 2)
            assert message in ran.out + ran.err


def test_a_schema_of_another_version_is_a_warning(command: Command) -> None:
    assert command("schema", "-o", "policies/schema.json").code == 0
    assert command("check").err == ""
    schema = command.directory / "policies" / "schema.json"
    schema.write_text(json.dumps(json.loads(schema.read_text()), indent=7))
    assert command("check").err == "", "however it is formatted"
    for text in ("{}", "no JSON", json.dumps(json.loads(schema.read_text()) | {"title": "older"})):
        schema.write_text(text)
        ran = command("check")
        assert ran.code == 0
        assert ran.err == (
            "warning: policies/schema.json: is not the schema of this version, so editors may be wrong; write it anew: "
            "opero schema -o policies/schema.json\n"
        )


# The hook and the action


def test_the_hook_runs_what_it_says(command: Command) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert hook.keys() >= {"id", "name", "entry", "language"}
    assert hook["language"] == "python"
    program, *arguments = [*hook["entry"].split(), *hook["args"]]
    assert program == "opero"
    assert command(*arguments).code == 0
    command.policies(production=BROKEN)
    assert command(*arguments).code == 1
    pattern = re.compile(hook["files"])
    seen = ["policies/base.yaml", "services/a/policies/production.yml", "pyproject.toml", ".env"]
    assert [each for each in seen if not pattern.search(each)] == []
    assert not any(map(pattern.search, ["docs/policies.md", "src/policies/base.py", "policies/schema.json"]))


def action_script(inputs: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the script of the action's last step, and its variables."""
    action: Any = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    assert action["runs"]["using"] == "composite"
    known = {name: str(each.get("default", "")) for name, each in action["inputs"].items()}
    assert inputs.keys() <= known.keys()
    assert all(each["description"] for each in action["inputs"].values())
    step = action["runs"]["steps"][-1]
    assert "${{" not in step["run"], "inputs are not code"
    given = known | inputs
    variables = {name: given[text.split(".", 1)[1].rstrip("} ")] for name, text in step["env"].items()}
    return step["run"], variables


def run_action(command: Command, **inputs: str) -> subprocess.CompletedProcess[str]:
    script, variables = action_script({name.replace("_", "-"): text for name, text in inputs.items()})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],  # as the runner does
        cwd=command.directory,
        env=environment() | variables | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_action_annotates_and_writes_sarif(command: Command) -> None:
    command.write("app.py", "from opero import opero\n@opero(policy='apy')\ndef f(): ...\n")
    command.policies(production=BROKEN)
    done = run_action(command, sarif="found it.sarif", **{"import": "app"})
    assert done.returncode == 1, done.stderr
    assert "::error file=policies/production.yaml,line=3,col=22" in done.stdout
    assert "::error file=app.py,line=2" in done.stdout
    found = json.loads((command.directory / "found it.sarif").read_text())
    assert len(found["runs"][0]["results"]) == 3


def test_the_action_passes_its_inputs_on(command: Command) -> None:
    command.policies(production=BROKEN)
    (command.directory / "policies").rename(command.directory / "conf $(touch x)")
    done = run_action(command, config="conf $(touch x)", environment="development", allow_missing="true")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (command.directory / "x").exists()
    assert run_action(command, config="conf $(touch x)").returncode == 1
