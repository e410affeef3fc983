"""One thread for each redis that brings the states of this process up to date there, for as long as any has changed."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol, runtime_checkable

from opero.runtime.forking import renew_in_child

BEAT = 0.25
"""Seconds from one update to the next."""


@runtime_checkable
class Updated(Protocol):
    """What is brought up to date."""

    def update(self) -> bool:
        """Bring it up to date; whether that has to be done again at the next beat."""


class Beat:
    """Brings each state that asks for it up to date at the next beat."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._wanted: weakref.WeakSet[Updated] = weakref.WeakSet()
        self._runs = False
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Leave the thread, and what it has to do, to the parent."""
        self._wanted = weakref.WeakSet()
        self._runs = False

    def want(self, state: Updated) -> None:
        """Have a state brought up to date at the next beat."""
        with self.lock:
            self._wanted.add(state)
            if self._runs:
                return
            self._runs = True
        try:
            threading.Thread(target=self._run, name="opero-state", daemon=True).start()
        except RuntimeError:  # the program is ending
            self._runs = False

    def _run(self) -> None:
        try:
            while self._beat():
                pass
        except BaseException:
            self._runs = False
            raise

    def _beat(self) -> bool:
        """Bring all that ask for it up to date; whether there were any, so that there may be more at the next beat."""
        time.sleep(BEAT)
        with self.lock:
            wanted, self._wanted = list(self._wanted), weakref.WeakSet()
            if not wanted:
                self._runs = False
                return False
        for state in wanted:
            if state.update():
                with self.lock:
                    self._wanted.add(state)
        return True
