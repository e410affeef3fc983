"""Handles SIGTERM, which process managers and `kill` send, like Ctrl-C, so that commands shut down in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Termination:
    """Turns SIGTERM into SIGINT.

    Attributes:
        received: whether SIGTERM has been received.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def as_interrupt(self) -> Iterator[None]:
        """Handle SIGTERM within this context, if this is the main thread and SIGTERM has no handler yet."""
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return
        own = os.getpid()

        def terminate(number: int, frame: Any) -> None:
            if os.getpid() != own:  # a process that the user's code forked: end it as SIGTERM does by default
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.received = True
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
