"""SIGHUP, for all watches together: one handler, and whoever is to hear of it."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["hear_sighup", "no_longer_hear_sighup"]

_hearers: tuple[Callable[[], None], ...] = ()  # replaced as a whole: the handler may come between any two steps
_installed: Any = None
"""The `_Handler` that was put in last; None where there is none of ours."""
_lock = threading.RLock()  # a handler of another signal may stop a watch


class _Handler:
    """Tells the watches, and then the handler before it."""

    def __init__(self) -> None:
        self.before: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # It may interrupt anything, so it takes no lock: threads do the work.
        hearers = _hearers
        for hear in hearers:
            hear()
        if callable(self.before):
            self.before(number, frame)
        elif self.before == signal.SIG_DFL and not hearers and self is _installed is _handler_now():
            # The last watch was stopped in a thread that cannot take the handler away: the process ends, as it would.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _handler_now() -> Any:
    return signal.getsignal(signal.SIGHUP)


def hear_sighup(hear: Callable[[], None]) -> None:
    """Have this called, in the main thread, at each SIGHUP. It may come at any moment, so it must take no lock.

    Raises:
        ConfigError: there is no such signal here, or this is not the main thread.
    """
    global _hearers, _installed  # noqa: PLW0603  # a process has one handler
    if not hasattr(signal, "SIGHUP"):  # pragma: no cover  # Windows
        raise ConfigError("there is no SIGHUP on this platform; call reload() instead")
    with _lock:
        current = _handler_now()
        # Where another handler has come over ours it may call ours: then a new one, so that they do not go in a circle.
        handler = current if current is not None and current is _installed else _Handler()
        if handler is not _installed:
            handler.before = current
        try:
            signal.signal(signal.SIGHUP, handler)
        except ValueError as error:
            raise ConfigError(
                "watch(sighup=True) must be called in the main thread, as Python's signals are"
            ) from error
        _installed = handler
        _hearers = (*_hearers, hear)


def no_longer_hear_sighup(hear: Callable[[], None]) -> None:
    """Undo `hear_sighup`, in whatever thread. After the last one the handler before ours is there again; where that
    cannot be put back, ours passes on to it."""
    global _hearers, _installed  # noqa: PLW0603
    with _lock:
        _hearers = tuple(each for each in _hearers if each != hear)
        handler = _installed
        if _hearers or handler is None or _handler_now() is not handler or handler.before is None:
            return
        try:
            signal.signal(signal.SIGHUP, handler.before)
        except ValueError:  # not the main thread
            return
        _installed = None


def _begin_child() -> None:
    """A forked process has none of its parent's watches; SIGHUP does not end it for that."""
    global _hearers, _installed, _lock
    _hearers, _installed, _lock = (), None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
