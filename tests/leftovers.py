"""What no test module leaves behind: worker processes, and changes of what all tests share."""

from __future__ import annotations

import builtins
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

import opero.observe.logs  # noqa: F401  # adds its handler now, and not within some test
from opero.events import EVENTS
from opero.observe.hooks import OF_HOOKS
from opero.parallel.workers import process as pool
from opero.registry.default import set_default_registry

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
SET_BY_OTHERS = ("PYTEST_CURRENT_TEST", "KMP_INIT_AT_FORK")
"""Environment variables that pytest and joblib set."""


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    """End the pools of worker processes at the end of each module, and check that none is left."""
    yield
    pool.end_all()
    until = time.monotonic() + 30
    while (left := workers()) and time.monotonic() < until:
        time.sleep(0.02)
    for each in left:
        os.kill(each.pid, signal.SIGKILL)
    assert left == [], f"left behind by this module: {left}"


@pytest.fixture(autouse=True, scope="module")
def no_change_is_left() -> Iterator[None]:
    """Forget the default registry, and check that variables, paths and handlers are as they were before the module."""
    before = shared_state()
    yield
    set_default_registry(None)
    if any(OF_HOOKS in event.handlers for event in EVENTS.values()):
        gc.collect()  # a bound function and its hooks refer to each other
    after = shared_state()
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    assert not changed, f"changed by this module: {changed}"


@contextmanager
def restored() -> Iterator[None]:
    """Restore variables, paths, signal handlers and `print` at the end, for libraries that set some of their own."""
    variables, path, printing = dict(os.environ), list(sys.path), builtins.print
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        builtins.print = printing
        for number, handler in handlers.items():
            signal.signal(number, handler)


def shared_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        f"variable {name}": value for name, value in os.environ.items() if name not in SET_BY_OTHERS
    }
    for number in SIGNALS:
        state[f"handler of {number.name}"] = signal.getsignal(number)
    for each in (logging.getLogger(), logging.getLogger("opero")):
        state[f"logger {each.name}"] = each.level, each.propagate, [*each.handlers], [*each.filters]
    for name, event in EVENTS.items():
        # Hooks of functions that have not been freed yet leave when they are.
        state[f"handlers of {name}"] = tuple(each for each in event.handlers if each is not OF_HOOKS)
    return state | {"working directory": os.getcwd(), "sys.path": [*sys.path], "print": builtins.print}


def workers() -> list[psutil.Process]:
    """Descendants of this process other than resource trackers and the redis-server of the tests."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            command = " ".join(each.cmdline())
            others = "resource_tracker" in command or "redis-server" in command
            if each.status() != psutil.STATUS_ZOMBIE and not others:
                found.append(each)
        except psutil.NoSuchProcess:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
