"""The dashboard and the rules that are made from policies ask for what is exported, and a real Prometheus agrees."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from opero import Policy
from opero.integrations.alerts import alerts
from opero.integrations.grafana import COLUMNS, dashboard
from opero.integrations.metrics import METRICS
from prometheus_server import prometheus_programs

__all__ = ["prometheus_programs"]

LIMIT = 90.0
EVERYTHING = {
    "api": Policy(
        retry=3,
        circuit_breaker={"consecutive_failures": 3, "open_for": "20s"},
        rate_limit="50/s",
        bulkhead=5,
        timeout="2s",
        fallback={"arg": "key"},
        cache={"ttl": "1m"},
        parallel="thread",
    ),
    "plain": Policy(timeout="1s"),
}
SAMPLED = {
    suffix
    for each in METRICS
    for suffix in (
        [each.series] if each.kind != "histogram" else [f"{each.name}_{part}" for part in ("bucket", "sum", "count")]
    )
}
LABELS = {each.series: {*each.labels} for each in METRICS} | {
    f"opero_call_duration_seconds_{part}": {"policy", "function", "le"} for part in ("bucket", "sum", "count")
}
OF_SCRAPE = {"job", "instance"}


def queries_of(made: dict[str, Any]) -> list[str]:
    """All queries of a dashboard."""
    found = [target["expr"] for panel in made["panels"] for target in panel.get("targets", ())]
    found += [each["expr"] for each in made["annotations"]["list"]]
    variables = [each["query"]["query"] for each in made["templating"]["list"] if each["type"] == "query"]
    return found + [f"count({each.removeprefix('label_values(').rpartition(',')[0]})" for each in variables]


def rules_of(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in made["groups"] for rule in group["rules"]]


def with_values(query: str) -> str:
    """A query with values of the dashboard's variables, as Grafana fills them in."""
    for name in ("job", "policy", "function"):
        query = query.replace(f"${name}", ".*")
    return query.replace("$__rate_interval", "5m").replace("$__interval", "5m")


def problems_of(query: str) -> list[str]:
    """What a query asks for that is not exported: metrics, and labels in selectors and groupings."""
    found = []
    known: set[str] = set()
    for name, selector in re.findall(r"\b(opero_\w+)(?:\{([^}]*)\})?", query):
        if name not in SAMPLED:
            found.append(name)
            continue
        known |= LABELS[name]
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", selector))
        found += [f"{name}{{{label}}}" for label in labels - LABELS[name] - OF_SCRAPE]
    if not known and "opero" not in query:
        found.append("nothing")
    for grouping in re.findall(r"\bby \(([^)]*)\)", query):
        names = {each.strip() for each in grouping.split(",")}
        found += [f"by {label}" for label in names - known - OF_SCRAPE]
    return found


@pytest.mark.parametrize(
    "query", [*queries_of(dashboard(EVERYTHING)), *(rule["expr"] for rule in rules_of(alerts(EVERYTHING)))]
)
def test_every_query_names_metrics_and_labels_that_are_exported(query: str) -> None:
    assert problems_of(query) == []


def test_such_a_test_finds_what_is_not_exported() -> None:
    assert problems_of("sum by (status) (opero_callz_total)") == ["opero_callz_total", "by status"]
    assert problems_of('opero_calls_total{kind="x",job="y"}') == ["opero_calls_total{kind}"]


# The dashboard


def test_a_dashboard_has_panels_for_the_kinds_of_policy_that_there_are() -> None:
    def rows(policies: dict[str, Policy]) -> list[str]:
        return [each["title"] for each in dashboard(policies)["panels"] if each["type"] == "row"]

    assert rows({"plain": Policy(timeout="1s")}) == ["Calls", "Timeout", "Configuration"]
    assert rows({"plain": Policy(retry=2), "other": Policy(rate_limit="5/s")}) == [
        *("Calls", "Retry", "Rate limit", "Waiting", "Configuration")
    ]
    assert rows({"off": Policy(retry=2, bulkhead=False)}) == ["Calls", "Retry", "Configuration"]
    assert "Circuit breaker" in rows(EVERYTHING)


def test_panels_do_not_overlap_and_have_identifiers_of_their_own() -> None:
    panels = dashboard(EVERYTHING)["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for each in panels:
        place = each["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert all(x < COLUMNS for x, _ in cells)
        taken |= cells


def test_a_dashboard_is_json_and_its_variable_has_the_profiles() -> None:
    made = json.loads(json.dumps(dashboard(EVERYTHING, environment="production", slo=99.5)))
    assert made["title"] == "opero, production"
    (policy,) = [each for each in made["templating"]["list"] if each["name"] == "policy"]
    assert [each["value"] for each in policy["options"]] == ["$__all", "api", "plain"]
    (budget,) = [each for each in made["panels"] if each["title"].startswith("Error budget")]
    assert budget["targets"][0]["expr"].endswith("/ 0.005")


# The rules


def test_a_profile_has_the_rules_of_its_policies() -> None:
    groups = {each["name"]: [rule["alert"] for rule in each["rules"]] for each in alerts(EVERYTHING)["groups"]}
    of_all = ["OperoErrorRate", "OperoErrorBudgetBurnsFast", "OperoErrorBudgetBurns"]
    assert groups == {
        "opero": ["OperoConfigurationRejected", "OperoCacheStoreDown"],
        "opero-api": [
            *of_all,
            *(
                "OperoRetryStorm",
                "OperoCircuitOpen",
                "OperoRateLimitSaturated",
                "OperoBulkheadFull",
                "OperoValueSetAside",
            ),
        ],
        "opero-plain": of_all,
    }


def test_the_objective_decides_how_fast_a_budget_burns() -> None:
    (rule,) = [each for each in rules_of(alerts({"api": Policy()}, slo=99.0)) if each["alert"].endswith("BurnsFast")]
    assert "> 14.4 * 0.01" in rule["expr"]
    assert "99% should succeed" in rule["annotations"]["description"]


FAILING = 'opero_calls_total{job="app",policy="api",function="f",outcome="failed"}'
SUCCEEDING = 'opero_calls_total{job="app",policy="api",function="f",outcome="succeeded"}'


OF_API = 'job="app",policy="api"'


@pytest.mark.parametrize(
    ("alert", "minutes", "series", "bad", "good", "others"),
    [
        ("OperoErrorRate", 15, FAILING, "0+6x60", "0+1x60", {SUCCEEDING: "0+60x60"}),
        ("OperoErrorBudgetBurnsFast", 75, FAILING, "0+10x100", "0+1x100", {SUCCEEDING: "0+600x100"}),
        ("OperoErrorBudgetBurns", 400, FAILING, "0+8x500", "0+1x500", {SUCCEEDING: "0+1000x500"}),
        ("OperoRetryStorm", 15, f"opero_retries_total{{{OF_API}}}", "0+60x60", "0+6x60", {SUCCEEDING: "0+60x60"}),
        ("OperoCircuitOpen", 5, f'opero_circuit_breaker_state{{{OF_API},state="open"}}', "0 1x10", "0x10", {}),
        ("OperoRateLimitSaturated", 20, f"opero_rate_limit_saturation{{{OF_API}}}", "1x30", "0.5x30", {}),
        (
            *("OperoBulkheadFull", 12, f"opero_bulkhead_in_use{{{OF_API}}}", "5x30", "3x30"),
            {f"opero_bulkhead_slots{{{OF_API}}}": "5x30"},
        ),
        ("OperoValueSetAside", 5, f"opero_fallback_values_aside{{{OF_API}}}", "0 2x10", "0x10", {}),
        ("OperoCacheStoreDown", 5, 'opero_cache_store_up{job="app",store="redis"}', "1 0x10", "1x10", {}),
        (
            *("OperoConfigurationRejected", 5, 'opero_configuration_last_reload_successful{job="app",instance="a"}'),
            *("1 0x10", "1x10", {}),
        ),
    ],
)
def test_an_alert_is_raised_in_time_and_not_where_all_is_well(
    alert: str,
    minutes: int,
    series: str,
    bad: str,
    good: str,
    others: dict[str, str],
    prometheus_programs: Path,
    tmp_path: Path,
) -> None:
    made = alerts(EVERYTHING)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(made))
    raised = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": each, "values": it} for each, it in {series: values, **others}.items()],
                "promql_expr_test": [{"expr": raised, "eval_time": f"{minutes}m", "exp_samples": expected}],
            }
            for values, expected in ((bad, [{"labels": "{}", "value": 1}]), (good, []))
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    command = [prometheus_programs / "promtool", "test", "rules", tmp_path / "test.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_every_query_of_the_dashboard(prometheus_programs: Path, tmp_path: Path) -> None:
    odd = {**EVERYTHING, 'odd "name"': Policy(retry=1)}
    made = alerts(odd)
    queries = [with_values(each) for each in queries_of(dashboard(odd))]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    made["groups"].append({"name": "dashboard", "rules": recorded})
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(made))
    done = subprocess.run(
        [prometheus_programs / "promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules_of(made))} rules found" in done.stdout


# A real Prometheus

PROGRAM = """
import sys, time
from prometheus_client import start_http_server
from opero import opero, get_default_registry

server, _ = start_http_server(0, "127.0.0.1")
print(server.server_port, flush=True)
number = 0

@opero(policy="api")
def call():
    global number
    number += 1
    if number % 2:
        raise ConnectionError
    return number

@opero(policy="broken")
def broken():
    raise ConnectionError

while True:
    for function in (call, broken):
        try:
            function()
        except Exception:
            pass
    time.sleep(0.02)
"""


@contextmanager
def running(command: list[Any], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, **options)
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace"))
        raise
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def ask(address: str, path: str, **parameters: str) -> Any:
    with urlopen(f"{address}/api/v1/{path}?{urlencode(parameters)}", timeout=LIMIT) as response:
        answer = json.load(response)
    assert answer["status"] == "success"
    return answer["data"]


def test_a_real_prometheus_scrapes_a_real_program_and_raises_the_alerts(
    prometheus_programs: Path, tmp_path: Path
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "base.yaml").write_text(
        "policies:\n"
        "  api: {retry: {retries: 1, min_delay: 0, budget: false}}\n"  # half of its attempts fail
        "  broken: {circuit_breaker: {consecutive_failures: 2, open_for: 1h}}\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPERO_", "PROMETHEUS_"))}
    exported = {}
    for what in ("alerts", "grafana"):
        command = [sys.executable, "-m", "opero", "export", what]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        exported[what] = done.stdout
    rules = yaml.safe_load(exported["alerts"])
    for rule in rules_of(rules):
        rule["for"] = "0s"  # `promtool test rules` has tested it
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    program = [sys.executable, "-c", PROGRAM]
    variables = {**environ, "OPERO_METRICS": "prometheus"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": variables, "stdout": subprocess.PIPE}
    with running(program, tmp_path / "program.log", **options) as scraped:
        assert scraped.stdout is not None
        target = f"127.0.0.1:{int(scraped.stdout.readline())}"
        (tmp_path / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"},
                    "rule_files": ["rules.yaml"],
                    "scrape_configs": [{"job_name": "app", "static_configs": [{"targets": [target]}]}],
                }
            )
        )
        with prometheus_in(tmp_path, prometheus_programs, environ) as address:

            def raised() -> set[tuple[str, str]]:
                return {
                    (each["labels"]["alertname"], each["labels"].get("policy", ""))
                    for each in ask(address, "alerts")["alerts"]
                    if each["state"] == "firing"
                }

            def health() -> set[str]:
                return {rule["health"] for group in ask(address, "rules")["groups"] for rule in group["rules"]}

            wanted = {("OperoErrorRate", "broken"), ("OperoCircuitOpen", "broken"), ("OperoRetryStorm", "api")}
            until(lambda: wanted <= raised())
            assert ("OperoErrorRate", "api") not in raised(), "its retries succeed"
            until(lambda: health() == {"ok"})
            for query in queries_of(json.loads(exported["grafana"])):
                ask(address, "query", query=with_values(query))
            (calls,) = ask(address, "query", query='sum(opero_calls_total{policy="api"})')["result"]
            assert float(calls["value"][1]) > 0


def until(ask: Callable[[], bool]) -> None:
    """Ask until the answer is yes."""
    end = time.monotonic() + LIMIT
    while not ask():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


@contextmanager
def prometheus_in(folder: Path, programs: Path, environ: dict[str, str]) -> Iterator[str]:
    """Run Prometheus with the configuration of a folder; its address, once it answers."""
    for attempt in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            programs / "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / f'data{attempt}'}",
            f"--web.listen-address={address}",
        ]
        with running(command, folder / f"prometheus{attempt}.log", cwd=folder, env=environ) as server:

            def is_there(address: str = address, server: subprocess.Popen[bytes] = server) -> bool:
                with suppress(URLError, ConnectionError):
                    ask(f"http://{address}", "alerts")
                    return True
                return server.poll() is not None

            until(is_there)
            if server.poll() is None:
                yield f"http://{address}"
                return
    raise AssertionError("Prometheus did not start; other programs may have taken its ports")
