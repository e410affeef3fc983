"""Ending a sync function that takes too long.

In the main thread of a Unix process an alarm signal interrupts the function where it stands (Python code and sleeps;
not a long call into C). Elsewhere the function runs in a helper thread: its caller stops waiting on time, while the
function itself runs on there, counted, and capped at `MOST_ABANDONED`.
"""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from opero.errors import RejectedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Expired", "Interruption", "abandoned", "run_aside", "run_within", "uninterrupted"]

R = TypeVar("R")

MOST_ABANDONED = 256
MOST_IDLE = 16
HAS_ALARM = hasattr(signal, "setitimer")
A_MOMENT = 0.001

uninterrupted: set[int] = set()
"""Threads that hold what they must give back first: an interruption waits for a moment."""


class Interruption(BaseException):
    """Thrown into a function whose time is up. No `Exception`, so that its `except Exception` does not swallow it."""


class Expired(Exception):  # noqa: N818  # a signal between run_within and its caller, never shown to users
    """The function's time was up before it returned."""


def run_within(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """The result of `function(*args)`, if it takes at most that many seconds.

    Raises:
        Expired: it took longer.
        RejectedError: too many functions that ran out of time are still running in their threads.
    """
    if HAS_ALARM and threading.current_thread() is threading.main_thread():
        return _run_under_alarm(seconds, function, args)
    return run_aside(seconds, function, *args)


def abandoned() -> int:
    """How many functions whose callers stopped waiting are running still."""
    return _helpers.abandoned


def _run_under_alarm(seconds: float, function: Callable[..., R], args: tuple[Any, ...]) -> R:
    interruption = Interruption(f"interrupted after {seconds:g} s")
    running = True
    fired = False
    started = time.monotonic()
    outer_due: float | None = None
    outer_interval = 0.0

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        nonlocal fired, outer_due
        now = time.monotonic()
        if outer_due is not None and now >= outer_due:
            # Somebody's own timer, or an outer timeout, was due first: serve it, then go on with ours.
            outer_due = now + outer_interval if outer_interval else None
            arm(now)
            if callable(outer_handler):
                outer_handler(signum, frame)
        elif running and now >= started + seconds:
            if threading.get_ident() in uninterrupted:
                signal.setitimer(signal.ITIMER_REAL, A_MOMENT)
                return
            fired = True
            raise interruption  # noqa: F821  # the handler is gone before it is deleted
        else:
            arm(now)

    def arm(now: float) -> None:
        due = [started + seconds] if running and not fired else []
        if outer_due is not None:
            due.append(outer_due)
        signal.setitimer(signal.ITIMER_REAL, max(min(due) - now, 1e-6) if due else 0.0)

    outer_handler = signal.signal(signal.SIGALRM, on_alarm)
    remaining, outer_interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    if remaining:
        outer_due = started + remaining
        arm(time.monotonic())
    try:
        try:
            result = function(*args)
        finally:
            running = False
        if fired:  # the function swallowed the interruption and came back late
            raise Expired
        return result
    except Interruption as caught:
        if caught is not interruption:
            raise
        raise Expired from None
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, outer_handler if outer_handler is not None else signal.SIG_DFL)
        if outer_due is not None:
            signal.setitimer(signal.ITIMER_REAL, max(outer_due - time.monotonic(), 1e-6), outer_interval)
        del interruption


class _Helpers:
    """Threads that run functions for callers who may stop waiting."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[SimpleQueue[_Task | None]] = []
        self.abandoned = 0

    def submit(self, task: _Task) -> None:
        with self.lock:
            if self.abandoned >= MOST_ABANDONED:
                raise RejectedError(
                    f"{self.abandoned} calls that timed out are still running in their threads; "
                    "give the function a timeout of its own, or make it async"
                )
            inbox = self.idle.pop() if self.idle else None
        if inbox is None:
            inbox = SimpleQueue()
            threading.Thread(target=self.work, args=(inbox,), name="opero-timeout", daemon=True).start()
        inbox.put(task)

    def work(self, inbox: SimpleQueue[_Task | None]) -> None:
        while (task := inbox.get()) is not None:
            task.run()
            with self.lock:
                self.abandoned -= task.abandoned
                if len(self.idle) >= MOST_IDLE:
                    return
                self.idle.append(inbox)
            del task

    def abandon(self, task: _Task) -> bool:
        """Stop waiting for a task; False if it has just finished after all."""
        with self.lock:
            if task.finished.is_set():
                return False
            task.abandoned = True
            self.abandoned += 1
            return True


class _Task:
    __slots__ = ("abandoned", "args", "context", "error", "finished", "function", "result")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.context = contextvars.copy_context()
        self.finished = threading.Event()
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.context.run(self.function, *self.args)
        except BaseException as error:  # noqa: BLE001  # carried to the caller
            self.error = error
        with _helpers.lock:
            self.finished.set()


_helpers = _Helpers()


def run_aside(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """As `run_within`, always in a helper thread: nothing is interrupted, only no longer waited for."""
    task = _Task(function, args)
    _helpers.submit(task)
    if not task.finished.wait(seconds) and _helpers.abandon(task):
        raise Expired
    error, task.error = task.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error
    result: R = task.result
    return result
