"""`opero top` shows a running program by its address, its number, or as the only one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cli.conftest import Command, environment
from opero import LiveServer, Policy, Registry, serve
from opero.cli.top import address_of, printable, rows


class Served:
    """A served program: a function that works, and one whose circuit is open."""

    def __init__(self) -> None:
        self.registry = Registry({"api": Policy(circuit_breaker={"consecutive_failures": 2}, rate_limit={"rate": 1e6})})

        def charge(order: int) -> int:
            if order < 0:
                raise ConnectionError("down \x1b[31m")
            return order

        self.charge: Any = self.registry.bind(charge, "api")
        self.charge(1)
        for _ in range(4):
            with pytest.raises(Exception, match="down|open"):
                self.charge(-1)
        self.server: LiveServer = serve(0, registry=self.registry)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = Served()
    yield made
    made.server.close()


@pytest.mark.parametrize("by", ["nothing", "pid", "url", "address", "root"])
def test_it_prints_the_state_once(command: Command, served: Served, by: str) -> None:
    url = served.server.url
    given = {
        "nothing": [],
        "pid": [str(os.getpid())],
        "url": [url],
        "address": [f"127.0.0.1:{served.server.port}"],
        "root": [url.removesuffix("opero")],
    }
    ran = command("top", *given[by], "--once")
    assert ran.code == 0, ran.err
    title, _, head, *rows = ran.out.splitlines()
    assert re.fullmatch(rf"\S+, process {os.getpid()} · development · configuration [0-9a-f]{{8}} · [\d:]+", title)
    assert head.split() == ["name", "calls/s", "failing", "p50", "p99", "retries", "cached", "state"]
    assert rows[0].startswith("api")
    assert re.search(r"circuit open, probe in \d+ s, limit 0%$", rows[0])
    assert rows[1].startswith("cli.test_top:Served.__init__.<locals>.charge")


def test_a_pipe_gets_the_state_once(command: Command, served: Served) -> None:
    assert command("top").out.startswith(os.uname().nodename if hasattr(os, "uname") else "")


def test_json(command: Command, served: Served) -> None:
    found = command("top", "--json").json
    assert found["profiles"]["api"]["calls"] == 5
    assert found["profiles"]["api"]["state"]["circuit_breaker"]["state"] == "open"


def test_events_are_shown_without_what_controls_a_terminal(command: Command, served: Served) -> None:
    served.registry.state("api").circuit_breaker.reset()
    with pytest.raises(Exception, match="down"):
        served.charge(-1)
    out = command("top", "--once").out
    assert (
        "attempt failed  cli.test_top:Served.__init__.<locals>.charge  transient: ConnectionError: down \\x1b[31m"
        in out
    )
    assert "\x1b" not in out
    assert printable("a\x1b[2J\n\u202eb") == "a?[2J??b"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("99999999", "process 99999999 is not served by opero.serve() or OPERO_SERVE here (served are: "),
        ("99999999", "if 99999999 is a port: opero top 127.0.0.1:99999999"),
        ("127.0.0.1:1", "http://127.0.0.1:1/opero cannot be reached"),
        ("127.0.0.1:1", "let the program call opero.serve(), or set OPERO_SERVE=127.0.0.1:9300 for it"),
        ("file:///etc/passwd", "'file:///etc/passwd' is invalid"),
    ],
)
def test_what_is_not_served_is_said(command: Command, served: Served, target: str, message: str) -> None:
    ran = command("top", target, "--once")
    assert ran.code == 2
    assert message in ran.err


def test_several_processes_have_to_be_named(command: Command, served: Served) -> None:
    with serve(0, registry=served.registry) as other:
        ran = command("top", "--once")
        assert ran.code == 2
        assert "several processes are served" in ran.err
        assert other.url in ran.err
        assert served.server.url in ran.err


def test_the_default_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert address_of(None) == "http://127.0.0.1:9300/opero"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "is no live page of opero: it does not answer with JSON"),
        (200, b"[]", "is no live page of opero"),
        (421, b'{"error": "unknown host"}', "answers 421"),
        (500, b"oops", "answers 500"),
    ],
)
def test_servers_of_something_else(
    command: Command, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, message: str
) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            ran = command("top", f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert ran.code == 2
    assert message in ran.err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this platform has no pseudo-terminals")
def test_a_terminal_shows_it_until_ctrl_c(command: Command, served: Served) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "opero", "top", served.server.url],
        cwd=command.directory,
        env=environment() | {"TERM": "xterm", "LINES": "30"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        close_fds=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while shown.count(b"circuit open, probe in") < 4:  # two pictures with two rows each
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # its end is one of the terminal
            while os.read(ours, 65536):
                pass
        assert process.wait(60) == 130
    os.close(ours)


def test_of_states_for_each_key_the_number_is_shown() -> None:
    row = {"calls": 3, "cache_hits": 0, "cache_misses": 0, "retries": 0}
    limits = {
        "rate_limit": {"saturation": 0.5, "queue": 2, "keys": 40},
        "bulkhead": {"in_use": 3, "slots": 4, "keys": 40},
    }
    for standing_out, shown in ((2, "circuit open for 2 of 40"), (0, "closed")):
        circuit = {"state": "open" if standing_out else "closed", "keys": 40, "standing_out": standing_out}
        state = {"circuit_breaker": {**circuit, "retry_in": None}, **limits}
        ((cells, style),) = rows({"profiles": {"api": {**row, "state": state}}, "functions": {}})
        assert cells[-1] == f"{shown}, limit 50%, 2 wait, slots 3/4"
        assert style == ("red" if standing_out else "bold")
