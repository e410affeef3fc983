"""`opero explain` and `opero env`."""

from __future__ import annotations

import pytest

from cli.conftest import Command

MODULE = """\
    from opero import RetryPolicy, opero

    @opero(policy="api", retries=2)
    def get(key): ...

    @opero(cache_ttl="5m")
    def alone(): ...

    def plain(): ...

    @RetryPolicy().apply
    def applied(): ...
"""


@pytest.fixture(autouse=True)
def _module(command: Command) -> None:
    command.write("app.py", MODULE)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line]


def test_each_option_has_its_value_its_source_and_what_it_overrides(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERO_API_RETRIES", "8")
    ran = command("explain", "reports", "--env", "production")
    assert ran.code == 0
    assert rows(ran.out) == [
        ["reports,", "environment", "production"],
        ["files:", "policies/base.yaml,", "policies/production.yaml", "(policies", "was", "found)"],
        ["option", "value", "source"],
        ["extends", "api", "policies/base.yaml:8:14,", "policies.reports"],
        ["retry.retries", "8", "OPERO_API_RETRIES,", "policies.api"],
        ["overrides", "5", "policies/production.yaml:3:22,", "policies.api"],
        ["3", "policies/base.yaml:5:22,", "policies.api"],
        ["3", "default"],
        ["retry.min_delay", "0", "policies/base.yaml:2:22,", "defaults"],
        ["overrides", "0.1", "default"],
        ["cache.ttl", "30m", "policies/base.yaml:6:18,", "policies.api"],
        ["overrides", "null", "default"],
        ["rate_limit.rate", "50/s", "policies/production.yaml:4:17,", "policies.api"],
        ["timeout.total", "5s", "policies/base.yaml:9:14,", "policies.reports"],
    ]


def test_all_includes_defaults(command: Command) -> None:
    assert "retry.jitter" not in command("explain", "api").out
    assert ["retry.jitter", "full", "default"] in rows(command("explain", "api", "--all").out)


def test_a_profile_without_options(command: Command) -> None:
    command.policies(base="policies: {api: {retry: {}}}\n")
    assert "no option is set" in command("explain", "api").out


def test_a_removed_policy_is_shown(command: Command) -> None:
    command.policies(production="policies: {api: {cache: null}}\n")
    shown = rows(command("explain", "api", "--env", "production").out)
    assert ["cache", "removed", "(null)", "policies/production.yaml:1:25,", "policies.api"] in shown
    assert ["overrides", "30m", "policies/base.yaml:6:18,", "policies.api"] in shown


def test_a_function_is_explained_through_its_decorator_and_entries(command: Command) -> None:
    command.policies(development="functions: {'app:*': {cache: 1h}}\n")
    shown = rows(command("explain", "app:get").out)
    assert ["policy", "api", "app.py:3", "(@opero)"] in shown
    assert ["retry.retries", "2", "app.py:3", "(@opero)"] in shown
    assert ["cache.ttl", "1h", "policies/development.yaml:1:30,", "functions.app:*"] in shown
    assert ["overrides", "30m", "policies/base.yaml:6:18,", "policies.api"] in shown
    alone = rows(command("explain", "app:alone").out)
    assert ["retry.retries", "3", "app.py:6", "(@opero)"] in alone


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("apy", "did you mean 'api'?"),
        ("app:got", "app has no attribute 'got'; did you mean 'get'?"),
        ("app:applied", "applied was bound by Policy.apply, and so by no registry"),
        ("nowhere:f", "no module 'nowhere' in "),
    ],
)
def test_an_unknown_target_is_a_usage_error(command: Command, target: str, message: str) -> None:
    ran = command("explain", target)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_a_function_bound_by_another_module_is_explained_with_import(command: Command) -> None:
    command.write(
        "boot.py",
        """\
        import app
        from opero import get_default_registry
        registry = get_default_registry()
        plain = registry.bind(app.plain, "api", retries=7)
        """,
    )
    command.write(
        "boot_library.py",
        """\
        from opero import get_default_registry
        registry = get_default_registry()
        registry.bind_import("json:dumps", "reports")
        """,
    )
    try:
        shown = rows(command("explain", "app:plain", "--import", "boot").out)
        assert ["retry.retries", "7", "boot.py:4", "(Registry.bind)"] in shown
        found = command("explain", "json:dumps", "--import", "boot_library", "--json").json
        assert found["bound"] is True
        assert found["options"][0]["value"] == "reports"
        assert command("explain", "api", "--import", "boot").code == 2
    finally:
        import json
        import sys

        sys.modules["boot_library"].registry.unbind_import("json:dumps")
        assert not hasattr(json.dumps, "binding")


def test_an_unbound_function_is_explained_as_call_would_run_it(command: Command) -> None:
    command.policies(development="functions: {'app:pl*': {policy: api, cache: 1h}}\n")
    ran = command("explain", "app:plain")
    assert ran.out.startswith(
        "app:plain, environment development; not bound to a policy: options of opero call and opero map"
    )
    assert ["cache.ttl", "1h", "policies/development.yaml:1:45,", "functions.app:pl*"] in rows(ran.out)
    found = command("explain", "json:loads", "--json").json
    assert (found["bound"], found["options"]) == (False, [])


def test_output_of_a_module_does_not_mix_with_the_result(command: Command) -> None:
    command.write("loud.py", "print('loading')\nfrom opero import opero\n@opero\ndef f(): ...\n")
    ran = command("explain", "loud:f", "--json")
    assert ran.json["target"] == "loud:f"
    assert ran.err == "loading\n"


def test_the_json_of_explain(command: Command) -> None:
    found = command("explain", "api", "--json").json
    assert found.keys() == {"target", "environment", "directory", "found_by", "files", "bound", "options"}
    assert (found["target"], found["environment"]) == ("api", "development")
    assert found["options"][0] == {
        "option": "retry.retries",
        "value": 3,
        "removed": False,
        "source": {"name": "policies/base.yaml", "line": 5, "column": 22, "by": None},
        "section": "policies.api",
        "shadows": [
            {
                "value": 3,
                "removed": False,
                "source": {"name": "default", "line": None, "column": None, "by": None},
                "section": None,
            }
        ],
    }


# env


def test_every_listed_variable_of_a_profile_can_be_set(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = command("env", "api", "--json").json["variables"]
    names = {name for each in found for name in each["names"]}
    assert {"OPERO_API_RETRIES", "OPERO_API_BACKOFF", "OPERO_POLICIES__API__RETRY__RETRIES", "OPERO_API_CACHE"} <= names
    # The loader knows each of them: at most their value is a problem.
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, "?")
            problems = command("check", "--json").json["problems"]
            assert not any("names no option" in each["text"] or "could" in each["text"] for each in problems), name


def test_a_variable_that_is_set_is_shown_with_what_it_overrides(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("opero_api_retries", "8")
    monkeypatch.setenv("OPERO_ENV", "production")
    ran = command("env", "--set")
    assert rows(ran.out) == [
        ["variable", "sets", "current", "value", "source", "overrides"],
        ["OPERO_ENV", "the", "environment", "production", "OPERO_ENV"],
        [
            "opero_api_retries",
            "policies.api.retry.retries",
            "8",
            "opero_api_retries",
            "5",
            "(policies/production.yaml:3:22)",
        ],
    ]


def test_variables_of_the_env_file_are_shown(command: Command) -> None:
    command.write(".env", "OPERO_API_RETRIES=8\n")
    (found,) = command("env", "--set", "--json").json["variables"]
    assert found == {
        "name": "OPERO_API_RETRIES",
        "names": ["OPERO_API_RETRIES", "OPERO_API_RETRY_RETRIES", "OPERO_POLICIES__API__RETRY__RETRIES"],
        "sets": "policies.api.retry.retries",
        "set": {"name": ".env", "line": 1, "column": 1, "by": "OPERO_API_RETRIES"},
        "value": "8",
        "source": {"name": ".env", "line": 1, "column": 1, "by": "OPERO_API_RETRIES"},
        "shadows": found["shadows"],
    }
    assert [each["value"] for each in found["shadows"]] == [3, 3]


def test_ambiguous_names_are_not_listed(command: Command) -> None:
    command.policies(base="policies: {api: {timeout: 5s}, api_attempt: {timeout: 5s}}\n")
    found = command("env", "--json").json["variables"]
    by_target = {each["sets"]: each["names"] for each in found}
    assert by_target["policies.api.timeout.attempt"] == [
        "OPERO_API_TIMEOUT_ATTEMPT",
        "OPERO_POLICIES__API__TIMEOUT__ATTEMPT",
    ]
    assert "OPERO_API_ATTEMPT_TIMEOUT" not in by_target["policies.api_attempt.timeout"]
    assert by_target["policies.api_attempt.timeout"] == ["OPERO_POLICIES__API_ATTEMPT__TIMEOUT"]
    assert by_target["policies.api.timeout"] == ["OPERO_API_TIMEOUT", "OPERO_POLICIES__API__TIMEOUT"]


def test_defaults_and_functions_have_variables(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command.policies(development="functions: {'app:get': {cache: 1h}}\n")
    monkeypatch.setenv("OPERO_DEFAULTS__RETRY__JITTER", "false")
    monkeypatch.setenv("OPERO_FUNCTIONS__APP_GET__CACHE__TTL", "2h")
    found = {each["name"]: each for each in command("env", "--set", "--json").json["variables"]}
    assert found["OPERO_DEFAULTS__RETRY__JITTER"]["sets"] == "defaults.retry.jitter"
    assert found["OPERO_FUNCTIONS__APP_GET__CACHE__TTL"]["value"] == "2h"
    assert [each["value"] for each in found["OPERO_FUNCTIONS__APP_GET__CACHE__TTL"]["shadows"]] == ["1h"]


def test_the_message_if_no_variable_is_set(command: Command) -> None:
    assert command("env", "--set").out == "no variable is set\n"
