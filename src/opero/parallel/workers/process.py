"""A worker process, in its parent: starts it, sends, receives and ends it, and keeps idle ones for later maps."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from opero.parallel.transport.process import (
    CONTROL_BYTES,
    ENTER,
    EXIT,
    FINAL,
    FORGET,
    GIVE_UP,
    GIVEN_UP,
    HEADER,
    PARTIAL,
    READY,
    RUN,
    SETUP,
    open_control,
)
from opero.parallel.transport.program_state import traits
from opero.parallel.transport.worker import MOST_SETUPS
from opero.parallel.workers.chunk_runner import STOP
from opero.parallel.workers.start import exit_text, start, without_ctrl_c
from opero.parallel.workers.threads import in_thread
from opero.runtime.forking import RenewedLock, at_fork, renew_in_child, undivided
from opero.runtime.machine import descendants
from opero.runtime.private_folder import in_private_folder

if TYPE_CHECKING:
    from pathlib import Path

    from opero.parallel.transport.parcel import Parcel
    from opero.parallel.workers.pool import Task

IDLE_SECONDS = 60
"""Seconds after which a process that is not used ends."""
SMALL = 1 << 14
"""Bytes that can be sent without waiting: the pipe holds all that may be under way in messages of that size."""
LAST_SECONDS = 1.0
"""Seconds that killed processes have to end with the program."""


class ProcessDied(BrokenExecutor):
    """A worker process has ended; the message says how."""


class Process:
    """A worker process.

    Args:
        environment: its environment variables.

    Attributes:
        traits: what it keeps to its end.
        control: the memory page shared with it.
        tasks: what it was sent and has not answered with its last message, by number.
        is_idle: set while there are no such tasks.
        is_ready: it has started.
        end: why it was killed, if it was.
    """

    numbers = itertools.count(1)

    def __init__(self, environment: Mapping[str, str]) -> None:
        number = next(self.numbers)
        self.traits = traits(environment)
        control, self._path = in_private_folder(lambda folder: _new_control(folder / f"control-{number}"))
        self.control = open_control(os.dup(control))
        self.tasks: dict[int, Task | None] = {}
        self.is_idle = threading.Event()
        self.is_idle.set()
        self.is_ready = False
        self.end: str | None = None
        self._exit: str | None = None
        self._lock = threading.RLock()
        self._outbox: deque[bytes] = deque()
        self._is_sending = False
        self._state = b""
        self._setups: dict[bytes | Parcel, int] = {}  # those that it has, by number
        with undivided, without_ctrl_c():  # a process forked meanwhile would hold the other end of the pipe
            self._connection, theirs = multiprocessing.Pipe()
            try:
                self._process = start(theirs, control if self._path is None else str(self._path), environment)
            finally:
                theirs.close()
                os.close(control)
            renew_in_child(self, "_lock")
        self.pid = self._process.pid
        key = bytes(multiprocessing.current_process().authkey)
        self._send(pickle.dumps((sys.path, sys.argv, key)))
        threading.Thread(target=self._receive, name=f"opero-worker-{number}", daemon=True).start()

    @property
    def is_usable(self) -> bool:
        return self.end is None and self._exit is None

    @property
    def is_reserved(self) -> bool:
        """Whether it runs a suspected item, which has a process to itself."""
        return any(task is None or task.chunk.suspect for task in list(self.tasks.values()))

    # Sending

    def send(self, task: Task, state: bytes, setup: bytes | Parcel) -> None:
        """Send a task, and first the state of the program and the setup of its map, unless the process has them.

        Raises:
            ProcessDied: the process has ended.
        """
        with self._lock:
            if not self.is_usable:
                raise ProcessDied(self._exit or self.end)
            self.tasks[task.number] = task
            self.is_idle.clear()
        if state != self._state:
            self._send(pickle.dumps((ENTER, state)))
            self._state = state
        if setup not in self._setups:
            if len(self._setups) >= MOST_SETUPS:
                self.forget(next(iter(self._setups)))
            number = next(self.numbers)
            self._send(pickle.dumps((SETUP, number, setup)))
            self._setups[setup] = number
        chunk, number = task.chunk, self._setups[setup]
        self._send(pickle.dumps((RUN, task.number, number, len(task.positions), task.payload, chunk.keep_going)))

    def forget(self, setup: bytes | Parcel) -> None:
        """Have it free what belongs to a map that has ended."""
        if setup in self._setups:
            self._send(pickle.dumps((FORGET, self._setups.pop(setup))))

    def give_up(self) -> None:
        """Make it send what has finished. Later results of its tasks are dropped."""
        if self.tasks and self.is_usable:
            self._send(pickle.dumps((GIVE_UP,)))

    def _send(self, message: bytes) -> None:
        """Send a message without ever blocking: a large one in another thread, and those behind it, too."""
        with self._lock:
            self._outbox.append(message)
            if self._is_sending:
                return
            self._is_sending = True
        if len(message) > SMALL:
            in_thread(self._send_all)
            return
        try:
            self._send_all()
        except BaseException:  # for example Ctrl-C: half a message may have been sent
            self.kill("sending was interrupted")
            raise

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    self._is_sending = False
                    return
                message = self._outbox.popleft()
            with suppress(OSError):  # it has died, which the receiving thread finds out
                self._connection.send_bytes(message)

    # Receiving

    def _receive(self) -> None:
        try:
            while True:
                if self._connection.poll(IDLE_SECONDS):
                    self._handle(self._connection.recv_bytes())
                elif _retire(self):
                    self._send(pickle.dumps((EXIT,)))
        except (EOFError, OSError):  # it has ended
            self._finish()

    def _handle(self, data: bytes) -> None:
        number, kind = HEADER.unpack_from(data)
        if kind == READY:
            self.is_ready = True
            return
        with self._lock:
            task = self.tasks[number]
            if kind == GIVEN_UP:
                self.tasks[number] = None
            elif kind == FINAL:
                del self.tasks[number]
                if not self.tasks:
                    self.is_idle.set()
        if task is not None:
            task.post(memoryview(data)[HEADER.size :], is_last=kind != PARTIAL)

    def _finish(self) -> None:
        code = self._process.wait()
        with self._lock:
            self._exit = exit_text(code)
            tasks = list(self.tasks.values())
            self.tasks.clear()
            self.is_idle.set()
        self._connection.close()
        if self._path is not None:  # pragma: no cover  # Windows
            with suppress(OSError):  # such as while it is mapped
                self._path.unlink()
        for task in tasks:
            if task is not None:
                task.post(ProcessDied(self._exit))

    # The end

    def kill(self, reason: str) -> None:
        """Kill the process and its descendants."""
        self.end = reason
        if self._exit is None:
            children = descendants(self.pid)
            self._process.kill()
            for each in children:
                with suppress(ProcessLookupError):
                    os.kill(each, getattr(signal, "SIGKILL", signal.SIGTERM))

    def wait(self, seconds: float) -> None:
        """Wait until a killed process has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def after_fork(self) -> None:
        """Leave the process to the parent: send it nothing, do not share its memory, do not kill it or wait for it."""
        self._connection.close()
        self._exit = "it is a worker of the parent process"
        self._process.returncode = 0
        self.control = [0] * (CONTROL_BYTES // 8)
        self.tasks.clear()
        self.is_idle = threading.Event()
        self.is_idle.set()


def _new_control(path: Path) -> tuple[int, Path | None]:
    """A file for the memory page shared with a worker, open, and its path where a worker cannot inherit it.

    Elsewhere it has no path any more: it cannot be deleted, and it ends with the processes.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(file, bytes(CONTROL_BYTES))
    if sys.platform == "win32":  # pragma: no cover
        return file, path
    os.unlink(path)
    return file, None


# Processes between maps

_lock = RenewedLock()
_idle: list[Process] = []
_busy: set[Process] = set()
_has_ended = False


def take_process(mine: list[Process], most: int, environment: Mapping[str, str]) -> Process | None:
    """A process for one map: an idle one, or a new one if this program has fewer than `most` at work, or the map has
    none.

    Args:
        mine: the processes that the map has. It is added to them in the moment in which it is not idle any more, so
            that it can be given back whatever interrupts the map.
        most: how many may be at work, and how many idle ones stay whose traits are not those that the map needs.
        environment: the environment variables of the map's processes.
    """
    wanted = traits(environment)
    with _lock:
        if _has_ended and threading.current_thread().daemon:
            raise SystemExit  # as the program does
        _idle[:] = [each for each in _idle if each.is_usable]
        suitable = [at for at, each in enumerate(_idle) if each.traits == wanted]
        if suitable:
            at = suitable[0]  # the oldest
            process = _idle[at]
            process.control[STOP] = 0
            _busy.add(process)
            end = len(mine)
            del _idle[at]
            mine[end:] = [process]  # with the statement before: see `opero.executors.state.slots`
            return process
        if mine and len(_busy) >= most:
            return None
        while len(_idle) >= most:
            _idle[0].kill("others were needed")
            del _idle[0]
    process = Process(environment)
    with _lock:
        mine.append(process)
        _busy.add(process)
    return process


def give_back(process: Process) -> None:
    """Leave a process to the next map. Giving it back again does nothing."""
    with _lock:
        if process.is_usable and process not in _idle:
            _idle.append(process)
        _busy.discard(process)


def _retire(process: Process) -> bool:
    """Whether a process that has received nothing for long belongs to no map. It is not used again then."""
    with _lock:
        if process in _busy:
            return False
        if process in _idle:
            _idle.remove(process)
        return True


def end_all() -> None:
    """Kill all worker processes: idle ones, and those of maps that are not read to their end."""
    with _lock:
        processes = [*_idle, *_busy]
        _idle.clear()
        _busy.clear()
    for process in processes:
        process.kill("the program has ended")
    for process in processes:
        process.wait(LAST_SECONDS)


def _end_with_the_program() -> None:
    global _has_ended  # noqa: PLW0603  # one per process
    with _lock:
        _has_ended = True
    end_all()


def _forget() -> None:
    """In a forked child: the workers are its parent's."""
    _idle.clear()
    _busy.clear()


atexit.register(_end_with_the_program)
at_fork(in_child=_forget)
