"""The program of a worker process: it receives chunks over a pipe, runs them, and sends back what is finished.

The main thread runs the items, so that timeouts can interrupt them. A second thread receives: it notices at once that
the parent has ended, and sends results while a slow item keeps the main thread busy.
"""

from __future__ import annotations

import _thread
import mmap
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import MutableSequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opero.parallel.transport.pickling import loads
from opero.parallel.transport.worker import MOST_SETUPS, NOWHERE, Job, Jobs, RunningChunk
from opero.parallel.workers.chunk_runner import BEGUN, POSITION, STOP
from opero.runtime.forking import at_fork, uninterrupted
from opero.runtime.interruption import RETRY_DELAY

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CHUNK = 3
"""Where the control holds the number of the chunk that runs."""
CONTROL_BYTES = 64
PARTIAL_AFTER = 0.05
"""Seconds after which finished results are sent though their chunk still runs."""

SETUP, RUN, GIVE_UP, EXIT = range(4)
"""What the parent sends: the setup of a map, a chunk, "send what you have and no more", "end"."""
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
    # Ctrl-C in a terminal reaches workers as well, but the parent decides what it means for them.
    signal.signal(signal.SIGINT, worker.on_sigint)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    worker.run()


class _Worker:
    def __init__(self, connection: Connection, control: MutableSequence[int]) -> None:
        self._connection = connection
        self._control = control
        self._chunks: queue.SimpleQueue[tuple[int, Any, bytes, bool] | None] = queue.SimpleQueue()
        self._setups: dict[Any, bytes] = {}
        self._jobs = Jobs()
        self._sending = threading.Lock()
        self._left: dict[int, int] = {}  # by the chunks' numbers, their items whose results were not sent
        self._current: tuple[int, RunningChunk] | None = None
        self._has_given_up = False

    # In the main thread

    def on_sigint(self, *_: object) -> None:
        """Interrupt the item that runs, if its map has ended; else nothing."""
        if self._has_given_up and self._current is not None:
            if threading.get_ident() in uninterrupted:
                threading.Timer(RETRY_DELAY, _send_sigint).start()  # it holds a lock that would stay locked
            else:
                self._current[1].interrupt()

    def run(self) -> None:
        """Run chunks as they come."""
        threading.Thread(target=self._receive, name="opero-receive", daemon=True).start()
        with self._sending:
            self._send(0, READY)
        while (chunk := self._chunks.get()) is not None:
            self._run(*chunk)
            del chunk

    def _run(self, number: int, key: Any, payload: bytes, keep_going: bool) -> None:
        control, run, message = self._control, RunningChunk(self._control), None
        control[POSITION], control[BEGUN], control[CHUNK] = NOWHERE, 0, number
        if not control[STOP]:
            self._current = number, run
            message = run.run(lambda: self._job(key), payload, keep_going=keep_going)
            for stream in (sys.stdout, sys.stderr):  # the process may be killed while it is idle
                with suppress(Exception):
                    stream.flush()
        with self._sending:
            self._current = None
            self._left.pop(number, None)
            self._send(number, FINAL, message or run.take())
            del run  # see `ChunkRunner.run`

    def _job(self, key: Any) -> Job:
        job = self._jobs.get(key, self._setups.get(key, b""))
        self._setups.pop(key, None)
        return job

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
            number, key, count, payload, keep_going = parts
            self._has_given_up = False
            self._left[number] = count
            self._chunks.put((number, key, payload, keep_going))
        elif kind == SETUP:
            key, setup = parts
            self._setups[key] = setup
            if len(self._setups) > MOST_SETUPS:
                del self._setups[next(iter(self._setups))]
        elif kind == GIVE_UP:
            self._send_finished(GIVEN_UP)
            self._has_given_up = True
            _send_sigint()
        else:
            self._chunks.put(None)

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


def _send_sigint() -> None:
    """Run the handler of SIGINT in the main thread, also if that waits in a system call."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # pragma: no cover  # Windows
        _thread.interrupt_main()
