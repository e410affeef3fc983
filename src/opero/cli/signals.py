"""SIGTERM, which process managers and `kill` send, ends a command as Ctrl-C does: in order."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Termination"]


class Termination:
    """Within `heeded`, SIGTERM does what SIGINT does.

    Attributes:
        has_come: whether one has.
    """

    def __init__(self) -> None:
        self.has_come = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Only in the main thread, and unless somebody has said what SIGTERM does."""
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return
        own = os.getpid()

        def terminate(number: int, frame: Any) -> None:
            if os.getpid() != own:  # a fork of the user's, which is to end as it would without us
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.has_come = True
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
