"""Webhooks: what they receive, that they are tried again, and that their failure harms nobody."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from opero import Alert, AlertManager
from opero.events import RetryScheduled
from opero.observe.subscriptions import deliver
from opero.policies.alert import Webhook
from opero.testing import VirtualClock, virtual_clock


class Server:
    """A server that answers with each of its statuses in turn, the last repeated; None: after the caller has gone."""

    def __init__(self) -> None:
        self.statuses: list[int | None] = [200]
        self.received: list[tuple[str, dict[str, str], Any]] = []
        self.hangs = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.received.append((self.path, dict(self.headers), json.loads(body)))
                status = outer.statuses.pop(0) if len(outer.statuses) > 1 else outer.statuses[0]
                if status is None:
                    outer.hangs.wait(60)
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hook/hunter2"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.hangs.set()
    made.http.shutdown()
    made.http.server_close()
    made.thread.join(60)


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def fire(notify: Any, function: str = "app:get") -> None:
    """Have an alert notified, on a clock on which the delays between attempts take no time."""
    with virtual_clock(), AlertManager({"it": Alert(when={"event": "retry_scheduled"}, notify=notify)}) as manager:
        deliver(RetryScheduled(function=function, policy="api", attempt=2, delay=1, is_asked=False, error=ValueError()))
        manager.check()


def test_a_webhook_receives_the_notification_as_json(server: Server) -> None:
    fire(server.url)
    ((path, headers, body),) = server.received
    assert path == "/hook/hunter2"
    assert headers["Content-Type"] == "application/json"
    assert (body["event"], body["alert"], body["functions"], body["pid"]) == (
        "alert_fired",
        "it",
        ["app:get"],
        os.getpid(),
    )
    assert body["text"] == "Alert: it: app:get: 1 × retry_scheduled within 5m", "what chat programs show"


def test_a_server_that_is_busy_is_called_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.statuses = [503, 429, 200]
    fire(server.url)
    assert len(server.received) == 3
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_a_failure_is_logged_without_the_url(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.statuses = [500]
    fire({"url": server.url, "retries": 1})
    assert len(server.received) == 2
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage() == "alert it: its webhook could not be called: HTTP 500"
    assert (record.event, record.error) == ("alert_not_sent", "HTTPError")  # type: ignore[attr-defined]
    assert "hunter2" not in caplog.text


def test_a_request_that_is_refused_is_not_repeated(server: Server) -> None:
    server.statuses = [404]
    fire(server.url)
    assert len(server.received) == 1


def test_a_server_that_is_not_there_is_no_obstacle(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.http.shutdown()
    server.http.server_close()
    told: list[Any] = []
    fire([Webhook(url=server.url, retries=1), told.append])
    assert len(told) == 1, "the others are told"
    assert "could not be called: ConnectionRefusedError" in caplog.text


def test_a_server_that_hangs_is_left_after_the_timeout(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.statuses = [None]
    with AlertManager(
        {"it": Alert(when={"event": "retry_scheduled"}, notify={"url": server.url, "timeout": "0.2s", "retries": 0})},
        clock=VirtualClock(),
    ) as manager:
        deliver(RetryScheduled(function="f", attempt=2, delay=1, is_asked=False, error=ValueError()))
        manager.check()
    assert len(server.received) == 1
    assert "could not be called" in caplog.text


def test_a_webhook_that_fails_causes_no_alert(server: Server) -> None:
    server.statuses = [500]
    clock = VirtualClock()
    told: list[Any] = []
    when = {"any": [{"event": "attempt_failed", "count": 1}, {"event": "call_failed"}]}
    about_all = Alert(when=when, notify=told.append)
    with AlertManager({"all": about_all}, clock=clock) as manager:
        fire({"url": server.url, "retries": 2})
        manager.check()
    assert told == []
