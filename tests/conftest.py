"""Shared by all tests: settings for hypothesis, their order, and one fixture for sync and async callers."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from leftovers import no_change_is_left, no_process_is_left
from opero import Policy, on
from opero.runtime.log import limiter
from opero.testing import VirtualClock
from redis_server import redis_program, redis_server, redis_url

__all__ = ["no_change_is_left", "no_process_is_left", "redis_program", "redis_server", "redis_url"]

settings.register_profile("opero", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("opero")

FIRST = (
    "test_architecture.py",
    "parallel/workers/test_dask.py",
    "parallel/workers/test_ray.py",
    "parallel/",
    "examples/",
    "spec/",
    "executors/",
    "runtime/test_forking.py",
    "cli/",
)
"""Beginnings of paths that run first: the import rule, and then slow modules, so that no worker is left with one."""


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as under `make test &`: programs under test inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(here).as_posix()
        return next((place for place, prefix in enumerate(FIRST) if name.startswith(prefix)), len(FIRST))

    items.sort(key=rank)


class Scheduler(LoadFileScheduling):
    """Sends whole files to workers, also when one has crashed.

    xdist's own puts the files that a crashed worker had finished back into the queue. The worker that replaces it takes
    one of them after each test, has nothing left to do before the queue is empty, and the run never ends.
    """

    def remove_node(self, node: Any) -> str | None:
        files = self.assigned_work[node]
        self.assigned_work[node] = {name: tests for name, tests in files.items() if not all(tests.values())}
        return super().remove_node(node)

    def schedule(self) -> None:
        super().schedule()
        for node in self.nodes:  # a worker runs its last test when it is told that there are no more
            self._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return Scheduler(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Keep what was imported out of later garbage collections: many tests collect, and each would take 0.1 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_line_is_left_out() -> None:
    """Begin each test with no log line of the last minute: its own must not be left out for those of another test."""
    limiter.forget()


@pytest.fixture
def fails_if_it_hangs() -> Iterator[None]:
    """End a test that waits for ever, as for a cluster that has lost a task, while its second try is still possible."""

    def fail(*_: object) -> None:
        pytest.fail("it has not ended after three minutes")

    before = signal.signal(signal.SIGUSR1, fail)
    timer = threading.Timer(180, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGUSR1, before)


class Caller:
    """Binds a policy to a plain function, as it is or made async, and calls it on a virtual clock."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.clock = VirtualClock()
        self.bound: Any = None

    def __call__(self, policy: Policy, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.kind == "sync":
            self.bound = policy.apply(function, clock=self.clock)
            return self.bound

        async def function_async(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        function_async.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        function_async.__annotations__ = getattr(function, "__annotations__", {})
        bound = self.bound = policy.apply(function_async, clock=self.clock)
        return lambda *args, **kwargs: self.clock.run(bound(*args, **kwargs))

    @property
    def slept(self) -> list[float]:
        """The delays so far."""
        return self.clock.slept


@pytest.fixture(params=["sync", "async"])
def bind(request: pytest.FixtureRequest) -> Caller:
    """`bind(policy, function)` gives what a caller of either kind calls; `bind.clock`, `bind.bound`, `bind.slept`."""
    return Caller(request.param)


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    """All events, as they come."""
    events: list[Any] = []
    off = on("*", events.append)
    yield events
    off()


class Script:
    """A function that does one thing after the other: raises exceptions, returns all else. The last is repeated."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        step = self.steps[min(len(self.calls), len(self.steps) - 1)]
        self.calls.append(args)
        if isinstance(step, BaseException):
            raise step
        return step


@pytest.fixture
def script() -> type[Script]:
    return Script
