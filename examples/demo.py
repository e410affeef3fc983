"""Fetch 200 records from a deliberately difficult service, then process them.

    python examples/demo.py                        # OPERO_ENV=staging, or production, picks other profiles

The service (service.py) is slow, fails with 503 and 429, refuses one of the two API keys, and counts every request
against its rate limit. The code below handles none of that: the profiles `api` and `batch` in policies/ do. The demo
fails if a record is missing or wrong, or if the service received more requests than it allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from typing import Any

import requests
from service import GOOD_KEY, Record, Report, Service, make_record

from opero import OperoError, opero, opmap

API_KEYS = ["key-of-last-year", GOOD_KEY]  # the service refuses the first
WORKERS = 8


class Connection(threading.local):
    """A session for each thread, because a `requests.Session` is not thread-safe."""

    def __init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy for loopback


connection = Connection()


@opero(policy="api", arg_fallback="api_key", mode="thread", workers=WORKERS)
def fetch(url: str, api_key: list[str] = API_KEYS) -> Any:
    """Fetch a page or a record. `api_key[0]` is the key to use; if it is refused, opero tries the next."""
    response = connection.session.get(url, headers={"Authorization": f"Bearer {api_key[0]}"}, timeout=10)
    response.raise_for_status()
    return response.json()


@opmap(policy="batch")
def fingerprint(record: Record) -> str:
    """Compute something expensive: written for one record, called with many."""
    return hashlib.pbkdf2_hmac("sha256", json.dumps(record).encode(), b"opero", 5_000).hex()


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


def judge(report: Report) -> dict[str, bool]:
    """Each possible complaint of the service, and whether it has it."""
    return {
        f"the service refused {report.over_limit} requests as over its limit": report.over_limit > 0,
        f"{report.too_soon} requests came before their Retry-After was over": report.too_soon > 0,
        "opero's attempts are not the service's requests": fetch.stats.attempts != report.requests,
    }


def show(report: Report, limit: float, seconds: float) -> None:
    print(f"{'':18}{'fetch (api)':>20}{'fingerprint (batch)':>22}")
    for name in ("calls", "attempts", "retries", "recoveries", "fallbacks", "cache_hits"):
        values = getattr(fetch.stats, name), getattr(fingerprint.stats, name)
        print(f"{name.replace('_', ' '):18}{values[0]:>20}{values[1]:>22}")
    print(f"{'errors':18}{json.dumps(fetch.stats.errors):>20}{json.dumps(fingerprint.stats.errors):>22}")
    print(f"{'the service saw':18}{report.requests} requests, by status {json.dumps(report.statuses)}")
    print(f"{'busiest second':18}{report.busiest_second}, limit {limit:g}: {report.over_limit} too many")
    print(f"{'time':18}{seconds:.1f} s in {os.environ.get('OPERO_ENV') or 'development'}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--limit", type=float, help="requests per second to allow; default: the profile's rate")
    options = parser.parse_args()
    profile = fetch.policy.rate_limit
    limit = options.limit or (profile.rate if profile else float("inf"))
    started = time.perf_counter()
    with Service(limit=limit, late=WORKERS, records=options.records) as service:
        problems = work(service.url, options.records)
    show(service.report, limit, time.perf_counter() - started)
    found = [problem for problem, occurred in (problems | judge(service.report)).items() if occurred]
    print("\n".join(f"FAILED: {problem}" for problem in found) or "every record is here, and no rule broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
