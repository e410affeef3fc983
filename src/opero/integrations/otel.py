"""Metrics and spans for OpenTelemetry: one line switches them on, and `docs/metrics.md` lists them.

    import opero.integrations.otel

    opero.integrations.otel.instrument()

Metrics are read when an exporter collects them, so they cost calls nothing. Spans cost what spans cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

from opero.errors import MissingExtraError, nearest
from opero.integrations.counted_events import CountedEvents
from opero.integrations.metrics import BOUNDS, METRICS, Metric, release
from opero.integrations.reading import Distribution, Reader, Values
from opero.observe.subscriptions import is_worker
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from opero.registry.registry import Registry

try:
    from opentelemetry.metrics import CallbackOptions, Observation, get_meter
    from opentelemetry.trace import get_tracer
except ModuleNotFoundError as error:
    raise MissingExtraError("OpenTelemetry needs the extra otel: pip install 'opero[otel]'") from error

from opero.integrations.otel_spans import Spans

LONGEST = 1.0
"""Seconds for which one reading answers the instruments of a collection."""
MOST_RECORDED = 500
"""Durations that are recorded of a function at a collection. There is no histogram whose counts can be observed."""
MIDDLES = (BOUNDS[0] / 2, *(sqrt(low * high) for low, high in pairwise(BOUNDS)), BOUNDS[-1] * 2)
"""What is recorded of a duration between two bounds."""


class Meters:
    """Observable instruments that read a registry, and one histogram.

    Args:
        registry: the registry; None for the one that is the default at the time.
        provider: of the instruments; None for the global one.
    """

    def __init__(self, registry: Registry | None, provider: MeterProvider | None) -> None:
        self.registry = registry
        self.provider = provider
        self._reader = Reader(registry)
        self._events = CountedEvents()
        self._lock = RenewedLock()
        self._values: Values = {}
        self._read_at = float("-inf")
        self._answered: set[str] = set()
        self._recorded: dict[tuple[str, ...], Distribution] = {}
        self._is_closed = False
        meter = get_meter("opero", release(), provider)
        for metric in METRICS:
            about: dict[str, Any] = {"unit": metric.unit, "description": metric.help}
            if metric.kind == "histogram":
                self._histogram = meter.create_histogram(
                    metric.otel_name, **about, explicit_bucket_boundaries_advisory=BOUNDS
                )
            elif metric.kind == "counter":
                meter.create_observable_counter(metric.otel_name, [self._observing(metric)], **about)
            else:
                meter.create_observable_gauge(metric.otel_name, [self._observing(metric)], **about)

    def close(self) -> None:
        """Report nothing more. Instruments cannot be removed from their provider."""
        self._is_closed = True
        self._events.close()

    def _observing(self, metric: Metric) -> Any:
        names = tuple(f"opero.{each}" for each in metric.labels)

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            series = self._now(metric.name).get(metric.name, {})
            return [Observation(value, dict(zip(names, labels, strict=True))) for labels, value in list(series.items())]

        return observe

    def _now(self, name: str) -> Values:
        """Return a reading that this instrument has not had: all instruments of a collection get the same."""
        if self._is_closed or is_worker():
            return {}
        with self._lock:
            now = time.monotonic()
            if name in self._answered or now - self._read_at > LONGEST:
                registry = self._reader.target()
                values = {} if registry is None else self._reader.read(registry)
                self._events.add_to(values)
                self._values, self._read_at, self._answered = values, now, set()
                self._record(values.get("opero_call_duration_seconds", {}))
            self._answered.add(name)
            return self._values

    def _record(self, series: dict[tuple[str, ...], Distribution]) -> None:
        for labels, now in series.items():
            before = self._recorded.get(labels)
            self._recorded[labels] = now
            new = now if before is None else now - before
            calls = sum(new.counts)
            share = min(1.0, MOST_RECORDED / calls) if calls else 0.0
            attributes = {"opero.policy": labels[0], "opero.function": labels[1]}
            for seconds, count in zip(MIDDLES, new.counts, strict=True):
                for _ in range(round(count * share) or min(1, count)):
                    self._histogram.record(seconds, attributes)


_meters: list[Meters] = []
_spans: list[tuple[Any, Spans]] = []
_changing = RenewedLock()


def instrument(
    registry: Registry | None = None,
    *,
    metrics: bool = True,
    spans: bool = True,
    attempts: Literal["events", "spans"] = "events",
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> None:
    """Export the metrics of a registry, and a span for each call of any bound function of this process.

    Doing it again with the same arguments changes nothing; other arguments for spans replace those of before.

    Args:
        registry: the registry whose metrics are exported. Default: the one that is the default at each collection.
        metrics: whether to export metrics.
        spans: whether to make spans.
        attempts: "events": failed attempts are events of the span of their call. "spans": each attempt has a span of
            its own as well, which is the parent of those that the function makes.
        meter_provider, tracer_provider: where to. Default: the global ones of OpenTelemetry, even if set later.

    Raises:
        ValueError: `attempts` is neither of them.
    """
    if attempts not in ("events", "spans"):
        raise ValueError(f"unknown value {attempts!r} of attempts{nearest(str(attempts), ('events', 'spans'))}")
    with _changing:
        known = any(each.registry is registry and each.provider is meter_provider for each in _meters)
        if metrics and not known:
            _meters.append(Meters(registry, meter_provider))
        if spans:
            settings = attempts, tracer_provider
            if any(each == settings for each, _ in _spans):
                return
            _close_spans()
            made = Spans(get_tracer("opero", release(), tracer_provider), attempts=attempts == "spans")
            made.open()
            _spans.append((settings, made))


def uninstrument() -> None:
    """Export no more metrics, and make no more spans."""
    with _changing:
        for each in _meters:
            each.close()
        _meters.clear()
        _close_spans()


def _close_spans() -> None:
    for _, each in _spans:
        each.close()
    _spans.clear()
