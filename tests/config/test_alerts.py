"""The `alerts:` of files and variables: laid over each other, validated with places, shown without secrets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from opero.config.differences import changes
from opero.config.report import MASK
from opero.errors import ConfigError
from opero.policies.alert import Webhook

if TYPE_CHECKING:
    from config.conftest import Policies


def test_alerts_of_an_environment_lie_over_those_of_the_base_field_by_field(policies: Policies) -> None:
    policies.write(
        base="""
            alerts:
              failing: {when: {share: 20%}, policy: api, repeat: 2h}
              storm: {when: {event: retry_scheduled, count: 100}}
              gone: {when: {state: circuit_open}}
        """,
        production="""
            alerts:
              failing: {when: {share: 5%, over: 1m}, repeat: 30m}
              storm: {enabled: false}
              gone: null
              more: {when: {event: timed_out}}
        """,
    )
    found = policies.load("production").alerts
    assert list(found) == ["failing", "storm", "more"]
    failing = found["failing"]
    assert (failing.when.share, failing.when.over, failing.policy, failing.repeat) == (0.05, 60.0, "api", 1800.0)
    assert not found["storm"].enabled
    assert found["storm"].when.count == 100


def test_variables_lie_over_files(policies: Policies) -> None:
    policies.write(base="alerts: {api-failing: {when: {share: 20%}, repeat: 2h, text: call}}\n")
    (alert,) = policies.load(
        OPERO_ALERTS__API_FAILING__REPEAT="30m",
        OPERO_ALERTS__API_FAILING__ENABLED="false",
        OPERO_ALERTS__API_FAILING__TEXT="null",
        OPERO_ALERTS__API_FAILING__WHEN='{"event": "timed_out", "count": 5}',
        OPERO_ALERTS__API_FAILING__NOTIFY="https://hooks.example/hunter2",
    ).alerts.values()
    assert (alert.repeat, alert.enabled, alert.text, alert.when.count) == (1800.0, False, None, 5)
    (webhook,) = alert.notify
    assert isinstance(webhook, Webhook)
    assert webhook.url.get_secret_value() == "https://hooks.example/hunter2"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("OPERO_ALERTS__API_FAILNG__CALM", "5m", "there is no alert 'api_failng'; did you mean 'api_failing'?"),
        ("OPERO_ALERTS__API_FAILING__CLAM", "5m", "an alert has no field 'clam'; did you mean 'calm'?"),
        ("OPERO_ALERTS__API_FAILING__CALM", "5x", "alerts.api-failing.calm: '5x' is not a duration"),
        ("OPERO_ALERTS__API_FAILING__CALM", " ", "is empty; unset it"),
        ("OPERO_ALERTS__API_FAILING__WHEN", "{", "is not valid JSON"),
    ],
)
def test_a_mistake_in_a_variable_is_named(policies: Policies, name: str, value: str, text: str) -> None:
    policies.write(base="alerts: {api-failing: {when: {share: 20%}}}\n")
    (problem,) = policies.problems(**{name: value})
    assert problem.startswith(f"{name}: ")
    assert text in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("alerts: [a]", "1:9: `alerts:` must be a mapping, not a list"),
        ("alerts: {a: 3}", "1:13: alerts.a must be a mapping, not 3"),
        ("alerts: {'': {}}", "1:10: the name of an alert is empty"),
        ("alerts: {a: {wen: {share: 20%}}}", "1:14: unknown key 'wen' in alerts.a; did you mean 'when'?"),
        ("alerts: {a: {repeat: 1h}}", "1:10: alerts.a: missing field 'when'"),
        ("alerts: {a: {when: {evnt: timed_out}}}", "1:21: alerts.a.when.evnt: unknown field 'evnt'"),
        ("alerts: {a: {when: {any: [{event: x}]}}}", "1:35: alerts.a.when.any.0.event: unknown event 'x'"),
        ("alerts: {a: {when: {share: 20%}, notify: [log, lgo]}}", "1:48: alerts.a.notify.1: 'lgo' is no action"),
        ("alerts: {a: {when: {share: 2}}}", "1:28: alerts.a.when.share: 2 should be less than or equal to 1"),
        ("alert: {a: {when: {share: 2}}}", "1:1: unknown key 'alert'; did you mean 'alerts'?"),
        ("import_from: []\nalerts: {a: {when: {share: 1}, notify: 'os:getpid'}}", "import_from allows nothing"),
        ("alerts: {a: {when: {share: 1}, notify: 'secret:NOPE'}}", "the secret NOPE does not exist"),
    ],
)
def test_a_mistake_in_a_file_is_reported_at_its_place(policies: Policies, text: str, problem: str) -> None:
    policies.write(base=f"{text}\n")
    assert problem in "\n".join(policies.problems())


def test_no_url_of_a_webhook_is_shown_in_a_problem(policies: Policies) -> None:
    policies.write(
        base="alerts: {a: {when: {shre: 1}, notify: [log, 'https://x.example/hunter2', {url: 'https://hunter2:z'}]}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        policies.load()
    snippets = [each.snippet for each in caught.value.problems]
    assert len(snippets) == 2
    assert not [each for each in snippets if "hunter2" in each or MASK not in each]


def test_a_secret_is_found_as_elsewhere(policies: Policies) -> None:
    policies.write(base="alerts: {a: {when: {share: 1}, notify: {url: 'secret:HOOK', timeout: 2s}}}\n")
    (action,) = policies.load(HOOK="https://x.example/hunter2").alerts["a"].notify
    assert isinstance(action, Webhook)
    assert action.url.get_secret_value() == "https://x.example/hunter2"


def test_what_differs_between_two_configurations_is_told_without_secrets(policies: Policies) -> None:
    one = "alerts: {a: {when: {share: 20%}, notify: 'https://x/hunter2', calm: 60s}, b: {when: {share: 1}}}"
    other = "alerts: {a: {when: {share: 30%}, notify: 'https://y/hunter2', calm: 1m}, c: {when: {share: 1}}}"
    policies.write(base=one)
    before = policies.load()
    policies.write(base=other)
    assert changes(before, policies.load()) == (
        "alerts.a.when: {share: 20%} → {share: 30%}",
        f"alerts.a.notify: {MASK} → {MASK}",
        "alerts.b: present → missing",
        "alerts.c: missing → present",
    )


def test_alerts_are_plain_data_for_json(policies: Policies) -> None:
    when = "{any: [{share: 20%}, {state: circuit_open}]}"
    policies.write(base=f"alerts: {{a: {{when: {when}, notify: [log, 'os:getpid']}}}}")
    data = json.loads(policies.load().alerts["a"].model_dump_json())
    assert data["notify"] == ["log", "posix.getpid"]
    assert data["when"]["any"][1]["state"] == "circuit_open"
