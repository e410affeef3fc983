"""Exceptions across processes: as themselves, or as similar as possible."""

from __future__ import annotations

import pickle
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.errors import CallTimeoutError, text_of
from opero.parallel.transport.pickling import dumps, loads, shown
from opero.runtime.tracebacks import lines_of, set_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

DEPTH = 4
"""How many levels of an exception's contents are searched for parts that cannot be pickled."""
LINKS = 8
"""How many causes of causes are sent."""


def portable(error: BaseException, sent: dict[int, Any] | None = None) -> Any:
    """An object that is unpickled as the exception, with a traceback of the same lines.

    An exception whose constructor takes other arguments is rebuilt without it. Contents that cannot be pickled become
    text. If even that fails, its nearest base class replaces it. Its cause and context are sent, too.

    Args:
        error: the exception. It is not changed.
        sent: the results of earlier calls, by identity: an exception of several items is sent once.
    """
    sent = {} if sent is None else sent
    if id(error) not in sent:
        sent[id(error)] = _portable(error, LINKS)
    return sent[id(error)]


def _portable(error: BaseException, depth: int) -> Any:
    return Rebuilt(_unpack, (_picklable(error), _details(error, depth)))


class Details(NamedTuple):
    """What pickling drops of an exception: its traceback, cause and context, and those of its parts."""

    lines: tuple[tuple[str, int, str], ...]
    cause: Any
    context: Any
    suppresses_context: bool
    parts: tuple[Details, ...]


def _parts(error: BaseException) -> Sequence[BaseException]:
    """The exceptions that an exception consists of. Its class may set one of them as its cause."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions
    return error.errors if isinstance(error, CallTimeoutError) else ()


def _details(error: BaseException, depth: int) -> Details:
    parts = _parts(error)
    cause, context = (
        None if each is None or not depth or any(each is part for part in parts) else _portable(each, depth - 1)
        for each in (error.__cause__, error.__context__ if error.__context__ is not error.__cause__ else None)
    )
    inner = tuple(_details(part, depth - 1) for part in parts) if depth else ()
    return Details(lines_of(error), cause, context, error.__suppress_context__, inner)


def _unpack(error: BaseException, details: Details) -> BaseException:
    """An unpickled exception with what pickling drops."""
    if isinstance(error, SystemExit) and error.code is None and len(error.args) == 1:
        error.code = error.args[0]  # which some packages drop, such as dask, that make tracebacks picklable
    _restore(error, details)
    return error


def _restore(error: BaseException, details: Details) -> None:
    # Not by assignment, which an exception class may refuse, such as a frozen dataclass.
    lines, cause, context, suppresses_context, parts = details
    set_lines(error, lines)
    if cause is not None:
        _set("__cause__", error, cause)
    if context is not None or cause is not None:
        _set("__context__", error, context or cause)
    if suppresses_context:
        _set("__suppress_context__", error, True)
    for part, inner in zip(_parts(error), parts, strict=False):  # what replaces an exception may have no parts
        _restore(part, inner)


def _set(name: str, error: BaseException, value: Any) -> None:
    vars(BaseException)[name].__set__(error, value)


def _picklable(error: BaseException) -> Any:
    """An object that can be pickled, and is unpickled as the exception."""
    kind = type(error)
    if not _attributes(error, only_slots=True) and _survives(error, error):
        return error
    with suppress(Exception):
        # As the class itself says how to build it, with the parts that cannot be pickled replaced.
        reduced: Any = error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        build, held = reduced[0], reduced[2] if len(reduced) > 2 else None
        if not isinstance(build, type) or isinstance(error, BaseExceptionGroup):
            own = Rebuilt(build, _picklable_part(reduced[1], DEPTH), _picklable_part(held, DEPTH))
            if _survives(own, error):
                return own
    args = tuple(_picklable_part(each, DEPTH) for each in error.args)
    state = {name: _picklable_part(value, DEPTH) for name, value in _attributes(error).items()}
    rebuilt = Rebuilt(_rebuild, (kind, args, state))
    if _survives(rebuilt, error):
        return rebuilt
    if _survives(error, error, exactly=False):
        return error
    if _survives(rebuilt, error, exactly=False):
        return rebuilt
    text = f"{kind.__name__}: {text_of(error)}"
    for base in kind.__mro__[1:]:
        if issubclass(base, BaseException) and base is not BaseException:
            stand_in = Rebuilt(_rebuild, (base, (text,), {}))
            with suppress(Exception):
                if type(loads(dumps(stand_in))) is base:
                    return stand_in
    return RuntimeError(text)


def _attributes(error: BaseException, *, only_slots: bool = False) -> dict[str, Any]:
    """The contents of an exception besides its arguments: attributes, slots, and members of builtin classes."""
    state = {} if only_slots else dict(error.__dict__)
    for kind in type(error).__mro__:
        if kind in (BaseException, object) or (only_slots and kind.__module__ == "builtins"):
            continue
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType) and name[:2] != "__":
                with suppress(AttributeError):
                    state[name] = getattr(error, name)
    return state


class Rebuilt:
    """Is unpickled by calling a function."""

    def __init__(self, build: Any, args: tuple[Any, ...], state: Any = None) -> None:
        self.parts = (build, args) if state is None else (build, args, state)

    def __reduce__(self) -> Any:
        return self.parts


def _rebuild(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Build an exception without calling its constructor."""
    error = kind.__new__(kind, *args)
    if not isinstance(error, BaseExceptionGroup):
        error.args = args
    for name, value in state.items():
        with suppress(AttributeError, TypeError):  # some are read-only
            object.__setattr__(error, name, value)
    return error


def _survives(sent: Any, error: BaseException, *, exactly: bool = True) -> bool:
    """Whether that is unpickled as the exception: of the same class and, if `exactly`, the same text."""
    try:
        return _is_like(loads(dumps(sent)), error, exactly=exactly)
    except Exception:  # noqa: BLE001  # the answer
        return False


def _is_like(copy: BaseException, error: BaseException, *, exactly: bool) -> bool:
    if type(copy) is not type(error) or (exactly and text_of(copy) != text_of(error)):
        return False
    if not isinstance(error, BaseExceptionGroup) or not isinstance(copy, BaseExceptionGroup):
        return True
    pairs = zip(copy.exceptions, error.exceptions, strict=True)
    return all(_is_like(part, original, exactly=exactly) for part, original in pairs)


def _picklable_part(value: Any, depth: int) -> Any:
    """The value, with parts that cannot be pickled replaced: exceptions by such objects, others by text."""
    if isinstance(value, BaseException):
        return _picklable(value)
    try:
        loads(dumps(value))
    except Exception:  # noqa: BLE001  # the value, or a part of it
        pass
    else:
        return value
    if depth:
        if type(value) is dict:
            return {_picklable_part(key, 0): _picklable_part(each, depth - 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            parts = [_picklable_part(each, depth - 1) for each in value]
            with suppress(Exception):
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return shown(value)
