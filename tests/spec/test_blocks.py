"""Every code block of the specification runs as written.

The specification is not part of this repository. It is read from ../shared/spec, beside the repository, and these tests
are skipped where it is not there. Host names are replaced by that of a loopback server, and names that a block uses but
does not define (imports of earlier blocks, the reader's own functions) are passed in.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import logging
import re
import threading
import time
import typing
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import requests
import structlog

from opero import AllFailedError, ErrorTracker, HealthMonitor, opero, opmap

SPECIFICATION = Path(__file__).parents[3] / "shared" / "spec" / "best-practices.md"
if not SPECIFICATION.exists():
    pytest.skip("the specification is not beside this repository", allow_module_level=True)
BLOCKS = re.findall(r"^```python\n(.*?)^```", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    (found,) = [block for block in BLOCKS if text in block]
    return found


class Service(BaseHTTPRequestHandler):
    """Answers every path with JSON; refuses the primary key, and fails every path for the first time."""

    protocol_version = "HTTP/1.1"
    requests_seen: typing.ClassVar[list[tuple[str, str, str]]] = []

    def do_GET(self) -> None:
        key = self.headers.get("Authorization", "")
        seen_before = any(path == self.path and "backup" in held for _, path, held in self.requests_seen)
        self.requests_seen.append((self.command, self.path, key))
        status = 401 if "primary" in key else 503 if "flaky" in self.path and not seen_before else 200
        body = json.dumps({"path": self.path, "name": "Ada"}).encode()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def service() -> typing.Iterator[str]:
    Service.requests_seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(code: str, host: str = "", /, **given: Any) -> dict[str, Any]:
    """Run a block as a module of its own, with what it takes from elsewhere."""
    code = re.sub(r"https://api(\.users)?\.com", host, code)
    names: dict[str, Any] = {
        "__name__": "__main__",  # as the script that a reader would run
        "aiohttp": aiohttp,
        "asyncio": asyncio,
        "psutil": psutil,
        "requests": requests,
        "time": time,
        "wraps": functools.wraps,
        "datetime": datetime.datetime,
        "Optional": typing.Optional,
        "Any": typing.Any,
        "Dict": dict,
        "opero": opero,
        "opmap": opmap,
        **given,
    }
    exec(compile(code, str(SPECIFICATION), "exec", dont_inherit=True), names)
    return names


def test_there_is_a_test_for_every_block() -> None:
    assert len(BLOCKS) == 9


def test_layered_architecture_serves_from_the_backup_key_and_degrades_gracefully(service: str) -> None:
    names = run(block_with("class ResilientAPIClient"), service)

    async def main() -> tuple[Any, Any, Any, Any]:
        users = names["UserService"]()
        one = await users.get_user("flaky")
        again = await users.get_user("flaky")
        many = await users.get_users_batch(["a", "b", "c", "flaky"])
        board = await names["ApplicationController"]().get_user_dashboard("a")
        return one, again, many, board

    one, again, many, board = asyncio.run(main())
    assert one == again == many[3] == {"path": "/users/flaky", "name": "Ada"}
    assert [user["path"] for user in many] == ["/users/a", "/users/b", "/users/c", "/users/flaky"]
    assert board["status"] == "success"
    flaky = [held for _, path, held in Service.requests_seen if path == "/users/flaky"]
    assert ["primary" in held for held in flaky] == [
        True,
        False,
        False,
    ]  # the key that is denied is asked once; then cached


@pytest.mark.parametrize(("environment", "retries"), [("production", 5), ("staging", 3), ("development", 1)])
def test_configuration_management_binds_each_environments_values(
    environment: str, retries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVIRONMENT", environment)
    names = run(block_with("class OperoConfig"))
    policy = names["configured_function"].policy
    assert policy.retry.retries == retries
    assert policy.cache.ttl == names["config"].cache_ttl
    assert policy.rate_limit.rate == names["config"].rate_limit
    assert (policy.parallel.mode, policy.parallel.workers) == ("thread", names["config"].workers)
    assert names["configured_function"]() is None


def test_performance_optimizer_maps_with_what_it_measured() -> None:
    names = run(
        block_with("class PerformanceOptimizer"),
        process_item=lambda item: item * 2,
        sample_items=list(range(20)),
        all_items=list(range(200)),
    )
    assert names["results"] == [item * 2 for item in range(200)]


def test_memory_efficient_processor_maps_a_hundred_thousand_items_in_processes() -> None:
    names = run(block_with("class MemoryEfficientProcessor"))
    assert names["results"] == [f"processed_{item}" for item in range(100_000)]


def test_smart_caching_calls_each_function_once_an_argument() -> None:
    fetched: list[Any] = []
    names = run(
        block_with("class SmartCacheManager"),
        fetch_user_data=lambda user_id: fetched.append(user_id) or {"user": user_id},
        fetch_product_data=lambda product_id, category: (
            fetched.append((product_id, category)) or (product_id, category)
        ),
    )
    assert names["get_user_profile"]("u1") == names["get_user_profile"]("u1") == {"user": "u1"}
    assert names["get_product_info"]("p1", category="books") == names["get_product_info"]("p1", category="books")
    assert fetched == ["u1", ("p1", "books")]
    assert names["cache_manager"].access_patterns["user_profile"]["calls"] == 2


def test_error_handling_sees_every_attempt_of_a_failed_call(service: str, caplog: pytest.LogCaptureFixture) -> None:
    names = run(block_with("class ErrorTracker"), service)
    assert names["robust_api_call"]("users", data={"a": 1}) == {"path": "/users", "name": "Ada"}

    class Broken:
        @staticmethod
        def post(url: str, json: object) -> object:
            raise ConnectionError(url)

    names["requests"] = Broken
    with caplog.at_level(logging.ERROR), pytest.raises(AllFailedError) as caught:
        names["robust_api_call"]("orders")
    assert len(caught.value.errors) == 4
    assert "  Attempt 4: ConnectionError: " in caplog.text
    (record,) = names["error_tracker"].error_history
    assert record["context"]["error_types"] == ["ConnectionError"] * 4


def test_the_ready_error_tracker_takes_the_place_of_the_one_made_by_hand(service: str) -> None:
    block = block_with("class ErrorTracker")
    head, _, usage = block.partition("# Global error tracker")
    imports = head.partition("class ErrorTracker")[0]
    names = run(imports + usage, service, ErrorTracker=ErrorTracker)
    assert names["robust_api_call"]("users", data={"a": 1}) == {"path": "/users", "name": "Ada"}
    names["requests"] = None
    for _ in range(11):
        with pytest.raises(AttributeError):
            names["robust_api_call"]("orders")
    with pytest.raises(Exception, match="Circuit breaker active for robust_api_call"):
        names["robust_api_call"]("orders")


def test_health_monitor_reports_all_three_checks(service: str) -> None:
    names = run(block_with("class HealthMonitor"), service)
    report = asyncio.run(names["health_endpoint"]())
    assert report["status"] == "healthy"
    assert {name: check["status"] for name, check in report["checks"].items()} == {
        "api": "healthy",
        "database": "healthy",
        "cache": "healthy",
    }


def test_the_ready_health_monitor_takes_the_place_of_the_one_made_by_hand(service: str) -> None:
    _, _, usage = block_with("class HealthMonitor").partition("# Global health monitor")
    names = run(usage, service, HealthMonitor=HealthMonitor)
    report = asyncio.run(names["health_endpoint"]())
    assert report["status"] == "healthy"
    assert [(name, each["status"], each["error_rate"]) for name, each in report["checks"].items()] == [
        ("api", "healthy", 0.0),
        ("database", "healthy", 0.0),
        ("cache", "healthy", 0.0),
    ]


def production_block() -> dict[str, Any]:
    block = block_with("class ProductionConfig:")
    definitions = block.split("# Usage in production", maxsplit=1)[0]
    return run(block, DevelopmentConfig=run(definitions)["ProductionConfig"])  # the reader's own class


@pytest.mark.parametrize("environment", ["production", "staging", "development"])
def test_production_configuration_binds_its_values(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", environment)
    monkeypatch.setenv("OPERO_API_RETRIES", "7")
    production = production_block()
    policy = production["production_api_call"].policy
    assert policy.retry.retries == 7
    assert policy.retry.retry_on == (ConnectionError, TimeoutError, requests.HTTPError)
    assert (policy.cache.ttl, policy.rate_limit.rate) == (1800.0, 50.0)
    batch = production["production_batch_processor"].policy
    assert (batch.parallel.mode, batch.timeout.total, batch.parallel.progress) == ("process", 300.0, False)


def test_logging_and_observability_records_calls(service: str) -> None:
    root, own = logging.getLogger(), logging.getLogger("opero")
    handlers, level, own_level, own_handlers = root.handlers[:], root.level, own.level, own.handlers[:]
    configuration = production_block()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # python-json-logger has moved its module
            names = run(
                block_with("def setup_production_logging"),
                service,
                ProductionConfig=configuration["ProductionConfig"],
                make_api_call=lambda endpoint: requests.get(f"{service}/{endpoint}", timeout=5).json(),
                process_items=lambda items: [item * 2 for item in items],
            )
        assert names["production_api_function"]("users") == {"path": "/users", "name": "Ada"}
        assert names["production_batch_function"]([1, 2]) == [2, 4]
        assert names["production_batch_function"].policy.parallel.mode == "process"
    finally:
        root.handlers[:], own.handlers[:] = handlers, own_handlers
        root.setLevel(level)
        own.setLevel(own_level)
        structlog.reset_defaults()
