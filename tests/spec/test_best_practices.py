"""Every code block of docs/best-practices.md runs as printed, against a loopback server where it sends requests."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from opero import set_default_registry

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from loopback import Loopback  # noqa: E402

DOCUMENT = (ROOT / "docs" / "best-practices.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TESTED: set[str] = set()


def blocks(section: str, language: str = "python") -> list[str]:
    return [text for kind, text in BLOCK.findall(SECTIONS[section]) if kind == language]


def run(section: str, **hosts: str) -> dict[str, Any]:
    """Run a section's Python block as a module: its names."""
    (code,) = blocks(section)
    for name, url in hosts.items():
        code = code.replace(f"https://{name}.example", url)
    names: dict[str, Any] = {"__name__": "best_practices"}
    exec(compile(code, f"best-practices.md: {section}", "exec", dont_inherit=True), names)
    return names


def runs(section: str) -> Callable[[Any], Any]:
    """Mark a test as the one that runs a section's blocks."""
    assert section in SECTIONS
    TESTED.add(section)
    return lambda test: test


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_section_with_code_is_run() -> None:
    assert {name for name, text in SECTIONS.items() if "```" in text} == TESTED
    assert len(TESTED) == 9


def test_every_section_with_code_names_its_program() -> None:
    for section in TESTED:
        (program,) = re.findall(r"^Program: \[.*?\]\(\.\./(examples/\w+\.py)\)\.$", SECTIONS[section], re.MULTILINE)
        assert (ROOT / program).is_file()


@runs("One layer retries, another remembers")
def test_layers() -> None:
    def carrier(path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        if headers["X-Token"] == "old-token":
            return 401, "expired"
        return (503, "later") if path.endswith("C-3") else (200, {"state": path[-3:]})

    with Loopback(carrier) as service:
        names = run("One layer retries, another remembers", carrier=service.url)
        assert names["states"] == ["A-1", "B-2", "unknown"]
        asked = len(service.paths)
        assert asked == 2 + 1 + 4  # only the first call asks the old token first
        assert names["carrier"].state("A-1") == "A-1"
        assert len(service.paths) == asked  # the cache answered
        assert names["carrier"].state("C-3") == "unknown"
        assert len(service.paths) > asked  # a fallback result is not cached


@runs("Keep numbers out of the code")
@pytest.mark.parametrize(("environment", "retries"), [("production", 6), ("development", 2)])
def test_profiles(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, environment: str, retries: int) -> None:
    for text in blocks("Keep numbers out of the code", "yaml"):
        file = elsewhere / text.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (elsewhere / "policies" / "development.yaml").write_text("policies: {}\n", encoding="utf-8")
    monkeypatch.setenv("OPERO_ENV", environment)
    set_default_registry(None)
    try:
        names = run("Keep numbers out of the code")
        assert names["position"] == (13.4, 52.5)
        policy = names["locate"].policy
    finally:
        set_default_registry(None)
    assert policy.retry.retries == retries
    assert (policy.cache is not None) is (environment == "production")


@runs("Measure before you parallelise")
def test_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("Measure before you parallelise")
    assert names["tuning"].mode == "thread"
    assert names["lengths"] == [len(host) for host in names["hosts"]]
    assert "probe waits" in capsys.readouterr().out


@runs("Stream what does not fit into memory")
def test_streaming(elsewhere: Path) -> None:
    names = run("Stream what does not fit into memory")
    assert names["first"] == [f"row {number}" for number in range(100)]
    assert names["sizes"] == [1000, 2000, 3000]
    assert len((elsewhere / "decode.jsonl").read_text(encoding="utf-8").splitlines()) >= 3


@runs("Cache by demand")
def test_caching() -> None:
    names = run("Cache by demand")
    assert names["price"].cache_get("tea", shelf="hot drinks") is None  # cleared by its tag
    assert names["exchange_rate"].cache_get("DKK") == 7.5


@runs("Treat a failed call as information")
def test_failures() -> None:
    with Loopback(lambda path, headers: (503, "closed")) as service:
        names = run("Treat a failed call as information", warehouse=service.url)
        first, *others = names["report"]
        assert first.startswith("3 attempts, the last: HTTPError('503 ")
        assert len(others) == 2
        assert all(re.fullmatch(r"the circuit is open; again in \d+ s", each) for each in others)
        assert len(service.paths) == 4
        assert names["stock"].stats.errors == {"HTTPError": 4}


@runs("Report health from what opero already counts")
def test_health() -> None:
    names = run("Report health from what opero already counts")
    assert names["report"] == {
        "database": "ok",
        "archive": "health check 'archive' has not ended within its limit of 200ms",
        "configuration": "ok",
        "payments.circuit_breaker": "the circuit is open after ConnectionError: the payment gateway does not answer",
    }
    assert (names["overall"], names["ready"]) == ("unhealthy", False)


@runs("Tune a running deployment")
def test_tuning_a_deployment() -> None:
    names = run("Tune a running deployment")
    assert str(names["source"]) == "OPERO_BILLING_RATE_LIMIT"
    assert names["changes"].profiles == ("billing",)
    assert "did you mean 'circuit_breaker'?" in names["mistake"]
    assert names["invoice"].policy.timeout.total == 45
    assert names["invoice"]("Ada") == "invoice for Ada"


@runs("Log and count")
def test_logging(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("opero")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest
    before, level = logger.handlers[:], logger.level
    try:
        names = run("Log and count")
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)
    names["off"]()
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(each["level"], each["event"]) for each in records] == [
        ("DEBUG", "retry_scheduled"),
        ("INFO", "call_recovered"),
    ]
    assert {name: names["counts"][name] for name in ("calls", "attempts", "recoveries")} == {
        "calls": 1,
        "attempts": 2,
        "recoveries": 1,
    }
