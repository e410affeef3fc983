"""What the live page costs: an update with 1,000 functions, of which some have been called since the last one."""

from __future__ import annotations

import statistics
import time
from typing import Any

from tests.benchmarks.harness import Row

from opero import Policy, Registry
from opero.integrations.web import feed as module
from opero.integrations.web.feed import Feed
from opero.integrations.web.holds import Holds
from opero.integrations.web.recent import RecentEvents

FUNCTIONS, PROFILES = 1000, 20
AIM = 30e6


def registry_of(number: int) -> tuple[Registry, list[Any]]:
    """A registry, and functions of its profiles that have been called."""
    registry = Registry(
        {f"api{each}": Policy(retry=2, circuit_breaker=5, rate_limit=1_000_000) for each in range(PROFILES)}
    )
    functions = []
    for position in range(number):

        def function() -> int:
            return 1

        function.__qualname__ = f"function{position}"
        functions.append(registry.bind(function, f"api{position % PROFILES}"))
    for each in functions:
        each()
    return registry, functions


def update(feed: Feed, functions: list[Any], busy: int, rounds: int) -> Row:
    times, size, since = [], 0, ""
    for _ in range(max(5, rounds // 10)):
        for each in functions[:busy]:
            each()
        started = time.thread_time_ns()
        since, message = feed.message(since)
        times.append(time.thread_time_ns() - started)
        size = len(message)
    taken = statistics.median(times)
    name = f"an update of the page, {busy:,} of {FUNCTIONS:,} functions busy"
    return Row(name, taken, "the aim", AIM, taken / AIM, 1.0, f"{size / 1024:,.0f} KB sent")


def run(rounds: int) -> list[Row]:
    registry, functions = registry_of(FUNCTIONS)
    module.FRESH = 0.0  # each update reads the statistics again
    feed = Feed(registry, RecentEvents(), Holds())
    return [update(feed, functions, busy, rounds) for busy in (0, 50, FUNCTIONS)]
