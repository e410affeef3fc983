"""What travels between processes: functions by name, values pickled, exceptions as themselves or as near as can be."""

from __future__ import annotations

import importlib
import pickle
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudpickle.cloudpickle import list_registry_pickle_by_value

from opero.errors import ConfigError, _rebuild
from opero.parallel.blocks import Report
from opero.parallel.surroundings import Pickler, handle_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opero.parallel.blocks import Chunk
    from opero.parallel.worker import Setup
    from opero.stats import Stats

__all__ = ["dumps", "faithful", "find", "loads", "opened", "pickled", "pickled_setup", "reference", "unsendable"]

loads = pickle.loads
"""Only ever given what our own processes have written."""

PACKAGE = str(Path(__file__).parents[1])
DEPTH = 4
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
        blame = f", because of{path} ({part!r:.80})" if path else ""
        raise ConfigError(
            f"{what} cannot be sent to a worker process{blame}: {error}; use mode='thread' or make it picklable"
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
    for place, argument in enumerate((*setup.rest.before, *setup.rest.after)):
        pickled(argument, f"argument {place + (place >= len(setup.rest.before))} of the arguments of {name}")
    for key, argument in (setup.rest.kwargs or {}).items():
        pickled(argument, f"{key!r} of the arguments of {name}")
    if setup.initializer is not None:
        pickled(setup.initializer, f"the initializer of {name}")
    for item in first:
        pickled(item, f"the first item of {name}")
    return Pickler.dumps(setup)


def opened(data: bytes, stats: Stats, sent: Sequence[int] | None = None) -> Report:
    """The report that a worker has pickled. What it has counted and logged is added to what is counted and logged here.

    Args:
        data: what `run_chunk` returned.
        stats: the function's counts.
        sent: the positions in the chunk of what was sent; None: all of it.
    """
    values, failures, positions, fell_back, seconds, counts, records = loads(data)
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


def _culprit(value: Any, path: str = "", depth: int = DEPTH) -> tuple[str, Any]:
    """The innermost part that does not pickle, and the way to it."""
    if depth:
        for name, part in _parts(value):
            try:
                dumps(part)
            except Exception:  # noqa: BLE001  # found
                return _culprit(part, f"{path}{name}", depth - 1)
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield f" its {key!r}", part
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f" its item {index}", part
    elif hasattr(value, "__code__"):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            try:
                yield f" its variable {name!r}", cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f" its global {name!r}", value.__globals__[name]
    else:
        for name, part in getattr(value, "__dict__", {}).items():
            yield f" its attribute {name!r}", part


# Functions


def reference(function: Callable[..., Any]) -> Any:
    """How a worker finds a function: its module and name where they lead back to it, else the function itself."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module and module != "__main__" and "<" not in name and _found(module, name) is function:
        return module, name
    return function


def find(reference: Any) -> Any:
    """The function that `reference` told of."""
    return _found(*reference) if isinstance(reference, tuple) else reference


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    bound = getattr(found, "binding", None)
    return bound.function if bound is not None else found


# Exceptions


def faithful(error: BaseException) -> Any:
    """What arrives as the exception in another process, its traceback as a note: as itself, or as near as can be.

    One whose constructor takes other arguments is built anew without it. What it holds and does not pickle becomes
    text. Where even that fails, its nearest base class stands in.
    """
    text = "".join(_trimmed(traceback.TracebackException.from_exception(error)).format()).rstrip()
    error.add_note(f"In the worker process:\n{text}")
    return _traveller(error)


def _trimmed(text: traceback.TracebackException) -> traceback.TracebackException:
    """A traceback without this package's own frames, which say nothing of what went wrong."""
    own = [frame for frame in text.stack if not frame.filename.startswith(PACKAGE)]
    if own:
        text.stack = traceback.StackSummary.from_list(own)
    for each in (text.__cause__, text.__context__, *(getattr(text, "exceptions", None) or ())):
        if each is not None:
            _trimmed(each)
    return text


def _traveller(error: BaseException) -> Any:
    if _arrives(error, type(error)):
        return error
    args: tuple[Any, ...] = tuple(_picklable(each) for each in error.args)
    if isinstance(error, BaseExceptionGroup):
        args = error.message, [_traveller(each) for each in error.exceptions]
        if type(error).__reduce__ is not BaseExceptionGroup.__reduce__:
            reduced: Any = error.__reduce__()[1]
            args = reduced[1] if isinstance(reduced[1], tuple) and reduced[1][:1] == (error.message,) else args
            args = error.message, [_traveller(each) for each in error.exceptions]
    state = {name: _picklable(value) for name, value in error.__dict__.items()}
    for kind in type(error).__mro__:
        if kind is object or not issubclass(kind, BaseException):
            break
        carried = Carried(kind, args, state)
        if _arrives(carried, kind):
            return carried
    stand_in = RuntimeError(f"{type(error).__name__}: {error}")
    stand_in.__notes__ = list(getattr(error, "__notes__", ()))
    return stand_in


class Carried:
    """Becomes the exception where it arrives."""

    def __init__(self, kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self.parts = kind, args, state

    def __reduce__(self) -> Any:
        return _rebuild, self.parts


def _arrives(error: Any, kind: type) -> bool:
    try:
        copy = loads(dumps(error))
        return type(copy) is kind and isinstance(str(copy), str)
    except Exception:  # noqa: BLE001  # that is the question
        return False


def _picklable(value: Any) -> Any:
    try:
        loads(dumps(value))
    except Exception:  # noqa: BLE001  # its text must do
        try:
            return repr(value)
        except Exception:  # noqa: BLE001  # not even that
            return f"<{type(value).__name__}>"
    return value
