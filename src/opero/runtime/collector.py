"""Pauses Python's garbage collector while many objects are made that all stay."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from opero.runtime.forking import at_fork

P = ParamSpec("P")
R = TypeVar("R")

MANY = 50_000
"""How many new objects count as old at the end."""
FROZEN_BY_PYTHON = 1_000
"""Python 3.12 itself freezes some 400 objects when it starts; a program that calls gc.freeze() freezes many more."""
_pausing: set[int] = set()
"""The threads that have paused it."""


def without_collector(function: Callable[P, R]) -> Callable[P, R]:
    """Pause the collector while a function runs, unless it is paused already, by the program or in another thread.

    It is paused for all threads, since Python has one switch for all. What they free meanwhile is freed, except for
    cycles, which are freed later.
    """

    @functools.wraps(function)
    def paused(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return function(*args, **kwargs)
        thread = threading.get_ident()
        try:  # before the collector is paused, as Ctrl-C may follow at once
            _pausing.add(thread)
            gc.disable()
            return function(*args, **kwargs)
        finally:
            try:
                # Garbage among old objects is found late, so a few are left to the collector as they are.
                if gc.get_count()[0] >= MANY:
                    make_old()
            finally:
                gc.enable()
                _pausing.discard(thread)

    return paused


def make_old() -> None:
    """Move all objects to the oldest generation, in constant time. Otherwise, the next collections would traverse them.

    Nothing happens if the program has frozen objects, which are to stay so.
    """
    if gc.get_freeze_count() < FROZEN_BY_PYTHON:
        try:
            gc.freeze()
        finally:
            gc.unfreeze()


def _resume() -> None:
    """In a forked child: the thread that would resume the collector may be one of the parent."""
    if _pausing:
        gc.enable()
        _pausing.clear()


at_fork(in_child=_resume)
