"""Exceptions across processes: as themselves, or as similar as possible."""

from __future__ import annotations

import pickle
import traceback
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

from opero.errors import CallTimeoutError, text_of
from opero.parallel.transport.pickling import dumps, loads, shown

__all__ = ["portable"]

PACKAGE = str(Path(__file__).parents[2])
TESTING = str(Path(PACKAGE, "testing"))
"""Functions of the conformance suite are not internal: they are mapped."""
DEPTH = 4
"""How many levels of an exception's contents are searched for parts that cannot be pickled."""
LINKS = 8
"""How many causes of causes are sent."""


def portable(error: BaseException, sent: dict[int, Any] | None = None) -> Any:
    """An object that is unpickled as the exception, with its traceback as a note.

    An exception whose constructor takes other arguments is rebuilt without it. Contents that cannot be pickled become
    text. If even that fails, its nearest base class replaces it. Its cause and context are sent, too.

    Args:
        error: the exception. It is not changed.
        sent: the results of earlier calls, by identity: an exception of several items is sent once.
    """
    sent = {} if sent is None else sent
    if id(error) not in sent:
        text = traceback.TracebackException.from_exception(error)
        _trim(text)
        note = f"In the worker process:\n{''.join(text.format()).rstrip()}"
        sent[id(error)] = Packed(_picklable(error), note, *_links(error, LINKS))
    return sent[id(error)]


def _trim(text: traceback.TracebackException) -> None:
    """Leave out the frames of opero itself."""
    waiting: list[traceback.TracebackException | None] = [text]
    while waiting:
        each = waiting.pop()
        if each is not None:
            others = [frame for frame in each.stack if not _is_internal(frame.filename)]
            if others:
                each.stack = traceback.StackSummary.from_list(others)
            waiting += [each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())]


def _is_internal(filename: str) -> bool:
    return filename.startswith(PACKAGE) and not filename.startswith(TESTING)


def _links(error: BaseException, depth: int) -> tuple[Any, Any, bool]:
    """The cause and the context of an exception."""
    own: tuple[Any, ...] = ()  # its class sets one of these as its cause
    if isinstance(error, BaseExceptionGroup):
        own = error.exceptions
    elif isinstance(error, CallTimeoutError):
        own = error.errors
    links = [error.__cause__, error.__context__ if error.__context__ is not error.__cause__ else None]
    cause, context = (
        None
        if each is None or not depth or any(each is part for part in own)
        else Packed(_picklable(each), None, *_links(each, depth - 1))
        for each in links
    )
    return cause, context, error.__suppress_context__


class Packed:
    """Is unpickled as an exception, with its note, cause and context, which pickling would drop."""

    def __init__(self, error: Any, note: str | None, cause: Any, context: Any, suppress: bool) -> None:
        self.parts = error, note, cause, context, suppress

    def __reduce__(self) -> Any:
        return _unpack, self.parts


def _unpack(error: BaseException, note: str | None, cause: Any, context: Any, suppress: bool) -> BaseException:
    error.__traceback__ = None  # which some packages, such as dask, make picklable: the note has it
    if isinstance(error, SystemExit) and error.code is None and len(error.args) == 1:
        error.code = error.args[0]  # which the same packages drop
    if note is not None:
        BaseException.add_note(error, note)
    if cause is not None:
        error.__cause__ = cause
    if context is not None or cause is not None:
        error.__context__ = context or cause
    if suppress:
        error.__suppress_context__ = True
    return error


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
