"""What a call costs of its rate limit, by its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from opero.errors import describe, described
from opero.runtime.functions import argument_of, is_async_function, short_name
from opero.runtime.log import log

MOST = 1e18
"""The most permits that a call may cost by its arguments."""


def cost_function(
    cost: Any, function: Callable[..., Any]
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any] | None:
    """A function that computes a call's cost from its arguments; None where every call costs the same. If `cost` is
    async, so is that function.

    Raises:
        ConfigError: `cost` names a parameter that the function lacks.
    """
    if isinstance(cost, float | int):
        return None
    if is_async_function(cost):

        async def awaited(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
            return _checked(await cost(*args, **kwargs), function)

        return awaited
    if callable(cost):
        return lambda args, kwargs: _checked(cost(*args, **kwargs), function)
    position, default = argument_of(function, cost, "to take the cost from")

    def from_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        value = args[position] if position < len(args) else kwargs.get(cost, default)
        if value is inspect.Parameter.empty:
            inspect.signature(function).bind(*args, **kwargs)  # raises what the call would
        return _checked(value, function)

    return from_argument


def _checked(cost: Any, function: Callable[..., Any]) -> float:
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= MOST:
        where = short_name(function)
        told = described(cost, 30) if isinstance(cost, int | float) else f"of type {type(cost).__name__}"
        raise ValueError(f"the rate-limit cost of a call of {where} is {told}; it must be a number from 0 to 1e18")
    return float(cost)


def harmless(cost_of: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function that computes a call's cost in shadow: 0 where that raises an exception, which is logged."""

    def report(error: Exception) -> float:
        text = "%s: the cost of a call, in shadow, raised %s"
        log("condition_failed", text, name, describe(error), function=name, error=error)
        return 0.0

    def cost(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        try:
            return float(cost_of(args, kwargs))
        except Exception as error:  # noqa: BLE001  # a user's function may raise anything
            return report(error)

    async def cost_async(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        try:
            return float(await cost_of(args, kwargs))
        except Exception as error:  # noqa: BLE001  # as above
            return report(error)

    return cost_async if is_async_function(cost_of) else cost
