"""What Prometheus scrapes says what has happened, in a bounded number of series."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily

import opero.integrations.prometheus as exported
from integrations.conftest import Series, registry_of, series
from opero import ConfigError, Registry, __version__, opero, set_default_registry
from opero.integrations.metrics import BOUNDS, METRICS
from opero.testing import VirtualClock

Export = Callable[[Registry], Callable[[], dict[str, Series]]]


def name_of(function: Any) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__qualname__ = name
    return function


def failing(*errors: Exception | None) -> Callable[..., Any]:
    """A function that raises one of these exceptions at each call, and returns its argument at None and at the end."""
    left = list(errors)

    def function(value: int = 0) -> int:
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return value

    return named(function, "function")


NAME = f"{__name__}:function"


class ThrottledError(Exception):
    retry_after = 30
    status_code = 429


def throttled() -> None:
    raise ThrottledError


class TestCounts:
    def test_calls_attempts_and_failures_are_those_of_the_statistics(self, scraped: Export) -> None:
        registry = registry_of(retry={"retries": 2, "min_delay": 0})
        bound = registry.bind(failing(ConnectionError(), ConnectionError(), None, *[OSError("no")] * 3), "api")
        scrape = scraped(registry)
        assert bound(1) == 1
        with pytest.raises(ExceptionGroup):
            bound(2)
        found = scrape()
        assert found["opero_calls_total"] == {(NAME, "succeeded", "api"): 1, (NAME, "failed", "api"): 1}
        assert found["opero_attempts_total"][NAME, "api"] == bound.stats.attempts == 6
        assert found["opero_retries_total"][NAME, "api"] == bound.stats.retries == 4
        assert found["opero_recoveries_total"][NAME, "api"] == 1
        kinds = {kind: n for (_, kind, _), n in found["opero_attempt_failures_total"].items() if n}
        assert kinds == bound.stats.kinds
        assert sum(kinds.values()) == 5

    def test_waits_are_counted_by_what_they_are_for(self, scraped: Export) -> None:
        clock = VirtualClock()
        registry = registry_of(rate_limit={"rate": "1/s", "burst": 1, "max_wait": "5s"}, fallback={"default": -1})
        bound = registry.bind(failing(), "api", clock=clock)
        scrape = scraped(registry)
        bound(1)
        bound(2)
        found = scrape()
        assert found["opero_waits_total"][NAME, "api"] == 1
        assert found["opero_waited_seconds_total"][NAME, "api", "rate_limit"] == pytest.approx(1.0)
        assert found["opero_fallbacks_total"][NAME, "api"] == 0

    def test_rejections_are_counted_by_the_policy_that_rejects(self, scraped: Export) -> None:
        registry = registry_of(circuit_breaker={"consecutive_failures": 1}, fallback={"default": -1, "on": "Exception"})
        bound = registry.bind(failing(ConnectionError()), "api", clock=VirtualClock())
        scrape = scraped(registry)
        assert [bound(1), bound(2), bound(3)] == [-1, -1, -1]
        found = scrape()
        assert found["opero_rejections_total"] == {("circuit_breaker", NAME, "api"): 2}
        assert found["opero_fallbacks_total"][NAME, "api"] == 3
        assert found["opero_calls_total"][NAME, "succeeded", "api"] == 3

    def test_a_function_that_was_not_called_has_zeros_so_that_its_first_failure_is_an_increase(
        self, scraped: Export
    ) -> None:
        registry = registry_of(retry=2)
        bound = registry.bind(failing(), "api")
        found = scraped(registry)()
        assert found["opero_calls_total"] == {(NAME, "succeeded", "api"): 0, (NAME, "failed", "api"): 0}
        assert "opero_attempts_total" not in found
        assert bound.stats.calls == 0

    def test_what_a_policy_cannot_do_is_not_exported(self, scraped: Export) -> None:
        registry = registry_of(timeout="5s")
        bound = registry.bind(failing(), "api")
        scrape = scraped(registry)
        bound()
        found = scrape()
        assert found["opero_timeouts_total"] == {(NAME, "api"): 0}
        for name in ("opero_retries_total", "opero_cache_requests_total", "opero_circuit_breaker_state"):
            assert name not in found

    def test_a_function_without_a_profile_has_an_empty_one(self, scraped: Export) -> None:
        registry = Registry({})
        bound = opero(retries=1, registry=registry)(failing())
        scrape = scraped(registry)
        bound()
        assert scrape()["opero_calls_total"][NAME, "succeeded", ""] == 1

    def test_functions_of_one_name_are_added_up(self, scraped: Export) -> None:
        registry = registry_of(retry=1)
        one, other = registry.bind(failing(), "api"), registry.bind(failing(), "api")
        scrape = scraped(registry)
        one()
        other()
        assert scrape()["opero_calls_total"][NAME, "succeeded", "api"] == 2

    def test_the_counts_of_a_function_outlive_it(self, scraped: Export) -> None:
        registry = registry_of(retry=1)
        scrape = scraped(registry)
        for count in (1, 2, 3):
            bound = registry.bind(failing(), "api")
            bound()
            assert scrape()["opero_calls_total"][NAME, "succeeded", "api"] == count
            del bound
            gc.collect()
        found = scrape()
        assert found["opero_calls_total"][NAME, "succeeded", "api"] == 3
        assert found["opero_call_duration_seconds_count"][NAME, "api"] == 3

    def test_a_function_that_is_never_called_is_not_kept_alive(self, scraped: Export) -> None:
        registry = registry_of(retry=1)
        scrape = scraped(registry)
        bound = registry.bind(failing(), "api")
        scrape()
        gone = weakref.ref(bound.binding)
        del bound
        gc.collect()
        assert gone() is None
        scrape()

    def test_calls_that_are_under_way_have_not_succeeded(self, scraped: Export) -> None:
        registry = registry_of(retry=0)
        scrape = scraped(registry)
        during: list[dict[str, Series]] = []

        def function() -> None:
            during.append(scrape())
            raise ValueError("no")

        bound = registry.bind(named(function, "function"), "api")
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                bound()
        assert [each["opero_calls_total"][NAME, "succeeded", "api"] for each in [*during, scrape()]] == [0, 0, 0, 0]
        assert [each["opero_calls_in_flight"][NAME, "api"] for each in [*during, scrape()]] == [1, 1, 1, 0]


class TestDurations:
    def test_the_histogram_is_cumulative_and_stands_for_every_call(self, scraped: Export) -> None:
        registry = registry_of(retry=0)
        bound = registry.bind(failing(), "api")
        bound()
        samples = bound.stats.samples
        for seconds, weight in ((0.0001, 10), (0.04, 5), (0.9, 3), (100.0, 2)):
            samples.histogram.add(seconds, weight)
        found = scraped(registry)()
        buckets = {float(le): count for (_, le, _), count in found["opero_call_duration_seconds_bucket"].items()}
        assert sorted(buckets) == [*BOUNDS, float("inf")]
        assert [buckets[le] for le in (0.001, 0.025, 0.05, 0.5, 1.0, 30.0)] == [11, 11, 16, 16, 19, 19]
        assert buckets[float("inf")] == 21 == found["opero_call_duration_seconds_count"][NAME, "api"]
        total = found["opero_call_duration_seconds_sum"][NAME, "api"]
        assert total == pytest.approx(0.001 + 0.2 + 2.7 + 200.0, abs=0.5)

    def test_durations_that_come_later_are_added(self, scraped: Export) -> None:
        registry = registry_of(retry=0)
        bound = registry.bind(failing(), "api")
        bound.stats.exact = True
        scrape = scraped(registry)
        for count in (1, 2, 3):
            bound()
            assert scrape()["opero_call_duration_seconds_count"][NAME, "api"] == count


class TestStates:
    def test_a_circuit_breaker_is_in_one_state(self, scraped: Export) -> None:
        clock = VirtualClock()
        registry = registry_of(circuit_breaker={"consecutive_failures": 1, "open_for": "10s"})
        bound = registry.bind(failing(ConnectionError()), "api", clock=clock)
        scrape = scraped(registry)

        def state() -> list[str]:
            return [name for (_, _, name), on in scrape()["opero_circuit_breaker_state"].items() if on]

        with pytest.raises(ConnectionError):
            bound()
        assert state() == ["open"]
        clock.sleep(11)
        assert state() == ["half_open"]
        bound()
        assert state() == ["closed"]
        changes = {labels[-1]: n for labels, n in scrape()["opero_circuit_breaker_transitions_total"].items()}
        assert changes == {"open": 1, "half_open": 1, "closed": 1}

    def test_what_functions_share_has_the_name_of_the_profile_only(self, scraped: Export) -> None:
        registry = registry_of(circuit_breaker=5, bulkhead=3)
        one = registry.bind(named(lambda: 1, "one"), "api")
        other = registry.bind(named(lambda: 2, "other"), "api", bulkhead=7)
        scrape = scraped(registry)
        one()
        other()
        found = scrape()
        assert found["opero_bulkhead_slots"] == {("", "api"): 3, (f"{__name__}:other", "api"): 7}
        assert {function for function, _, _ in found["opero_circuit_breaker_state"]} == {""}

    def test_a_rate_limit_is_used_up(self, scraped: Export) -> None:
        clock = VirtualClock()
        registry = registry_of(rate_limit={"rate": "10/s", "burst": 10})
        bound = registry.bind(failing(), "api", clock=clock)
        scrape = scraped(registry)
        for _ in range(5):
            bound()
        found = scrape()
        assert found["opero_rate_limit_saturation"]["", "", "api"] == pytest.approx(0.5, abs=0.01)
        assert found["opero_rate_limit_next_permit_seconds"]["", "", "api"] == 0
        for _ in range(5):
            bound()
        found = scrape()
        assert found["opero_rate_limit_saturation"]["", "", "api"] == pytest.approx(1.0, abs=0.01)
        assert found["opero_rate_limit_next_permit_seconds"]["", "", "api"] == pytest.approx(0.1, abs=0.01)
        assert found["opero_rate_limit_queue"]["", "api"] == 0

    def test_a_rate_limit_is_paused(self, scraped: Export) -> None:
        clock = VirtualClock()
        registry = registry_of(rate_limit="10/s")
        bound = registry.bind(throttled, "api", clock=clock)
        scrape = scraped(registry)
        with pytest.raises(ThrottledError):
            bound()
        found = scrape()
        assert found["opero_rate_limit_rate"]["", "api"] == 10
        assert found["opero_rate_limit_paused_seconds"]["", "api"] == pytest.approx(30)
        clock.advance(31)
        assert scrape()["opero_rate_limit_paused_seconds"]["", "api"] == 0

    def test_each_of_several_limits_has_a_series(self, scraped: Export) -> None:
        limits = [{"rate": "10/s", "burst": 10}, {"rate": "10/s", "burst": 100, "name": "tokens", "cost": 80}]
        registry = registry_of(rate_limit=limits)
        bound = registry.bind(failing(), "api", clock=VirtualClock())
        scrape = scraped(registry)
        bound()
        used = scrape()["opero_rate_limit_saturation"]
        assert used["", "requests", "api"] == pytest.approx(0.1, abs=0.01)
        assert used["", "tokens", "api"] == pytest.approx(0.8, abs=0.01)

    def test_a_bulkhead_is_in_use(self, scraped: Export) -> None:
        registry = registry_of(bulkhead={"max_concurrent": 2, "max_wait": "5s"})
        found: list[dict[str, Series]] = []

        async def function() -> None:
            inside.set()
            await leave.wait()

        async def main() -> None:
            tasks = [asyncio.create_task(bound()) for _ in range(3)]
            await inside.wait()
            await asyncio.sleep(0)
            found.append(scrape())
            leave.set()
            await asyncio.gather(*tasks)

        inside, leave = asyncio.Event(), asyncio.Event()
        bound, scrape = registry.bind(named(function, "function"), "api"), scraped(registry)
        asyncio.run(main())
        found.append(scrape())
        assert [each["opero_bulkhead_in_use"]["", "api"] for each in found] == [2, 0]
        assert [each["opero_bulkhead_queue"]["", "api"] for each in found] == [1, 0]

    def test_values_are_set_aside(self, scraped: Export) -> None:
        class DeniedError(Exception):
            status_code = 401

        def function(key: str | list[str] = "") -> str:
            if key == "bad":
                raise DeniedError
            return str(key)

        clock = VirtualClock()
        registry = registry_of(fallback={"arg": "key", "remember": "1m"})
        bound = registry.bind(named(function, "function"), "api", clock=clock)
        scrape = scraped(registry)
        assert bound(key=["bad", "good"]) == "good"
        assert scrape()["opero_fallback_values_aside"] == {("", "api"): 1}
        clock.sleep(61)
        assert scrape()["opero_fallback_values_aside"] == {("", "api"): 0}

    def test_a_cache_answers(self, scraped: Export, tmp_path: Path) -> None:
        registry = registry_of(cache={"ttl": "1m", "backend": "disk", "cache_dir": str(tmp_path)})
        bound = registry.bind(failing(), "api")
        scrape = scraped(registry)
        for number in (1, 1, 2):
            bound(number)
        found = scrape()
        assert found["opero_cache_requests_total"] == {(NAME, "hit", "api"): 1, (NAME, "miss", "api"): 2}
        assert list(found["opero_cache_store_up"].values()) == [1]
        breaker = bound.binding.cache.store.breaker

        def time_out() -> None:
            raise TimeoutError

        assert breaker("failed", time_out) == "failed"
        assert scrape()["opero_cache_store_up"] == {(breaker.name,): 0}


class TestMaps:
    def test_items_are_counted_while_a_map_runs(self, scraped: Export) -> None:
        registry = registry_of(retry=0, parallel={"mode": "thread", "workers": 1, "on_error": "return"})
        scrape = scraped(registry)
        during: list[dict[str, Series]] = []

        def function(number: int) -> int:
            if number == 5:
                during.append(scrape())
            if number % 3 == 0:
                raise ValueError(number)
            return number

        bound = registry.bind(named(function, "function"), "api")
        results = bound.map(range(9))
        assert len(results) == 9
        after = scrape()
        assert [each["opero_map_running"][NAME, "api"] for each in [*during, after]] == [1, 0]
        assert 0 < during[0]["opero_map_pending"][NAME, "api"] <= 9
        assert after["opero_map_pending"][NAME, "api"] == 0
        assert after["opero_map_items_total"] == {(NAME, "succeeded", "api"): 6, (NAME, "failed", "api"): 3}

    def test_worker_processes_are_counted_in_the_parent_only(self, scraped: Export) -> None:
        registry = registry_of(parallel={"mode": "process", "workers": 2})
        bound = registry.bind(double, "api")
        scrape = scraped(registry)
        assert bound.map(range(20)) == [2 * each for each in range(20)]
        found = scrape()
        assert found["opero_calls_total"][name_of(double), "succeeded", "api"] == 20
        assert found["opero_map_items_total"][name_of(double), "succeeded", "api"] == 20


def double(number: int) -> int:
    exported.instrument()  # as a module that a worker imports may do
    assert "opero_calls" not in exported.exposition()[0].decode()
    return 2 * number


class TestConfiguration:
    def test_a_rejected_reload_shows(self, scraped: Export, tmp_path: Path) -> None:
        file = tmp_path / "base.yaml"
        file.write_text("policies: {api: {retry: 2}}")
        registry = Registry.load(tmp_path, environ={})
        scrape = scraped(registry)
        before = scrape()
        assert before["opero_configuration_last_reload_successful"] == {(): 1}
        file.write_text("policies: {api: {retry: -2}}")
        with pytest.raises(ConfigError):
            registry.reload()
        assert scrape()["opero_configuration_last_reload_successful"] == {(): 0}
        file.write_text("policies: {api: {retry: 3}}")
        registry.reload()
        after = scrape()
        assert after["opero_configuration_last_reload_successful"] == {(): 1}
        ((environment, release, version),) = after["opero_configuration_info"]
        assert (environment, release) == ("development", __version__)
        assert version == registry.configuration.version != next(iter(before["opero_configuration_info"]))[-1]


class TestRegistering:
    def test_prometheus_client_shows_the_same(self, scraped: Export) -> None:
        target, registry = CollectorRegistry(), registry_of(retry=1, cache=True, bulkhead=2, circuit_breaker=3)
        exported.instrument(registry, target)
        bound = registry.bind(named(failing(ConnectionError()), 'odd"\\\nname'), "api", clock=VirtualClock())
        for number in range(3):
            bound(number)
        ours = series(exported._collectors[target].text())
        assert series(generate_latest(target).decode()) == ours
        assert f'{__name__}:odd"\\\nname' in {labels[0] for labels in ours["opero_calls_total"]}
        exported.uninstrument(target)

    def test_registering_twice_changes_nothing(self) -> None:
        target, registry = CollectorRegistry(), registry_of(retry=1)
        bound = registry.bind(failing(), "api")
        for _ in range(3):
            exported.instrument(registry, target)
        bound()
        assert series(generate_latest(target).decode())["opero_calls_total"][NAME, "succeeded", "api"] == 1
        exported.uninstrument(target)
        assert generate_latest(target) == b""
        exported.uninstrument(target)

    def test_two_registries_of_policies_are_added_up(self) -> None:
        target, registries = CollectorRegistry(), [registry_of(retry=1), registry_of(retry=2)]
        functions = [each.bind(failing(), "api") for each in registries]
        for registry, function in zip(registries, functions, strict=True):
            exported.instrument(registry, target)
            function()
        assert series(generate_latest(target).decode())["opero_calls_total"][NAME, "succeeded", "api"] == 2
        exported.uninstrument(target)

    def test_a_name_that_is_taken_is_refused_and_leaves_nothing_behind(self) -> None:
        target = CollectorRegistry()
        Counter("opero_calls", "of somebody else", registry=target)
        with pytest.raises(ValueError, match="opero_calls"):
            exported.instrument(registry_of(retry=1), target)
        assert target not in exported._collectors

    def test_the_default_registry_is_the_one_of_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        registries = [registry_of(retry=1), registry_of(retry=2)]
        functions = [each.bind(failing(), "api") for each in registries]
        functions[1]()
        exported.instrument()
        try:
            for registry, count in zip(registries, (0, 1), strict=True):
                set_default_registry(registry)
                text, content_type = exported.exposition()
                assert content_type.startswith("text/plain; version=0.0.4")
                found = series(text.decode())
                assert found["opero_calls_total"][NAME, "succeeded", "api"] == count
                assert "python_info" in found, "what others export is there as well"
                assert text.count(b"# TYPE opero_calls_total") == 1
        finally:
            set_default_registry(None)
            exported.uninstrument()

    def test_a_configuration_that_cannot_be_loaded_hides_no_other_metrics(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("OPERO_CONFIG", str(tmp_path / "none"))
        set_default_registry(None)
        exported.instrument()
        try:
            for _ in range(2):
                found = series(exported.exposition()[0].decode())
                assert "python_info" in found
                assert "opero_calls_total" not in found
        finally:
            exported.uninstrument()
        (record,) = caplog.records
        assert "there are no metrics, as the default registry cannot be loaded" in record.message

    def test_the_metrics_of_others_may_be_scraped_without_a_registry_of_policies(self) -> None:
        class Other:
            def collect(self) -> list[Any]:
                return [GaugeMetricFamily("other", "of another library", 7)]

        target = CollectorRegistry()
        exported.instrument(registry_of(retry=1), target)
        target.register(Other())  # type: ignore[arg-type]
        assert series(generate_latest(target).decode())["other"] == {(): 7}
        exported.uninstrument(target)

    def test_no_collector_is_left(self) -> None:
        assert REGISTRY not in exported._collectors


class TestBounds:
    def test_ten_thousand_different_errors_and_statuses_make_no_more_series(self, scraped: Export) -> None:
        registry = registry_of(retry=0)
        number = 0

        def function() -> None:
            raise type(f"Error{number}", (Exception,), {"status_code": number})(f"message {number}")

        bound = registry.bind(named(function, "function"), "api")
        scrape = scraped(registry)

        def fail() -> None:
            with contextlib.suppress(Exception):
                bound()

        def lines() -> int:
            return sum(len(each) for name, each in scrape().items())

        for number in range(1000):  # noqa: B007  # read by the function
            fail()
        before = lines()
        for number in range(1000, 10_000):  # noqa: B007
            fail()
        assert bound.stats.failures == 10_000
        assert lines() == before < 100
        found = scrape()
        assert found["opero_calls_total"][NAME, "failed", "api"] == 10_000
        assert sum(found["opero_attempt_failures_total"].values()) == 10_000
        words = {word for each in found.values() for labels in each for word in labels}
        assert not any(word.startswith("Error") or word.isdigit() for word in words)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPERO_", "PROMETHEUS_"))}
    return subprocess.run(  # noqa: PLW1510  # callers look at its end
        [sys.executable, "-c", code], env={**environ, **variables}, capture_output=True, text=True, timeout=120
    )


CALL = """
from opero import opero
@opero(retries=1)
def function():
    return 1
function()
"""
BY_PROFILE = CALL.replace("retries=1", "policy='api'")


class TestSwitch:
    @pytest.mark.parametrize("configured", [True, False])
    def test_a_variable_switches_metrics_on(
        self, configured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if configured:
            (tmp_path / "policies").mkdir()
            (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 2}}")
        code = CALL + "from prometheus_client import generate_latest; print(generate_latest().decode())"
        done = run(code, OPERO_METRICS="Prometheus, otel")
        assert done.returncode == 0, done.stderr
        assert series(done.stdout)["opero_calls_total"]["__main__:function", "succeeded", ""] == 1

    def test_a_file_of_variables_does_so_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / ".env").write_text("OPERO_METRICS=prometheus\n")
        (tmp_path / "policies").mkdir()
        done = run(CALL + "import sys; print('prometheus_client' in sys.modules)")
        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr

    def test_without_it_nothing_is_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "policies").mkdir()
        code = "import sys; print('prometheus_client' in sys.modules, 'opentelemetry' in sys.modules)"
        done = run(CALL + code)
        assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                "promethesu",
                "OPERO_METRICS: unknown value 'promethesu'; did you mean 'prometheus'?; use prometheus, otel",
            ),
            ("statsd", "OPERO_METRICS: unknown value 'statsd'"),
        ],
    )
    def test_an_unknown_value_is_refused(
        self, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "policies").mkdir()
        (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 1}}")
        done = run(BY_PROFILE, OPERO_METRICS=value)
        assert done.returncode == 1
        assert message in done.stderr
        assert "ConfigError" in done.stderr

    @pytest.mark.parametrize(("name", "package"), [("prometheus", "prometheus_client"), ("otel", "opentelemetry")])
    def test_a_missing_package_is_named(
        self, name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "policies").mkdir()
        (tmp_path / "policies" / "base.yaml").write_text("policies: {api: {retry: 1}}")
        done = run(f"import sys; sys.modules[{package!r}] = None\n{BY_PROFILE}", OPERO_METRICS=name)
        assert done.returncode == 1
        assert "MissingExtraError: " in done.stderr
        assert f"pip install 'opero[{name}]'" in done.stderr


def test_the_document_has_every_metric_with_its_labels_and_no_other() -> None:
    document = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in document.splitlines() if line.startswith("| `opero_")]
    listed = {row[0].strip("`"): tuple(row[1:4]) for row in rows}
    assert listed == {
        each.series: (
            each.kind,
            ", ".join(f"`{label}`" for label in each.labels) or "–",
            f"`{each.otel_name}` ({each.unit})",
        )
        for each in METRICS
    }
