"""What can be told of a callable by looking at it."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FunctionKind", "full_name", "is_method", "kind_of", "names_of", "short_name", "signature_of"]

FunctionKind = Literal["sync", "async", "generator", "async_generator"]


def kind_of(function: Callable[..., Any]) -> FunctionKind:
    """Whether a callable is sync or async, and whether it is a generator function."""
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
    """Whether a function was defined in the body of a class and takes the instance, or the class, first."""
    outer = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not outer or outer.endswith("<locals>") or not inspect.isfunction(function):
        return False
    return next(iter(inspect.signature(function).parameters), None) in ("self", "cls")


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """A callable's signature; None of one that tells none, as `int`, `max` and other builtins do not."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def short_name(function: Callable[..., Any]) -> str:
    """`qualname`; of an object that is called, `Class.__call__`; of a `partial`, the name of what it calls."""
    return names_of(function)[1]


def full_name(function: Callable[..., Any]) -> str:
    """`module.qualname`, as `short_name`."""
    return ".".join(names_of(function))


def names_of(function: Any) -> tuple[str, str]:
    """A callable's module and qualified name. They never come of its `repr`, which may show a secret that it holds."""
    while isinstance(function, functools.partial) and "__qualname__" not in vars(function):
        function = function.func
    name = getattr(function, "__qualname__", None)
    if isinstance(name, str) and name:
        # A slot's wrapper has no module.
        return getattr(function, "__module__", None) or type(function).__module__, name
    return type(function).__module__, f"{type(function).__qualname__}.__call__"
