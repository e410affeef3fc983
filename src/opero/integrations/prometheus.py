"""Metrics for Prometheus: one line switches them on, and `docs/metrics.md` lists them.

    import opero.integrations.prometheus

    opero.integrations.prometheus.instrument()

Everything is read at a scrape, so it costs calls nothing. With `PROMETHEUS_MULTIPROC_DIR`, as under gunicorn, any
process of the program shows the metrics of all.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from opero.errors import MissingExtraError
from opero.integrations.counted_events import CountedEvents
from opero.integrations.metrics import BOUNDS, METRICS, Metric
from opero.integrations.processes import ProcessFiles, directory
from opero.integrations.reading import Reader, Values, merge
from opero.observe.subscriptions import is_worker
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from opero.registry.registry import Registry

try:
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, REGISTRY, generate_latest
    from prometheus_client import CollectorRegistry as NewCollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.multiprocess import MultiProcessCollector
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "metrics for Prometheus need the extra prometheus: pip install 'opero[prometheus]'"
    ) from error

LES = (*map(repr, BOUNDS), "+Inf")
"""The bounds of the latency histogram, as Prometheus writes them."""
MOST_TEXTS = 1 << 16
"""The most label values that are kept as text from one scrape to the next."""


class Collector:
    """Reads the metrics of registries of policies, for a registry of Prometheus."""

    def __init__(self) -> None:
        self._readers: list[Reader] = []
        self._events = CountedEvents()
        self._silent = threading.local()
        self._files: ProcessFiles | None = None

    def add(self, registry: Registry | None) -> None:
        """Read this registry as well; None: the one that is the default at the time."""
        if all(each.registry is not registry for each in self._readers):
            self._readers.append(Reader(registry))
        folder = directory()
        if folder is not None and self._files is None and not is_worker():
            self._files = ProcessFiles(folder, self.own)

    def close(self) -> None:
        """End what instrumenting has begun."""
        self._readers.clear()
        self._events.close()
        if self._files is not None:
            self._files.close()

    def own(self, *, only_counts: bool = False) -> Values:
        """Return the values of this process; none in a worker process of a map, whose parent counts what it does."""
        values: Values = {}
        if is_worker():
            return values
        read = set()
        for each in self._readers:
            registry = each.target()
            if registry is not None and id(registry) not in read:
                read.add(id(registry))
                found = each.read(registry, only_counts=only_counts)
                if values:
                    merge(values, found)
                else:
                    values = found
        self._events.add_to(values)
        return values

    def values(self) -> Values:
        """Return the values of this process, or of all of the program."""
        return self.own() if self._files is None else self._files.gather()

    def describe(self) -> Iterable[Any]:
        """Return the metrics without values, by which Prometheus's registry finds names that are used twice."""
        return [_family(each) for each in METRICS]

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as prometheus_client represents them."""
        if getattr(self._silent, "now", False):
            return
        values = self.values()
        for metric in METRICS:
            family = _family(metric)
            for labels, value in values.get(metric.name, {}).items():
                if metric.kind == "histogram":
                    family.add_metric(labels, list(zip(LES, value.cumulative(), strict=True)), value.seconds)
                else:
                    family.add_metric(labels, value)
            if family.samples:
                yield family

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Collect nothing in this thread within the block."""
        self._silent.now = True
        try:
            yield
        finally:
            self._silent.now = False

    def text(self) -> str:
        """Return the metrics as text; prometheus_client takes ten times as long for its own objects."""
        values = self.values()
        lines: list[str] = []
        for metric in METRICS:
            series = values.get(metric.name)
            if not series:
                continue
            name, labels = metric.series, metric.labels
            lines += f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"
            if metric.kind != "histogram":
                lines += [f"{name}{_text(labels, key)} {value}" for key, value in series.items()]
                continue
            begin, ends = f"{name}_bucket{{", [f',le="{le}"}} ' for le in LES]
            for key, value in series.items():
                text, cumulative = _text(labels, key), value.cumulative()
                bucket = begin + text[1:-1]
                lines += [f"{bucket}{end}{count}" for end, count in zip(ends, cumulative, strict=True)]
                lines += f"{name}_count{text} {cumulative[-1]}", f"{name}_sum{text} {value.seconds}"
        return "\n".join([*lines, ""])


@lru_cache(MOST_TEXTS)
def _text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Return the labels of a series in braces; "" if it has none."""
    escaped = (each.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for each in values)
    text = ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True))
    return f"{{{text}}}" if text else ""


FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


def _family(metric: Metric) -> Any:
    return FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, Collector] = weakref.WeakKeyDictionary()
_of_all_processes: list[Collector] = []
"""The one collector of a program with several processes, whichever registries of Prometheus it is registered in."""
_changing = RenewedLock()


def instrument(registry: Registry | None = None, prometheus_registry: CollectorRegistry | None = None) -> None:
    """Export the metrics of a registry of policies to a registry of Prometheus. Doing it again changes nothing.

    Args:
        registry: the registry of policies. Default: the one that is the default at each scrape.
        prometheus_registry: where to register. Default: `prometheus_client.REGISTRY`.

    Raises:
        ValueError: something else has registered a metric of the same name, or `PROMETHEUS_MULTIPROC_DIR` names no
            directory.
    """
    _instrumented(registry, REGISTRY if prometheus_registry is None else prometheus_registry)


def _instrumented(registry: Registry | None, target: CollectorRegistry) -> Collector:
    with _changing:
        collector = _collectors.get(target)
        if collector is None:
            shares = directory() is not None
            collector = _of_all_processes[0] if shares and _of_all_processes else Collector()
            try:
                collector.add(registry)
                target.register(collector)
            except BaseException:
                if collector not in _of_all_processes:
                    collector.close()
                raise
            _collectors[target] = collector
            if shares and not _of_all_processes:
                _of_all_processes.append(collector)
        else:
            collector.add(registry)
    return collector


def uninstrument(prometheus_registry: CollectorRegistry | None = None) -> None:
    """Export nothing more to a registry of Prometheus. Counts begin anew if it is instrumented again.

    Args:
        prometheus_registry: the registry. Default: `prometheus_client.REGISTRY`.
    """
    target = REGISTRY if prometheus_registry is None else prometheus_registry
    with _changing:
        collector = _collectors.pop(target, None)
        if collector is None:
            return
        target.unregister(collector)
        if collector not in _collectors.values():
            collector.close()
            _of_all_processes.clear()


def exposition() -> tuple[bytes, str]:
    """Return what Prometheus scrapes, and its content type: the metrics of opero and all others of this program.

    It exports the default registry if nothing is exported yet. For 1,000 functions it takes a fraction of the time that
    `prometheus_client.generate_latest` takes.

    Raises:
        ValueError: `PROMETHEUS_MULTIPROC_DIR` names no directory.
    """
    collector = _collectors.get(REGISTRY) or _instrumented(None, REGISTRY)
    others = REGISTRY
    if directory() is not None:
        others = NewCollectorRegistry()
        MultiProcessCollector(others)  # type: ignore[no-untyped-call]
    with collector.silent():
        text = generate_latest(others)
    return text + collector.text().encode(), CONTENT_TYPE_PLAIN_0_0_4
