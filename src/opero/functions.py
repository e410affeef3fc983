"""What can be told of a callable by looking at it."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FunctionKind", "full_name", "is_method", "kind_of", "parameters_of", "short_name"]

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


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Its parameters; none where it does not tell, as some builtins."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def short_name(function: Callable[..., Any]) -> str:
    """`qualname`, or what the callable says of itself."""
    return getattr(function, "__qualname__", None) or repr(function)


def full_name(function: Callable[..., Any]) -> str:
    """`module.qualname`, or what the callable says of itself."""
    name: Any = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None) or type(function).__module__  # a slot's wrapper has none
    return f"{module}.{name}" if name else repr(function)
