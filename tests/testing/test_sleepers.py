"""Looking at the frames of other threads."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import weakref

from opero import Policy
from opero.testing import VirtualClock

PROGRAM = """
import gc, threading
from opero.testing.sleepers import Sleepers

class Holder:
    pass

stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range(5)]
for thread in threads:
    thread.start()
gc.set_threshold(1)
sleepers = Sleepers()
for _ in range(2000):
    holder = Holder()
    holder.itself, holder.local = holder, threading.local()
    del holder
    sleepers._running(0)
stop.set()
print(gc.isenabled())
"""


def test_a_garbage_collection_that_frees_thread_locals_does_not_block_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


class LostError(Exception):
    pass


def test_a_virtual_sleep_beside_other_threads_keeps_nothing_alive() -> None:
    alive: list[weakref.ref[LostError]] = []

    def function(key: str | None = None) -> None:
        error = LostError()
        alive.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Exception):
            Policy(retry=2, fallback={"arg": "key"}).apply(function, clock=VirtualClock())()
        assert [each() for each in alive] == [None, None, None]
    finally:
        gc.enable()
        stop.set()
        other.join()
