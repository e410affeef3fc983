"""What all tests share: settings for hypothesis, and one way to run a function for both kinds of callers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from opero import Policy
from opero.testing import VirtualClock
from redis_server import redis_server, redis_url

__all__ = ["redis_server", "redis_url"]

settings.register_profile("opero", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("opero")


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
