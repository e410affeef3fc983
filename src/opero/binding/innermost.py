"""The innermost layer of a pipeline: it calls the function, and looks at what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opero.failures.kinds import ORDINARY
from opero.runtime.hosts import AsyncHost
from opero.runtime.interruption import interruptible

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.call import Call, Layer
    from opero.executors.feedback import Feedback, Lesson


def innermost(
    target: Target,
    function: Callable[..., Any],
    check: Callable[[Any], None] | None = None,
    feedback: Feedback | None = None,
) -> Layer:
    """Return the function as the innermost layer. The coroutine of an async function is passed on as it is, unless what
    it returns is to be looked at.

    Args:
        target: the function, as it was bound.
        function: what to call.
        check: raises an exception for a result that is a failed response.
        feedback: tells the rate limit what comes of the attempt.
    """
    if feedback is not None:
        return _telling(target, function, check, feedback)
    stats = target.stats

    @interruptible
    def invoke(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        return function(*args, **kwargs)

    if check is None:
        return invoke

    @interruptible
    def invoke_checked(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        result = function(*args, **kwargs)
        cls = type(result)
        if cls not in ORDINARY and (cls is not dict or "ResponseMetadata" in result):
            check(result)
        return result

    async def invoke_checked_async(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        result = await function(*args, **kwargs)
        cls = type(result)
        if cls not in ORDINARY and (cls is not dict or "ResponseMetadata" in result):
            check(result)
        return result

    return invoke_checked_async if target.is_async else invoke_checked


def _telling(
    target: Target, function: Callable[..., Any], check: Callable[[Any], None] | None, feedback: Feedback
) -> Layer:
    """Return the innermost layer with feedback for the rate limit."""
    stats, told = target.stats, feedback.for_call
    host = AsyncHost(target.clock)

    @interruptible
    def invoke(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            _do(told(call).raised(error))
            raise
        cls = type(result)
        if (cls is dict and "ResponseMetadata" not in result) or cls in ORDINARY:
            return result
        _do(told(call).returned(result))
        if check is not None:
            check(result)
        return result

    async def invoke_async(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        try:
            result = await function(*args, **kwargs)
        except Exception as error:
            await _do_async(call, told(call).raised(error))
            raise
        cls = type(result)
        if (cls is dict and "ResponseMetadata" not in result) or cls in ORDINARY:
            return result
        await _do_async(call, told(call).returned(result))
        if check is not None:
            check(result)
        return result

    async def _do_async(call: Call, lesson: Lesson | None) -> None:
        if lesson is not None:
            await told(call).take_in(host, lesson)

    if not feedback.is_adaptive:
        return invoke_async if target.is_async else invoke

    # Where the rate is found, every result counts, and when its call was sent.
    now = target.clock.monotonic

    @interruptible
    def invoke_counted(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        sent = now()
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            _do(told(call).raised(error, sent))
            raise
        _do(told(call).returned(result, sent))
        if check is not None:
            check(result)
        return result

    async def invoke_counted_async(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.inherited is not None:
            call.check_time()
        stats.executed += 1
        sent = now()
        try:
            result = await function(*args, **kwargs)
        except Exception as error:
            await _do_async(call, told(call).raised(error, sent))
            raise
        await _do_async(call, told(call).returned(result, sent))
        if check is not None:
            check(result)
        return result

    return invoke_counted_async if target.is_async else invoke_counted


def _do(lesson: Lesson | None) -> None:
    if lesson is not None:
        lesson()
