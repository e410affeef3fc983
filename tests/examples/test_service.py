"""The demo's service is as difficult as it says, detects who breaks its rules, and goes when it is told."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from service import GOOD_KEY, RateLimit, Service, make_record  # noqa: E402

NO_LIMIT = float("inf")


class Client:
    """One kept-alive connection."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def get(self, path: str, key: str = GOOD_KEY) -> tuple[int, Any, http.client.HTTPMessage]:
        self.connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers


def first_statuses(client: Client, count: int) -> dict[int, int]:
    return {number: client.get(f"/records/{number}")[0] for number in range(1, count + 1)}


def is_gone(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# The rate limit, in synthetic time


@pytest.mark.parametrize("late", [0, 1, 8])
def test_evenly_spaced_requests_are_admitted_however_late_each_arrives(late: int) -> None:
    dice, limit, clock = Random(late), RateLimit(20, late), 1000.0
    # `late` connections at most hold a request back for a while; the others go at their time.
    held: list[float] = []
    arrivals: list[float] = []
    for sent in (clock + number / 20 for number in range(2000)):
        if len(held) < late and dice.random() < 0.5:
            held.append(sent)
        else:
            arrivals.append(sent)
        if dice.random() < 0.1:
            arrivals += [sent] * len(held)
            held.clear()
    assert all(limit.admits(arrival + 1e-9 * place) for place, arrival in enumerate(arrivals))


@pytest.mark.parametrize("excess", [1.05, 1.5, 8.0])
def test_a_client_faster_than_the_limit_is_refused_sooner_or_later(excess: float) -> None:
    limit = RateLimit(20, 8)
    admitted = [limit.admits(number / (20 * excess)) for number in range(2000)]
    assert admitted.count(False) >= 2000 - (1 + 8 + 2000 / excess) - 1


def test_any_stretch_of_time_admits_the_limit_and_the_late_ones_at_most() -> None:
    dice, limit, now = Random(1), RateLimit(20, 8), 0.0
    admitted = []
    for _ in range(3000):
        now += dice.expovariate(60)
        if limit.admits(now):
            admitted.append(now)
    for first in range(0, len(admitted), 7):
        for last in range(first, len(admitted), 11):
            assert last - first + 1 <= 1 + 8 + 20 * (admitted[last] - admitted[first]) + 1e-6


# Real traffic


def test_a_client_that_ignores_the_limit_is_detected() -> None:
    started = time.monotonic()
    with Service(limit=20, late=8, records=100) as service, ThreadPoolExecutor(8) as pool:

        def hurry(worker: int) -> list[int]:
            with Client(service.url) as client:
                return [client.get(f"/records/{1 + worker * 10 + n}")[0] for n in range(10)]

        statuses = [status for each in pool.map(hurry, range(8)) for status in each]
    report = service.report
    admitted = report.requests - report.over_limit
    assert report.requests == len(statuses) == 80
    assert report.over_limit > 0
    assert admitted <= 1 + 8 + 20 * (time.monotonic() - started)
    assert report.busiest_second > 29
    assert report.statuses["429"] == statuses.count(429) >= report.over_limit


def test_a_client_that_ignores_the_limit_per_worker_is_detected() -> None:
    """Each of two workers keeps to the limit, so together they do not."""
    with Service(limit=20, late=2, records=100) as service, ThreadPoolExecutor(2) as pool:

        def own_limit(worker: int) -> None:
            with Client(service.url) as client:
                for number in range(20):
                    client.get(f"/records/{number + 1}")
                    time.sleep(1 / 20)

        list(pool.map(own_limit, range(2)))
    assert service.report.over_limit > 0


def test_a_client_that_keeps_to_the_limit_is_not_blamed() -> None:
    with Service(limit=50, late=1, records=100) as service, Client(service.url) as client:
        for number in range(30):
            client.get(f"/records/{number + 1}")
            time.sleep(1 / 50)
    assert service.report.over_limit == 0
    assert service.report.requests == 30


def test_another_key_is_refused_and_counts_as_a_request() -> None:
    with Service(limit=NO_LIMIT, late=0, records=3) as service, Client(service.url) as client:
        status, content, _ = client.get("/records/1", key="key-of-last-year")
    assert (status, content) == (401, {"error": 401})
    assert service.report.statuses == {"401": 1}


def test_some_records_fail_once_with_503_or_429_and_then_answer() -> None:
    with Service(limit=NO_LIMIT, late=0, records=30) as service, Client(service.url) as client:
        statuses = first_statuses(client, 30)
        assert set(statuses.values()) == {200, 503, 429}
        for number in (number for number, status in statuses.items() if status == 503):
            assert client.get(f"/records/{number}")[:2] == (200, make_record(number))


def test_429_asks_for_a_second_and_notices_who_does_not_wait() -> None:
    with Service(limit=NO_LIMIT, late=0, records=30) as service, Client(service.url) as client:
        impatient, patient = [n for n, status in first_statuses(client, 20).items() if status == 429]
        assert client.get(f"/records/{impatient}")[0] == 200
        time.sleep(1)
        assert client.get(f"/records/{patient}")[0] == 200
        headers = client.get("/records/1")[2]
    assert service.report.too_soon == 1
    assert "Retry-After" not in headers


def test_over_the_limit_answers_429_with_retry_after() -> None:
    with Service(limit=0.1, late=0, records=1) as service, Client(service.url) as client:
        client.get("/records/1")
        status, _, headers = client.get("/records/1")
    assert (status, headers["Retry-After"]) == (429, "1")


def test_the_pages_list_every_record_and_the_last_has_no_next() -> None:
    with Service(limit=NO_LIMIT, late=0, records=60) as service, Client(service.url) as client:
        ids: list[int] = []
        path = "/pages/1"
        while path:
            status, page, _ = client.get(path)
            if status == 200:
                ids, path = ids + page["ids"], page["next"]
        assert ids == list(range(1, 61))
        assert client.get("/pages/4")[0] == client.get("/records/61")[0] == client.get("/")[0] == 404


def test_one_connection_serves_many_requests() -> None:
    with Service(limit=NO_LIMIT, late=0, records=20) as service, Client(service.url) as client:
        client.get("/records/1")
        socket = client.connection.sock
        first_statuses(client, 20)
        assert client.connection.sock is socket


def test_hundreds_of_connections_at_once_are_served() -> None:
    with Service(limit=NO_LIMIT, late=0, records=300) as service, ThreadPoolExecutor(150) as pool:

        def one(number: int) -> int:
            with Client(service.url) as client:
                return client.get(f"/records/{number}")[0]

        statuses = list(pool.map(one, range(1, 301)))
    assert service.report.requests == 300
    assert set(statuses) == {200, 503, 429}


# Its end


def test_it_is_gone_after_the_with_block_with_connections_still_open() -> None:
    with Service(limit=NO_LIMIT, late=0, records=1) as service:
        client = Client(service.url)
        client.get("/records/1")
    assert service.process.returncode == 0
    client.connection.close()


def test_it_is_gone_after_a_failure_within_the_with_block() -> None:
    with pytest.raises(RuntimeError, match="ours"), Service(limit=1, late=0, records=1) as service:
        raise RuntimeError("ours")
    assert service.process.returncode == 0
    assert service.report.requests == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_does_not_outlive_a_client_that_is_killed(end: signal.Signals) -> None:
    program = (
        "import sys, time; from service import Service\n"
        "with Service(limit=1, late=0, records=1) as service:\n"
        "    print(service.process.pid, flush=True)\n"
        "    time.sleep(60)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=EXAMPLES,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        assert psutil.pid_exists(pid)
        client.send_signal(end)
    assert client.returncode != 0
    assert is_gone(pid)
