"""`opero explain --plain`: what a policy does, in words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings

from cli.conftest import Command, on_terminal
from opero import Policy
from opero.cli.plain import in_words, worst_as_data
from opero.policies.bounds import bounds
from policies import strategies


def words(**fields: Any) -> dict[str, str]:
    """Return what is said of a policy, by topic."""
    return dict(in_words(Policy.model_validate(fields)))


@settings(max_examples=100)
@given(policy=strategies.whole_policies)
def test_every_policy_is_put_into_words(policy: Policy) -> None:
    parts = in_words(policy)
    for _, text in parts:
        assert re.fullmatch(r"[A-Za-z0-9].*[.]", text), text
        assert "None" not in text
        assert "inf" not in re.findall(r"\w+", text)
    found = bounds(policy)
    assert parts[-1][0] == "at worst"
    assert f"at most {found.attempts:,} attempt" in parts[-1][1]
    assert worst_as_data(policy)["attempts"] == found.attempts


@pytest.mark.parametrize(
    ("fields", "topic", "said"),
    [
        ({"cache": "30m"}, "cache", "in the memory of each process, for 1,800 s (30 min)"),
        ({"cache": {"backend": "disk", "ttl": 5}}, "cache", "on disk, for all processes of this machine, for 5 s"),
        ({"cache": {"ttl": 5, "stale_ttl": 60}}, "cache", "For another 60 s an old result is served"),
        ({"cache": {"ttl": "adaptive"}}, "cache", "for 300 s (5 min) to 3,600 s (1 h)"),
        ({"cache": {"ttl": 5, "errors": True, "error_ttl": 2}}, "cache", "is of any kind is kept as well, for 2 s"),
        ({"fallback": {"default": None}}, "fallback", "it returns null"),
        ({"fallback": {"function": "math:sqrt"}}, "fallback", "what math.sqrt returns for the same arguments"),
        ({"fallback": {"arg": "key"}}, "values", "The argument key may have several values"),
        ({"timeout": "2m"}, "time of a call", "A call ends after 120 s (2 min) at the latest"),
        ({"timeout": {"total": 9, "enforce": "wait"}}, "time of a call", "No attempt begins later than 9 s"),
        ({"timeout": {"attempt": 9}}, "an attempt", "ended after 9 s"),
        ({"retry": {"retries": 0}}, "retries", "A failed attempt is not retried."),
        ({"hedge": True}, "hedges", "takes longer than 95% of the latest ones, another one begins beside it"),
        (
            {"hedge": {"after": "200ms", "max": 2}},
            "hedges",
            "longer than 0.2 s, up to 2 others begin one after",
        ),
        ({"hedge": "1s"}, "hedges", "That adds at most 5% to the attempts."),
        ({"hedge": "1s", "retry": 3}, "at worst", "A call makes at most 8 attempts."),
        (
            {"retry": {"retries": 1}},
            "retries",
            "retried at most once, if the failure is transient, throttled or unknown",
        ),
        ({"retry": {"jitter": "none"}}, "retries", "The delays before that are 0.1 s, 0.15 s and 0.225 s."),
        ({"retry": {"retry_on": "KeyError"}}, "retries", "if the failure is a KeyError."),
        ({"retry": {"min_delay": 0, "retry_on": "transient"}}, "retries", "There are no delays before that."),
        ({"retry": {"retries": 50}}, "retries", "and so on, up to 30 s"),
        ({"retry": {"retry_after": False}}, "retries", "they are up to 2 s, 3 s and 4.5 s."),
        ({"retry": {"budget": "10%"}}, "retries", "In all, retries add at most 10% to the calls, or one a second."),
        ({"retry": {"idempotent": False}}, "retries", "only for attempts that the service has not received."),
        ({"retry": {"share": "redis"}}, "retries", "In all, retries on all machines add at most 20% to the calls"),
        ({"retry": {"budget": False}}, "retries", "However many calls fail, all of them are retried."),
        ({"retry": {"amplification": "allow"}}, "retries", "a bound function within it has retried without success."),
        ({"circuit_breaker": 5}, "circuit", "The circuit opens when 5 calls in a row have failed."),
        (
            {"rate_limit": {"rate": "6/min", "max_wait": 0}},
            "rate",
            "an attempt every 10 s. An attempt for which there is no",
        ),
        ({"rate_limit": {"rate": 5, "cost": "tokens"}}, "rate", "as many as the argument tokens says"),
        ({"rate_limit": "adaptive"}, "rate", "as many attempts a second as the service accepts, which is found out."),
        ({"rate_limit": "adaptive up to 5/s"}, "rate", "found out, but at most 5 attempts a second."),
        ({"rate_limit": "service"}, "rate", "as many attempts as the service says."),
        ({"rate_limit": {"rate": 5, "max_pause": 60}}, "rate", "all attempts do, for at most 60 s."),
        ({"rate_limit": {"rate": 5, "share": "machine"}}, "rate", "the profile in all processes of this machine share"),
        ({"bulkhead": 1}, "at once", "At most 1 attempt runs at once."),
        (
            {"bulkhead": "adaptive"},
            "at once",
            "As many attempts run at once as the service serves best: from 1 to 200.",
        ),
        ({"throttle": 3}, "throttle", "it is sent 3 times as many as it accepts, and at least 5% of all"),
        ({"throttle": {"trip_on": "throttled"}}, "throttle", "An attempt is not accepted if its failure is throttled."),
        ({"priority": "background"}, "priority", "Calls have the priority background, unless the code that calls"),
        (
            {"parallel": {"workers": "adaptive"}},
            "maps",
            "in threads (async functions: in one event loop), as many at once",
        ),
        ({"parallel": {"mode": "process", "max_failures": "5%"}}, "maps", "It stops when more than 5% have failed."),
        ({"retry": {"shadow": True}}, "retries", "In shadow, so this is only counted and not done:"),
        ({}, "calls", "The function is called as it is."),
        ({}, "at worst", "It takes at most the time of the function."),
        ({"retry": 3}, "at worst", "4 times the time of the function and 90 s of delays"),
        ({"retry": 3, "fallback": {"arg": "key"}}, "at worst", "4 attempts for each value of key."),
    ],
)
def test_what_is_said(fields: dict[str, Any], topic: str, said: str) -> None:
    assert said in words(**fields)[topic]


def test_the_command_says_it_of_profiles_and_functions(command: Command) -> None:
    ran = command("explain", "reports", "--plain")
    assert ran.code == 0
    assert ran.out.startswith("reports, environment development\n\n")
    assert re.search(r"at worst +A call makes at most 4 attempts. It takes at most 5 s.", ran.out)
    command.write("app.py", "from opero import opero\n@opero(policy='api', retries=1)\ndef get(key): ...\n")
    told = command("explain", "app:get", "--plain", "--json").json
    assert told["worst"] == {
        "attempts": 2,
        "for_each_value_of": None,
        "delays": 30.0,
        "waits": 0.0,
        "attempt": None,
        "total": None,
        "seconds": None,
    }
    assert told["enabled"] is True
    assert "retried at most once" in next(each["text"] for each in told["plain"] if each["topic"] == "retries")


def test_it_says_that_policies_are_switched_off(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERO_REPORTS_ENABLED", "false")
    ran = command("explain", "reports", "--plain")
    assert "its policies are switched off" in ran.out
    assert "The function is called as it is." in ran.out
    assert command("explain", "api", "--plain", "--json").json["enabled"] is True
    assert command("explain", "api", "--plain", "--all").code == 2


def test_it_fits_a_terminal_of_80_columns(command: Command) -> None:
    lines = on_terminal(command.directory, 80, "explain", "api", "--plain", "--env", "production")
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.lstrip().startswith(("s ", "s,", "s.", "s)"))]
