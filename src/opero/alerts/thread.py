"""The one thread in which alerts are looked at."""

from __future__ import annotations

import atexit
import threading
import time
from typing import Protocol

from opero.errors import describe
from opero.runtime.forking import RenewedLock, at_fork
from opero.runtime.log import log

INTERVAL = 1.0
"""Seconds between two looks at the conditions."""
LAST_WAIT = 2.0
"""Seconds that the end of the program waits for notifications under way."""


class Looked(Protocol):
    """What is looked at: a manager of alerts.

    Attributes:
        _telling: held while notifications are sent.
    """

    _telling: RenewedLock

    def _look(self, *, patient: bool) -> None: ...


class AlertThread:
    """The one thread in which the managers of this process look at their conditions, while there are any."""

    def __init__(self) -> None:
        self._managers: list[Looked] = []
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._lock = RenewedLock()

    def add(self, manager: Looked) -> None:
        with self._lock:
            self._managers = [*self._managers, manager]
        self.ensure()

    def remove(self, manager: Looked) -> None:
        with self._lock:
            self._managers = [each for each in self._managers if each is not manager]
            if not self._managers:
                self._wake.set()

    def ensure(self) -> None:
        """Start the thread, unless it runs or there is nothing to do."""
        if self._thread is None:
            with self._lock:
                if self._thread is None and self._managers:
                    self._wake = threading.Event()
                    made = threading.Thread(target=self._work, args=(self._wake,), name="opero-alerts", daemon=True)
                    made.start()
                    self._thread = made

    def _work(self, wake: threading.Event) -> None:
        while True:
            wake.wait(INTERVAL)
            wake.clear()
            with self._lock:
                managers = self._managers
                if not managers:
                    self._thread = None
                    return
            for each in managers:
                try:
                    each._look(patient=True)
                except BaseException as error:  # noqa: BLE001  # it must not end the thread
                    log("alert_failed", "alerts could not be checked: %s", describe(error), error=error, traceback=True)

    def finish(self) -> None:
        """Look a last time, at the end of the program: a short one may have failed within its last second."""
        until = time.monotonic() + LAST_WAIT
        for each in self._managers:
            each._look(patient=False)
            while not each._telling.acquire(blocking=False):  # the thread notifies
                if time.monotonic() > until:
                    return
                time.sleep(0.02)

    def after_fork(self) -> None:
        """Start a thread of this process: that of the parent is not here."""
        self._thread = None
        self.ensure()


thread = AlertThread()
at_fork(in_child=thread.after_fork)
atexit.register(thread.finish)
