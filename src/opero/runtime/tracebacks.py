"""Keeps the tracebacks of failed calls short: they have the user's frames, and hold no frame longer than needed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any

from opero.errors import OperoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType, FrameType

    Place = tuple[CodeType, int]  # a function, and a line in it
    Line = tuple[str, int, str]  # a file, a line in it, and the function's name

OWN = str(Path(__file__).parents[1]) + os.sep
"""Where opero's modules are. Generated code has a name of its own, "<opero>"."""
SUITE = str(Path(OWN, "testing", "workers.py"))
"""The conformance suite, whose functions are like the user's."""
LIBRARY = (os.path.dirname(os.__file__) + os.sep, "<frozen ")
"""How the names of files of the standard library begin."""
_own_files = {"<opero>"}
"""The names of opero's files that were in a traceback, and of the code that it generates."""

# Not by assignment, which an exception class may refuse, such as a frozen dataclass.
_set_traceback: Any = BaseException.with_traceback
_set_context: Any = vars(BaseException)["__context__"].__set__

MOST_LINES = 100
"""The most frames of a traceback that are described: those at its two ends."""


def _is_own(traceback: TracebackType) -> bool:
    """Return whether the first frame of a traceback is opero's."""
    return is_own_file(traceback.tb_frame.f_code.co_filename)


def is_own_file(name: str) -> bool:
    """Return whether code of a file is opero's."""
    if name in _own_files:
        return True
    if not name.startswith(OWN) or name == SUITE:
        return False
    _own_files.add(name)
    return True


def _users(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame of the user's on."""
    while traceback is not None and _is_own(traceback):
        traceback = traceback.tb_next
    return traceback


def is_of_library(file: str) -> bool:
    """Return whether code of a file is the standard library's."""
    return file.startswith(LIBRARY) and "-packages" not in file  # site-packages, dist-packages


def trim(error: BaseException) -> None:
    """Remove opero's frames from the beginning of a traceback, up to the first frame of the user's."""
    _set_traceback(error, _users(error.__traceback__))


class Trimmed:
    """A context that removes opero's frames from the beginning of the tracebacks of exceptions that leave it.

    An exception that has no other frames keeps them, unless it is one of opero's: they tell where a bug is. Of an
    interrupt, such as Ctrl-C, the frames are removed in which opero called the standard library, too.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            return
        users = _users(traceback)
        if not isinstance(error, Exception):
            while users is not None and is_of_library(users.tb_frame.f_code.co_filename):
                users = _users(users.tb_next)
        elif users is None and not isinstance(error, OperoError):
            return
        _set_traceback(error, users)


TRIMMED = Trimmed()


def detach(error: BaseException) -> TracebackType | None:
    """Take the traceback from an exception that another attempt follows, which may raise the same object again."""
    traceback = error.__traceback__
    _set_traceback(error, None)
    return traceback


def release(error: BaseException, traceback: TracebackType | None) -> Place | None:
    """Drop the tracebacks of the causes of an exception, so that what their frames refer to is freed.

    Args:
        error: an exception that is no longer the last one.
        traceback: its traceback, already detached.

    Returns:
        Where the user's function was; None if it was not called.
    """
    traceback = _users(traceback)
    if traceback is None:
        return None
    context = error.__context__
    if error.__cause__ is not None or (context is not None and context.__traceback__ is not None):
        _release_causes(error, traceback)
    return traceback.tb_frame.f_code, traceback.tb_lineno


def _release_causes(error: BaseException, traceback: TracebackType | None) -> None:
    """Drop the tracebacks of those causes that were handled in the same frames: others may be in use elsewhere."""
    frames = set()
    while traceback is not None:
        frames.add(traceback.tb_frame)
        traceback = traceback.tb_next
    pending = [error.__context__, error.__cause__]
    while pending:
        cause = pending.pop()
        if cause is not None and cause.__traceback__ is not None and cause.__traceback__.tb_frame in frames:
            _set_traceback(cause, None)
            pending += [cause.__context__, cause.__cause__]


def cut_context(error: BaseException, first: BaseException) -> None:
    """Remove the first attempt from the contexts of what was raised afterwards.

    Later attempts run while its exception is handled, so Python makes it the context of whatever they raise. What was
    handled when the call began remains.

    Args:
        error: the exception that ends the call.
        first: the exception of the first attempt.
    """
    seen = {id(first)}
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if each.__context__ is first:
            _set_context(each, first.__context__)
        pending += [each.__context__, each.__cause__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions


def shorten(errors: Sequence[BaseException], places: Sequence[Place | None]) -> None:
    """Shorten what a traceback shows of each attempt: the last one's frames, and where earlier ones failed."""
    last = errors[-1]
    trim(last)
    for error, place in zip(errors, places, strict=False):
        if error is not last:
            _annotate(error, place)


def _annotate(error: BaseException, place: Place | None) -> None:
    """Say in a note where an attempt failed whose traceback was dropped."""
    if place is None:
        return
    code, line = place
    note = f'File "{code.co_filename}", line {line}, in {code.co_name}'
    with suppress(Exception):  # an exception may have no room for notes
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


# Across processes


def lines_of(error: BaseException) -> tuple[Line, ...]:
    """Return where an exception came from, as data that can be sent to another process: the frames of the user's."""
    own: list[Line] = []
    users: list[Line] = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        (own if _is_own(traceback) else users).append((code.co_filename, traceback.tb_lineno, code.co_name))
        traceback = traceback.tb_next
    lines = users or ([] if isinstance(error, OperoError) else own)
    if len(lines) > MOST_LINES:
        lines = lines[: MOST_LINES // 2] + lines[-MOST_LINES // 2 :]
    return tuple(lines)


def set_lines(error: BaseException, lines: Iterable[Line]) -> None:
    """Give an exception a traceback with these frames. They have no variables, but name files, lines and functions."""
    traceback = None
    for file, line, name in reversed(tuple(lines)):
        code = _EMPTY.replace(co_filename=file, co_name=name, co_qualname=name, co_firstlineno=line)
        frame: FrameType = FunctionType(code, {"__name__": name, "__file__": file})().gi_frame
        traceback = TracebackType(traceback, frame, -1, line)
    _set_traceback(error, traceback)


def _own_frame() -> Iterator[None]:
    """A generator, as its frame refers to no caller, and so keeps nothing."""
    yield


_EMPTY = _own_frame.__code__
