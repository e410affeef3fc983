"""Gives back what coroutines hold whose event loop has ended, and which therefore never continue.

Most of it is given back when Python destroys the coroutine. That is too late where something refers to it still, and
where other threads or processes wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from asyncio import Task

LOOK_EVERY = 0.5
"""Seconds between looks whether an event loop has ended."""


class _Watch:
    """A thread that looks at the event loops of holders, and ends when there is none left."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        renew_in_child(self, "lock")
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the parent's."""
        self.holders: dict[int, tuple[Any, Callable[[], object]]] = {}
        self.is_running = False

    def begin(self, holder: object, loop: Any, give_back: Callable[[], object]) -> None:
        with self.lock:
            self.holders[id(holder)] = loop, give_back
            if self.is_running:
                return
            self.is_running = True
        try:
            threading.Thread(target=self.run, name="opero-loops", daemon=True).start()
        except RuntimeError:  # no thread can be started: the next holder tries again
            self.is_running = False

    def end(self, holder: object) -> None:
        with self.lock:
            self.holders.pop(id(holder), None)

    def run(self) -> None:
        from opero.runtime.async_library import is_closed

        while True:
            time.sleep(LOOK_EVERY)
            with self.lock:
                if not self.holders:
                    self.is_running = False
                    return
                ended = [key for key, (loop, _) in self.holders.items() if is_closed(loop)]
                actions = [self.holders.pop(key)[1] for key in ended]
            while actions:
                with suppress(Exception):
                    actions.pop()()


_watch = _Watch()
watch = _watch.begin
"""Call a function, within a second, if an event loop ends before `unwatch(holder)` is called. The function refers to
the holder."""
unwatch = _watch.end


def close(task: Task[Any]) -> None:
    """End the coroutine of a task whose event loop is closed, so that it gives back what it holds."""
    with suppress(Exception):  # no caller waits for what it raises; or another thread closes it
        task.get_coro().close()
