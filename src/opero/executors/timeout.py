"""Ends attempts that take too long, and sets the deadlines: of the call, and of calls that an attempt makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import CallTimeoutError
from opero.policies.types import approximate_duration, format_duration
from opero.runtime.deadlines import Deadline, current, restore, run_until, sooner
from opero.runtime.interruption import Expired
from opero.runtime.time_limits import Here, run_and_judge

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.observe.stats import Stats
    from opero.policies.timeout import TimeoutPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.generators import Started
    from opero.runtime.time_limits import Place


class TimeoutExecutor:
    """Limits one function's attempts to the attempt timeout and the rest of the total timeout.

    Args:
        policy: the timeout policy.
        clock: the source of time.
        name: the function's name, for messages.
        is_stream: whether the function is a generator: an attempt ends with its first item, and each later item has a
            limit of its own.

    Attributes:
        limits: the timeouts of an attempt, besides the total one, each with the name of its field.
    """

    def __init__(self, policy: TimeoutPolicy, clock: Clock, name: str, *, is_stream: bool = False) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.is_stream = is_stream
        self.idle = policy.idle if is_stream else None
        fields = ("attempt", "idle") if is_stream else ("attempt",)
        self.limits = sorted((seconds, field) for field in fields if (seconds := getattr(policy, field)) is not None)
        self.shortest = self.limits[0][0] if self.limits else float("inf")

    def time_for(self, call: Call) -> tuple[float, Deadline]:
        """Return the seconds that an attempt may take if it starts now, and the deadline of the calls that it makes.

        Raises:
            CallTimeoutError: there is no time left.
        """
        monotonic = self.clock.monotonic
        now = monotonic()
        left = call.time_left(now)
        if left <= 0:
            call.turned_away = True
            raise self.expired(call, left)
        if left < self.shortest:
            return left, call.inherited or Deadline(now + left, monotonic)
        return self.shortest, Deadline(now + self.shortest, monotonic)

    def expired(self, call: Call, allowed: float) -> CallTimeoutError:
        """Return the error for an attempt that took longer than `allowed` seconds, and count it."""
        total = self.policy.total
        if call.inherited is not None and allowed < self.shortest:
            if allowed <= 0:
                return call.out_of_time(f"{self.name}: not begun, as {call.limit} has passed")
            message = f"{self.name} took longer than {call.limit} left, {approximate_duration(allowed)}"
            return call.stats.count_timeout(CallTimeoutError(message, scope="deadline"))
        if total is not None and allowed < self.shortest:
            message = f"{self.name} took longer than its total timeout of {format_duration(total)}"
            return call.stats.count_timeout(CallTimeoutError(message, scope="total", seconds=total))
        seconds, field = self.limits[0]
        if field == "idle":
            return self.idle_expired(call.stats, "first")
        message = f"an attempt of {self.name} took longer than its timeout of {format_duration(seconds)}"
        return call.stats.count_timeout(CallTimeoutError(message, scope=field, seconds=seconds))

    def idle_expired(self, stats: Stats, which: str = "next") -> CallTimeoutError:
        """Return the error for a stream whose next item took too long, and count it."""
        seconds = self.policy.idle or 0.0
        message = f"{self.name} took longer than its idle timeout of {format_duration(seconds)} for the {which} item"
        return stats.count_timeout(CallTimeoutError(message, scope="idle", seconds=seconds))

    def deadline_of_step(self) -> Deadline:
        """Return the deadline of the calls that a stream makes for its next item."""
        monotonic = self.clock.monotonic
        return sooner(Deadline(monotonic() + (self.idle or float("inf")), monotonic))

    # The whole call

    def wrap_total(self, layer: Layer) -> Layer:
        total, now = self.policy.total or 0.0, self.clock.monotonic

        def timed(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            deadline = now() + total
            if call.deadline is None or deadline < call.deadline:
                call.deadline, call.inherited = deadline, None
            return layer(call, args, kwargs)  # for an async function a coroutine, which starts when it is awaited

        return timed

    # One attempt

    def wrap(self, layer: Layer) -> Layer:
        if not self.limits and self.policy.total is None:
            return layer  # of a profile whose idle timeout is for other functions
        if self.policy.enforce == "none":
            return self._wrap_unlimited(layer)
        if self.is_stream:
            return self._wrap_stream(layer)
        within = self._within()

        def bounded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            allowed, deadline = self.time_for(call)
            token = current.set(deadline)
            try:
                return within(allowed, layer, call, args, kwargs)
            except Expired as expired:
                raise self.expired(call, allowed) from expired.__cause__
            finally:
                restore(token)

        return bounded

    def _within(self) -> Callable[..., Any]:
        if self.policy.enforce == "wait":
            return partial(run_and_judge, self.clock.monotonic)
        return self.clock.run_within

    def _wrap_unlimited(self, layer: Layer) -> Layer:
        """Return the layer that begins no attempt after the deadline."""

        def begun(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            _, deadline = self.time_for(call)
            token = current.set(deadline)
            try:
                return layer(call, args, kwargs)
            finally:
                restore(token)

        return begun

    def _wrap_stream(self, layer: Layer) -> Layer:
        waits, monotonic = self.policy.enforce == "wait", self.clock.monotonic

        def bounded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            allowed, deadline = self.time_for(call)
            place = Here(self._within(), monotonic) if waits else self.clock.place()
            try:
                started: Started = place.run(allowed, run_until, deadline, layer, call, args, kwargs)
            except Expired as expired:
                place.release()
                raise self.expired(call, allowed) from expired.__cause__
            except BaseException:
                place.release()
                raise
            if self.idle is not None or type(place) is not Here:
                started.steps = _Steps(self, call.stats, started, place)
            return started

        return bounded

    def wrap_async(self, layer: Layer) -> Layer:
        if not self.limits and self.policy.total is None:
            return layer
        if self.policy.enforce == "none":
            return self._wrap_unlimited_async(layer)
        within, idle = self._within_async(), self.idle

        async def bounded(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            allowed, deadline = self.time_for(call)
            token = current.set(deadline)
            try:
                result = await within(allowed, layer(call, args, kwargs))
            except Expired as expired:
                raise self.expired(call, allowed) from expired.__cause__
            finally:
                restore(token)
            if idle is not None:
                result.steps = _AsyncSteps(self, call.stats, result, within)
            return result

        return bounded

    def _within_async(self) -> Callable[[float, Awaitable[Any]], Awaitable[Any]]:
        from opero.runtime.async_library import await_within  # sync functions do without asyncio

        return partial(await_and_judge, self.clock.monotonic) if self.policy.enforce == "wait" else await_within

    def _wrap_unlimited_async(self, layer: Layer) -> Layer:
        async def begun(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            _, deadline = self.time_for(call)
            token = current.set(deadline)
            try:
                return await layer(call, args, kwargs)
            finally:
                restore(token)

        return begun


async def await_and_judge(monotonic: Callable[[], float], seconds: float, awaitable: Awaitable[Any]) -> Any:
    """Return the result of an awaitable, which is not cancelled.

    Raises:
        Expired: it took longer than `seconds`, and raised no exception.
    """
    started = monotonic()
    result = await awaitable
    if monotonic() - started > seconds:
        raise Expired
    return result


class _Steps:
    """Runs a generator from item to item, each within the idle timeout, and all in one thread."""

    def __init__(self, executor: TimeoutExecutor, stats: Stats, started: Started, place: Place) -> None:
        self.executor = executor
        self.stats = stats
        self.close = partial(place.run, None, started.generator.close)
        self.place = place
        place.begin(started.generator.close)
        started.on_end(lambda _: place.release())

    def run(self, step: Callable[[Any], Any], message: Any) -> Any:
        """Return the next item."""
        try:
            return self.place.run(self.executor.idle, run_until, self.executor.deadline_of_step(), step, message)
        except Expired as expired:
            with suppress(Exception):
                self.place.expire()
            raise self.executor.idle_expired(self.stats) from expired.__cause__


class _AsyncSteps:
    """Runs an async generator from item to item, each within the idle timeout."""

    def __init__(
        self, executor: TimeoutExecutor, stats: Stats, started: Started, within: Callable[..., Awaitable[Any]]
    ) -> None:
        self.executor = executor
        self.stats = stats
        self.within = within
        self.close = started.generator.aclose

    async def run(self, step: Awaitable[Any]) -> Any:
        """Return the next item."""
        token = current.set(self.executor.deadline_of_step())
        try:
            return await self.within(self.executor.idle or 0.0, step)
        except Expired as expired:
            with suppress(Exception):
                await self.close()
            raise self.executor.idle_expired(self.stats) from expired.__cause__
        finally:
            restore(token)
