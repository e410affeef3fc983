from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from opero.parallel.workers import process as pool

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    """At the end of a module its pools end, and no worker process stays behind."""
    yield
    pool.end_all()
    until = time.monotonic() + 5
    while (left := workers()) and time.monotonic() < until:
        time.sleep(0.02)
    for each in left:
        os.kill(each.pid, signal.SIGKILL)
    assert left == []


def workers() -> list[psutil.Process]:
    """This process's descendants, but for resource trackers and the tests' redis-server."""
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
