"""Inspects callables: their kind, signature and name."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FunctionKind", "full_name", "is_method", "kind_of", "names_of", "short_name", "signature_of"]

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
