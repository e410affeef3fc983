"""Time limits of sync functions: which way to enforce one, by where the caller is.

- In the main thread of a Unix process the function is interrupted (`opero.runtime.interruption`).
- Under gevent, whose monkey patches turn waits into switches to other greenlets, it is interrupted at such a wait: a
  signal would interrupt whichever greenlet runs.
- Elsewhere it runs in a helper thread (`opero.runtime.helper_threads`): its caller stops waiting at the timeout, while
  the function continues there.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from opero.runtime.helper_threads import run_in_helper, take_helper
from opero.runtime.interruption import CLEANUP, HAS_ALARM, Expired, Interruption, run_under_alarm

R = TypeVar("R")


def run_within(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`.

    Raises:
        Expired: the function takes longer than `seconds`.
        RejectedError: too many functions that timed out are still running in helper threads.
    """
    if _is_under_gevent():
        return _run_under_gevent(seconds, function, args)
    if not _has_alarm():
        return run_in_helper(seconds, function, *args)
    return run_under_alarm(seconds, function, *args)


def _has_alarm() -> bool:
    return HAS_ALARM and threading.current_thread() is threading.main_thread()


def _is_under_gevent() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("time")


def _run_under_gevent(seconds: float, function: Callable[..., R], args: tuple[Any, ...]) -> R:
    gevent: Any = sys.modules["gevent"]
    interruption = Interruption(f"interrupted after {seconds:g} s")
    fired = False
    current = gevent.getcurrent()

    def ring() -> None:
        nonlocal fired
        fired = True
        current.throw(interruption)  # noqa: F821  # deleted only after the timer is closed

    timer = gevent.get_hub().loop.timer(seconds, CLEANUP)  # again and again: the function may swallow it
    timer.start(ring)
    try:
        result = function(*args)
    except Interruption as caught:
        if caught is not interruption:
            raise
        raise Expired from None
    except Exception as error:
        if not fired:
            raise
        raise Expired from error
    finally:
        timer.stop()
        timer.close()
        del interruption, current, ring
    if fired:
        raise Expired
    return result


class Place(Protocol):
    """Where the steps of a generator run, all of them in one thread."""

    def run(self, seconds: float | None, function: Callable[..., R], *args: Any) -> R:
        """Return the result of `function(*args)`.

        Raises:
            Expired: it takes longer than `seconds`; None is no limit.
        """
        ...

    def begin(self, close: Callable[[], object]) -> None:
        """Register what closes the generator, which has started."""

    def expire(self) -> None:
        """A step has expired: close the generator, if need be when the step ends after all."""

    def release(self) -> None:
        """There are no further steps."""


class Here:
    """A place in the thread of the caller.

    A generator that is read in another thread than the one in which it was started cannot be interrupted there, nor
    move to a helper thread: a step that took too long is noticed when it has ended.

    Args:
        run_within: limits a step.
        monotonic: tells the time.
    """

    def __init__(self, run_within: Callable[..., Any], monotonic: Callable[[], float]) -> None:
        self.run_within = run_within
        self.monotonic = monotonic
        self.thread = threading.get_ident()
        self.close: Callable[[], object] = int

    def run(self, seconds: float | None, function: Callable[..., R], *args: Any) -> R:
        if seconds is None:
            return function(*args)
        if threading.get_ident() != self.thread:
            return run_and_judge(self.monotonic, seconds, function, *args)
        result: R = self.run_within(seconds, function, *args)
        return result

    def begin(self, close: Callable[[], object]) -> None:
        self.close = close

    def expire(self) -> None:
        self.close()

    def release(self) -> None:
        pass


class InHelper:
    """A place in a helper thread of its own, for the whole life of a generator."""

    def __init__(self) -> None:
        self.helper = take_helper()

    def run(self, seconds: float | None, function: Callable[..., R], *args: Any) -> R:
        return self.helper.run(threading.TIMEOUT_MAX if seconds is None else seconds, function, *args)

    def begin(self, close: Callable[[], object]) -> None:
        self.helper.on_late_end = close

    def expire(self) -> None:
        pass

    def release(self) -> None:
        self.helper.release()


def place() -> Place:
    """Return the place for a generator that the calling thread starts."""
    return Here(run_within, time.monotonic) if _is_under_gevent() or _has_alarm() else InHelper()


def run_and_judge(monotonic: Callable[[], float], seconds: float, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`, which is not interrupted.

    Raises:
        Expired: it took longer than `seconds`, and raised no exception.
    """
    started = monotonic()
    result = function(*args)
    if monotonic() - started > seconds:
        raise Expired
    return result
