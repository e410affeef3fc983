"""Reads files that may be named pipes, as password managers and shells pass `.env` files."""

from __future__ import annotations

import os
import select
import stat
import time
from typing import TYPE_CHECKING

from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 10.0
"""Seconds within which the writer of a pipe has to begin, or to go on."""
_contents: dict[tuple[int, int], bytes] = {}
"""Device and inode of a pipe → what was read from it last: its writer may have written once and ended."""
_lock = RenewedLock()


def contents_of(path: Path) -> bytes:
    """Return what is in a file. Of a named pipe, that is what its writer writes now, else what was read from it last.

    Raises:
        OSError: it cannot be read; TimeoutError: nothing writes to the pipe.
    """
    status = path.stat()
    if not stat.S_ISFIFO(status.st_mode):
        return path.read_bytes()
    key = status.st_dev, status.st_ino
    with _lock:
        known = _contents.get(key)
        try:
            _contents[key] = _read_pipe(path, PATIENCE if known is None else 0.0)
        except TimeoutError:
            if known is None:
                raise
        return _contents[key]


def _read_pipe(path: Path, patience: float) -> bytes:
    """Read a pipe to the end, without waiting for ever, as opening or reading it would.

    Args:
        path: the pipe.
        patience: the seconds to wait for a writer to begin.
    """
    parts: list[bytes] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        until, waited = time.monotonic() + patience, False
        while True:
            try:
                part = os.read(descriptor, 1 << 16)
            except BlockingIOError:  # there is a writer, which has not written yet
                part = None
                if not waited:
                    waited, until = True, time.monotonic() + PATIENCE
            if part:
                parts.append(part)
                waited = False
                continue
            if part is not None and parts:  # the writer has ended
                return b"".join(parts)
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(0, f"nothing was written to this pipe within {PATIENCE:g} s")
            if part is None:
                poll.poll(1000 * left)
            else:
                time.sleep(min(0.01, left))  # there is no writer yet, which nothing tells of
    finally:
        os.close(descriptor)
