"""What travels between processes: functions by name, values pickled, exceptions as themselves or as near as can be."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import sys
import types
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from cloudpickle.cloudpickle import list_registry_pickle_by_value

from opero.errors import ConfigError, OperoError, text_of
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.context import Pickler, handle_records
from opero.parallel.transport.salvage import broken_in, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.transport.worker import Setup

__all__ = [
    "Ended",
    "dumps",
    "find",
    "items_of",
    "loads",
    "opened",
    "pickled",
    "pickled_setup",
    "reference",
    "shown",
    "unsendable",
]

loads = pickle.loads
"""Only ever given what our own processes have written."""

DEPTH = 8
"""How deep a value is searched for the part that does not pickle."""


def dumps(value: Any) -> bytes:
    """A value pickled for another process, where `__main__` and local scopes are other ones."""
    if not list_registry_pickle_by_value():
        try:
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001  # cloudpickle can do more, and tells better why it cannot
            pass
        else:
            if b"__main__" not in data:  # else it may be by the name of something in this program only
                return data
    return Pickler.dumps(value)


def pickled(value: Any, what: str) -> bytes:
    """A value pickled for a worker.

    Raises:
        ConfigError: it does not pickle; the message names the part that is to blame.
    """
    try:
        return dumps(value)
    except Exception as error:
        path, part = _culprit(value)
        way = f", because of {' of '.join(reversed(path))}, {shown(part, 80)}" if path else ""
        raise ConfigError(
            f"{what} cannot be sent to a worker process{way}: {error}; use mode='thread', or have that made in the "
            "worker: at first use, or by an initializer"
        ) from error


def pickled_setup(setup: Setup, name: str, first: Sequence[Any]) -> bytes:
    """What a worker has to know of a map.

    Args:
        setup: what it has to know.
        name: the function's, for messages.
        first: the first item, where there is one: what it is will not be found out by the workers.

    Raises:
        ConfigError: a part of it does not pickle.
    """
    pickled(setup.reference, name)
    pickled(setup.policy, f"the policy of {name}")
    names = _parameters(setup.reference)
    after = len(setup.rest.before) + 1
    for place, argument in chain(enumerate(setup.rest.before), enumerate(setup.rest.after, after)):
        told = f"{names[place]!r}" if place < len(names) else f"number {place}"
        pickled(argument, f"{told} of the arguments of {name}")
    for key, argument in (setup.rest.kwargs or {}).items():
        pickled(argument, f"{key!r} of the arguments of {name}")
    if setup.initializer is not None:
        pickled(setup.initializer, f"the initializer of {name}")
    for item in first:
        pickled(item, f"the first item of {name}")
    return Pickler.dumps(setup)


def _parameters(reference: Any) -> list[str]:
    """The names of a function's positional parameters."""
    try:
        parameters = inspect.signature(find(reference)).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


class Ended:
    """What a worker sends instead of a report when something ends the whole map.

    Args:
        error: what it was, as it travels.
        failed: what has failed before the first item: the worker could not be made ready. Empty: an item raised it.
        records: what had been logged.
    """

    def __init__(self, error: Any, failed: str, records: list[Any]) -> None:
        self.error = error
        self.failed = failed
        self.records = records

    def exception(self, name: str) -> BaseException:
        """What the caller of the function of that name gets."""
        error: BaseException = self.error
        if not self.failed:
            return error
        told = OperoError(f"{name}: {self.failed} in a worker process: {type(error).__name__}: {text_of(error)}")
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        return told


def items_of(payload: bytes) -> tuple[list[Any], dict[int, Exception]]:
    """The items that were sent, and of those that cannot be read here: position → what was wrong."""
    try:
        return loads(payload), {}
    except Exception:  # noqa: BLE001  # of one of them, or several
        items = read(payload)
        return items, broken_in(items)


def opened(data: bytes, name: str, stats: Stats, sent: Sequence[int] | None = None) -> Report:
    """The report that a worker has pickled. What it has counted and logged is added to what is counted and logged here.

    Args:
        data: what `run_chunk` returned.
        name: the function's, for messages.
        stats: the function's counts.
        sent: the positions in the chunk of what was sent; None: all of it.

    Raises:
        BaseException: what ended the map there.
    """
    broken: dict[int, Exception] = {}
    try:
        told = loads(data)
    except Exception:  # noqa: BLE001  # some result cannot be built here
        told = read(data)
        broken = broken_in(told[0]) if isinstance(told, tuple) else {}
    if isinstance(told, Ended):
        handle_records(told.records)
        raise told.exception(name)
    values, failures, positions, fell_back, seconds, counts, records = told
    for place, error in broken.items():
        values[place] = TypeError(
            f"the result of {name} came back from its worker process and cannot be read here: "
            f"{type(error).__name__}: {text_of(error)}"
        )
        position = place if positions is None else positions[place]
        if position not in failures:
            failures.append(position)
    if counts:
        stats.add(counts)
    if records:
        handle_records(records)
    if sent is not None:
        positions = [sent[each] for each in (range(len(values)) if positions is None else positions)]
        failures, fell_back = ([sent[each] for each in those] for those in (failures, fell_back))
    return Report(values, failures, positions=positions, fell_back=fell_back, seconds=seconds)


def unsendable(chunk: Chunk, name: str) -> tuple[list[int], Report]:
    """The positions of the items that pickle, and a report of the others, which have failed."""
    good, bad, errors = [], [], []
    for position, item in enumerate(chunk.items):
        try:
            pickled(item, f"item {chunk.index(position)} of {name}")
            good.append(position)
        except ConfigError as error:
            bad.append(position)
            errors.append(error)
    return good, Report(errors, bad, positions=bad, is_last=not good)


def _culprit(value: Any) -> tuple[list[str], Any]:
    """The innermost part that does not pickle, and the way to it."""
    path: list[str] = []
    seen = {id(value)}
    while len(path) < DEPTH:
        for name, part in _parts(value):
            if id(part) not in seen and not _pickles(part):
                path.append(name)
                seen.add(id(part))
                value = part
                break
        else:
            break
    return path, value


def _pickles(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:  # noqa: BLE001  # that is the question
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, each with a name."""
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


def shown(value: Any, most: int | None = None) -> str:
    """A value's repr, even where its own `__repr__` fails."""
    try:
        return repr(value)[:most]
    except Exception:  # noqa: BLE001  # its own
        return f"<{type(value).__name__}>"


# Functions


def reference(function: Callable[..., Any]) -> Any:
    """How a worker finds a function: its module and name where they lead back to it, else the function itself."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module and module != "__main__" and "<" not in name:
        with suppress(ImportError):  # such as of a console's namespace, which is no module
            if _found(module, name) is function:
                return module, name
    return function


def find(reference: Any) -> Any:
    """The function that `reference` told of."""
    return _found(*reference) if isinstance(reference, tuple) else reference


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return getattr(getattr(found, "binding", None), "function", found)
