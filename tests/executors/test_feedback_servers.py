"""A service that asks for a pause is left alone by all callers: threads, tasks, worker processes, other programs."""

from __future__ import annotations

import asyncio
import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from opero import Policy, Registry

PAUSE = 2.0
IN_FLIGHT = 0.3
"""Seconds for an answer to come from the server to its caller, and for a call to begin."""


class Service(http.server.ThreadingHTTPServer):
    """Answers `calls` requests, then asks once to wait for `PAUSE` seconds.

    Attributes:
        sent: when each request was sent, as it says.
        refused: when it asked to wait; 0 if it has not.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, calls: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.calls = calls
        self.lock = threading.Lock()
        self.sent: list[float] = []
        self.refused = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def early(self) -> int:
        """Return how many requests were sent before their time, except for those that were in flight."""
        return sum(self.refused + IN_FLIGHT < each < self.refused + PAUSE for each in self.sent)

    def later(self) -> list[float]:
        """Return when the others were sent, in seconds after the pause."""
        resumes = self.refused + PAUSE
        return sorted(each - resumes for each in self.sent if each >= resumes)


class Answer(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.sent.append(float(self.headers["X-Sent"]))
            self.server.calls -= 1
            asks = self.server.calls == 0 or time.monotonic() < self.server.refused + PAUSE
            if self.server.calls == 0:
                self.server.refused = time.monotonic()
        self.send_response(429 if asks else 200)
        if asks:
            self.send_header("Retry-After", str(PAUSE))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[Callable[[int], Service]]:
    started: list[Service] = []

    def start(calls: int) -> Service:
        started.append(Service(calls))
        threading.Thread(target=started[-1].serve_forever, args=(0.05,), daemon=True).start()
        return started[-1]

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"X-Sent": repr(time.monotonic())})
    with urllib.request.urlopen(request, timeout=30) as response:
        found: bytes = response.read()
        return found


async def fetch_async(url: str) -> bytes:
    return await asyncio.to_thread(fetch, url)


def until_later(bound: Callable[[str], object], service: Service) -> None:
    """Call until some time after the pause."""
    while not service.refused or time.monotonic() < service.refused + PAUSE + 1:
        with suppress(OSError):
            bound(service.url)


async def until_later_async(bound: Callable[[str], Any], service: Service) -> None:
    while not service.refused or time.monotonic() < service.refused + PAUSE + 1:
        with suppress(OSError):
            await bound(service.url)


def test_threads_tasks_and_worker_processes_leave_it_alone_together(service: Callable[[int], Service]) -> None:
    server = service(150)
    profile = {"rate_limit": "100/s", "parallel": {"mode": "process", "workers": 4, "on_error": "return"}}
    registry = Registry({"api": Policy.model_validate(profile)})
    bound, bound_async = registry.bind(fetch, "api"), registry.bind(fetch_async, "api")

    async def tasks() -> None:
        await asyncio.gather(*[until_later_async(bound_async, server) for _ in range(8)])

    def map_items() -> None:
        while not server.refused or time.monotonic() < server.refused + PAUSE:
            bound.map([server.url] * 40)

    threads = [threading.Thread(target=until_later, args=(bound, server)) for _ in range(8)]
    threads += [threading.Thread(target=map_items), threading.Thread(target=lambda: asyncio.run(tasks()))]
    bound.map([server.url] * 8)  # its worker processes have started
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert server.refused
    assert server.early() <= 1
    later = server.later()
    assert len(later) > 10
    assert sum(each < 0.5 for each in later) < 30, "they come back gradually"


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[2])
from executors.test_feedback_servers import Policy, fetch
limit = {"rate": "100/s", "share": sys.argv[3], "share_as": "work"}
if sys.argv[3] == "redis":
    limit["url"] = sys.argv[4]
bound = Policy(rate_limit=limit).apply(fetch)
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + 4.5
while time.monotonic() < until:
    try:
        bound(sys.argv[1])
    except OSError:
        pass
"""


def programs(url: str, share: str, redis: str = "") -> None:
    """Have four programs call the service for some seconds."""
    tests = str(Path(__file__).parent.parent)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, tests, share, redis],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        for _ in range(4)
    ]
    for each in running:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in running:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in running:
        each.communicate(timeout=60)
        assert each.returncode == 0


def test_programs_of_one_machine_leave_it_alone_together(
    service: Callable[[int], Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = service(60)
    programs(server.url, "machine")
    assert server.refused
    assert server.early() <= 1
    assert len(server.later()) > 10


def test_programs_that_share_a_redis_leave_it_alone_together(service: Callable[[int], Service], redis_url: str) -> None:
    server = service(60)
    programs(server.url, "redis", redis_url)
    assert server.refused
    assert server.early() <= 1
    assert len(server.later()) > 10


def test_tasks_that_share_a_redis_leave_it_alone_together(service: Callable[[int], Service], redis_url: str) -> None:
    server = service(60)
    limit = {"rate": "100/s", "share": "redis", "share_as": "tasks", "url": redis_url}
    bound = [Policy.model_validate({"rate_limit": limit}).apply(fetch_async) for _ in range(2)]

    async def tasks() -> None:
        await asyncio.gather(*[until_later_async(bound[each % 2], server) for each in range(8)])

    asyncio.run(tasks())
    assert server.refused
    assert server.early() <= 1
    assert len(server.later()) > 10
