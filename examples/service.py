"""A slow and unreliable HTTP service on loopback, in a process of its own, for the demo.

It serves `/records/<id>` and `/pages/<n>` (25 ids per page). It is as difficult as real services are, but
reproducibly, because its random numbers are seeded:

- every response takes 3 to 30 ms;
- a key other than `GOOD_KEY` is refused: 401;
- one path in eight fails the first time: two thirds of them with 503, the others with 429, Retry-After: 1;
- a request beyond the rate limit is refused: 429, Retry-After: 1. All requests count, including refused ones;
- after `/down/<seconds>`, every request within that time is answered with 503. That request itself does not count.

It ends when its standard input is closed, so it cannot outlive its parent, and then reports what it received.

    with Service(limit=50, late=8, records=200) as service:
        requests.get(f"{service.url}/records/1", headers={"Authorization": f"Bearer {GOOD_KEY}"})
    print(service.report)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Lock, Thread
from time import monotonic, sleep
from typing import Any, Self

GOOD_KEY = "key-of-this-year"
PAGE, SEED = 25, 25
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "kelp", "larch")
Record = dict[str, Any]


def make_record(number: int) -> Record:
    """What `/records/<number>` serves."""
    dice = Random(f"{SEED} record {number}")
    return {"id": number, "name": f"{dice.choice(WORDS)}-{number}", "words": dice.choices(WORDS, k=40)}


class RateLimit:
    """`limit` evenly spaced requests per second, as opero spaces them, measured where they arrive.

    A request that was sent on time may arrive late, just before the next one. A client with n connections has at
    most n requests in flight, so at most n are late together. Therefore `late` requests are tolerated ahead of the
    even spacing: at most `1 + late + limit * t` requests in t seconds.
    """

    def __init__(self, limit: float, late: int) -> None:
        self.limit, self.late = limit, late
        self._due = 0.0  # when the next request is due if all are evenly spaced

    def admits(self, now: float) -> bool:
        due = max(self._due, now)
        if due - now > self.late / self.limit:
            return False
        self._due = due + 1 / self.limit
        return True


@dataclass(frozen=True)
class Report:
    """What the service received."""

    requests: int
    statuses: dict[str, int]
    busiest_second: int  # the largest number of requests within one second
    over_limit: int  # requests that the rate limit refused
    too_soon: int  # requests for a path before its Retry-After had passed


class _Server(ThreadingHTTPServer):
    request_queue_size = 512

    def __init__(self, limit: float, late: int, records: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rate_limit = RateLimit(limit, late)
        self.ids = range(1, records + 1)
        self.lock = Lock()  # guards what follows
        self.arrivals: list[float] = []
        self.over_limit = self.too_soon = 0
        self.statuses: Counter[int] = Counter()
        self.asked: Counter[str] = Counter()
        self.busy_until: dict[str, float] = {}
        self.down_until = 0.0

    def decide(self, path: str, authorization: str | None) -> int:
        """Count a request, and decide the status of the response."""
        with self.lock:
            if path.startswith("/down/"):
                self.down_until = monotonic() + float(path.removeprefix("/down/"))
                return 404
            self.arrivals.append(monotonic())
            status = self._status(path, authorization, self.arrivals[-1])
            self.statuses[status] += 1
            return status

    def _status(self, path: str, authorization: str | None, now: float) -> int:
        if not self.rate_limit.admits(now):
            self.over_limit += 1
            return 429
        if authorization != f"Bearer {GOOD_KEY}":
            return 401
        if now < self.down_until:
            return 503
        self.too_soon += now < self.busy_until.pop(path, now)
        self.asked[path] += 1
        chance = Random(f"{SEED} mood {path}").random() if self.asked[path] == 1 else 1.0
        if chance < 0.08:
            return 503
        if chance < 0.12:
            self.busy_until[path] = now + 1
            return 429
        return 200 if self.content(path) else 404

    def content(self, path: str) -> Any:
        kind, _, number = path[1:].partition("/")
        n = int(number) if number.isdecimal() else 0
        if kind == "records" and n in self.ids:
            return make_record(n)
        if kind == "pages" and n and (ids := list(self.ids[(n - 1) * PAGE : n * PAGE])):
            return {"ids": ids, "next": f"/pages/{n + 1}" if ids[-1] < len(self.ids) else None}
        return None

    def report(self) -> Report:
        with self.lock:
            busiest = first = 0
            for last, arrived in enumerate(self.arrivals):
                while self.arrivals[first] <= arrived - 1:
                    first += 1
                busiest = max(busiest, last - first + 1)
            statuses = {str(status): count for status, count in sorted(self.statuses.items())}
            return Report(len(self.arrivals), statuses, busiest, self.over_limit, self.too_soon)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # with persistent connections
    disable_nagle_algorithm = True
    wbufsize = -1  # each response is sent in one piece

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        status = self.server.decide(self.path, self.headers["Authorization"])
        sleep(Random(f"{SEED} pace {self.path}").uniform(0.003, 0.030))
        body = json.dumps(self.server.content(self.path) if status == 200 else {"error": status}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the report has the counts."""


class Service:
    """Runs the service: it has a `url` while the `with` block runs, and a `report` afterwards."""

    def __init__(self, *, limit: float, late: int, records: int) -> None:
        self._command = [sys.executable, __file__, str(limit), str(late), str(records)]

    def __enter__(self) -> Self:
        # In a session of its own it does not receive Ctrl-C: the client stops first, then the service.
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self._command, **pipes, start_new_session=True)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"  # type: ignore[union-attr]
        return self

    def __exit__(self, *_: object) -> None:
        try:
            written = self.process.communicate(timeout=10)[0]  # closes its standard input
            self.report = Report(**json.loads(written))
        finally:
            self.process.kill()  # no effect if it has ended


if __name__ == "__main__":
    server = _Server(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # until the parent closes it or ends
    print(json.dumps(asdict(server.report())), flush=True)
