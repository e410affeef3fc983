"""How a worker process starts: as a new interpreter with one end of a pipe; and what its exit code says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import spawn
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PROGRAM = """
import sys, multiprocessing
from multiprocessing import connection
parent = connection.{kind}({handle})
try:
    sys.path[:], sys.argv[:], multiprocessing.current_process().authkey = parent.recv()
except EOFError:  # the start was interrupted
    sys.exit(1)
from opero.parallel.transport.process import main
main(parent, {control!r})
"""


def start(connection: Connection, control: int | str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker with its end of a pipe: a new interpreter, with nothing of this one's threads and locks."""
    handle = connection.fileno()
    program = PROGRAM.format(kind=type(connection).__name__, handle=handle, control=control)
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [os.fsdecode(spawn.get_executable()), *options, "-c", program]
    inherited: dict[str, Any] = {"pass_fds": [handle, control]}
    if sys.platform == "win32":  # pragma: no cover
        os.set_handle_inheritable(handle, True)
        inherited = {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **inherited)


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """A worker inherits which signals are blocked, so Ctrl-C has no effect before it has its own handler."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def exit_text(code: int) -> str:
    """How a process has ended, by its exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}; was it out of memory?" if name == "SIGKILL" else name
