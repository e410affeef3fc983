"""What ties a worker process to its parent: it does not outlive it, and gives back what it has when it is told to.

A worker is told by SIGINT, which the terminal sends it, too, when Ctrl-C is pressed: the item that runs ends there, and
its chunk comes back with what was finished. A worker with nothing to do takes no notice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opero.runtime.interruption import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Interrupted", "interrupt", "prepare", "until_interrupted", "without_ctrl_c"]

LOOK = 0.25
"""Seconds between looks at whether the parent is there still."""

MOMENT = 0.005
"""Seconds."""

_running: Callable[[], object] | None = None
"""Ends what runs; None while nothing does."""


class Interrupted(BaseException):
    """Thrown into an item. No `Exception`, so that its `except Exception` does not swallow it."""


# In the parent


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """For the start of a worker: it would die of a Ctrl-C that comes before it is prepared for it."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def interrupt(pids: Iterable[int]) -> None:
    """Have these workers give back what they have."""
    if sys.platform == "win32":  # pragma: no cover
        return
    for pid in pids:
        try:
            os.kill(pid, signal.SIGINT)
        except ProcessLookupError:
            continue


# In the worker


def prepare(parent: int) -> None:
    """What a new worker does first.

    Args:
        parent: the parent's process number.
    """
    if sys.platform == "win32":  # pragma: no cover
        return
    signal.signal(signal.SIGINT, lambda number, frame: _running() if _running is not None else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow, args=(parent,), name="opero-leash", daemon=True).start()


def _follow(parent: int) -> None:
    """A parent that is killed cannot end its workers: each does so itself."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGKILL)


def until_interrupted(run: Callable[[], object], end: Callable[[], object] | None = None) -> None:
    """Call `run`, and come back when it does or when this worker is told to give back what it has.

    Args:
        run: puts down somewhere what it has finished.
        end: ends it; by default `Interrupted` is thrown into it.
    """
    global _running  # noqa: PLW0603  # one a process
    try:
        try:
            _running = end or _throw
            run()
        finally:
            _running = None
    except Interrupted:
        return


def _throw() -> None:
    if threading.get_ident() in uninterrupted:  # it holds a lock that would stay taken: in a moment, then
        threading.Timer(MOMENT, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        raise Interrupted
