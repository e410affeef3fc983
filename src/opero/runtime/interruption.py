"""Timeouts for sync functions.

In the main thread of a Unix process an alarm signal interrupts the function (Python code and sleeps, but not a long
call into C). Elsewhere the function runs in a helper thread: its caller stops waiting at the timeout, while the
function continues there. The number of such abandoned functions is limited to `MAX_ABANDONED`.
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

__all__ = ["Expired", "Interruption", "abandoned", "run_in_helper", "run_within", "uninterrupted"]

R = TypeVar("R")

MAX_ABANDONED = 256
MAX_IDLE = 16
HAS_ALARM = hasattr(signal, "setitimer")
RETRY_DELAY = 0.001

uninterrupted: set[int] = set()
"""Identifiers of threads that hold a lock: an interruption is retried after `RETRY_DELAY` seconds."""


class Interruption(BaseException):
    """Raised inside a function at its timeout. As a `BaseException`, it is not caught by `except Exception`."""


class Expired(Exception):  # noqa: N818  # signals the timeout to the caller of run_within, never shown to users
    """The function did not return before its timeout."""


def run_within(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`.

    Raises:
        Expired: the function takes longer than `seconds`.
        RejectedError: too many functions that timed out are still running in helper threads.
    """
    if HAS_ALARM and threading.current_thread() is threading.main_thread():
        return _run_under_alarm(seconds, function, args)
    return run_in_helper(seconds, function, *args)


def abandoned() -> int:
    """Return the number of functions that timed out and are still running."""
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
            # The user's own timer or an outer timeout is due first: call its handler, then continue.
            outer_due = now + outer_interval if outer_interval else None
            arm(now)
            if callable(outer_handler):
                outer_handler(signum, frame)
        elif running and now >= started + seconds:
            if threading.get_ident() in uninterrupted:
                signal.setitimer(signal.ITIMER_REAL, RETRY_DELAY)
                return
            fired = True
            raise interruption  # noqa: F821  # deleted only after this handler is removed
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
        if fired:  # the function caught the interruption and returned late
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
    """Threads that run functions whose callers may stop waiting."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[SimpleQueue[_Task | None]] = []
        self.abandoned = 0

    def submit(self, task: _Task) -> None:
        with self.lock:
            if self.abandoned >= MAX_ABANDONED:
                raise RejectedError(
                    f"{self.abandoned} calls that timed out are still running in their threads: give the function a "
                    "timeout of its own, or make it async"
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
                if len(self.idle) >= MAX_IDLE:
                    return
                self.idle.append(inbox)
            del task

    def abandon(self, task: _Task) -> bool:
        """Stop waiting for a task; return False if it has just finished."""
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
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self.error = error
        with _helpers.lock:
            self.finished.set()


_helpers = _Helpers()


def run_in_helper(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`, run in a helper thread where it is never interrupted.

    Raises:
        Expired: the function takes longer than `seconds`; it continues in its thread.
        RejectedError: too many functions that timed out are still running in helper threads.
    """
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
