"""The lock of a file that keeps a state, when Ctrl-C comes before the first line of what releases it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opero import Policy
from opero.executors.state.sharing import file_home
from opero.runtime import forking
from opero.runtime.state_file import StateFile


def act(key: str = "none") -> str:
    if key == "fails":
        raise ConnectionError(key)
    return key


POLICIES: dict[str, Any] = {
    "rate_limit": {"rate": 10**6},
    "circuit_breaker": 5,
    "bulkhead": 2,
    "retry": {"retries": 1, "min_delay": 0, "budget": "20%"},
    "fallback": {"arg": "key", "values": ["b"], "on": "transient"},
}


def executor_of(bound: Any, kind: str) -> Any:
    executors = bound.binding.resolved().executors
    executor = executors[{"retry": "retry_budget", "fallback": "values"}.get(kind, kind)]
    return getattr(executor, "limiter", executor)


def interrupted_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Have the release of a lock be interrupted before its first line, the n-th time; return what counts them."""
    leave, count = StateFile.__exit__, 0

    def interrupted(self: StateFile, *error: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        leave(self, *error)

    monkeypatch.setattr(StateFile, "__exit__", interrupted)
    return lambda: count


def is_free(file: StateFile) -> bool:
    found: list[bool] = []

    def take() -> None:
        with file, StateFile(file.path)._lock:
            found.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(30)
    return found == [True] and threading.get_ident() not in forking.uninterrupted


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("key", ["a", "fails"])
def test_an_interruption_before_the_release_of_the_lock_leaves_it_free(
    kind: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        bound = Policy.model_validate({kind: POLICIES[kind]}).apply(act)
        executor = executor_of(bound, kind)
        file = StateFile.create(tmp_path / uuid.uuid4().hex, 1 << 16)
        with monkeypatch.context() as patch:
            count = interrupted_at(number, patch)
            try:
                executor.move_to(file_home(kind, executor, file))
                bound(key)
            except (KeyboardInterrupt, ConnectionError, Exception):  # Ctrl-C, or the function's own
                pass
        assert is_free(file), number
        assert bound("a") == "a"
        if count() < number:
            break
    assert 2 <= number < 99
