"""OpenTelemetry gets the same metrics as Prometheus, and a span for each call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Metric, Sum
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from integrations.conftest import registry_of
from opero import AllFailedError, Policy, Registry, __version__, opero
from opero.integrations import otel
from opero.integrations.metrics import BOUNDS, METRICS
from opero.testing import VirtualClock

MODULE = __name__


class Collected:
    """What OpenTelemetry has received."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracers.get_tracer("test")

    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str) -> dict[tuple[Any, ...], float]:
        """The values of a metric by those of its attributes, in the order of their names."""
        metric = self.metrics().get(name)
        points: Any = () if metric is None else metric.data.data_points
        return {tuple(each.attributes[name] for name in sorted(each.attributes)): each.value for each in points}

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        (found,) = [each for each in self.spans if each.name == name]
        return found


@pytest.fixture
def collected() -> Iterator[Collected]:
    made = Collected()
    yield made
    otel.uninstrument()
    made.meters.shutdown()


@pytest.fixture
def traced(collected: Collected) -> Collected:
    """With spans, and attempts as events of them."""
    otel.instrument(metrics=False, tracer_provider=collected.tracers)
    return collected


def attributes(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


class Flaky:
    """Fails a number of times before each success."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls % (self.failures + 1):
            raise ConnectionError(f"attempt {self.calls}")
        return self.calls


def flaky(failures: int, name: str = "fetch") -> Callable[[], int]:
    inner = Flaky(failures)

    def function() -> int:
        return inner()

    function.__qualname__ = name
    return function


# Metrics


def test_metrics_are_those_of_the_table(collected: Collected) -> None:
    registry = registry_of(retry={"retries": 2, "min_delay": 0})
    bound = registry.bind(flaky(1), "api")
    otel.instrument(registry, spans=False, meter_provider=collected.meters)
    bound()
    bound()
    found = collected.metrics()
    known = {each.otel_name: each for each in METRICS}
    for name, metric in found.items():
        expected = known[name]
        assert (metric.unit, metric.description) == (expected.unit, expected.help)
        for point in metric.data.data_points:
            assert {*point.attributes} == {f"opero.{label}" for label in expected.labels}
        if isinstance(metric.data, Sum):
            assert expected.kind == "counter"
            assert metric.data.is_monotonic
    assert collected.values("opero.calls") == {
        (f"{MODULE}:fetch", "succeeded", "api"): 2,
        (f"{MODULE}:fetch", "failed", "api"): 0,
    }
    assert collected.values("opero.retries") == {(f"{MODULE}:fetch", "api"): 2}
    ((_, release, version),) = collected.values("opero.configuration.info")
    assert (release, version) == (__version__, registry.configuration.version)


def test_each_collection_reads_anew(collected: Collected) -> None:
    registry = registry_of(retry=0)
    bound = registry.bind(flaky(0), "api")
    otel.instrument(registry, spans=False, meter_provider=collected.meters)
    for count in (1, 2, 3):
        bound()
        assert collected.values("opero.calls")[f"{MODULE}:fetch", "succeeded", "api"] == count


def test_the_histogram_has_the_durations_since_the_last_collection(collected: Collected) -> None:
    registry = registry_of(retry=0)
    bound = registry.bind(flaky(0), "api")
    otel.instrument(registry, spans=False, meter_provider=collected.meters)

    def point() -> Any:
        metric = collected.metrics()["opero.call.duration"]
        assert isinstance(metric.data, Histogram)
        (found,) = metric.data.data_points
        assert tuple(found.explicit_bounds) == BOUNDS
        return found

    bound()
    histogram = bound.stats.samples.histogram
    histogram.add(0.3, 4)
    first = point()
    assert first.count == 5
    assert first.bucket_counts[BOUNDS.index(0.5)] == 4
    assert point().count == 5
    histogram.add(0.3, 1_000_000)
    histogram.add(7.0, 1)
    many = point()
    assert 5 + otel.MOST_RECORDED <= many.count <= 5 + otel.MOST_RECORDED + 5, "a sample of a million"
    assert many.bucket_counts[BOUNDS.index(10.0)] == 1, "what is rare is not lost"


def test_instrumenting_twice_changes_nothing(collected: Collected) -> None:
    registry = registry_of(retry=0)
    bound = registry.bind(flaky(0), "api")
    for _ in range(3):
        otel.instrument(registry, meter_provider=collected.meters, tracer_provider=collected.tracers)
    bound()
    assert len(collected.spans) == 1
    assert collected.values("opero.calls")[f"{MODULE}:fetch", "succeeded", "api"] == 1


def test_after_uninstrumenting_nothing_is_collected(collected: Collected) -> None:
    registry = registry_of(retry=0)
    bound = registry.bind(flaky(0), "api")
    otel.instrument(registry, meter_provider=collected.meters, tracer_provider=collected.tracers, attempts="spans")
    otel.uninstrument()
    bound()
    assert collected.spans == []
    assert collected.metrics() == {}


def test_an_unknown_kind_of_attempts_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown value 'span' of attempts; did you mean 'spans'"):
        otel.instrument(attempts="span")  # type: ignore[arg-type]


# Spans


def test_a_call_is_a_span(traced: Collected) -> None:
    bound = registry_of(retry=0).bind(flaky(0, "Client.fetch"), "api")
    bound()
    span = traced.span("Client.fetch")
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "opero.function": f"{MODULE}:Client.fetch",
        "opero.policy": "api",
        "code.function.name": f"{MODULE}.Client.fetch",
        "opero.outcome": "succeeded",
    }
    assert span.events == ()
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("opero", __version__)


def test_failed_attempts_and_retries_are_events(traced: Collected) -> None:
    clock = VirtualClock()
    bound = Policy(retry={"retries": 3, "min_delay": 2, "jitter": False}).apply(flaky(2), clock=clock)
    bound()
    span = traced.span("fetch")
    assert [each.name for each in span.events] == [
        "opero.attempt_failed",
        "opero.retry_scheduled",
        "opero.attempt_failed",
        "opero.retry_scheduled",
    ]
    told = attributes(span.events[0])
    assert told.pop("opero.seconds") >= 0
    assert told == {
        "opero.kind": "transient",
        "opero.reason": "ConnectionError",
        "error.type": "ConnectionError",
    }
    scheduled = attributes(span.events[1])
    assert (scheduled["opero.attempt"], scheduled["opero.delay"]) == (2, 2.0)
    assert attributes(span)["opero.retries"] == 2
    assert span.status.status_code is StatusCode.UNSET, "the call has succeeded"
    assert span.start_time is not None
    assert span.end_time is not None
    assert all(span.start_time <= each.timestamp <= span.end_time for each in span.events)


def test_a_failed_call_has_its_error(traced: Collected) -> None:
    bound = Policy(retry={"retries": 1, "min_delay": 0}).apply(flaky(9))
    with pytest.raises(AllFailedError):
        bound()
    span = traced.span("fetch")
    assert span.status.status_code is StatusCode.ERROR
    assert "all 2 attempts failed" in str(span.status.description)
    assert attributes(span)["error.type"] == "opero.errors.AllFailedError"
    assert attributes(span)["opero.outcome"] == "failed"
    assert [each.name for each in span.events][-1] == "exception"


def test_a_failed_response_has_its_status(traced: Collected) -> None:
    class Response:
        status_code = 503
        headers: dict[str, str] = {}

    def fetch() -> Response:
        return Response()

    fetch.__qualname__ = "fetch"
    assert Policy(retry={"retries": 1, "min_delay": 0}).apply(fetch)().status_code == 503
    span = traced.span("fetch")
    assert attributes(span)["error.type"] == "503"
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span.events[0])["http.response.status_code"] == 503


def test_what_a_policy_does_is_told(traced: Collected) -> None:
    clock = VirtualClock()
    bound = Policy(rate_limit={"rate": "1/s", "burst": 1}, cache=True, fallback={"default": -1}, retry=0).apply(
        flaky(1), clock=clock
    )
    assert [bound(), bound(), bound()] == [-1, 2, 2]
    assert [attributes(each).get("opero.cache") for each in traced.spans] == ["miss", "miss", "hit"]
    events = [[event.name for event in each.events] for each in traced.spans]
    assert events == [["opero.attempt_failed", "opero.fallback_used"], ["opero.waited"], []]
    assert attributes(traced.spans[1].events[0]) == {"opero.what": "rate_limit", "opero.seconds": pytest.approx(1.0)}


def test_nested_calls_are_children_and_the_current_span_is_theirs_only_meanwhile(traced: Collected) -> None:
    @opero(retries=1)
    def inner() -> None:
        with traced.tracer.start_as_current_span("query"):
            pass

    @opero(timeout="10s")
    def outer() -> None:
        inner()
        inner()

    with traced.tracer.start_as_current_span("request") as request:
        outer()
        assert trace.get_current_span() is request
    assert trace.get_current_span() is trace.INVALID_SPAN
    by_name: dict[str, list[ReadableSpan]] = {}
    for each in traced.spans:
        by_name.setdefault(each.name.rpartition(".")[2], []).append(each)
    (outermost,), (request_span,) = by_name["outer"], by_name["request"]
    assert parent(outermost) == span_id(request_span)
    assert [parent(each) for each in by_name["inner"]] == [span_id(outermost)] * 2
    assert [parent(each) for each in by_name["query"]] == [span_id(each) for each in by_name["inner"]]


def test_events_belong_to_the_call_that_they_happened_to(traced: Collected) -> None:
    inner = Policy(retry={"retries": 1, "min_delay": 0}).apply(flaky(1, "inner"))

    def calling() -> int:
        return inner()

    Policy(retry={"retries": 1, "min_delay": 0}).apply(calling)()
    found = {each.name: [event.name for event in each.events] for each in traced.spans}
    assert found.pop("inner") == ["opero.attempt_failed", "opero.retry_scheduled"]
    assert list(found.values()) == [[]]


@pytest.mark.parametrize(
    "policy", [{"retry": {"retries": 1, "min_delay": 0}}, {"timeout": "30s", "retry": 1}, {"bulkhead": 9}]
)
def test_async_calls_have_a_span_each(policy: dict[str, Any], traced: Collected) -> None:
    async def query(number: int) -> None:
        await asyncio.sleep(0)
        with traced.tracer.start_as_current_span(f"query {number}"):
            await asyncio.sleep(0)

    async def fetch(number: int) -> int:
        await query(number)
        return number

    fetch.__qualname__ = "fetch"
    bound = Policy(**policy).apply(fetch)

    async def main() -> None:
        assert await asyncio.gather(*map(bound, range(5))) == [*range(5)]
        assert trace.get_current_span() is trace.INVALID_SPAN

    asyncio.run(main())
    calls = [each for each in traced.spans if each.name == "fetch"]
    queries = [each for each in traced.spans if each.name.startswith("query")]
    assert len(calls) == 5
    assert {parent(each) for each in queries} == {span_id(each) for each in calls}
    assert {parent(each) for each in calls} == {None}


def test_a_cancelled_call_has_no_error(traced: Collected) -> None:
    async def fetch() -> None:
        await asyncio.sleep(60)

    fetch.__qualname__ = "fetch"
    bound = Policy(retry=2).apply(fetch)

    async def main() -> None:
        task = asyncio.create_task(bound())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    span = traced.span("fetch")
    assert attributes(span)["opero.outcome"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


def test_a_span_lasts_until_a_generator_ends_and_is_current_up_to_its_first_item_only(traced: Collected) -> None:
    def stream() -> Iterator[Any]:
        yield trace.get_current_span().get_span_context().span_id
        yield 2

    stream.__qualname__ = "stream"
    items = Policy(retry=1).apply(stream)()
    first = next(items)
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert traced.spans == []
    assert list(items) == [2]
    assert span_id(traced.span("stream")) == first
    assert attributes(traced.span("stream"))["opero.outcome"] == "succeeded"


def test_a_generator_that_fails_later_has_its_error(traced: Collected) -> None:
    async def stream() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("lost")

    stream.__qualname__ = "stream"
    bound = Policy(retry=1).apply(stream)

    async def main() -> None:
        with pytest.raises(ConnectionError):  # noqa: PT012  # the loop raises it
            async for _ in bound():
                assert trace.get_current_span() is trace.INVALID_SPAN

    asyncio.run(main())
    span = traced.span("stream")
    assert attributes(span)["error.type"] == "ConnectionError"
    assert span.status.description == "lost"


def test_items_of_a_map_in_threads_are_children_of_the_span_around_it(traced: Collected) -> None:
    bound = Policy(parallel={"mode": "thread", "workers": 2}).apply(lambda number: number)
    with traced.tracer.start_as_current_span("job") as job:
        bound.map(range(4))
    items = [each for each in traced.spans if each.name != "job"]
    assert [parent(each) for each in items] == [job.get_span_context().span_id] * 4


def test_a_call_that_is_not_sampled_costs_no_events(collected: Collected) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    otel.instrument(metrics=False, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    assert Policy(retry={"retries": 1, "min_delay": 0}).apply(flaky(1))() == 2


def test_a_failing_span_processor_harms_no_call(collected: Collected, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RuntimeError("broken")

    tracers = TracerProvider()
    tracers.add_span_processor(Broken())
    otel.instrument(metrics=False, tracer_provider=tracers)
    bound = Policy(retry=0).apply(flaky(0))
    assert [bound(), bound()] == [1, 2]
    assert len([each for each in caplog.records if "Spans.begin, which observes calls, failed" in each.message]) <= 1


# Attempts


@pytest.fixture
def detailed(collected: Collected) -> Collected:
    otel.instrument(metrics=False, tracer_provider=collected.tracers, attempts="spans")
    return collected


def test_attempts_are_spans_when_asked(detailed: Collected) -> None:
    policy = Policy(retry={"retries": 2, "min_delay": 0})

    def fetch() -> int:
        with detailed.tracer.start_as_current_span("query"):
            return attempt()

    attempt = Flaky(1)
    fetch.__qualname__ = "fetch"
    policy.apply(fetch)()
    call = detailed.span("fetch")
    attempts = [each for each in detailed.spans if each.name == "fetch attempt"]
    assert [parent(each) for each in attempts] == [span_id(call)] * 2
    assert [attributes(each)["opero.attempt"] for each in attempts] == [1, 2]
    assert [each.status.status_code for each in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert attributes(attempts[0])["error.type"] == "ConnectionError"
    queries = [each for each in detailed.spans if each.name == "query"]
    assert [parent(each) for each in queries] == [span_id(each) for each in attempts]


@pytest.mark.parametrize("timeout", [None, "30s"])
def test_attempts_of_async_functions_too(timeout: str | None, detailed: Collected) -> None:
    attempt = Flaky(1)

    async def fetch() -> int:
        await asyncio.sleep(0)
        return attempt()

    fetch.__qualname__ = "fetch"
    assert asyncio.run(Policy(retry={"retries": 2, "min_delay": 0}, timeout=timeout).apply(fetch)()) == 2
    attempts = [each for each in detailed.spans if each.name == "fetch attempt"]
    assert [parent(each) for each in attempts] == [span_id(detailed.span("fetch"))] * 2
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_attempts_of_functions_that_were_bound_before_and_after(collected: Collected) -> None:
    registry = registry_of(retry={"retries": 1, "min_delay": 0}, circuit_breaker=9, cache=True)
    before, own = registry.bind(flaky(0, "before"), "api"), Policy(retry=1).apply(flaky(0, "own"))
    before()
    otel.instrument(metrics=False, tracer_provider=collected.tracers, attempts="spans")
    after = registry.bind(flaky(1, "after"), "api")
    assert [before(), own(), after()] == [1, 1, 2]
    names = [each.name for each in collected.spans]
    assert names == ["before", "own attempt", "own", "after attempt", "after attempt", "after"]
    assert attributes(collected.span("before"))["opero.cache"] == "hit", "state has been kept"
    otel.instrument(metrics=False, tracer_provider=collected.tracers)
    own()
    assert [each.name for each in collected.spans][len(names) :] == ["own"]


def test_a_timeout_in_a_thread_keeps_the_span(detailed: Collected) -> None:
    inside: list[Any] = []

    def fetch() -> None:
        inside.append(trace.get_current_span().get_span_context().span_id)

    fetch.__qualname__ = "fetch"
    bound = Policy(timeout="30s").apply(fetch)
    thread = threading.Thread(target=bound)
    thread.start()
    thread.join()
    assert inside == [span_id(detailed.span("fetch attempt"))]
    assert parent(detailed.span("fetch attempt")) == span_id(detailed.span("fetch"))


def test_a_registry_of_its_own_is_read(collected: Collected) -> None:
    one, other = registry_of(retry=0), Registry({"api": Policy(retry=0)})
    otel.instrument(one, spans=False, meter_provider=collected.meters)
    other.bind(flaky(0, "other"), "api")()
    assert collected.values("opero.calls") == {}
