"""Events of worker processes, which their parent delivers: they travel with log records."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import OperoError, describe
from opero.observe.subscriptions import redirect
from opero.parallel.transport.context import CallContext
from opero.parallel.transport.exceptions import portable
from opero.parallel.transport.variables import Pickler

if TYPE_CHECKING:
    from opero.events import Event


def enter(context: CallContext) -> None:
    """In the worker: enter the context of the caller, and send the events to it that somebody listens to there."""
    if context.enter():
        redirect(context.events, _keep)


def _keep(event: Event) -> None:
    if CallContext.records is not None:
        CallContext.records.keep(pickled_event(event))


def pickled_event(event: Event) -> tuple[bytes, dict[str, Any]]:
    """Return an event for another process, and one to use if its exception cannot be unpickled there."""
    error = getattr(event, "error", None)
    if error is None:
        return Pickler.dumps(event), {}
    with_error: Any = partial(replace, event)
    plain = {"event": Pickler.dumps(with_error(error=OperoError(describe(error))))}
    return Pickler.dumps(with_error(error=portable(error))), plain
