"""The priority of the code that runs: which calls go first where there is not enough for all.

It is a context variable, so tasks inherit it, and so do the threads and worker processes of maps. It is read only where
a call has to wait, or might be rejected.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Literal

Priority = Literal["critical", "normal", "background"]

current: ContextVar[Priority | None] = ContextVar("opero_priority", default=None)
"""The priority of the code that runs; None if nothing has been said of it."""

GIVES_WAY: dict[Priority | None, float] = {"critical": -3600.0, "normal": 0.0, None: 0.0, "background": 3600.0}
"""Seconds for which a call in a queue lets normal ones go first that come after it. So more important calls go first,
and yet none waits for ever: no call is overtaken by those that come more than an hour after it, or two hours between
"background" and "critical"."""


def place_in_time(arrived: float) -> float:
    """Return when a call that arrives now would have come as a normal one, to be served when it is: queues are ordered
    by that."""
    return arrived + GIVES_WAY[current.get()]


def restore(token: Token[Priority | None]) -> None:
    """Put the priority in force again that was in force before `current.set` returned this token."""
    try:  # noqa: SIM105  # as in `deadlines`
        current.reset(token)
    except ValueError:  # an abandoned coroutine is closed in another context
        pass
