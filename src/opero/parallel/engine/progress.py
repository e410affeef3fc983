"""The progress of a map: a bar, lines of text, a callback, and the event `MapProgressed`."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, Literal

from opero.events import MapProgressed
from opero.observe.stats import Stats
from opero.runtime.log import log
from opero.values import Progress

BETWEEN_DRAWINGS = 0.1
"""Seconds."""
BETWEEN_LINES = 10.0
"""Seconds between lines of text, if a requested bar cannot be drawn."""
QUICK = 0.5
"""Seconds: a shorter map shows no bar in mode "auto"."""


class Display:
    """Displays the progress of a map. An error of a stream or of a callback never ends the map.

    Args:
        wanted: true: a bar on a terminal or in a notebook, and elsewhere a line of text every ten seconds; "auto": only
            a bar, and only for maps of more than half a second; a callback: called with each `Progress`, at most ten
            times a second and at the end; false: nothing.
        name: the name of the mapped function.
        total: the number of items, if known.
        now: the clock.
        stats: of the function, for its events.

    Attributes:
        last: the latest progress.
        number: the number of the map in this process, for its events.
    """

    def __init__(
        self,
        wanted: bool | Literal["auto"] | Callable[[Progress], object],
        name: str,
        total: int | None,
        now: Callable[[], float] = time.monotonic,
        stats: Stats | None = None,
    ) -> None:
        self._name = "".join(each if each.isprintable() else " " for each in name)  # it must not break a line
        self._total = total
        self._stats = stats or Stats(name)
        self.number = next(_numbers)
        self.last = Progress(self._name, 0, total, 0, 0, 0, 0.0)
        self._now = now
        self._began = self._updated = now()
        self._callback = wanted if callable(wanted) else None
        self._bar: Any = None
        self._lines: float | None = None
        if wanted is not False and self._callback is None:
            self._bar = _bar(self._name, total, delay=0.0 if wanted is True else QUICK)
            if self._bar is None and wanted is True and sys.stderr is not None:
                self._lines = self._began
        self.is_wanted = self._callback is not None or self._bar is not None or self._lines is not None

    @property
    def patience(self) -> float | None:
        """Seconds after which to update even if nothing has finished; None: never."""
        if self._bar is not None:
            return QUICK
        return None if self._lines is None else BETWEEN_LINES

    def is_due(self) -> bool:
        """Whether something displays progress, and it is time for an update."""
        if not self.is_wanted and not MapProgressed.handlers:
            return False
        return self._now() - self._updated >= BETWEEN_DRAWINGS

    def update(self, done: int, failures: int, retries: int, cache_hits: int) -> None:
        """Display the progress so far."""
        self._updated = self._now()
        self.last = progress = Progress(
            self._name, done, self._total, failures, retries, cache_hits, self._updated - self._began
        )
        if self._bar is not None:
            self._draw(progress)
        if self._lines is not None and self._updated - self._lines >= BETWEEN_LINES:
            self._lines = self._updated
            self._write(progress)
        if self._callback is not None:
            try:
                self._callback(progress)
            except Exception as error:  # noqa: BLE001  # a user's own
                text = "the progress callback of %s failed, and is not called again"
                log("map_progress_failed", text, self._name, about=self._stats, error=error, traceback=True)
                self._callback = None
        if MapProgressed.handlers:
            self._stats.emit(MapProgressed, progress=progress, map=self.number)

    def _draw(self, progress: Progress) -> None:
        counts = {"failures": progress.failures, "retries": progress.retries, "hits": progress.cache_hits}
        try:
            self._bar.set_postfix({what: count for what, count in counts.items() if count}, refresh=False)
            self._bar.update(progress.done - self._bar.n)
        except Exception:  # noqa: BLE001  # for example widgets that were closed
            self._bar.disable = True  # so that it does not draw again when it is closed
            self._bar = None

    def _write(self, progress: Progress) -> None:
        try:
            sys.stderr.write(f"{progress}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  # as above
            self._lines = None

    def close(self, done: int, failures: int, retries: int, cache_hits: int) -> None:
        """Display the end."""
        if self._lines is not None:
            self._lines = float("-inf")
        self.update(done, failures, retries, cache_hits)
        if self._bar is not None:
            with suppress(Exception):
                self._bar.close()


_numbers = count(1)


class _Stream:
    """A stream whose errors are ignored."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(Exception):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _bar(name: str, total: int | None, *, delay: float) -> Any:
    """A tqdm bar, of widgets in a notebook that has them, else of text; None if none can be drawn."""
    stream: Any = sys.stderr
    is_notebook = type(stream).__module__.partition(".")[0] == "ipykernel"
    if not (is_notebook or _is_terminal(stream)):
        return None
    options: dict[str, Any] = {"total": total, "desc": name, "unit": " items", "delay": delay, "leave": not delay}
    # It draws at each update, so it needs no thread of its own.
    options.update(mininterval=0, miniters=0)
    if is_notebook:
        with suppress(Exception):  # a notebook without its widgets
            module = importlib.import_module("tqdm.notebook")
            if module.IProgress is not None:
                return _silent(module.tqdm)(**options)
    with suppress(Exception):  # a stream that is closed meanwhile
        return _silent(importlib.import_module("tqdm.std").tqdm)(
            file=_Stream(stream), dynamic_ncols=not is_notebook, **options
        )
    return None


def _silent(kind: Any) -> Any:
    return type("Bar", (kind,), {"monitor_interval": 0})


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except Exception:  # noqa: BLE001  # it is closed, None, or no stream at all
        return False
