"""Awaits the async functions of a user's that decide about failures and results of an async function.

The layers decide without waiting. So these functions are asked where an attempt ends, and the layers read the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opero.cache.retention import time_to_live
from opero.errors import RejectedError, describe
from opero.executors.conditions import report_broken
from opero.executors.state.budget import FOREVER
from opero.failures.kinds import Kind
from opero.runtime.async_library import await_within
from opero.runtime.functions import is_async_function
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.classifier import Classifier
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def asking(layer: Layer, functions: list[Callable[[Exception], Any]], clock: Clock, classifier: Classifier) -> Layer:
    """Return a layer that makes an attempt, and if it fails asks these functions, which have until the deadline."""

    async def asked(call: Call, args: Args, kwargs: Kwargs) -> Any:
        call.answers = None
        try:
            return await layer(call, args, kwargs)
        except Exception as error:
            # The layers do not ask about these either.
            if not isinstance(error, RejectedError) and classifier.kind_of(error) is not Kind.CONTROL:
                left = call.time_left(clock.monotonic())
                call.answers = {each: await _answer(each, error, left) for each in functions}
            raise

    return asked


async def _answer(function: Callable[[Exception], Any], error: Exception, seconds: float) -> bool:
    try:
        if seconds == FOREVER:
            return bool(await function(error))
        return bool(await await_within(max(0.0, seconds), function(error)))
    except Exception as own:  # noqa: BLE001  # a user's function may raise anything
        report_broken(function, own)
        return False


def keeping(layer: Layer, policy: CachePolicy, keeps_error: Callable[[Exception], bool], name: str) -> Layer:
    """Return a layer that asks an async `cache_if` whether the cache around it may keep a result, and an async `ttl`
    for how long.

    Args:
        layer: makes the call.
        policy: that of the cache.
        keeps_error: returns whether the cache keeps an exception.
        name: the function's name, for messages.
    """
    cache_if = policy.cache_if if is_async_function(policy.cache_if) else None
    ttl: Any = policy.ttl if is_async_function(policy.ttl) else None

    async def ask(call: Call, result: Any, error: Exception | None) -> None:
        option = "cache_if"
        try:
            if error is None and cache_if is not None and not await cache_if(result):
                call.fell_back = True
                return
            if ttl is not None and (error is None or policy.error_ttl is None):
                option = "cache_ttl"
                call.ttl = time_to_live(await ttl())
        except Exception as own:  # noqa: BLE001  # as above: the call has a result
            call.fell_back = True
            text = "%s: result not cached: the %s function raised %s"
            log("cache_function_failed", text, name, option, describe(own), about=call.stats, what=option, error=own)

    async def judged(call: Call, args: Args, kwargs: Kwargs) -> Any:
        try:
            result = await layer(call, args, kwargs)
        except Exception as error:
            if ttl is not None and not call.fell_back and keeps_error(error):
                await ask(call, None, error)
            raise
        if not call.fell_back:
            await ask(call, result, None)
        return result

    return judged
