"""Inspects callables: their kind, signature and name."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from opero.errors import ConfigError, nearest

FunctionKind = Literal["sync", "async", "generator", "async_generator"]


def kind_of(function: Callable[..., Any]) -> FunctionKind:
    """Return whether a callable is sync, async, a generator function or an async generator function."""
    plain = inspect.isroutine(function) or inspect.isclass(function) or isinstance(function, functools.partial)
    candidates = (function,) if plain else (function, type(function).__call__)
    for each in candidates:
        if inspect.iscoroutinefunction(each):
            return "async"
        if inspect.isasyncgenfunction(each):
            return "async_generator"
        if inspect.isgeneratorfunction(each):
            return "generator"
    return "sync"


def is_async_function(value: Any) -> bool:
    """Return whether a value is a function whose result has to be awaited."""
    return callable(value) and kind_of(value) == "async"


def refuse_awaitable(result: Any, name: str) -> None:
    """Check that a sync function has not returned what only runs when it is awaited.

    Futures and tasks run anyway, so a function may have started them on purpose.

    Raises:
        ConfigError: the function returned a coroutine, or the like.
    """
    if inspect.isawaitable(result) and not hasattr(result, "add_done_callback"):
        close = getattr(result, "close", None)
        if callable(close):
            with suppress(Exception):
                close()  # else there would be a warning that it was never awaited
        raise ConfigError(
            f"{name} is a sync function and returned a {type(result).__name__}, which runs only when it is awaited, "
            "outside of the policy; define the function with `async def`, or bind the async function that it calls"
        )


def is_method(function: Callable[..., Any]) -> bool:
    """Return whether a function is defined in a class and its first parameter is `self` or `cls`."""
    outer = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not outer or outer.endswith("<locals>") or not inspect.isfunction(function):
        return False
    return next(iter(inspect.signature(function).parameters), None) in ("self", "cls")


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a callable, or None for builtins such as `int` and `max` that have none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def argument_of(function: Callable[..., Any], name: str, purpose: str) -> tuple[int, Any]:
    """Return at which position an argument is passed, beyond all if only by name, and its default.

    Args:
        function: the function.
        name: the name of a parameter.
        purpose: what it is asked for, for the message.

    Raises:
        ConfigError: the function has no such parameter.
    """
    parameters = inspect.signature(function).parameters
    found = parameters.get(name)
    if found is not None and found.kind in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
        raise ConfigError(
            f"{short_name(function)} collects several arguments in {found}, which is not one {purpose}: name another "
            "parameter, or use a function of the arguments"
        )
    if found is None:
        known = nearest(name, parameters)
        raise ConfigError(f"{short_name(function)} has no parameter {name!r} {purpose}{known}")
    by_position = found.kind is not found.KEYWORD_ONLY
    return list(parameters).index(name) if by_position else sys.maxsize, found.default


def short_name(function: Callable[..., Any]) -> str:
    """Return a callable's qualified name: `Class.__call__` for objects; for a `partial`, the name of its function."""
    return names_of(function)[1]


def full_name(function: Callable[..., Any]) -> str:
    """Return a callable's module and qualified name as `module.qualname`."""
    return ".".join(names_of(function))


def names_of(function: Any) -> tuple[str, str]:
    """Return a callable's module and qualified name. Its `repr`, which may show a secret, is not used."""
    while isinstance(function, functools.partial) and "__qualname__" not in vars(function):
        function = function.func
    name = getattr(function, "__qualname__", None)
    if isinstance(name, str) and name:
        # Slot wrappers have no `__module__`.
        return getattr(function, "__module__", None) or type(function).__module__, name
    return type(function).__module__, f"{type(function).__qualname__}.__call__"
