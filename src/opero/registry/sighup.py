"""One handler of SIGHUP for all watches."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.runtime.forking import RenewedLock, at_fork

if TYPE_CHECKING:
    from types import FrameType

_listeners: tuple[Callable[[], None], ...] = ()  # replaced as a whole: the handler may run between any two steps
_installed: Any = None
"""The `_Handler` that was installed last; None if none of ours is installed."""
_lock = RenewedLock()  # reentrant: a handler of another signal may stop a watch


class _Handler:
    """Calls the listeners, and then the handler that was installed before it."""

    def __init__(self) -> None:
        self.before: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # It may interrupt anything, so it takes no lock; threads do the work.
        listeners = _listeners
        for listen in listeners:
            listen()
        if callable(self.before):
            self.before(number, frame)
        elif self.before == signal.SIG_DFL and not listeners and self is _installed is _current_handler():
            # The last watch was stopped in a thread that cannot remove the handler: the process ends, as without it.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _current_handler() -> Any:
    return signal.getsignal(signal.SIGHUP)


def hear_sighup(listen: Callable[[], None]) -> None:
    """Call `listen` in the main thread at each SIGHUP. It may run at any moment and must take no lock.

    Raises:
        ConfigError: the platform has no SIGHUP, or this is not the main thread.
    """
    global _listeners, _installed  # noqa: PLW0603  # a process has one handler
    if not hasattr(signal, "SIGHUP"):  # pragma: no cover  # Windows
        raise ConfigError("this platform has no SIGHUP; call reload() instead")
    with _lock:
        current = _current_handler()
        # A handler that was installed over ours may call ours: a new one then, so that they do not call each other.
        handler = current if current is not None and current is _installed else _Handler()
        if handler is not _installed:
            handler.before = current
        try:
            signal.signal(signal.SIGHUP, handler)
        except ValueError as error:
            raise ConfigError(
                "watch(sighup=True) must be called in the main thread: Python handles signals only there"
            ) from error
        _installed = handler
        _listeners = (*_listeners, listen)


def stop_hearing_sighup(listen: Callable[[], None]) -> None:
    """Undo `hear_sighup`, in any thread.

    After the last listener the previous handler is restored; if that is impossible, ours passes the signal on to it.
    """
    global _listeners, _installed  # noqa: PLW0603
    with _lock:
        _listeners = tuple(each for each in _listeners if each != listen)
        handler = _installed
        if _listeners or handler is None or _current_handler() is not handler or handler.before is None:
            return
        try:
            signal.signal(signal.SIGHUP, handler.before)
        except ValueError:  # not the main thread
            return
        _installed = None


def _begin_child() -> None:
    """Start without the parent's watches: a forked process has none of its threads."""
    global _listeners, _installed
    _listeners, _installed = (), None


at_fork(in_child=_begin_child)
