"""The worker processes of this test process, which no test module leaves behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from opero.parallel import pool


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
    assert left == []


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
