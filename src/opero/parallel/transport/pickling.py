"""Pickling for workers: by value where a name would not resolve, and errors that name the part that failed."""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Iterator, Sequence
from typing import Any

from cloudpickle.cloudpickle import list_registry_pickle_by_value

from opero.errors import ConfigError, described, message_of
from opero.parallel.transport.context import is_picklable
from opero.parallel.transport.variables import Pickler

loads = pickle.loads
"""Only given data that our own processes wrote."""

DEPTH = 8
"""How many levels of a value are searched for the part that cannot be pickled."""


def dumps(value: Any) -> bytes:
    """Pickle a value for another process, in which `__main__` and local scopes differ."""
    if not list_registry_pickle_by_value():
        try:
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001  # cloudpickle supports more, and its errors are clearer
            pass
        else:
            if b"__main__" not in data:  # it may refer to a name that only this program has
                return data
    return Pickler.dumps(value)


def pickled(value: Any, label: str) -> bytes:
    """Pickle a value for a worker.

    Raises:
        ConfigError: the value cannot be pickled; the message names the part at fault.
    """
    try:
        return dumps(value)
    except Exception as error:
        path, part = _unpicklable_part(value)
        cause = f", because of {' of '.join(reversed(path))}, {described(part, 80)}" if path else ""
        raise ConfigError(
            f"{label} cannot be sent to a worker process{cause}: {message_of(error)}; use mode='thread', or create "
            "that object in the worker: on first use, or in an initializer"
        ) from error


def shown(value: Any, most: int | None = None) -> str:
    """The repr of a value, or its class name if its `__repr__` fails."""
    try:
        return repr(value)[:most]
    except Exception:  # noqa: BLE001  # the value's own
        return f"<{type(value).__name__}>"


def _unpicklable_part(value: Any) -> tuple[list[str], Any]:
    """The innermost part that cannot be pickled, and the path to it."""
    path: list[str] = []
    seen = {id(value)}
    while len(path) < DEPTH:
        for name, part in _parts(value):
            if id(part) not in seen and not is_picklable(part):
                path.append(name)
                seen.add(id(part))
                value = part
                break
        else:
            break
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value, each with its name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"value {shown(key, 80)}", part
            yield f"key {shown(key, 80)}", key
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"item {index}", part
    elif isinstance(value, types.MethodType):
        yield f"instance {type(value.__self__).__name__!r}", value.__self__
        yield "function", value.__func__
    elif isinstance(value, functools.partial):
        yield "function", value.func
        for index, part in enumerate(value.args):
            yield f"argument {index}", part
        for name, part in value.keywords.items():
            yield f"argument {name!r}", part
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    else:
        for kind in type(value).__mro__:
            for name in _slots(kind):
                if hasattr(value, name):
                    yield f"attribute {name!r}", getattr(value, name)
        for name, part in dict(getattr(value, "__dict__", {})).items():
            yield f"attribute {name!r}", part


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"variable {name!r}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    defaults = function.__defaults__ or ()
    named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for name, part in (*zip(named, defaults, strict=False), *(function.__kwdefaults__ or {}).items()):
        yield f"default of {name!r}", part
    waiting = [code]
    while waiting:
        each = waiting.pop()
        for name in each.co_names:
            if name in function.__globals__:
                yield f"global {name!r}", function.__globals__[name]
        waiting += [inner for inner in each.co_consts if isinstance(inner, types.CodeType)]
    for name, part in vars(function).items():
        yield f"attribute {name!r}", part
