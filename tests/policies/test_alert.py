"""Alerts and conditions as values: what they accept, and what they say about mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from opero import Alert
from opero.errors import ConfigError
from opero.policies.alert import Condition, Webhook


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ({}, "exactly one of event, share, state, any, all, and this has none of them"),
        ({"event": "timed_out", "share": 0.5}, "not event and share"),
        ({"event": "timed_oot"}, "unknown event 'timed_oot'; did you mean 'timed_out'?"),
        ({"event": "timed_out", "min_calls": 3}, "min_calls does not go with event; what does: count, over, until"),
        ({"share": 0.1, "count": 3}, "count does not go with share"),
        ({"state": "circuit_open", "over": 5}, "over does not go with state; what does: lasts"),
        ({"state": "open"}, "'open' is not one of"),
        ({"share": 0}, "share"),
        ({"share": "20%", "of": "failure"}, "did you mean 'failures'?"),
        ({"share": "20%", "until": "30%"}, "until (0.3) is more than share (0.2)"),
        ({"event": "timed_out", "count": 3, "until": 4}, "until (4) is more than count (3)"),
        ({"event": "timed_out", "until": 0}, "use a number of events (50), or a share of calls"),
        ({"any": []}, "any needs at least one condition"),
        ({"all": [{"evnt": "timed_out"}]}, "unknown field 'evnt' of Condition; did you mean 'event'?"),
    ],
)
def test_a_mistake_in_a_condition_is_named(when: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Alert(when=when)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("notify", "text"),
    [
        ("logs", "'logs' is no action; did you mean 'log'?"),
        ("no.such:function", "cannot be imported"),
        ("os:sep", "is not callable"),
        (3, "3 is not callable"),
        ("secret:NO_SUCH_SECRET", "the secret NO_SUCH_SECRET does not exist"),
        ("ftp://hunter2.example", "this is not a URL of a webhook"),
        ("https://:80", "this is not a URL of a webhook"),
        ("https://x:hunter2", "this is not a URL"),
        ({"uri": "https://x"}, "unknown field 'uri' of Webhook; did you mean 'url'?"),
        ({"url": "https://x", "retries": -1}, "retries"),
        (["log", "logs"], "'logs' is no action"),
    ],
)
def test_a_mistake_in_an_action_is_named(notify: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Alert(when={"share": 0.5}, notify=notify)
    assert text in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_all_kinds_of_actions_may_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_URL", "https://hooks.example/hunter2")
    alert = Alert(
        when={"share": 0.5}, notify=["log", print, "os:getpid", "secret:ALERT_URL", {"url": "http://x:8080/y"}]
    )
    log, function, named, secret, webhook = alert.notify
    assert (log, function, named.__name__) == ("log", print, "getpid")  # type: ignore[union-attr]
    assert secret == Webhook(url=SecretStr("https://hooks.example/hunter2"))
    assert isinstance(webhook, Webhook)
    assert "hunter2" not in repr(alert)
    assert "hunter2" not in alert.model_dump_json()
    assert alert == Alert.model_validate(alert)
    assert hash(alert) == hash(Alert.model_validate(alert))


def test_conditions_are_compared_by_value() -> None:
    one = Condition.model_validate({"any": [{"event": "timed_out"}, {"share": "20%"}]})
    assert one == Condition.model_validate({"any": [{"event": "timed_out", "count": 1}, {"share": 0.2}]})
    assert one.what == "any"
    assert repr(one) == "Condition(any=(Condition(event='timed_out'), Condition(share=0.2)))"
