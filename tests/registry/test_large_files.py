"""What many profiles and functions cost, in calls and objects, which are the same on every machine."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opero import ConfigError, Policy, Registry, opero

FEW, MANY = 50, 500


def function() -> Callable[..., Any]:
    def bound(first: int, second: int = 2, *, third: int = 3) -> int:
        return first

    return bound


def calls_of(action: Callable[[], Any]) -> tuple[int, Any]:
    """The calls of Python functions and of builtins that an action makes, and its result."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event.endswith("call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        result = action()
    finally:
        sys.setprofile(before)
    return calls, result


def steps(folder: Path, number: int) -> dict[str, int]:
    """The calls to load a number of profiles, to bind as many functions to them, and to reload."""

    def write(burst: int) -> None:
        profiles = [
            f"  profile{each}:\n"
            f"    retry: {{retries: {each % 7}, max_delay: {each + 60}s, retry_on: [ConnectionError]}}\n"
            f"    timeout: {10 + each}s\n"
            f"    rate_limit: {{rate: {1 + each}/s, burst: {burst}}}\n"
            for each in range(number)
        ]
        (folder / "base.yaml").write_text("policies:\n" + "".join(profiles))

    write(3)
    functions = [function() for _ in range(number)]
    load, registry = calls_of(lambda: Registry.load(folder, "development", {}))
    bind, kept = calls_of(lambda: [registry.bind(each, f"profile{at}") for at, each in enumerate(functions)])
    write(4)
    reload, changes = calls_of(registry.reload)
    assert len(changes.functions) == len(kept) == number
    return {"load": load, "bind": bind, "reload": reload}


def test_calls_are_linear_in_the_number_of_profiles_and_functions(tmp_path: Path) -> None:
    steps(tmp_path, FEW)  # what happens once
    few, many = steps(tmp_path, FEW), steps(tmp_path, MANY)
    assert {name for name in many if many[name] > 1.02 * MANY / FEW * few[name]} == set()


def test_equal_policies_of_a_file_are_one_object_and_different_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "policies:\n"
        "  one: {retry: {retries: 1, retry_on: [OSError]}, timeout: 5, bulkhead: false}\n"
        "  two: {retry: {retries: 1, retry_on: [OSError]}, timeout: 5.0, bulkhead: {enabled: false}}\n"
        "  six: {retry: {retries: 1, retry_on: [KeyError]}, timeout: {total: 5}, fallback: {default: {a: [1]}}}\n"
    )
    registry = Registry.load(tmp_path, "development", {})
    one, two, six = registry["one"], registry["two"], registry["six"]
    assert one.retry is two.retry
    assert six.retry is not None
    assert six.retry.retry_on == (KeyError,)
    assert one.timeout == two.timeout == six.timeout
    assert one.bulkhead is two.bulkhead is None
    assert six.fields()["fallback"] == {"default": {"a": [1]}}


def test_what_is_equal_but_of_another_type_is_not_taken_for_what_was_valid(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("policies: {one: {retry: {enabled: true}}, two: {retry: {enabled: 1}}}")
    with pytest.raises(ConfigError, match="policies.two.retry.enabled: 1 is not a boolean"):
        Registry.load(tmp_path, "development", {})


def test_a_function_that_is_bound_and_never_called_is_small() -> None:
    registry = Registry({"api": Policy(retry=3, timeout="5s", rate_limit=100, circuit_breaker=5)})
    for bind in (opero, lambda each: registry.bind(each, "api")):
        functions = [function() for _ in range(100)]
        bind(function())
        gc.collect()
        tracked = len(gc.get_objects())
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        kept = [bind(each) for each in functions]
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert size / len(kept) <= 3072
        assert (len(gc.get_objects()) - tracked) / len(kept) <= 26
