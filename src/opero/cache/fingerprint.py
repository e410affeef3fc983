"""The code of a function as short text, which changes when the function does something else."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any

from opero.cache.content import freeze
from opero.cache.digest import digest, part
from opero.runtime.functions import full_name

GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
PLAIN = (type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset)
MOST_ITEMS = 10_000
"""Larger global containers are data rather than constants."""


def fingerprint(function: FunctionType, *, follows: bool = False) -> str:
    """Return a digest of a function's code, and of the values that it closes over.

    Functions that it closes over, as those of decorators do, count by their code where they are local, else by name.

    Args:
        function: the function.
        follows: whether the functions, classes and constants of the same module that it refers to count, too.
    """
    return blake2b(b"".join(_function(function, follows, set())), digest_size=6).hexdigest()


def innermost(value: Any) -> FunctionType | None:
    """Return the Python function that a bound function, method or descriptor is made of; None if there is none."""
    for _ in range(20):
        if isinstance(value, FunctionType):
            binding = getattr(value, "__wrapped__", None)
            if binding is None or not _is_bound_by_opero(value):
                return value
            value = binding
            continue
        value = next(
            (
                inner
                for name in ("__func__", "fget", "func", "__wrapped__")
                if (inner := getattr(value, name, None)) is not None and inner is not value
            ),
            None,
        )
        if value is None:
            return None
    return None


def _is_bound_by_opero(function: FunctionType) -> bool:
    return hasattr(function, "binding") and hasattr(function, "map")


def _function(function: FunctionType, follows: bool, seen: set[int]) -> Iterator[bytes]:
    code = function.__code__
    if id(code) in seen:  # a recursion
        return
    seen.add(id(code))
    yield from _code(code)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            yield part(b"?", name.encode())
            continue
        yield from _value(name, value, function.__module__, follows, seen)
    if follows:
        for name in sorted(_global_names(code)):
            if name in function.__globals__:
                yield from _global(name, function.__globals__[name], function.__module__, seen)


def _code(code: CodeType) -> Iterator[bytes]:
    """Yield what a code object does, wherever in a file it is."""
    yield part(b"c", code.co_code)
    yield part(b"x", getattr(code, "co_exceptiontable", b""))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield part(b"n", repr((names, code.co_flags, code.co_argcount, code.co_kwonlyargcount)).encode())
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _code(each)
        else:
            yield part(b"v", b"..." if each is ... else digest(freeze(each)).encode())


def _global_names(code: CodeType) -> set[str]:
    found = {each.argval for each in dis.get_instructions(code) if each.opname in GLOBAL}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= _global_names(inner)
    return found


def _global(name: str, value: Any, module: str, seen: set[int]) -> Iterator[bytes]:
    """Yield what counts of a global value: the code of what the same module defines, and constants."""
    if isinstance(value, type):
        if value.__module__ == module and id(value) not in seen:
            seen.add(id(value))
            for attribute, each in sorted(vars(value).items()):
                inner = innermost(each)
                if inner is not None:
                    yield part(b"a", attribute.encode())
                    yield from _function(inner, True, seen)
        return
    yield from _value(name, value, module, True, seen)


def _value(name: str, value: Any, module: str, follows: bool, seen: set[int]) -> Iterator[bytes]:
    """Yield what counts of a variable: code, a name, or a value."""
    yield part(b"k", name.encode())
    inner = innermost(value) if callable(value) or not isinstance(value, PLAIN) else None
    if inner is not None:
        is_local = "<locals>" in inner.__qualname__ or "<lambda>" in inner.__qualname__
        if is_local or (follows and inner.__module__ == module):
            yield from _function(inner, follows, seen)
        else:
            yield part(b"f", full_name(inner).encode())
        return
    if isinstance(value, list | dict | set) and len(value) > MOST_ITEMS:
        yield part(b"?", type(value).__name__.encode())
        return
    try:
        yield part(b"v", digest(freeze(value)).encode())
    except Exception:  # noqa: BLE001  # a value that has no digest
        yield part(b"?", type(value).__qualname__.encode())
