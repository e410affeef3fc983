"""Marks failures that a call has given up on, so that the calls around it do not retry them: attempts would multiply.

The mark is an attribute of the exception. So it survives where an exception of opero is raised again in another thread
or process, as attributes are pickled. An exception that is raised `from` a marked one, and a group that has one, count
as marked too: they are the same failure in other words. One that is raised while a marked one is handled, without
`from`, does not: it may be that of a backup.

A program may raise the same exception object again in a call that has nothing to do with the first. So the mark of an
exception that is not opero's counts only if its traceback shows that it has come out of a bound function. A failed
response that is returned has no mark for the same reason: it has no traceback that could tell.
"""

from __future__ import annotations

from contextlib import suppress
from opcode import opmap
from typing import TYPE_CHECKING, Any

from opero.errors import OperoError
from opero.executors.unsent import is_unsent
from opero.runtime.tracebacks import is_own_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from opero.executors.call import Call, Layer

MARK = "_opero_given_up"
DEPTH = 20
"""How far causes and groups are followed."""
RAISE = opmap["RAISE_VARARGS"]


def give_up(error: BaseException) -> None:
    """Mark a failure."""
    with suppress(Exception):  # its class may have no room for it
        setattr(error, MARK, True)


def sent_once(layer: Layer, *, is_async: bool) -> Layer:
    """Return the layer around all attempts of a function that is not idempotent: whatever policy has ended the call,
    those around it do not repeat what the service may have received."""

    def once(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            return layer(call, args, kwargs)
        except Exception as error:
            if not is_unsent(error):
                give_up(error)
            raise

    async def once_async(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            return await layer(call, args, kwargs)
        except Exception as error:
            if not is_unsent(error):
                give_up(error)
            raise

    return once_async if is_async else once


def was_given_up(error: BaseException | None, depth: int = DEPTH) -> bool:
    """Return whether a failure of an attempt is one that an inner call has given up on, or made of one.

    Args:
        error: the exception.
        depth: how far to follow causes and groups.
    """
    while error is not None and depth:
        if MARK in error.__dict__ and (isinstance(error, OperoError) or _left_a_call(error.__traceback__)):
            return True
        depth -= 1
        if isinstance(error, BaseExceptionGroup) and any(was_given_up(each, depth) for each in error.exceptions):
            return True
        error = error.__cause__
    return False


def _left_a_call(entry: TracebackType | None) -> bool:
    """Return whether a traceback goes from a user's function into a bound one.

    It ends where an object is raised that had been raised elsewhere before: what follows is of then.
    """
    has_begun = False
    while entry is not None:
        frame, following = entry.tb_frame, entry.tb_next
        code = frame.f_code
        if is_own_file(code.co_filename):
            if has_begun:
                return True
        else:
            has_begun = True
            # A function that raises what it has caught itself is followed by its own frame.
            is_raised = code.co_code[entry.tb_lasti] == RAISE
            if is_raised and following is not None and following.tb_frame is not frame:
                return False
        entry = following
    return False
