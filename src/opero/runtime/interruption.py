"""Interrupts functions in the main thread of a Unix process, by the alarm signal.

An interruption is raised where the function is: in Python code or in a sleep, but not in a long call into C. A function
that goes on all the same, as a bare `except:` or a callback has swallowed the interruption, is interrupted again until
it returns. Nothing is raised after that.

Nor is anything raised within opero, where it takes and gives back permits, slots and locks, nor in what it calls there,
such as log handlers: it may call functions of its own that are interrupted. The exceptions are the few places where it
calls the user's function or waits, which are marked as `interruptible`. This costs calls nothing, as the handler of the
signal looks at the frames that it interrupts.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from opcode import opmap
from typing import TYPE_CHECKING, Any, TypeVar

from opero.runtime.forking import at_fork, uninterrupted

if TYPE_CHECKING:
    from types import CodeType, FrameType

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

CACHE, SEND = opmap.get("CACHE", 0), opmap["SEND"]
HAS_ALARM = hasattr(signal, "setitimer")
RETRY_DELAY = 0.001
"""Seconds after which an interruption is tried again that came at a moment at which nothing may be raised."""
AGAIN = 0.1
"""Seconds after which a function that has swallowed an interruption is interrupted again."""
CLEANUP = 2.0
"""Seconds that `finally` and `except` blocks may take before they are interrupted as well."""
PATIENCE = 0.2
"""Seconds for which an interruption is put off at most. What opero does by itself takes far less: it hangs, on a disk
or in a user's callback."""
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
OUTSIDE = tuple(os.path.join(PACKAGE, each, "") for each in ("testing", "cli"))
"""What is not between users and their functions."""

_interruptible: set[CodeType] = set()


def interruptible(function: F) -> F:
    """Mark a function of opero that may be interrupted: it calls the user's function or waits, and its callers guard
    what they have taken."""
    _interruptible.add(function.__code__)
    return function


def _is_interruptible(frame: FrameType | None) -> bool:
    """Return whether the innermost frame of opero is one that may be interrupted, or there is none."""
    while frame is not None:
        code = frame.f_code
        if code in _interruptible:
            return True
        if code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(OUTSIDE):
            return _awaits(frame)
        frame = frame.f_back
    return True


def _awaits(frame: FrameType) -> bool:
    """Return whether a coroutine is awaiting another one that runs. It might be cancelled there as well."""
    code, at = frame.f_code.co_code, frame.f_lasti
    while at > 0 and code[at] == CACHE:
        at -= 2
    return code[at] == SEND


class Interruption(BaseException):
    """Raised inside a function at its timeout. As a `BaseException`, it is not caught by `except Exception`.

    Attributes:
        limit: the time limit that raised it.
    """

    limit: object = None


class Expired(Exception):  # noqa: N818  # signals the timeout to the caller, never shown to users
    """The function did not return before its timeout. Its cause is what the function raised when it was interrupted."""


class _Limit:
    """The time limit of a function that runs.

    Attributes:
        seconds: the time that it has.
        due: when it is interrupted next.
        fired: when it was interrupted last; None if it was not.
        is_open: whether the function is running, so that it may be interrupted.
        greenlet: the one in which it runs, if the package greenlet is loaded.
        owner: whose alarm it is when this function has returned, if it is this limit that has taken the alarm over.
    """

    __slots__ = ("due", "fired", "greenlet", "is_open", "owner", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.due = time.monotonic() + seconds
        self.fired: float | None = None
        self.is_open = False
        self.greenlet = _current_greenlet()
        self.owner: _Owner | None = None

    def raised(self, error: BaseException | None) -> bool:
        """Return whether an exception is an interruption by this limit."""
        return isinstance(error, Interruption) and error.limit is self

    def is_handled(self) -> bool:
        """Return whether an interruption by this limit is being handled: a `finally` or `except` block runs."""
        error = sys.exception()
        for _ in range(100):
            if error is None or self.raised(error):
                break
            error = error.__context__
        return self.raised(error)


class _Owner:
    """Whoever had the alarm before: the program, with its handler and timer.

    Attributes:
        handler: its handler.
        due: when its timer rings; None if it has none.
        interval: the seconds between further rings, or 0.
        before: the owner that it had taken the alarm over from, under a limit that is still running.
    """

    __slots__ = ("before", "due", "handler", "interval")

    def __init__(self, before: _Owner | None) -> None:
        self.handler: Any = None
        self.due: float | None = None
        self.interval = 0.0
        self.before = before


class _Alarm:
    """The alarm of the process.

    Attributes:
        limits: those that are running, the outermost first.
        owner: whose alarm it is besides.
        displaced: the handler that it has taken the place of last.
        is_changing: whether it is being given back.
        thread: the main thread.
    """

    def __init__(self) -> None:
        self.limits: list[_Limit] = []
        self.owner: _Owner | None = None
        self.displaced: Any = signal.SIG_DFL
        self.is_changing = False
        self.thread = 0

    def enter(self, limit: _Limit) -> None:
        """Begin to count the time of a limit.

        Raises:
            ValueError: only the main thread of the main interpreter may use signals.
        """
        limits = self.limits
        while limits and not limits[-1].is_open:  # Ctrl-C has prevented that it left
            limits.pop()
        limits.append(limit)
        if len(limits) > 1 and signal.getsignal(signal.SIGALRM) is _on_alarm:
            self.arm()
            return
        owner = limit.owner = _Owner(self.owner if len(limits) > 1 else None)
        try:
            handler = signal.signal(signal.SIGALRM, _on_alarm)
        except BaseException:
            limits.remove(limit)
            raise
        # It is opero's own if Ctrl-C has prevented that the alarm was given back.
        owner.handler = self.displaced = self.displaced if handler is _on_alarm else handler
        self.owner = owner
        remaining, owner.interval = signal.setitimer(signal.ITIMER_REAL, max(limit.seconds, 1e-6))
        self.thread = threading.get_ident()
        if remaining and handler is not _on_alarm:
            owner.due = time.monotonic() + remaining
        if remaining or len(limits) > 1:
            self.arm()

    def leave(self, limit: _Limit) -> None:
        """The function has returned, or been left by an exception."""
        limits = self.limits
        if limits and limits[-1] is limit:
            limits.pop()
        elif limit in limits:  # Ctrl-C has prevented that others left
            del limits[limits.index(limit) :]
        if limit.owner is not None:
            self.give_back(limit.owner)
        elif limits:
            self.arm()

    def give_back(self, owner: _Owner) -> None:
        """Restore the handler and the timer that were there before."""
        self.is_changing = True
        try:
            remaining, interval = signal.setitimer(signal.ITIMER_REAL, 0.0)
            replaced = signal.signal(signal.SIGALRM, signal.SIG_DFL if owner.handler is None else owner.handler)
            if replaced is not _on_alarm:  # the function has installed its own, to stay
                signal.signal(signal.SIGALRM, replaced)
                signal.setitimer(signal.ITIMER_REAL, remaining, interval)
            elif owner.due is not None:
                signal.setitimer(signal.ITIMER_REAL, max(owner.due - time.monotonic(), 1e-6), owner.interval)
            self.owner = owner.before
        finally:
            self.is_changing = False

    def due(self) -> float:
        """Return when the timer is to ring next."""
        due = min([limit.due for limit in self.limits], default=math.inf)
        if self.owner is not None and self.owner.due is not None:
            due = min(due, self.owner.due)
        return due

    def arm(self) -> None:
        """Set the timer to what is due next."""
        due = self.due()
        signal.setitimer(signal.ITIMER_REAL, 0.0 if due == math.inf else max(due - time.monotonic(), 1e-6))

    def may_raise(self, frame: FrameType | None, now: float) -> bool:
        """Return whether an exception may be raised in a frame now."""
        limit = self.limits[-1]
        if not limit.is_open or threading.get_ident() in uninterrupted or limit.greenlet is not _current_greenlet():
            return False
        return _is_interruptible(frame) or now >= self.due() + PATIENCE

    def pass_on(self, owner: _Owner, signum: int, frame: FrameType | None) -> None:
        """Call the handler of the program, whose timer is due."""
        now = time.monotonic()
        owner.due = now + owner.interval if owner.interval else None
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        try:
            if callable(owner.handler):
                owner.handler(signum, frame)
        finally:
            remaining, interval = signal.getitimer(signal.ITIMER_REAL)
            if remaining:  # it has set the timer anew
                owner.due, owner.interval = time.monotonic() + remaining, interval
            self.arm()

    def after_fork(self) -> None:
        """In a child: timers are not inherited, so calls under way are interrupted in the parent only."""
        for limit in self.limits:
            limit.due = math.inf
        owner = self.owner
        while owner is not None:
            owner.due = None
            first, owner = owner, owner.before
        if self.owner is not None and self.thread != threading.get_ident():  # their thread does not exist here
            self.limits.clear()
            self.owner = None
            signal.signal(signal.SIGALRM, signal.SIG_DFL if first.handler is None else first.handler)


def _current_greenlet() -> object:
    """Return the greenlet that runs; None if the package is not loaded."""
    greenlet = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


_alarm = _Alarm()
at_fork(in_child=_alarm.after_fork)


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    alarm, now = _alarm, time.monotonic()
    if alarm.is_changing or not alarm.limits:
        return
    if not alarm.may_raise(frame, now):
        signal.setitimer(signal.ITIMER_REAL, RETRY_DELAY)
        return
    owner = alarm.owner
    if owner is not None and owner.due is not None and now >= owner.due:
        alarm.pass_on(owner, signum, frame)
        return
    for limit in alarm.limits:
        if now < limit.due:
            continue
        limit.due = now + AGAIN
        if limit.fired is not None and now < limit.fired + CLEANUP and limit.is_handled():
            continue
        limit.fired = now
        alarm.arm()
        interruption = Interruption(f"interrupted after {limit.seconds:g} s")
        interruption.limit = limit
        try:
            raise interruption
        finally:
            del interruption, limit
    alarm.arm()


@interruptible
def run_under_alarm(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`, interrupted after that time. To be called in the main thread.

    Raises:
        Expired: the function was interrupted.
        ValueError: this is not the main interpreter; the function has not been called.
    """
    limit = _Limit(seconds)
    # While `is_open` is false nothing is raised here, and it is assigned where no signal handler can run before it.
    _alarm.enter(limit)
    try:
        limit.is_open = True
        try:
            result = function(*args)
        finally:
            limit.is_open = False
    except BaseException as error:
        if limit.fired is None:
            raise
        if isinstance(error, Interruption):
            if limit.raised(error):
                raise Expired from None
            raise
        if isinstance(error, BaseExceptionGroup):
            rest = error.split(lambda each: limit.raised(each))[1]  # noqa: PLW0108  # no method, up to Python 3.12
            if rest is None:
                raise Expired from None
            if not isinstance(rest, Exception):
                raise
        elif not isinstance(error, Exception):
            raise
        raise Expired from error
    finally:
        _alarm.leave(limit)
    if limit.fired is not None:  # the function has swallowed the interruption and returned late
        raise Expired
    return result
