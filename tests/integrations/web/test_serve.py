"""`opero.serve`: a server in a thread of its own, which checks who asks, and of which a fork inherits nothing."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from integrations.web.conftest import Program, ask, follow, messages
from opero import ConfigError, HealthMonitor, Registry, serve
from opero.integrations.prometheus import uninstrument
from opero.integrations.web.addresses import found_addresses
from opero.integrations.web.messages import LARGEST_BODY


def base(server: Any) -> str:
    return str(server.url).removesuffix("/opero")


def test_every_route_answers(program: Program) -> None:
    program.charge(1)
    with serve(0, registry=program.registry) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/opero"
        assert ask(f"{base(server)}/health/live").json == {"status": "alive"}
        assert ask(f"{base(server)}/health/ready").json == {"ready": True, "not_healthy": {}}
        health = ask(f"{base(server)}/health").json
        assert health["status"] == "healthy"
        assert health["checks"]["api.circuit_breaker"]["status"] == "healthy"
        assert ask(server.url).headers["Content-Type"] == "text/html; charset=utf-8"
        state = ask(f"{server.url}/state.json").json
        assert state["pid"] == os.getpid()
        assert state["functions"]["integrations.web.conftest:down"]["calls"] == 1
        assert state["profiles"]["api"]["calls"] == 1
        [(_, first)] = messages(f"{server.url}/events", 1)
        assert first["whole"]
        assert first["functions"]["integrations.web.conftest:down"]["calls"] == 1
        assert ask(base(server) + "/").status == 200, "the root leads to the page"


def test_metrics_are_those_of_the_default_registry(default: Program) -> None:
    default.charge(1)
    with serve(0) as server:
        answer = ask(f"{base(server)}/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b'function="integrations.web.conftest:down"' in answer.body
    uninstrument()


def test_metrics_without_their_extra_say_how_to_install_it(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in [each for each in sys.modules if each == "opero.integrations.prometheus"]:
        monkeypatch.delitem(sys.modules, name)
    with serve(0, registry=program.registry) as server:
        answer = ask(f"{base(server)}/metrics")
        assert answer.status == 501
        assert "pip install" in answer.json["error"]


def test_an_address_that_does_not_exist_names_the_nearest(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        answer = ask(f"{base(server)}/health/reddy")
        assert answer.status == 404
        assert "did you mean '/health/ready'?" in answer.json["error"]
        answer = ask(f"{base(server)}/health", "POST", {})
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        answer = ask(server.url, "HEAD")
        assert (answer.status, answer.body) == (200, b"")


def test_only_what_has_changed_is_sent(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        with closing(follow(f"{server.url}/events")) as stream:
            last, first = next(stream)
            assert len(first["functions"]) == 2
            program.charge(1)
            update = next(update for _, update in stream if update["functions"])
        assert not update["whole"]
        assert list(update["functions"]) == ["integrations.web.conftest:down"]
        assert update["functions"]["integrations.web.conftest:down"]["calls"] == 1
        [(_, again)] = messages(f"{server.url}/events", 1, Last_Event_ID=last)
        assert not again["whole"], "a page that comes back goes on where it was"
        [(_, whole)] = messages(f"{server.url}/events", 1, Last_Event_ID="0badc0de-7-7")
        assert whole["whole"], "an id of another process"


def test_a_stream_goes_on_and_ends_when_the_server_is_closed(program: Program) -> None:
    server = serve(0, registry=program.registry)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(messages(f"{server.url}/events", 100)))
    thread.start()
    messages(f"{server.url}/events", 2)
    server.close()
    thread.join(60)
    assert not thread.is_alive()
    assert got


def test_liveness_never_fails_and_readiness_does_by_choice(program: Program) -> None:
    program.fail(3)  # the circuit opens
    with serve(0, registry=program.registry) as server:
        ready = ask(f"{base(server)}/health/ready")
        assert ready.status == 200, "nothing is critical"
        assert "the circuit is open after ConnectionError" in ready.json["not_healthy"]["api.circuit_breaker"]
    critical = HealthMonitor(program.registry, critical=["api"])
    with serve(0, registry=program.registry, monitor=critical) as server:
        assert ask(f"{base(server)}/health/ready").status == 503
        assert ask(f"{base(server)}/health").status == 503
        assert ask(f"{base(server)}/health/live").status == 200


def test_a_check_that_raises_what_it_likes_is_a_result(program: Program) -> None:
    monitor = HealthMonitor()

    async def ping() -> None:
        raise SystemExit(3)

    monitor.register_health_check("database", ping, critical=True)
    with serve(0, registry=program.registry, monitor=monitor) as server:
        answer = ask(f"{base(server)}/health")
        assert answer.status == 503
        assert answer.json["checks"]["database"]["last_error"] == "RuntimeError: SystemExit: 3"


# Who may ask


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:9", "localhost."])
def test_names_of_this_machine_are_accepted(program: Program, host: str) -> None:
    with serve(0, registry=program.registry) as server:
        assert ask(server.url, Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost@evil.example", "[", ""]
)
def test_other_names_are_refused_on_every_route(program: Program, host: str) -> None:
    with serve(0, registry=program.registry) as server:
        for path in ("/opero", "/opero/state.json", "/opero/events", "/health/live", "/metrics", "/nowhere"):
            answer = ask(base(server) + path, Host=host)
            assert answer.status == 421
            assert "OPERO_HOSTS" in answer.json["error"]


def test_listed_names_are_accepted(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERO_HOSTS", "ops.example.org, other.example")
    with serve(0, registry=program.registry) as server:
        assert ask(server.url, Host="ops.example.org:80").status == 200
        assert ask(server.url, Host="example.org").status == 421


def test_addresses_are_accepted_where_the_server_listens_on_all(program: Program) -> None:
    with serve(0, "0.0.0.0", registry=program.registry) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert ask(server.url, Host="10.1.2.3:9300").status == 200, "as a probe of Kubernetes has it"
        assert ask(server.url, Host="evil.example").status == 421


def test_pages_of_others_are_refused(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        own = base(server)
        assert ask(f"{server.url}/state.json", Origin=own).status == 200
        for origin in ("http://evil.example", "null", f"http://localhost:{server.port}", "http://["):
            answer = ask(f"{server.url}/state.json", Origin=origin)
            assert answer.status == 403, origin


def test_every_answer_forbids_what_browsers_should_not_do(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        for path in ("/opero", "/opero/state.json", "/health", "/nowhere"):
            headers = ask(base(server) + path).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Cache-Control"] == "no-store"
            assert "opero" in headers["Server"]
            assert "Python" not in headers["Server"]


# Ports and addresses


def test_a_port_in_use_says_by_which_option(program: Program) -> None:
    with serve(0, registry=program.registry) as first, pytest.raises(ConfigError) as caught:
        serve(first.port, registry=program.registry)
    assert str(caught.value) == (
        f"port {first.port} of 127.0.0.1 is in use: choose another by serve(port=…) or OPERO_SERVE=127.0.0.1:PORT, or "
        "use port 0 for a free one"
    )


def test_a_closed_server_frees_its_port(program: Program) -> None:
    first = serve(0, registry=program.registry)
    ask(first.url)
    first.close()
    first.close()
    assert "closed" in repr(first)
    with serve(first.port, registry=program.registry) as second:
        assert ask(second.url).status == 200


@pytest.mark.parametrize(
    ("port", "host", "message"),
    [
        (70000, "127.0.0.1", "serve(port=70000): use a number from 0 to 65535"),
        ("9300", "127.0.0.1", "serve(port='9300'): use a number"),
        (0, "no.such.host.invalid", "serve(host='no.such.host.invalid'): there is no such address"),
        (0, "192.0.2.1", "serve(host='192.0.2.1', port=0): "),
    ],
)
def test_addresses_that_are_none_are_refused(port: Any, host: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        serve(port, host)
    assert message in str(caught.value)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6(program: Program) -> None:
    try:
        server = serve(0, "::1", registry=program.registry)
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with server:
        assert server.url == f"http://[::1]:{server.port}/opero"
        assert ask(server.url).status == 200


# Hostile clients


def test_what_is_no_request_harms_nobody(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        for text in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1000):
                    pass
        assert ask(server.url).status == 200


def test_a_long_body_is_not_read(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERO_TOKEN", "t")
    with serve(0, registry=program.registry) as server:
        answer = ask(f"{server.url}/actions", "POST", "x" * LARGEST_BODY, Authorization="Bearer t")
        assert answer.status == 413


def test_too_many_connections_are_closed_and_later_ones_served(program: Program) -> None:
    with serve(0, registry=program.registry) as server:
        address = "127.0.0.1", server.port
        many = [socket.create_connection(address, timeout=60) for _ in range(40)]
        closed = [each for each in many[32:] if each.recv(1) == b""]
        assert len(closed) == 8
        for each in many:
            each.close()
        for _ in range(200):
            try:
                if ask(server.url).status == 200:
                    return
            except OSError:
                pass
            threading.Event().wait(0.05)
        pytest.fail("the server does not recover")


# Forks and the file of the address


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_serve_and_does_not_keep_the_port(program: Program) -> None:
    server = serve(0, registry=program.registry)
    reading, writing = os.pipe()
    waiting, releasing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  # the child
        os.write(writing, b"closed" if "closed" in repr(server) else b"open")
        os.read(waiting, 1)
        os._exit(0)
    try:
        assert os.read(reading, 10) == b"closed"
        assert ask(server.url).status == 200, "the parent goes on"
        server.close()
        with serve(server.port, registry=program.registry) as again:
            assert ask(again.url).status == 200, "though the child lives"
    finally:
        os.write(releasing, b"x")
        os.waitpid(child, 0)
        for each in (reading, writing, waiting, releasing):
            os.close(each)


def test_the_address_is_published_while_it_is_served(program: Program, tmp_path: Path) -> None:
    with serve(0, registry=program.registry) as server:
        assert [tuple(each) for each in found_addresses()] == [(os.getpid(), server.url)]
        [file] = (tmp_path / "opero").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
    assert found_addresses() == []
    assert list((tmp_path / "opero").iterdir()) == []


def test_files_of_dead_processes_and_directories_of_others_are_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "opero"
    folder.mkdir()
    dead = folder / "4-1.json"
    dead.write_text('{"pid": 99999999, "url": "http://127.0.0.1:1/opero"}')
    (folder / "5-1.json").write_text("no json")
    folder.chmod(0o700)
    assert found_addresses() == []
    assert not dead.exists()
    (folder / "1-1.json").write_text(f'{{"pid": {os.getpid()}, "url": "http://127.0.0.1:1/opero"}}')
    assert len(found_addresses()) == 1
    folder.chmod(0o777)
    assert found_addresses() == [], "anybody may have written it"
    with serve(0, registry=Registry()) as server:
        assert ask(server.url).status == 200, "it is served all the same"


def test_a_server_that_nobody_holds_goes_on(program: Program) -> None:
    url, close = (lambda server: (server.url, server.close))(serve(0, registry=program.registry))
    gc.collect()
    try:
        assert ask(url).status == 200
    finally:
        close()
