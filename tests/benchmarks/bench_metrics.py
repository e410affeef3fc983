"""What metrics and spans cost a call, and how long a scrape takes."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from tests.benchmarks.harness import Row, compare

from opero import Policy, Registry
from opero.integrations import otel, prometheus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_MORE = 1200.0
"""Nanoseconds that a call may take longer while metrics are exported."""
LONGEST_SCRAPE = 50e6
"""Nanoseconds."""
FUNCTIONS = 1000


def value(number: int) -> int:
    return number


@contextmanager
def with_prometheus() -> Iterator[None]:
    target = CollectorRegistry()
    prometheus.instrument(REGISTRY, target)
    prometheus._collectors[target].text()
    try:
        yield
    finally:
        prometheus.uninstrument(target)


@contextmanager
def with_otel() -> Iterator[None]:
    reader = InMemoryMetricReader()
    otel.instrument(REGISTRY, spans=False, meter_provider=MeterProvider([reader]))
    reader.get_metrics_data()
    try:
        yield
    finally:
        otel.uninstrument()


@contextmanager
def with_spans() -> Iterator[None]:
    otel.instrument(metrics=False, tracer_provider=TRACERS)
    try:
        yield
    finally:
        otel.uninstrument()


REGISTRY = Registry({"api": Policy(retry=3)})
TRACERS = TracerProvider()


def more(name: str, bound: Any, during: Any, rounds: int) -> Row:
    """How much longer a call takes, beside what it may."""
    found = compare(name, bound, "", bound, rounds, call="call(1)", during=during)
    longer = max(0.0, found.ours - found.theirs)
    return Row(f"{name}, more a call", longer, "1.2 µs", MOST_MORE, longer / MOST_MORE, target=1)


def by_hand(tracer: Any) -> Callable[[int], int]:
    def traced(number: int) -> int:
        attributes = {"opero.function": "bench:value", "opero.policy": "api", "code.function.name": "bench.value"}
        with tracer.start_as_current_span("value", attributes=attributes) as span:
            result = value(number)
            span.set_attribute("opero.outcome", "succeeded")
            return result

    return traced


def scrape() -> list[Row]:
    def function(number: int) -> Callable[[int], int]:
        def called(item: int) -> int:
            if item % 3 == 0:
                raise ConnectionError
            return item

        called.__qualname__ = f"function_{number}"
        return called

    registry, target = (
        Registry({"api": Policy(retry=0, circuit_breaker=99, fallback={"default": 0})}),
        CollectorRegistry(),
    )
    functions = [registry.bind(function(number), "api") for number in range(FUNCTIONS)]
    prometheus.instrument(registry, target)
    collector = prometheus._collectors[target]
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(7):
        for each in functions:  # each has something new
            each(0)
            each(1)
        for name, make in (("ours", collector.text), ("theirs", lambda: generate_latest(target))):
            started = time.thread_time()
            make()
            times[name].append((time.thread_time() - started) * 1e9)
    prometheus.uninstrument(target)
    ours, theirs = (statistics.median(each) for each in times.values())
    return [  # of processor time, as other programs may run
        Row(f"a scrape of {FUNCTIONS} functions", ours, "50 ms", LONGEST_SCRAPE, ours / LONGEST_SCRAPE, target=1),
        Row("the same", ours, "by prometheus_client", theirs, ours / theirs),
    ]


def run(rounds: int) -> list[Row]:
    bound = REGISTRY.bind(value, "api")
    traced = compare(
        "a span a call",
        bound,
        "a span by hand",
        by_hand(TRACERS.get_tracer("bench")),
        rounds,
        call="call(1)",
        during=with_spans,
    )
    return [
        more("Prometheus metrics", bound, with_prometheus, rounds),
        more("OpenTelemetry metrics", bound, with_otel, rounds),
        traced,
        *scrape(),
    ]
