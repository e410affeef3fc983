"""Worker processes: joblib's loky, one pool for each, kept between maps.

A process of its own pool can die, or be killed, without the others.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import threading
import time
from collections import deque
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from joblib.externals.loky import ProcessPoolExecutor, process_executor

from opero.parallel.transport.parent_watch import prepare, without_ctrl_c
from opero.parallel.transport.worker import CONTROL_BYTES, open_control, run_chunk
from opero.parallel.workers.work import STOP
from opero.runtime.machine import descendants
from opero.runtime.private_folder import private_folder

if TYPE_CHECKING:
    from concurrent.futures import Future

    from opero.parallel.workers.processes import Sent

__all__ = ["Process", "end_all", "give_back", "take_process"]

IDLE_SECONDS = 60
LONGEST_GOODBYE = 1.0
"""Seconds that loky's threads may take at the program's end."""

_lock = threading.Lock()
_idle: list[Process] = []
_busy: set[Process] = set()
_is_registered = _has_ended = False


class Process:
    """A worker process: it begins when something is first sent, and after a minute without anything it ends."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.executor: Any = ProcessPoolExecutor(1, timeout=IDLE_SECONDS, initializer=prepare, initargs=(os.getpid(),))
        path = private_folder() / f"control-{next(self.numbers)}"
        path.write_bytes(bytes(CONTROL_BYTES))
        self.path = str(path)
        self.control = open_control(self.path)
        self.under_way: deque[Sent] = deque()
        self.reserved = False
        self.end: str | None = None
        self.looked = 0.0
        self.was_dead = False
        self.manager: threading.Thread | None = None
        """Loky's thread, once it has been told to end."""
        self.futures: set[Future[bytes]] = set()

    @property
    def is_usable(self) -> bool:
        flags = self.executor._flags
        return self.end is None and not flags.broken and not flags.shutdown

    def submit(self, *args: Any, **kwargs: Any) -> Future[bytes]:
        """Have it run a chunk. If it is not there, it begins."""
        with nullcontext() if self.executor._processes else without_ctrl_c():
            future: Future[bytes] = self.executor.submit(run_chunk, *args, **kwargs)
        _end_with_the_program()
        self.futures.add(future)
        return future

    def kill(self, reason: str) -> None:
        """End it at once."""
        self.end = reason
        pids = self.pids()
        if pids:
            self._close_own_end()
        # Not by loky's `shutdown(kill_workers=True)`, whose thread fails where a chunk waits behind the one that runs.
        for each in [*pids, *(child for pid in pids for child in descendants(pid))]:
            with suppress(ProcessLookupError):
                os.kill(each, getattr(signal, "SIGKILL", signal.SIGTERM))
        self.manager = self.executor._executor_manager_thread or self.manager
        self.executor.shutdown(wait=False)

    def _close_own_end(self) -> None:
        """Loky waits for the rest of a result that is being sent as long as anybody could write it, as this process."""
        writer: Any = getattr(self.executor._result_queue, "_writer", None)
        handle = getattr(writer, "_handle", None)
        if handle is not None:
            writer._handle = None  # at the end loky closes what is open
            os.close(handle)

    @property
    def is_dead(self) -> bool:
        """Whether it has ended by itself."""
        processes = list((self.executor._processes or {}).values())
        return bool(processes) and all(each.exitcode is not None for each in processes)

    def pids(self) -> list[int]:
        return list(self.executor._processes or ())


def take_process(at_least_one: bool, most: int) -> Process | None:
    """A process for a map alone: an idle one, or a new one if there are not too many already."""
    with _lock:
        if _has_ended and threading.current_thread().daemon:
            raise SystemExit  # as the program does
        if _has_ended:
            raise RuntimeError("the program has ended, and a map cannot begin worker processes: wait for its thread")
        while _idle:
            process = _idle.pop(0)  # the one that began first
            if process.is_usable:
                process.control[STOP] = 0
                _busy.add(process)
                return process
        if not at_least_one and len(_busy) >= most:
            return None
    process = Process()
    with _lock:
        _busy.add(process)
    return process


def give_back(process: Process) -> None:
    with _lock:
        _busy.discard(process)
        if process.is_usable:
            _idle.append(process)


def end_all() -> None:
    """End all worker processes: idle ones, and those of maps that nobody reads to their end."""
    with _lock:
        processes = [*_idle, *_busy]
        _idle.clear()
        _busy.clear()
    for process in processes:
        process.kill("the program has ended")
    # An interpreter that ends freezes daemon threads, and one that was giving back a semaphore would leave it half
    # given back, of which loky warns. Their workers are dead, so these threads are done in no time.
    until = time.monotonic() + LONGEST_GOODBYE
    for process in processes:
        if process.manager is not None and process.manager is not threading.current_thread():
            process.manager.join(max(0.0, until - time.monotonic()))


def _forget() -> None:
    """In a forked child: its parent's workers are not its own, nor is a lock that a thread of its parent may hold."""
    global _lock  # noqa: PLW0603  # one a process
    _lock = threading.Lock()
    _idle.clear()
    _busy.clear()


def _end_with_the_program() -> None:
    """At the program's end, end all before loky waits for what runs: what was registered last is called first."""
    global _is_registered  # noqa: PLW0603  # one a process
    if _is_registered:
        return
    # loky means to register once, and would do so for each pool: those to come would be before ours.
    process_executor.process_pool_executor_at_exit = _end_for_good
    with suppress(RuntimeError):  # it ends already
        getattr(threading, "_register_atexit", atexit.register)(_end_for_good)
    _is_registered = True


def _end_for_good() -> None:
    global _has_ended  # noqa: PLW0603  # as above
    with _lock:
        _has_ended = True
    end_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
