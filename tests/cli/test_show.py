"""`opero show` and `opero diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.conftest import Command
from opero import Registry
from opero.cli.show import policies_of, yaml_of


def test_show_prints_the_effective_policies(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERO_API_RETRIES", "8")
    ran = command("show", "--env", "production")
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "# environment production from policies, including environment variables"
    assert yaml.safe_load(ran.out) == {
        "policies": {
            "api": {"retry": {"min_delay": 0, "retries": 8}, "cache": {"ttl": "30m"}, "rate_limit": {"rate": "50/s"}},
            "reports": {
                "retry": {"min_delay": 0, "retries": 8},
                "cache": {"ttl": "30m"},
                "rate_limit": {"rate": "50/s"},
                "timeout": {"total": "5s"},
            },
        }
    }


def test_the_output_loads_as_the_same_policies(command: Command) -> None:
    command.policies(
        base="""\
            defaults: {retry: {jitter: false}}
            policies:
              a: {cache: {}, retry: {retry_on: [ValueError, OSError], retry_on_status: [429, 5xx]}, timeout: null}
              "b.c-d": {extends: a, retry: null, cache: false, rate_limit: 100/min}
              e: {parallel: process, fallback: {default: null}}
              f: {fallback: {default: {'on': [1, 2.5, "yes", null]}}, retry: null}
              g: null
        """
    )
    first = Registry.load("policies", "development", {})
    command.policies(base=command("show").out)
    assert dict(Registry.load("policies", "development", {})) == dict(first)


RETRY = st.fixed_dictionaries(
    {},
    optional={
        "retries": st.integers(0, 9),
        "backoff_factor": st.floats(1, 5),
        "min_delay": st.sampled_from([0, "10ms", 0.5]),
        "retry_on": st.lists(st.sampled_from(["ValueError", "OSError", "requests.HTTPError?"]), min_size=1),
        "jitter": st.booleans(),
        "enabled": st.booleans(),
    },
)
POLICY = st.fixed_dictionaries(
    {},
    optional={
        "retry": RETRY | st.none() | st.booleans() | st.integers(0, 5),
        "cache": st.just({}) | st.booleans() | st.sampled_from(["5m", {"ttl": None}, {"tags": ["a", "on"]}]),
        "rate_limit": st.sampled_from(["50/s", {"rate": 3, "burst": 2}, False]),
        "fallback": st.just({"default": "yes"}) | st.just({"default": None}),
    },
)


@given(base=st.dictionaries(st.sampled_from(["a", "b"]), POLICY), over=st.dictionaries(st.just("a"), POLICY))
def test_the_output_of_any_configuration_loads_as_the_same_policies(
    tmp_path_factory: Any, base: Any, over: Any
) -> None:
    def load(**files: Any) -> Registry:
        folder = tmp_path_factory.mktemp("policies")
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump({"policies": text}))
        return Registry.load(folder, "development", {"OPERO_A_RETRIES": "7"} if "a" in base and len(files) > 1 else {})

    first = load(base=base, development=over)
    shown = yaml_of({name: policies_of(first.configuration, name) for name in first})
    assert dict(load(base=shown)) == dict(first)


def test_entries_of_functions_are_shown(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command.policies(
        development="""\
            import_from: [app]
            policies: {}
            functions:
              "app:*": {policy: api, cache: null}
              "app:get": {retry: 5, timeout: {}}
        """
    )
    monkeypatch.setenv("OPERO_FUNCTIONS__APP_GET__TIMEOUT__TOTAL", "2s")
    shown = yaml.safe_load(command("show").out)
    assert shown["functions"] == {
        "app:*": {"policy": "api", "cache": None},
        "app:get": {"retry": {"retries": 5}, "timeout": {"total": "2s"}},
    }
    assert shown["import_from"] == ["app"]
    assert command("show", "--json").json["functions"] == shown["functions"]
    assert "functions" not in yaml.safe_load(command("show", "api").out)
    monkeypatch.delenv("OPERO_FUNCTIONS__APP_GET__TIMEOUT__TOTAL")
    command.policies(base=yaml.safe_dump(shown), development="policies: {}\n")
    assert yaml.safe_load(command("show").out) == shown


def test_opero_enabled_false_is_a_warning(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERO_ENABLED", "false")
    assert "warning: OPERO_ENABLED is false" in command("show").err


def test_a_single_profile_can_be_shown(command: Command) -> None:
    assert list(yaml.safe_load(command("show", "reports").out)["policies"]) == ["reports"]
    ran = command("show", "report")
    assert ran.code == 2
    assert "did you mean 'reports'?" in ran.err


SECRETS = """\
    policies:
      api:
        cache: {ttl: 1, backend: redis, url: "redis://me:hunter2@h", secret: correct-horse, serializer: signed_pickle}
        parallel: {address: "tls://me:hunter2@cluster"}
"""


@pytest.mark.parametrize("arguments", [("show",), ("explain", "api"), ("env",), ("env", "--set")])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_secret_is_shown(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], form: tuple[str, ...]
) -> None:
    command.policies(base=SECRETS)
    monkeypatch.setenv("OPERO_API_CACHE_SECRET", "tr0ub4dor")
    monkeypatch.setenv("OPERO_CACHE_REDIS_URL", "redis://:hunter3@host")
    monkeypatch.setenv("OPERO_CACHE_SECRET", "hunter4")
    ran = command(*arguments, *form)
    assert ran.code == 0
    output = ran.out + ran.err
    assert "***" in output
    assert not any(secret in output for secret in ("hunter", "correct-horse", "tr0ub4dor"))


def test_partly_masked_values_are_in_comments(command: Command) -> None:
    url = "redis://user:hunter2@h/0"
    command.policies(
        base=f"policies: {{api: {{fallback: {{default: {{url: '{url}'}}}}, parallel: {{address: '{url}'}}}}}}\n"
    )
    shown = command("show").out
    assert "      # default: ***\n" in shown
    assert "      # address: ***\n" in shown


def test_secrets_are_in_comments_so_that_the_output_loads(command: Command) -> None:
    command.policies(base=SECRETS.replace("serializer: signed_pickle", "serializer: json"))
    shown = command("show").out
    assert "      # secret: ***\n" in shown
    command.policies(base=shown)
    assert command("check").code == 0


def test_the_json_of_show(command: Command) -> None:
    assert command("show", "api", "--env", "production", "--json").json == {
        "environment": "production",
        "directory": str(command.directory / "policies"),
        "import_from": None,
        "imports": {},
        "policies": {
            "api": {"retry": {"min_delay": 0, "retries": 5}, "cache": {"ttl": "30m"}, "rate_limit": {"rate": "50/s"}}
        },
        "functions": {},
        "alerts": {},
    }


def test_show_without_policies(command: Command) -> None:
    command.policies(base="policies: {}\n")
    assert yaml.safe_load(command("show").out) == {"policies": {}}


# diff


def test_a_difference_is_shown_with_both_values_and_sources(command: Command) -> None:
    ran = command("diff", "development", "production")
    assert ran.code == 0
    assert [line.split() for line in ran.out.splitlines()] == [
        ["section", "option", "development", "source", "production", "source"],
        ["policies.api", "retry.retries", "3", "policies/base.yaml:5:22", "5", "policies/production.yaml:3:22"],
        ["policies.api", "rate_limit.rate", "missing", "50/s", "policies/production.yaml:4:17"],
        ["policies.reports", "retry.retries", "3", "policies/base.yaml:5:22", "5", "policies/production.yaml:3:22"],
        ["policies.reports", "rate_limit.rate", "missing", "50/s", "policies/production.yaml:4:17"],
    ]


def test_with_exit_code_differences_exit_with_1(command: Command) -> None:
    assert command("diff", "development", "production", "--exit-code").code == 1
    ran = command("diff", "development", "development", "--exit-code")
    assert (ran.code, ran.out) == (0, "no differences between development and development\n")


def test_equal_values_written_differently_do_not_differ(command: Command) -> None:
    command.policies(
        development="policies: {api: {cache: {ttl: 60s}, retry: {retries: 3}}}\n",
        production="policies: {api: {cache: 1m}}\n",
    )
    assert command("diff", "development", "production", "--json").json["differences"] == []


def test_missing_profiles_and_removed_policies_differ(command: Command) -> None:
    command.policies(
        development="policies: {api: {cache: null}, more: {}}\n", production="policies: {less: {retry: 1}}\n"
    )
    found = command("diff", "development", "production", "--json").json["differences"]
    differences = {(each["section"], each["option"]): each for each in found}
    assert differences["policies.api", "cache"]["first"]["removed"] is True
    assert differences["policies.api", "cache"]["second"] is None
    assert differences["policies.api", "cache.ttl"]["second"]["value"] == "30m"
    place = {"name": "policies/production.yaml", "line": 1, "column": 12, "by": None}
    assert differences["policies.less", ""] == {
        "section": "policies.less",
        "option": "",
        "first": None,
        "second": {"value": None, "removed": False, "source": place, "section": "policies.less"},
    }
    assert differences["policies.more", ""]["second"] is None
    assert command("diff", "development", "production", "--exit-code").code == 1
    assert "(all)" in command("diff", "development", "production").out


def test_entries_of_functions_are_compared(command: Command) -> None:
    command.policies(
        development="functions: {'app:*': {policy: api, cache: 5m}, 'app:same': {retry: 1}}\n",
        production="""\
            functions:
              "app:*": {policy: reports, cache: null, timeout: 5s}
              "app:same": {retry: 1}
              "app:x": {}
        """,
    )
    found = command("diff", "development", "production", "--json").json["differences"]
    differences = {(each["section"], each["option"]): [_value(each["first"]), _value(each["second"])] for each in found}
    assert differences == {
        ("functions.app:*", "policy"): ["api", "reports"],
        ("functions.app:*", "cache.ttl"): ["5m", None],
        ("functions.app:*", "cache"): [None, "removed"],
        ("functions.app:*", "timeout.total"): [None, "5s"],
        ("functions.app:x", ""): [None, None],
    }


def _value(leaf: Any) -> Any:
    return None if leaf is None else "removed" if leaf["removed"] else leaf["value"]


def test_alerts_are_shown_with_their_secrets_in_comments(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_URL", "https://hooks.example/hunter2")
    alerts = """\
alerts:
  failing: {when: {share: 20%}, repeat: 2h, notify: [log, 'secret:ALERT_URL']}
  two: {when: {state: circuit_open}}
"""
    path = Path("policies/base.yaml")
    path.write_text(path.read_text("utf-8") + alerts, "utf-8")
    shown = command("show")
    assert "hunter2" not in shown.out
    assert shown.out.endswith(
        "alerts:\n  failing:\n    when: {share: 20%}\n    repeat: 2h\n    # notify: [log, '***']\n"
        "  two:\n    when: {state: circuit_open}\n"
    )
    assert command("show", "--json").json["alerts"]["failing"] == {
        "when": {"share": "20%"},
        "repeat": "2h",
        "notify": ["log", "***"],
    }
    path.write_text(shown.out, "utf-8")
    assert command("check").code == 0
