"""What it costs to load a thousand profiles, and to call a function by a profile's name."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter
from pydantic_settings import BaseSettings, YamlConfigSettingsSource
from tests.benchmarks.harness import Row, compare

from opero import Policy, Registry, opero
from opero.config.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

PROFILES = 1000
MORE_A_CALL = 60
"""Nanoseconds that a named profile may cost more than the same options in place."""


def profile(number: int) -> str:
    return f"""\
  profile{number}:
    retry: {{retries: {number % 7}, min_delay: 250ms, max_delay: 20s, retry_on: [ConnectionError, TimeoutError]}}
    cache: {{ttl: 30m}}
    rate_limit: {10 + number % 50}/s
    timeout: {{total: 90s, attempt: 5s}}
    circuit_breaker: {{consecutive_failures: 5, open_for: 60s}}
"""


def settings_of(path: Path) -> type[BaseSettings]:
    class Settings(BaseSettings):
        policies: dict[str, Policy] = {}

        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, **sources: Any) -> Any:
            return (YamlConfigSettingsSource(settings_cls, path),)

    return Settings


def nanoseconds(function: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter_ns()
    function()
    return time.perf_counter_ns() - started


def loading(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "base.yaml"
        path.write_text("policies:\n" + "".join(map(profile, range(PROFILES))), "utf-8")
        policies = TypeAdapter(dict[str, Policy])
        settings = settings_of(path)

        def ours() -> Any:
            return load(directory, environ={})

        def bare() -> Any:
            data = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
            return policies.validate_python(data["policies"])

        expected = bare()
        assert ours().policies == expected == settings().policies
        fast = [(nanoseconds(ours), nanoseconds(bare)) for _ in range(max(5, rounds // 10))]
        slow = [(nanoseconds(ours), nanoseconds(settings)) for _ in range(max(3, rounds // 40))]

    def row(peer: str, pairs: list[tuple[float, float]], target: float) -> Row:
        a, b = (statistics.median(each) for each in zip(*pairs, strict=True))
        return Row(f"load {PROFILES} profiles", a, peer, b, statistics.median(x / y for x, y in pairs), target)

    return [row("C parser and bare pydantic", fast, 1.4), row("pydantic-settings' YAML", slow, 0.25)]


def value() -> int:
    return 1


async def value_async() -> int:
    return 1


def calling(rounds: int) -> list[Row]:
    options: dict[str, Any] = {"retries": 3, "circuit_breaker": 5, "rate_limit": 1e9}
    registry = Registry({"api": Policy.from_options(**options)})
    rows = []
    for function, call in ((value, "call()"), (value_async, "await call()")):
        named, inline = opero(policy="api", registry=registry)(function), opero(**options)(function)
        row = compare("", named, "", inline, rounds, call=call)
        more = row.ours - row.theirs
        name = f"by a profile's name, less options in place, {'async' if 'await' in call else 'sync'}"
        rows.append(Row(name, more, f"{MORE_A_CALL} ns", MORE_A_CALL, more / MORE_A_CALL, 1.0))
    return rows


def run(rounds: int) -> list[Row]:
    return [*loading(rounds), *calling(rounds)]
