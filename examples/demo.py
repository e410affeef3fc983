"""Fetch 200 records from a deliberately difficult service, then process them; and see what opero does meanwhile.

    python examples/demo.py                        # OPERO_ENV=staging, or production, picks other profiles
    python examples/demo.py --live                 # keeps running, with a live page in the browser

The service (service.py) is slow, fails with 503 and 429, refuses one of the two API keys, and counts every request
against its rate limit. The code below handles none of that: the profiles `api` and `batch` in policies/ do. Half-way an
operator doubles the rate limit in a file. Then the same is done without opero, and the service breaks down for a while.
The demo fails if a record is missing or wrong, or if the service received more requests than it allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
import yaml
from service import GOOD_KEY, Record, Report, Service, make_record

from opero import (
    CircuitOpenError,
    OperoError,
    Registry,
    get_default_registry,
    on,
    opero,
    opmap,
    serve,
    set_default_registry,
    trace,
)

API_KEYS = ["key-of-last-year", GOOD_KEY]  # the service refuses the first
WORKERS = 8
OUTAGE = 1.5
"""Seconds for which the service is down."""


class Connection(threading.local):
    """A session for each thread, because a `requests.Session` is not thread-safe."""

    def __init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy for loopback


connection = Connection()


def get(url: str, api_key: str) -> Any:
    response = connection.session.get(url, headers={"Authorization": f"Bearer {api_key}"}, timeout=10)
    response.raise_for_status()
    return response.json()


@opero(policy="api", arg_fallback="api_key", mode="thread", workers=WORKERS)
def fetch(url: str, api_key: list[str] = API_KEYS) -> Any:
    """Fetch a page or a record. `api_key[0]` is the key to use; if it is refused, opero tries the next."""
    return get(url, api_key[0])


@opmap(policy="batch")
def fingerprint(record: Record) -> str:
    """Compute something expensive: written for one record, called with many."""
    return hashlib.pbkdf2_hmac("sha256", json.dumps(record).encode(), b"opero", 5_000).hex()


@opero(policy="api", cache=False, retries=0, circuit_breaker={"consecutive_failures": 5, "open_for": "700ms"})
def ask(url: str) -> Any:
    """Fetch a record as it is now. A circuit breaker of its own opens after five failures."""
    return get(url, GOOD_KEY)


def list_urls(base: str) -> list[str]:
    """The URLs of all records, from the pages of the service."""
    urls: list[str] = []
    path = "/pages/1"
    while path:
        page = fetch(base + path)
        urls += [f"{base}/records/{number}" for number in page["ids"]]
        path = page["next"]
    return urls


def work(base: str, count: int) -> dict[str, bool]:
    """Fetch, fetch again, fingerprint: each possible problem of the results, and whether it occurred."""
    try:
        urls = list_urls(base)
        records = fetch.map(urls)
        again = fetch.map(urls[: count // 4])  # answered by the cache, without requests
        prints = fingerprint(records)
    except OperoError as error:
        return {str(error): True}
    expected = [make_record(number) for number in range(1, count + 1)]
    return {
        "the records are not those of the service": records != expected,
        "asked again, the records differ": again != expected[: count // 4],
        "a fingerprint is wrong": prints != [fingerprint.__wrapped__(each) for each in expected],
    }


def work_without(base: str, count: int) -> int:
    """Fetch all records in as many threads, without opero; return how many were lost."""

    def is_lost(number: int) -> bool:
        try:
            get(f"{base}/records/{number}", GOOD_KEY)
        except requests.RequestException:
            return True
        return False

    with ThreadPoolExecutor(WORKERS) as threads:
        return sum(threads.map(is_lost, range(1, count + 1)))


# What is seen meanwhile


class Screen:
    """Prints lines, and below them one line of progress."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._lock = threading.Lock()
        self._is_terminal = sys.stdout.isatty()
        self._shown = 0.0

    def line(self, text: str) -> None:
        with self._lock:
            clear = "\r\x1b[K" if self._is_terminal else ""
            print(f"{clear}{time.perf_counter() - self.started:5.1f} s  {text}", flush=True)

    def denied(self, argument: str) -> None:
        self.line(f"the first value of {argument} is denied, and asked last from now on")

    def progress(self, count: int) -> None:
        """Show how far the work has come: ten times a second on a terminal, else every two seconds."""
        now = time.perf_counter()
        if now - self._shown < (0.1 if self._is_terminal else 2.0):
            return
        self._shown = now
        stats = fetch.stats
        rate = stats.snapshot()["rates"]["calls"]["1s"]
        text = f"{min(stats.calls, count)} of {count} records, {rate:.0f} calls/s, {stats.retries} retries"
        if self._is_terminal:
            with self._lock:
                print(f"\r\x1b[K{now - self.started:5.1f} s  {text}", end="", flush=True)
        else:
            self.line(text)


@contextmanager
def watching(screen: Screen, count: int, raise_rate: Any) -> Generator[None]:
    """Show progress and events while the work is done; half-way, have an operator change a value."""
    ended = threading.Event()

    def show() -> None:
        is_raised = False
        while not ended.wait(0.05):
            screen.progress(count)
            if fetch.stats.calls > count // 2 and not is_raised:
                is_raised = True
                raise_rate()

    offs = [
        on("configuration_reloaded", lambda event: screen.line(f"reloaded: {', '.join(event.changes)}")),
        on("value_set_aside", lambda event: screen.denied(event.argument) if event.kind == "denied" else None),
        on("map_finished", lambda event: screen.line(f"{event.progress.name}: {event.progress.done} items done")),
    ]
    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for off in offs:
            off()


def show_outage(screen: Screen, base: str) -> None:
    """Call a service that is down for a while: the circuit opens, calls are rejected, a probe closes it."""
    counts = {"answered": 0, "failed": 0, "rejected": 0}
    offs = [
        on("circuit_opened", lambda event: screen.line(f"circuit open: {event.reason.partition(' for url')[0]}")),
        on("circuit_half_opened", lambda event: screen.line("circuit half open: a call may try")),
        on("circuit_closed", lambda event: screen.line("circuit closed")),
    ]
    with suppress(requests.RequestException):
        get(f"{base}/down/{OUTAGE}", GOOD_KEY)
    screen.line(f"the service is down for {OUTAGE} s")
    until = time.monotonic() + OUTAGE + 5
    while time.monotonic() < until:
        try:
            ask(f"{base}/records/1")
            counts["answered"] += 1
            if counts["rejected"]:
                break
        except CircuitOpenError:
            counts["rejected"] += 1
        except requests.RequestException:
            counts["failed"] += 1
        time.sleep(0.02)
    screen.line(f"the service is back: {counts['failed']} calls failed, {counts['rejected']} were rejected at once")
    for off in offs:
        off()


# The judgement


def judge(report: Report) -> dict[str, bool]:
    """Each possible complaint of the service, and whether it has it."""
    return {
        f"the service refused {report.over_limit} requests as over its limit": report.over_limit > 0,
        f"{report.too_soon} requests came before their Retry-After was over": report.too_soon > 0,
        "opero's attempts are not the service's requests": fetch.stats.attempts + ask.stats.attempts != report.requests,
    }


def show(report: Report, limit: float) -> None:
    print(f"\n{'':18}{'fetch (api)':>20}{'fingerprint (batch)':>22}")
    for name in ("calls", "attempts", "retries", "recoveries", "fallbacks", "cache_hits"):
        values = getattr(fetch.stats, name), getattr(fingerprint.stats, name)
        print(f"{name.replace('_', ' '):18}{values[0]:>20}{values[1]:>22}")
    kinds = ", ".join(f"{number} {kind}" for kind, number in fetch.stats.kinds.items())
    print(f"{'failed attempts':18}{kinds:>20}")
    print(f"{'the service saw':18}{report.requests} requests, by status {json.dumps(report.statuses)}")
    print(f"{'busiest second':18}{report.busiest_second}, limit {limit:g}: {report.over_limit} too many")


@contextmanager
def editable_policies() -> Generator[Path]:
    """Have the default registry load a copy of its policies, which an operator may edit, and watch it."""
    configuration = get_default_registry().configuration
    assert configuration.directory is not None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(configuration.directory, Path(folder, "policies")))
        registry = Registry.load(copy)
        set_default_registry(registry)
        with registry.watch():
            yield copy / f"{registry.configuration.environment}.yaml"


def raise_rate(file: Path, rate: float) -> None:
    """Do what an operator does with an editor."""
    text = yaml.safe_load(file.read_text())
    profile = text["policies"]["api"]
    limit = profile.get("rate_limit")
    profile["rate_limit"] = {**(limit if isinstance(limit, dict) else {}), "rate": f"{rate:g}/s"}
    file.write_text(json.dumps(text))  # which is YAML, too


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--limit", type=float, help="requests per second to allow; default: twice the profile's rate")
    parser.add_argument("--live", action="store_true", help="serve a live page until Ctrl-C")
    options = parser.parse_args()
    count = options.records
    with editable_policies() as file:
        profile = fetch.policy.rate_limit
        rate = profile.fastest if profile else float("inf")
        limit = options.limit or 2 * rate
        page = serve(port=0) if options.live else None
        if page is not None:
            print(f"live page: {page.url}", flush=True)
        screen = Screen()
        with Service(limit=limit, late=WORKERS, records=count) as service:
            with trace() as receipt:
                fetch(f"{service.url}/pages/1")
            with watching(screen, count, lambda: raise_rate(file, 2 * rate)):
                problems = work(service.url, count)
            seconds = time.perf_counter() - screen.started
            show_outage(screen, service.url)
            if page is not None:
                stop = threading.Event()
                before = signal.signal(
                    signal.SIGINT, lambda number, frame: stop.set()
                )  # between calls: all are counted
                print("Ctrl-C ends the demo", flush=True)
                while not stop.wait(0.1):
                    ask(f"{service.url}/records/1")
                signal.signal(signal.SIGINT, before)
        show(service.report, limit)
        print(f"{'time':18}{seconds:.1f} s in {os.environ.get('OPERO_ENV') or 'development'}\n\n{receipt}\n")
    with Service(limit=limit, late=WORKERS, records=count) as other:
        started = time.perf_counter()
        lost = work_without(other.url, count)
    print(
        f"without opero, with a valid key: {lost} of {count} records lost in {time.perf_counter() - started:.1f} s, "
        f"{other.report.over_limit} requests refused as over the limit"
    )
    found = [problem for problem, occurred in (problems | judge(service.report)).items() if occurred]
    print("\n".join(f"FAILED: {problem}" for problem in found) or "with opero every record is here, and no rule broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
