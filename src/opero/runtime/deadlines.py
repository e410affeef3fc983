"""Deadlines of the code that runs: a moment after which bound functions begin nothing more.

The deadline is a context variable, so tasks inherit it, and so do the threads and worker processes of maps. It costs a
call that has none next to nothing: until the first deadline of the process is set, a call reads one flag.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
Monotonic = Callable[[], float]


class Deadline:
    """A moment after which nothing begins.

    Args:
        at: the moment, by `monotonic`.
        monotonic: a clock's `monotonic`.
    """

    __slots__ = ("at", "monotonic")

    def __init__(self, at: float, monotonic: Monotonic) -> None:
        self.at = at
        self.monotonic = monotonic
        if not use.has_begun:
            use.begin()

    def left(self) -> float:
        """Return the seconds until then; negative if it has passed."""
        return self.at - self.monotonic()

    def by(self, monotonic: Monotonic) -> float:
        """Return the same moment by another clock."""
        return self.at if monotonic is self.monotonic else monotonic() + self.left()

    def __reduce__(self) -> Any:
        # Processes of a machine have their monotonic clock in common. Other machines have the time of day.
        left = self.left()
        return _arrived, (time.monotonic() + left, time.time() + left, _machine())


class _Use:
    """Whether this process has had a deadline; if not, there is none to look for."""

    __slots__ = ("has_begun", "namespaces")

    def __init__(self) -> None:
        self.has_begun = False
        self.namespaces: list[dict[str, Any]] = []

    def begin(self) -> None:
        self.has_begun = True
        for each in self.namespaces:
            each["has_deadlines"] = True

    def show_in(self, namespace: dict[str, Any]) -> None:
        """Have the name `has_deadlines` of a namespace say the same, as a global is read faster than an attribute."""
        namespace["has_deadlines"] = self.has_begun
        self.namespaces.append(namespace)


use = _Use()
current: ContextVar[Deadline | None] = ContextVar("opero_deadline", default=None)
"""The deadline of the code that runs; None without one."""


def _arrived(at: float, time_of_day: float, machine: str) -> Deadline:
    """Return a deadline that another process has sent."""
    if machine != _machine():
        at = time.monotonic() + time_of_day - time.time()
    return Deadline(at, time.monotonic)


@functools.cache
def _machine() -> str:
    """Return what identifies the machine since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except (OSError, ValueError):
        return platform.node()


def restore(token: Token[Deadline | None]) -> None:
    """Put the deadline in force again that was in force before `current.set` returned this token."""
    try:  # noqa: SIM105  # `suppress` would take longer than all the rest
        current.reset(token)
    except ValueError:  # an abandoned coroutine is closed in another context
        pass


def sooner(deadline: Deadline) -> Deadline:
    """Return this deadline, or the one of the code that runs if that comes first."""
    held = current.get()
    return held if held is not None and held.by(deadline.monotonic) <= deadline.at else deadline


def run_until(deadline: Deadline, function: Callable[..., R], *args: Any) -> R:
    """Return the result of `function(*args)`, which runs under a deadline."""
    token = current.set(deadline)
    try:
        return function(*args)
    finally:
        restore(token)
