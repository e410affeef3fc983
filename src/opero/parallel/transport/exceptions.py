"""How exceptions travel between processes: as themselves, or as near as can be."""

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

PACKAGE = str(Path(__file__).parents[1])
DEPTH = 4
"""How deep what an exception holds is searched for what does not pickle."""
LINKS = 8
"""How many causes of causes come along."""


def portable(error: BaseException, held: dict[int, Any] | None = None) -> Any:
    """What arrives as the exception in another process, its traceback as a note: as itself, or as near as can be.

    One whose constructor takes other arguments is built anew without it. What it holds and does not pickle becomes
    text. Where even that fails, its nearest base class stands in. Its cause and context come along.

    Args:
        error: the exception. It stays as it is.
        held: what has become of others, by their identity: one that failed several items is sent once.
    """
    held = {} if held is None else held
    if id(error) not in held:
        text = traceback.TracebackException.from_exception(error)
        _trim(text)
        note = f"In the worker process:\n{''.join(text.format()).rstrip()}"
        held[id(error)] = Arrival(_traveller(error), note, *_links(error, LINKS))
    return held[id(error)]


def _trim(text: traceback.TracebackException) -> None:
    """Leave out this package's own frames, which say nothing of what went wrong."""
    waiting: list[traceback.TracebackException | None] = [text]
    while waiting:
        each = waiting.pop()
        if each is not None:
            own = [frame for frame in each.stack if not frame.filename.startswith(PACKAGE)]
            if own:
                each.stack = traceback.StackSummary.from_list(own)
            waiting += [each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())]


def _links(error: BaseException, depth: int) -> tuple[Any, Any, bool]:
    """What an exception was raised from, and while what was handled."""
    own: tuple[Any, ...] = ()  # of which its class makes one its cause itself
    if isinstance(error, BaseExceptionGroup):
        own = error.exceptions
    elif isinstance(error, CallTimeoutError):
        own = error.errors
    links = [error.__cause__, error.__context__ if error.__context__ is not error.__cause__ else None]
    cause, context = (
        None
        if each is None or not depth or any(each is part for part in own)
        else Arrival(_traveller(each), None, *_links(each, depth - 1))
        for each in links
    )
    return cause, context, error.__suppress_context__


class Arrival:
    """Becomes an exception where it arrives, with what belongs to it and pickling would leave behind."""

    def __init__(self, error: Any, note: str | None, cause: Any, context: Any, suppress: bool) -> None:
        self.parts = error, note, cause, context, suppress

    def __reduce__(self) -> Any:
        return _arrived, self.parts


def _arrived(error: BaseException, note: str | None, cause: Any, context: Any, suppress: bool) -> BaseException:
    error.__traceback__ = None  # which some packages, as dask, teach exceptions to take along: the note has it
    if isinstance(error, SystemExit) and error.code is None and len(error.args) == 1:
        error.code = error.args[0]  # which the same packages leave behind
    if note is not None:
        BaseException.add_note(error, note)
    if cause is not None:
        error.__cause__ = cause
    if context is not None or cause is not None:
        error.__context__ = context or cause
    if suppress:
        error.__suppress_context__ = True
    return error


def _traveller(error: BaseException) -> Any:
    """What pickles, and is the exception once it is read."""
    kind = type(error)
    if not _attributes(error, only_slots=True) and _arrives(error, error):
        return error
    with suppress(Exception):
        # As the class itself says how to build it, with what does not pickle in it replaced.
        reduced: Any = error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        build, held = reduced[0], reduced[2] if len(reduced) > 2 else None
        if not isinstance(build, type) or isinstance(error, BaseExceptionGroup):
            rebuilt = Carried(build, _travelling(reduced[1], DEPTH), _travelling(held, DEPTH))
            if _arrives(rebuilt, error):
                return rebuilt
    args = tuple(_travelling(each, DEPTH) for each in error.args)
    state = {name: _travelling(value, DEPTH) for name, value in _attributes(error).items()}
    carried = Carried(_revived, (kind, args, state))
    if _arrives(carried, error):
        return carried
    if _arrives(error, error, exactly=False):
        return error
    if _arrives(carried, error, exactly=False):
        return carried
    told = f"{kind.__name__}: {text_of(error)}"
    for base in kind.__mro__[1:]:
        if issubclass(base, BaseException) and base is not BaseException:
            stand_in = Carried(_revived, (base, (told,), {}))
            with suppress(Exception):
                if type(loads(dumps(stand_in))) is base:
                    return stand_in
    return RuntimeError(told)


def _attributes(error: BaseException, *, only_slots: bool = False) -> dict[str, Any]:
    """What an exception holds besides its arguments: as attributes, in slots, and in those of builtin classes."""
    state = {} if only_slots else dict(error.__dict__)
    for kind in type(error).__mro__:
        if kind in (BaseException, object) or (only_slots and kind.__module__ == "builtins"):
            continue
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType) and name[:2] != "__":
                with suppress(AttributeError):
                    state[name] = getattr(error, name)
    return state


class Carried:
    """Is built by a function where it arrives."""

    def __init__(self, build: Any, args: tuple[Any, ...], state: Any = None) -> None:
        self.parts = (build, args) if state is None else (build, args, state)

    def __reduce__(self) -> Any:
        return self.parts


def _revived(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """An exception without its constructor."""
    error = kind.__new__(kind, *args)
    if not isinstance(error, BaseExceptionGroup):
        error.args = args
    for name, value in state.items():
        with suppress(AttributeError, TypeError):  # some are for reading only
            object.__setattr__(error, name, value)
    return error


def _arrives(sent: Any, error: BaseException, *, exactly: bool = True) -> bool:
    """Whether that becomes the exception: of the same class, and of the same text; else at least one that has one."""
    try:
        return _is_like(loads(dumps(sent)), error, exactly=exactly)
    except Exception:  # noqa: BLE001  # that is the question
        return False


def _is_like(copy: BaseException, error: BaseException, *, exactly: bool) -> bool:
    if type(copy) is not type(error) or (exactly and text_of(copy) != text_of(error)):
        return False
    if not isinstance(error, BaseExceptionGroup) or not isinstance(copy, BaseExceptionGroup):
        return True
    pairs = zip(copy.exceptions, error.exceptions, strict=True)
    return all(_is_like(part, original, exactly=exactly) for part, original in pairs)


def _travelling(value: Any, depth: int) -> Any:
    """The same value with what does not pickle in it replaced: exceptions by what arrives as them, others by text."""
    if isinstance(value, BaseException):
        return _traveller(value)
    try:
        loads(dumps(value))
    except Exception:  # noqa: BLE001  # it, or a part of it
        pass
    else:
        return value
    if depth:
        if type(value) is dict:
            return {_travelling(key, 0): _travelling(each, depth - 1) for key, each in value.items()}
        if isinstance(value, list | tuple):
            parts = [_travelling(each, depth - 1) for each in value]
            with suppress(Exception):
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return shown(value)
