"""Actions need a token, are logged with who asked for them, and end by themselves where they hold for a while."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integrations.web.conftest import PATIENCE, TOKEN, Answer, Program, ask
from opero import CircuitOpenError, Policy, Registry, serve
from opero.integrations.web.holds import Holds

Act = Callable[..., Answer]


@pytest.fixture
def act(program: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Act]:
    """Asks for an action with the right token."""
    monkeypatch.setenv("OPERO_TOKEN", TOKEN)
    program.charge(1)
    program.read()
    with serve(0, registry=program.registry) as server:

        def ask_for(action: str, target: str = "api", **order: Any) -> Answer:
            body = {"action": action, "target": target, **order}
            return ask(f"{server.url}/actions", "POST", body, Authorization=f"Bearer {TOKEN}")

        yield ask_for
        for each in program.registry:  # what still holds
            ask_for("resume", each)


def until(is_true: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if is_true():
            return
        waited.wait(0.02)
    pytest.fail("it has not happened")


def test_without_a_token_actions_are_off_and_say_how_to_switch_them_on(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        answer = ask(f"{server.url}/actions", "POST", {"action": "reset", "target": "api"}, Authorization="Bearer ")
    assert answer.status == 403
    assert "set OPERO_TOKEN" in answer.json["error"]


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"],
)
def test_a_wrong_token_is_refused(program: Program, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("OPERO_TOKEN", TOKEN)
    program.charge(1)
    with serve(0, registry=program.registry) as server:
        headers = {"Authorization": given} if given else {}
        answer = ask(f"{server.url}/actions", "POST", {"action": "force_open", "target": "api"}, **headers)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert program.charge(1) == 1


def test_the_token_may_be_a_reference_or_a_file(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "opero_token").write_text("from a file é\n", "utf-8")
    monkeypatch.setenv("OPERO_SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.setenv("OPERO_TOKEN", "secret:opero_token")
    with serve(0, registry=program.registry) as server:
        order = {"action": "reset_statistics", "target": "*"}
        right = "Bearer from a file é".encode().decode("latin-1")
        assert ask(f"{server.url}/actions", "POST", order, Authorization=right).status == 200
        monkeypatch.setenv("OPERO_TOKEN", "secret:missing")
        answer = ask(f"{server.url}/actions", "POST", order, Authorization=right)
        assert answer.status == 403
        assert "the secret missing does not exist" in answer.json["error"]


def test_circuits_are_forced_and_reset(program: Program, act: Act) -> None:
    assert act("force_open").json == {"done": "forced open: api"}
    with pytest.raises(CircuitOpenError):
        program.charge(1)
    assert act("force_closed").status == 200
    program.fail(10)
    assert program.charge(1) == 1
    assert act("reset").status == 200
    assert program.registry.state("api").circuit_breaker.state == "closed"
    assert act("force_open", "integrations.web.conftest:down").json == {"done": "forced open: api"}


def test_statistics_begin_anew(program: Program, act: Act) -> None:
    assert act("reset_statistics", "api").json == {"done": "the statistics of 1 functions begin anew"}
    assert program.charge.stats.calls == 0
    assert program.read.stats.calls == 1
    act("reset_statistics", "*")
    assert program.read.stats.calls == 0


def test_a_pause_switches_the_policies_off_and_ends_by_itself(
    program: Program, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    program.fail(3)
    with pytest.raises(CircuitOpenError):
        program.charge(1)
    assert act("pause", **{"for": "1h"}, by="ada\nlovelace").json == {"done": "the policies are off for 1h"}
    assert program.charge(1) == 1, "the open circuit is not asked"
    assert act("pause", **{"for": 0.3}).status == 200, "in place of the other one"
    until(lambda: program.registry.configuration.is_enabled("api"))
    with pytest.raises(CircuitOpenError):
        program.charge(1)
    texts = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "action pause on 'api' by ada lovelace from 127.0.0.1: the policies are off for 1h" in texts
    until(lambda: any("no longer in force" in each.getMessage() for each in caplog.records))


def test_a_limit_holds_for_a_while(program: Program, act: Act) -> None:
    before = program.registry["api"]
    assert act("limit", rate="5/s", max_concurrent=2, **{"for": "1m"}).json == {
        "done": "rate 5/s and max_concurrent 2 for 1m"
    }
    assert program.registry["api"].rate_limit.rate == 5  # type: ignore[union-attr]
    assert program.registry["api"].bulkhead.max_concurrent == 2  # type: ignore[union-attr]
    leaf = program.registry.explain("api")["rate_limit.rate"]
    assert str(leaf.source) == "action (from 127.0.0.1)"
    assert act("resume").json == {"done": "ended: rate 5/s and max_concurrent 2 for 1m"}
    assert program.registry["api"] == before


@pytest.mark.parametrize(
    ("order", "status", "message"),
    [
        ({"action": "force_opne"}, 400, "did you mean 'force_open'?"),
        ({"action": "reset", "target": "apy"}, 422, "did you mean 'api'?"),
        ({"action": "reset", "target": "quiet"}, 422, "quiet has no circuit breaker in use"),
        ({"action": "pause", "target": "integrations.web.conftest:down"}, 422, "there is no profile"),
        ({"action": "pause", "for": "soon"}, 422, "for: "),
        ({"action": "pause", "for": "2d"}, 422, "for: '2d' is not within a day"),
        ({"action": "pause", "for": True}, 422, "for: "),
        ({"action": "pause", "rates": 1}, 400, "unknown field 'rates'; did you mean 'rate'?"),
        ({"action": "limit"}, 422, 'a limit needs a "rate" such as "5/s"'),
        ({"action": "limit", "rate": "-5/s"}, 422, "rate"),
        ({"action": "limit", "rate": {"a": [1]}}, 422, "rate"),
        ({"action": "resume"}, 422, "nothing is paused or limited in 'api'"),
        ({"action": "reload"}, 422, "made from policies in code"),
        ({"action": 5}, 400, "send an object such as"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    program: Program, act: Act, order: dict[str, Any], status: int, message: str
) -> None:
    before = program.registry.configuration
    answer = act(**{"target": "api", **order})
    assert answer.status == status
    assert message in answer.json["error"]
    assert program.registry.configuration is before


@pytest.mark.parametrize("body", ["[]", "null", '"x"', "{", "[" * 5000])
def test_bodies_that_are_no_orders(program: Program, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    from integrations.web.conftest import ProxyHandler, Request, build_opener

    monkeypatch.setenv("OPERO_TOKEN", TOKEN)
    with serve(0, registry=program.registry) as server:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = Request(f"{server.url}/actions", body.encode(), headers)
        with pytest.raises(Exception, match="400"):
            build_opener(ProxyHandler({})).open(request, timeout=PATIENCE)
        assert ask(f"{server.url}/actions", "POST", {}, **{**headers, "Content-Type": "text/plain"}).status == 415


def test_a_reload_reads_the_files_again(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPERO_TOKEN", TOKEN)
    file = tmp_path / "base.yaml"
    file.write_text("policies: {api: {retry: 3}}")
    registry = Registry.load(tmp_path, environ={})
    with serve(0, registry=registry) as server:
        file.write_text("policies: {api: {retry: 4}}")
        order = {"action": "reload", "target": "*"}
        answer = ask(f"{server.url}/actions", "POST", order, Authorization=f"Bearer {TOKEN}")
        assert answer.json == {"done": "reloaded: api"}
        file.write_text("policies: {api: {retry: many}}")
        answer = ask(f"{server.url}/actions", "POST", order, Authorization=f"Bearer {TOKEN}")
        assert answer.status == 422
        assert "base.yaml:1:" in answer.json["error"]
    assert registry["api"].retry.retries == 4  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_holds_ends_in_a_forked_child_as_well(program: Program) -> None:
    holds = Holds()
    holds.hold(program.registry, "api", "pause", {"enabled": False}, "off", 1.5, "ada")
    child = os.fork()
    if child == 0:  # pragma: no cover  # the child
        waited = threading.Event()
        for _ in range(1000):
            if program.registry.configuration.is_enabled("api"):
                os._exit(0)
            waited.wait(0.02)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    until(lambda: holds.listed() == [])


def test_the_circuit_of_one_key_is_forced_and_reset(program: Program, act: Act) -> None:
    def get(tenant: str) -> str:
        return tenant

    breaker = {"consecutive_failures": 5, "scope": {"by": "tenant"}}
    keyed = Registry({"many": Policy(circuit_breaker=breaker), "one": Policy(circuit_breaker=5)})
    bound, one = keyed.bind(get, "many"), keyed.bind(str, "one")
    assert (bound("a"), one()) == ("a", "")
    with serve(0, registry=keyed) as server:

        def ask_for(action: str, target: str, **order: Any) -> Answer:
            body = {"action": action, "target": target, **order}
            return ask(f"{server.url}/actions", "POST", body, Authorization=f"Bearer {TOKEN}")

        assert ask_for("force_open", "many", key="b").json == {"done": "forced open: many[b]"}
        with pytest.raises(CircuitOpenError):
            bound("b")
        assert bound("a") == "a"
        assert ask_for("reset", "many").json == {"done": "reset: many"}
        assert bound("b") == "b"
        answer = ask_for("reset", "one", key="b")
        assert (answer.status, answer.json["error"]) == (
            422,
            "one has one circuit, and none for each key: leave key out",
        )
