"""Each example runs as its docstring says, and prints what its subject promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
HELPERS = {"demo", "loopback", "service"}  # the demo has a test file of its own


def run(name: str) -> list[str]:
    """Run an example in a process of its own, without variables that configure opero: the lines that it prints."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("OPERO_")}
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_there_is_a_test_for_every_example() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.py")} - HELPERS
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(programs) == 12
    assert programs <= tested
    assert all(f"`{name}.py`" in (EXAMPLES / "README.md").read_text(encoding="utf-8") for name in programs)


def test_layered_client() -> None:
    assert run("layered_client") == [
        "A-1: delivered",
        "B-2: on its way",
        "C-3: unknown",
        "asked again: 0 requests, 2 cache hits",
        "client: 3 calls, 9 attempts, 2 recoveries",
    ]


def test_environments() -> None:
    assert run("environments") == [
        "development  retries=2 rate=2 cache=None",
        "staging      retries=2 rate=10 cache=60.0",
        "production   retries=6 rate=80 cache=7200.0",
        "imports retries: 8 (OPERO_GEOCODER_RETRIES), then 6 (production.yaml), then 2 (base.yaml), then 3 (default)",
    ]


def test_choosing_a_mode() -> None:
    waiting, computing, mapped = run("choosing_a_mode")
    assert re.fullmatch(r"probe: io bound, mode thread, \d+ times as fast", waiting)
    assert re.fullmatch(r"checksum: (cpu|both) bound, mode (process|sequential), [\d.]+ times as fast", computing)
    assert mapped == "mapped 40 hosts, 590 characters"


def test_bounded_memory() -> None:
    streamed, *decoded = run("bounded_memory")
    read = re.fullmatch(r"stopped after 100 results; (\d+) of 1,000,000 rows were read", streamed)
    assert read is not None
    assert 100 <= int(read[1]) <= 150  # `window=50` items ahead at most
    assert decoded == [
        "decode 1,000: 1,000 bytes",
        "decode 2,000: 2,000 bytes",
        "decode 400,000,000: MemoryError",
        "decode 3,000: 3,000 bytes",
    ]


def test_hot_keys() -> None:
    assert run("hot_keys") == [
        "of 20 requests each, 6 for tea and 20 for salt reached the function",
        "the bank is closed, and the rate of two hours ago still serves: 7.5",
        "tea costs 8.0",
        "after its shelf was cleared: None; CacheInfo(hits=14, misses=27, size=0, evictions=0, max_size=1000)",
    ]


def test_failures() -> None:
    failed, group, opened, rejected, recovered, counts = run("failures")
    assert failed == "3 attempts failed: HTTPError, HTTPError, HTTPError; the last: 503 Server Error"
    assert group == "except* sees 3 errors; the circuit is closed"
    assert opened == "the circuit is open after HTTPError; no more retries"
    assert re.fullmatch(r"rejected at once, 0 requests; again in 0\.[0-3] s", rejected)
    assert recovered == "after a rest: 12 in stock, and the circuit is closed"
    assert counts == "errors {'HTTPError': 7}, rejections 2, failures 4"


def test_health() -> None:
    report = json.loads("\n".join(run("health")))
    assert (report["status"], report["ready"]) == ("unhealthy", False)
    found = {each["name"]: (each["status"], each.get("last_error", "")) for each in report["checks"]}
    status, error = found.pop("mail")
    assert (status, error.partition(":")[0]) == ("unhealthy", "ConnectionRefusedError")
    assert found == {
        "search": ("healthy", ""),
        "archive": ("unhealthy", "health check 'archive' has not ended within its limit of 300ms"),
        "configuration": ("healthy", ""),
        "payments.circuit_breaker": (
            "unhealthy",
            "the circuit is open after ConnectionError: the payment gateway does not answer",
        ),
    }


def test_operations() -> None:
    assert run("operations") == [
        "rate_limit.rate  40/s  from OPERO_BILLING_RATE_LIMIT",
        "timeout.total    20s   from production.yaml",
        "retry.retries    2     from base.yaml",
        "invoice for Ada",
        "reloaded: Changes(profiles=('billing',), functions=('__main__:main.<locals>.invoice',), alerts=())",
        "now TimeoutPolicy(total=45.0); circuit still forced_open",
        "rejected: did you mean 'timeout'?",
        "now TimeoutPolicy(total=45.0), as before",
    ]


def test_logs_and_counts() -> None:
    lines = run("logs_and_counts")
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert {each["level"] for each in records} == {"DEBUG", "INFO", "WARNING"}
    assert {each["logger"] for each in records} == {"opero"}
    assert [line for line in lines if not line.startswith("{")] == [
        "sent hello",
        "opero_calls_total{function='send'} 1",
        "opero_attempts_total{function='send'} 3",
        "opero_retries_total{function='send'} 2",
        "opero_recoveries_total{function='send'} 1",
        "alert: not_stored, SerializationError",
        "labels: {'urgent'}",
    ]


def test_model_api() -> None:
    answered, spent, failures, counted, health = run("model_api")
    assert answered == '24 of 24 questions answered: "8,611 metres"'
    assert re.fullmatch(r"288 of 1310 estimated tokens in [\d.]+ s, within the quota: True", spent)
    assert failures == "kinds of failures ['denied', 'transient'], 0 calls failed"
    assert counted == 'opero_calls_total{policy="model",function="__main__:ask",outcome="succeeded"} 24'
    assert health == "health 200"


def test_resumed_job() -> None:
    killed, resumed, twice, third = run("resumed_job")
    assert re.fullmatch(r"killed after [3-9],\d{3} of 10,000 records", killed)
    assert resumed == "10,000 results, from 'RECORD 0' to 'RECORD 9999'"
    assert int(twice.partition(" ")[0]) < 2_000  # what was not in the journal yet
    assert third == "a third run works on 0"


def test_celery_tasks() -> None:
    assert run("celery_tasks") == [
        "parcel-0 is delivered",
        "parcel-1 is delivered",
        "parcel-2 is delivered",
        "9 of 9 tasks succeeded",
        "invoice 7, at the third execution",
        "4 of their requests were repeated",
    ]


def test_the_notebook() -> None:
    notebook: Any = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "it is kept without outputs"
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    results = [each.data["text/plain"] for each in outputs if each.output_type == "execute_result"]
    assert results[:4] == [
        "50.0",
        "np.float64(37.5)",
        "(42, [0, 2, 4, 6, 8])",
        "{'calls': 41, 'failures': 0, 'failed attempts': {'transient': 13}}",
    ]
    assert results[4].startswith("Policy(retry=RetryPolicy(retries=4, ")
    progress = "".join(each.text for each in outputs if each.output_type == "stream")
    assert "price: 100%" in progress
    assert "`notebook.ipynb`" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(HELPERS - {"demo"}))
def test_a_helper_is_imported_by_a_program(name: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py") if path.stem != name]
    assert any(f"from {name} import" in text for text in texts)
