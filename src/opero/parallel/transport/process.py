"""The program of a worker process: it receives chunks over a pipe, runs them, and sends back what is finished.

The main thread runs the items, so that timeouts can interrupt them. A second thread receives: it notices at once that
the parent has ended, and sends results while a slow item keeps the main thread busy.
"""

from __future__ import annotations

import _thread
import functools
import mmap
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Callable, MutableSequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.parallel.transport.pickling import loads
from opero.parallel.transport.program_state import enter, importing
from opero.parallel.transport.worker import NOWHERE, Job, RunningChunk, load_job
from opero.parallel.workers.chunk_runner import BEGUN, POSITION, STOP, runs_item
from opero.runtime.forking import at_fork, uninterrupted
from opero.runtime.interruption import RETRY_DELAY

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import CodeType, FrameType

    from opero.parallel.transport.parcel import Parcel

CHUNK = 3
"""Where the control holds the number of the chunk that runs."""
CONTROL_BYTES = 64
PARTIAL_AFTER = 0.05
"""Seconds after which finished results are sent though their chunk still runs."""

ENTER, SETUP, RUN, FORGET, GIVE_UP, EXIT = range(6)
"""What the parent sends: the state of the program, the setup of a map, a chunk, "that map has ended", "send what you
have and no more", "end"."""
READY, PARTIAL, GIVEN_UP, FINAL = range(4)
"""What a worker sends: "I have started", results of a chunk that still runs, the last that will be read of one, the
last."""
HEADER = struct.Struct("!QB")
"""Of each message to the parent: the chunk's number, and its kind."""


def open_control(file: int | str) -> Any:
    """A page of memory shared by a worker and its parent, as 64-bit integers; of an open file, which is closed, or a
    path."""
    with open(file, "r+b") as opened:
        return memoryview(mmap.mmap(opened.fileno(), CONTROL_BYTES)).cast("q")


def main(connection: Connection, control: int | str) -> None:
    """Serve the parent at the other end of the connection until it closes it or says so.

    Args:
        connection: to the parent.
        control: the file of the memory page shared with it: its descriptor, or on Windows its path.
    """
    # A copy in a child of this process would hide from the parent that this process has died.
    at_fork(in_child=connection.close)
    worker = _Worker(connection, open_control(control))
    # Ctrl-C in a terminal reaches workers as well, but the parent decides what it means for them. An item that
    # interrupts its own process is another matter.
    signal.signal(signal.SIGINT, worker.on_sigint)
    for module, name in ((_thread, "interrupt_main"), (signal, "raise_signal"), (os, "kill")):
        setattr(module, name, worker.noticing(getattr(module, name)))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    worker.run()


class _Worker:
    def __init__(self, connection: Connection, control: MutableSequence[int]) -> None:
        self._connection = connection
        self._control = control
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._setups: dict[int, bytes | Parcel] = {}  # until their first chunk
        self._jobs: dict[int, Job] = {}
        self._sending = threading.Lock()
        self._left: dict[int, int] = {}  # by the chunks' numbers, their items whose results were not sent
        self._current: tuple[int, RunningChunk] | None = None
        self._has_given_up = False
        self._is_own = False  # the next SIGINT comes from this process itself
        self._sending_code: CodeType | None = None

    def noticing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that can send signals, noticing when it sends SIGINT to this process."""

        def send(*args: Any) -> Any:
            if args in ((), (signal.SIGINT,), (os.getpid(), signal.SIGINT)):
                self._is_own = True
            return function(*args)

        self._sending_code = send.__code__
        return functools.update_wrapper(send, function)

    # In the main thread

    def on_sigint(self, _: object, frame: FrameType | None) -> None:
        """Interrupt the item that runs, if its map has ended or it does that itself; else nothing."""
        is_own, self._is_own = self._is_own, False
        if self._current is None or not (self._has_given_up or is_own):
            return
        if frame is not None and frame.f_code is self._sending_code:
            frame = frame.f_back
        runs = runs_item(frame)
        if threading.get_ident() in uninterrupted or (runs is None and not self._has_given_up):
            threading.Timer(RETRY_DELAY, self._send_sigint, (is_own,)).start()  # it holds what would be lost
        elif self._has_given_up:
            self._current[1].interrupt()
        elif runs:
            raise KeyboardInterrupt

    def run(self) -> None:
        """Do what the parent sends, in its order."""
        threading.Thread(target=self._receive, name="opero-receive", daemon=True).start()
        with self._sending:
            self._send(0, READY)
        while (work := self._work.get()) is not None:
            work()
            del work

    def _run(self, number: int, setup: int, payload: bytes, *, keep_going: bool) -> None:
        control, run, message = self._control, RunningChunk(self._control), None
        control[POSITION], control[BEGUN], control[CHUNK] = NOWHERE, 0, number
        if not control[STOP]:
            self._current = number, run
            message = run.run(lambda: self._job(setup), payload, keep_going=keep_going)
            for stream in (sys.stdout, sys.stderr):  # the process may be killed while it is idle
                with suppress(Exception):
                    stream.flush()
        with self._sending:
            self._current = None
            self._left.pop(number, None)
            self._send(number, FINAL, message or run.take())
            del run  # see `ChunkRunner.run`

    def _job(self, setup: int) -> Job:
        if setup not in self._jobs:
            with importing():
                self._jobs[setup] = load_job(self._setups[setup])
            del self._setups[setup]
        return self._jobs[setup]

    def _forget(self, setup: int) -> None:
        self._setups.pop(setup, None)
        if setup in self._jobs:
            self._jobs.pop(setup).close()

    # In the other

    def _receive(self) -> None:
        try:
            while True:
                may_have_more = any(left > 1 for left in list(self._left.values()))
                if self._connection.poll(PARTIAL_AFTER if may_have_more else None):
                    self._handle(*loads(self._connection.recv_bytes()))
                else:
                    self._send_finished()
        except (EOFError, OSError):
            os._exit(1)  # the parent has ended

    def _handle(self, kind: int, *parts: Any) -> None:
        if kind == RUN:
            number, setup, count, payload, keep_going = parts
            self._has_given_up = False
            self._left[number] = count
            self._work.put(partial(self._run, number, setup, payload, keep_going=keep_going))
        elif kind == ENTER:
            self._work.put(partial(enter, *parts))
        elif kind == FORGET:
            self._work.put(partial(self._forget, *parts))
        elif kind == SETUP:
            number, contents = parts
            self._setups[number] = contents
        elif kind == GIVE_UP:
            self._send_finished(GIVEN_UP)
            self._has_given_up = True
            self._send_sigint()
        else:
            self._work.put(None)

    def _send_finished(self, kind: int = PARTIAL) -> None:
        """Send what has finished of the chunk that runs; with GIVEN_UP, an answer for those that wait, too."""
        with self._sending:
            number, run = self._current or (None, None)
            if run is not None and number is not None and (run.has_more or kind == GIVEN_UP):
                try:
                    message = run.take(strictly=kind == PARTIAL)
                except Exception:  # noqa: BLE001  # such as a result that the next item modifies; it is sent at the end
                    return
                self._send(number, kind, message)
                self._left[number] -= run.just_taken
            if kind == GIVEN_UP:
                for each in self._left.keys() - {number}:
                    self._send(each, GIVEN_UP, RunningChunk(self._control).take())

    def _send(self, number: int, kind: int, message: bytes = b"") -> None:
        try:
            self._connection.send_bytes(HEADER.pack(number, kind) + message)
        except OSError:
            os._exit(1)  # the parent has ended

    def _send_sigint(self, is_own: bool = False) -> None:
        """Run the handler of SIGINT in the main thread, also if that waits in a system call."""
        self._is_own = is_own
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:  # pragma: no cover  # Windows
            _thread.interrupt_main()
