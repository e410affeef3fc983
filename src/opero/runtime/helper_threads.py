"""Threads that run functions whose callers stop waiting, at a timeout or as they need the result no longer.

A function that cannot be interrupted continues in its thread then. The number of such abandoned calls is limited to
`MAX_ABANDONED`, and to `MAX_OF_ONE` of one function, so that one that hangs leaves threads to the others.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from opero.errors import RejectedError
from opero.runtime import forking
from opero.runtime.forking import renew_in_child
from opero.runtime.interruption import Expired

R = TypeVar("R")

MAX_ABANDONED, MAX_OF_ONE = 256, 64
MAX_IDLE = 16


class _Helpers:
    """The helper threads of the process.

    Attributes:
        idle: threads that wait for a function.
        abandoned: the number of calls that timed out and are still running.
        abandoned_of: the same by the identity of the function, which its task keeps alive.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.idle: list[Helper] = []
        self.abandoned = 0
        self.abandoned_of: Counter[int] = Counter()
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        self.idle = []
        self.abandoned = 0
        self.abandoned_of = Counter()

    def take(self, function: Callable[..., Any] | None) -> Helper:
        """Return a thread of one's own.

        Args:
            function: what it is for; None if that is not known yet.

        Raises:
            RejectedError: too many calls that timed out are still running, altogether or of the function.
        """
        with self.lock:
            own = self.abandoned_of[id(function)] if self.abandoned_of else 0
            if self.abandoned >= MAX_ABANDONED or own >= MAX_OF_ONE:
                running = own if own >= MAX_OF_ONE else self.abandoned
                raise RejectedError(
                    f"{running} calls that timed out are still running in their threads: give the function a timeout "
                    "of its own, or make it async"
                )
            if self.idle:
                return self.idle.pop()
        return Helper()

    def returned(self, function: Callable[..., Any]) -> None:
        """Count a call that timed out and has returned after all."""
        with self.lock:
            self.abandoned -= 1
            self.abandoned_of[id(function)] -= 1
            if self.abandoned_of[id(function)] <= 0:
                del self.abandoned_of[id(function)]

    def take_back(self, helper: Helper) -> bool:
        """Keep a thread for other functions; return False if there are enough."""
        with self.lock:
            if len(self.idle) >= MAX_IDLE:
                return False
            self.idle.append(helper)
            return True


class Helper:
    """A thread that runs functions for one caller at a time, one after the other.

    Each function runs in the context of its caller, and what it sets there is set for the caller when it has returned.

    Attributes:
        thread: the identifier of the thread.
        is_lost: whether a function in it has timed out.
        on_late_end: called in the thread when a function that has timed out returns after all.
    """

    def __init__(self) -> None:
        self.is_lost = False
        self.on_late_end: Callable[[], object] | None = None
        self.inbox: SimpleQueue[_Task | None] = SimpleQueue()
        self.generation = forking.generation
        thread = threading.Thread(target=self._work, name="opero-timeout", daemon=True)
        thread.start()
        self.thread = thread.ident

    def run(self, seconds: float, function: Callable[..., R], *args: Any) -> R:
        """Return the result of `function(*args)`.

        Raises:
            Expired: the function takes longer than `seconds`; it continues in this thread, which is lost to the caller.
            RuntimeError: this process has been forked since: the thread is the parent's.
        """
        if self.generation != forking.generation:
            raise RuntimeError("a generator that was started before a fork goes on in the parent process only")
        task = self.begin(function, args)
        try:
            self.is_lost = not task.finished.wait(min(seconds, threading.TIMEOUT_MAX)) and task.abandon()
        except BaseException:  # such as KeyboardInterrupt
            self.is_lost = task.abandon()
            raise
        if self.is_lost:
            raise Expired
        set_changed(task.context)
        error, task.error = task.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        result: R = task.result
        return result

    def begin(self, function: Callable[..., Any], args: tuple[Any, ...], woken: threading.Event | None = None) -> _Task:
        """Run `function(*args)` without waiting for it; `woken` is set when it has returned."""
        task = _Task(function, args, woken)
        self.inbox.put(task)
        return task

    def abandon(self, task: _Task) -> bool:
        """Stop waiting for a function, which continues in this thread; return False if it has just returned."""
        self.is_lost = task.abandon()
        return self.is_lost

    def release(self) -> None:
        """Give the thread back; one that is lost gives itself back when its function has returned."""
        if self.generation != forking.generation or self.is_lost:
            return
        self.on_late_end = None
        if not _helpers.take_back(self):
            self.inbox.put(None)

    def _work(self) -> None:
        while (task := self.inbox.get()) is not None:
            task.run()
            if self.generation != forking.generation:  # the function has forked: the waiting caller is in the parent
                return
            if task.abandoned:
                if self.on_late_end is not None:
                    with suppress(BaseException):
                        task.context.run(self.on_late_end)
                else:
                    task.close_response()
                self.is_lost, self.on_late_end = False, None
                _helpers.returned(task.function)
                if not _helpers.take_back(self):
                    return
            del task


class _Task:
    """A function that runs in a helper thread.

    Attributes:
        finished: set when it has returned, as is `woken`, if there is one.
        abandoned: whether its caller no longer waits for it.
        result, error: what it returned or raised.
    """

    __slots__ = ("abandoned", "args", "context", "error", "finished", "function", "result", "woken")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], woken: threading.Event | None = None
    ) -> None:
        self.woken = woken
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
        if self.woken is not None:
            self.woken.set()

    def abandon(self) -> bool:
        """Stop waiting; return False if the function has just returned."""
        with _helpers.lock:
            if self.finished.is_set():
                return False
            self.abandoned = True
            _helpers.abandoned += 1
            _helpers.abandoned_of[id(self.function)] += 1
            return True

    def close_response(self) -> None:
        """Close the response that the function has returned too late: it may hold a connection."""
        from opero.failures import is_response

        late: Any = self.result if self.error is None else getattr(self.error, "result", None)
        if is_response(late):
            with suppress(BaseException):
                late.close()


def set_changed(context: contextvars.Context) -> None:
    """Set the context variables that have been set in another context, a copy of this one."""
    own = contextvars.copy_context()
    for variable, value in context.items():
        if variable not in own or own[variable] is not value:
            variable.set(value)


_helpers = _Helpers()


def abandoned() -> int:
    """Return the number of functions that timed out and are still running."""
    return _helpers.abandoned


def idle_threads() -> list[int | None]:
    """Return the identifiers of the threads that wait for a function."""
    return [helper.thread for helper in _helpers.idle.copy()]


def take_helper() -> Helper:
    """Return a thread for one caller, who has to `release` it.

    Raises:
        RejectedError: too many functions that timed out are still running in helper threads.
    """
    return _helpers.take(None)


def helper_for(function: Callable[..., Any]) -> Helper:
    """Return a thread for a function of which others may still be running; it has to be released.

    Raises:
        RejectedError: as `take_helper`, altogether or of the function.
    """
    return _helpers.take(function)


def run_in_helper(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`, run in a helper thread where it is never interrupted.

    Raises:
        Expired: the function takes longer than `seconds`; it continues in its thread.
        RejectedError: too many functions that timed out are still running in helper threads.
    """
    helper = _helpers.take(function)
    try:
        return helper.run(seconds, function, *args)
    finally:
        helper.release()
