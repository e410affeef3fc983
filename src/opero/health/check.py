"""One health check: a function, its time limit, and how it is run."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from opero.errors import describe, message_of
from opero.health.status import Finding, History
from opero.policies.quantities import parse_duration, without_password
from opero.policies.types import approximate_duration, format_duration
from opero.runtime.async_library import await_or_abandon
from opero.runtime.functions import full_name, kind_of, signature_of
from opero.runtime.hosts import AsyncHost, Outcome
from opero.runtime.interruption import Expired

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike
    from opero.runtime.clock import Clock


class Check:
    """A registered check.

    Args:
        name: its name.
        function: a sync or async function without arguments.
        timeout: how long a run may take.
        critical: whether the program cannot work without it.
        clock: the source of time.

    Attributes:
        history: its results.

    Raises:
        TypeError: the function cannot be called without arguments, or is a generator.
        ValueError: the timeout is no duration.
    """

    def __init__(
        self, name: str, function: Callable[[], Any], timeout: DurationLike, *, critical: bool, clock: Clock
    ) -> None:
        self.name = name
        self.function = _function(name, function)
        self.timeout = _limit(name, timeout)
        self.critical = critical
        self.history = History()
        self._is_async = kind_of(function) == "async"
        self._clock = clock
        self._running: dict[object, float] = {}
        """When each run of the function that has not ended began, including those whose caller has stopped waiting."""

    def after_fork(self) -> None:
        """What runs is the parent's."""
        self._running.clear()

    async def run(self) -> Finding:
        """Run the function within its limit, unless an earlier run has exceeded that and still goes on."""
        started = self._clock.monotonic()
        limit = f"its limit of {format_duration(self.timeout)}"
        longest = max((started - began for began in list(self._running.values())), default=0.0)
        if longest >= self.timeout:
            return Finding(
                "unhealthy",
                f"health check {self.name!r} still runs after {approximate_duration(longest)}, beyond {limit}; it is "
                "not started again before it ends",
            )
        try:
            result = await (self._await(started) if self._is_async else self._call(started))
        except Expired:
            return Finding("unhealthy", f"health check {self.name!r} has not ended within {limit}")
        except Exception as error:  # noqa: BLE001  # a user's check may raise anything
            return Finding("unhealthy", without_password(describe(error)))
        if result is False or (isinstance(result, str) and result == "unhealthy"):
            return Finding("unhealthy", f"the check returned {result!r}")
        if isinstance(result, str) and result == "degraded":
            return Finding("degraded", "the check returned 'degraded'")
        return Finding()

    async def _await(self, started: float) -> Any:
        async def run() -> Any:
            with self._noted(started):
                return await self.function()

        return await await_or_abandon(self.timeout, _without_exit(run()))

    async def _call(self, started: float) -> Any:
        """Call a sync function in a thread, and await what it returns if that is a coroutine, as of a lambda."""
        waiter, outcome, clock = AsyncHost(self._clock).waiter(), Outcome(), self._clock

        def run() -> Any:
            with self._noted(started):
                return self.function()

        def work() -> None:
            try:
                outcome.value = clock.run_within(self.timeout, run)
            except Exception as error:  # noqa: BLE001  # raised below
                outcome.error = error
            except BaseException as error:  # noqa: BLE001  # such as SystemExit, which would end the thread unnoticed
                outcome.error = RuntimeError(describe(error))
            waiter.wake()

        threading.Thread(target=copy_context().run, args=(work,), name="opero-health", daemon=True).start()
        await waiter.wait(None)
        result = outcome.get()
        if not inspect.isawaitable(result):
            return result

        async def rest() -> Any:
            with self._noted(started):
                return await result

        left = max(0.0, self.timeout - (clock.monotonic() - started))
        return await await_or_abandon(left, _without_exit(rest()))

    @contextmanager
    def _noted(self, started: float) -> Iterator[None]:
        token = object()
        self._running[token] = started
        try:
            yield
        finally:
            self._running.pop(token, None)


async def _without_exit(check: Awaitable[Any]) -> Any:
    """Await a check. SystemExit would end the event loop."""
    try:
        return await check
    except SystemExit as error:
        raise RuntimeError(describe(error)) from None


def _function(name: str, check: Any) -> Callable[[], Any]:
    if not callable(check):
        raise TypeError(f"health check {name!r} is not a function but a value of type {type(check).__name__}")
    signature = signature_of(check)
    if signature is not None:
        try:
            signature.bind()
        except TypeError as error:
            raise TypeError(
                f"health check {name!r} is called without arguments: {full_name(check)} is {message_of(error)}"
            ) from None
    if kind_of(check) in ("generator", "async_generator"):
        raise TypeError(f"health check {name!r}: {full_name(check)} is a generator, which checks nothing when called")
    function: Callable[[], Any] = check
    return function


def _limit(name: str, timeout: DurationLike) -> float:
    try:
        seconds = parse_duration(timeout)
    except ValueError as error:
        raise ValueError(f"health check {name!r}: timeout: {message_of(error)}") from None
    if seconds <= 0:
        raise ValueError(f"health check {name!r}: timeout: {timeout!r} is not more than 0")
    return seconds
