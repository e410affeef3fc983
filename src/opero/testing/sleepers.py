"""Whose turn it is among the threads that wait on a virtual clock: the one that is due first, once all others wait."""

from __future__ import annotations

import gc
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

LOOK = 0.0005
"""Real seconds between two looks at what other threads do. Looks are counted, as a test may have replaced real time."""
LOOKS = 3
"""A thread that is at the same place at this many consecutive looks is waiting for something."""
PATIENCE = 400
"""The number of looks, about 0.2 s, after which time moves although other threads compute."""

POOLS = ("opero.runtime.helper_threads", "opero.parallel.workers.threads")
"""The modules that keep idle threads."""


class Sleepers:
    """The threads that wait on one clock.

    A thread that waits for anything else (a queue, a lock, a socket) is recognized by its frame, which stays where it
    is. Linux also tells whether it has run meanwhile, so a thread that has been seen waiting, such as an
    idle one of a pool, is known to wait still.
    """

    def __init__(self) -> None:
        self._due: dict[int, float] = {}
        self._waits_at: dict[int, Place] = {}

    def wait(
        self, due: float, now: Callable[[], float], is_done: Callable[[], bool] | None = None, at_least: int = 0
    ) -> bool:
        """Block the thread until it is its turn to move the clock to `due`, or others have moved it there.

        Args:
            due: the moment, on the clock.
            now: returns the time of the clock.
            is_done: whether what the thread waits for has happened. Default: it waits for the moment only.
            at_least: how often to look for that in any case.

        Returns:
            Whether it has happened.
        """
        if is_done is not None and is_done():
            return True
        if threading.active_count() == 1 and not at_least:
            return False
        me = threading.get_ident()
        seen: dict[int, Place] = {}
        same = looks = 0
        self._due[me] = due
        try:
            look = -1
            while now() < due:
                look += 1
                if look < at_least or not self._is_first(me, due):
                    same = looks = 0
                else:
                    looks += 1
                    running = self._running(me)
                    same = same + 1 if running == seen else 1
                    seen = running
                    if same >= LOOKS:
                        self._waits_at.update(running)
                    if not running or same >= LOOKS or looks > PATIENCE:
                        return False
                time.sleep(LOOK)
                if is_done is not None and is_done():
                    return True
            return False
        finally:
            del self._due[me]

    def _is_first(self, me: int, due: float) -> bool:
        return all(due <= moment for thread, moment in self._due.copy().items() if thread != me)

    def _running(self, me: int) -> dict[int, Place]:
        """Return where each thread is that may not be waiting."""
        frames, idle = _current_frames(), _idle_threads()
        found: dict[int, Place] = {}
        for thread in threading.enumerate():
            ident = thread.ident
            frame = frames.get(ident) if ident is not None else None
            if ident is None or frame is None or ident == me or ident in self._due or ident in idle:
                continue
            switches = _switches(thread.native_id)
            place = id(frame), frame.f_lasti, switches
            if switches is None or self._waits_at.get(ident) != place:
                found[ident] = place
        return found


def _idle_threads() -> set[int | None]:
    """Return the identifiers of opero's own threads that have nothing to do. There may be many to look at."""
    modules = [sys.modules.get(each) for each in POOLS]
    return {thread for module in modules if module is not None for thread in module.idle_threads()}


def _current_frames() -> dict[int, FrameType]:
    """Return the frame of each other thread. This thread's own would refer to itself, and keep all that it has alive.

    Without the garbage collector: in Python 3.11, a collection that begins meanwhile waits forever for a lock that the
    interpreter holds, if it frees a `threading.local`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        frames = sys._current_frames()
        frames.pop(threading.get_ident(), None)
        return frames
    finally:
        if was_enabled:
            gc.enable()


Place = tuple[int, int, float | None]
"""A frame, the instruction in it, and how often the thread has given up its processor; None if that is not known."""
STATUS = re.compile(rb"\nState:\t(\w).*_switches:\t(\d+)\nnon\w+:\t(\d+)", re.DOTALL)


def _switches(native_id: int | None) -> float | None:
    """Return how often a thread has given up its processor; not a number while it has one or would take one."""
    try:
        found = STATUS.search(Path(f"/proc/self/task/{native_id}/status").read_bytes())
    except OSError:  # this is not Linux, or the thread has ended
        return None
    if found is None:
        return None
    return float("nan") if found[1] == b"R" else float(found[2]) + float(found[3])
