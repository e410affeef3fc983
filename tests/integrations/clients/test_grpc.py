"""gRPC under a policy, against a real server: see grpc_program.py, which makes the calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found() -> Any:
    program = [sys.executable, str(Path(__file__).with_name("grpc_program.py"))]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["Sync", "Aio"])
def came_to(request: pytest.FixtureRequest, found: Any) -> Any:
    return found[request.param]


def test_methods_that_are_named_are_repeated(came_to: Any) -> None:
    *counts, name = came_to["repeated"]
    assert counts == ["x!", 3, 2, 1]
    assert name.startswith("opero.integrations.grpc:")
    assert came_to["exhausted"] == ["UNAVAILABLE", True]


def test_any_other_is_called_once_unless_nothing_was_sent(came_to: Any) -> None:
    assert came_to["once"] == ["UNAVAILABLE", 1]
    assert came_to["unsent"] == ["UNAVAILABLE", 3]


def test_a_code_that_is_permanent_is_not_retried(came_to: Any) -> None:
    assert came_to["permanent"] == ["NOT_FOUND", 5]


def test_a_stream_is_repeated_until_its_first_message(came_to: Any) -> None:
    assert came_to["stream"] == ["x0", "x1", "x2"]
    assert came_to["stream repeated"] == [["x0", "x1", "x2"], 2]
    assert came_to["stream begun"] == ["UNAVAILABLE", 1]
    assert came_to["stream once"] == "UNAVAILABLE"


def test_the_server_is_told_of_the_deadline(came_to: Any) -> None:
    own, shorter, outer, stream, none = came_to["deadline"]
    assert 4 < own < 6
    assert 1 < shorter < 3
    assert 0 < outer < 2
    assert 0 < stream < 2
    assert none is None  # the total timeout of a stream ends with its first message


def test_what_opero_raises_is_an_rpc_error_with_a_code(came_to: Any) -> None:
    assert came_to["timed out"] == "DEADLINE_EXCEEDED"
    assert came_to["refused"] == [True, True, "UNAVAILABLE", True, 1]


def test_methods_that_are_named_are_hedged_and_streams_are_not(came_to: Any) -> None:
    assert came_to["hedged"] == [1, 1, True]
    assert came_to["stream under a hedge"] == ["x0", "x1", "x2"]


def test_the_calls_of_a_sync_channel_are_as_before(found: Any) -> None:
    said = found["of sync"]
    assert said["with call"] == ["StatusCode.OK"]
    assert said["cancelled"] == "CANCELLED"
    assert said["metadata"] == ["OK", []]
    assert "a future cannot be under a policy" in said["future"]


def test_what_does_not_fit_is_refused(found: Any) -> None:
    cache, fallback, methods = found["refusals"]
    assert "which is not cached: add cache=False" in cache
    assert "which a fallback cannot replace" in fallback
    assert "expects a collection of methods or patterns" in methods
