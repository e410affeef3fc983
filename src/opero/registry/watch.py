"""Reload a registry when a file changes, or when the process receives SIGHUP."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from opero.errors import ConfigError
from opero.events import ConfigurationRejected, ConfigurationReloaded
from opero.observe.subscriptions import emit
from opero.registry.sighup import hear_sighup, stop_hearing_sighup
from opero.runtime import forking
from opero.runtime.log import log

if TYPE_CHECKING:
    from pathlib import Path

    from opero.registry.reload import Changes

INTERVAL = 0.1
"""Seconds between looks at the watched files."""
SETTLED = 0.05
"""Seconds for which files must stay the same before they are read: a writer may need several steps."""
SETTLED_AT_LATEST = 1.0
"""Seconds after which files are read even if they keep changing."""

PLACES = r"\bline \d+|(?<=\.yaml|.\.yml):\d+:\d+"
"""Other places that the text of a problem refers to."""

Stamp = tuple[int, ...]
"""Identifies what is at a path; it differs once something else is there."""


class Watch:
    """Reloads a registry until `stop()` or the end of its `with` block. Its threads end with the program.

    Files are polled: that finds every change that matters, also a directory that replaces another, a link that points
    elsewhere, and files on network volumes, none of which operating systems report reliably. An idle watch takes some
    0.2% of a processor.

    Args:
        reload: reloads the registry; returns what has changed.
        paths: returns the files and directories to watch; asked before each look, as they may change. None: none.
        sighup: whether SIGHUP reloads.

    Raises:
        ConfigError: `sighup` was requested outside the main thread, or the platform has no SIGHUP.
    """

    def __init__(
        self, reload: Callable[[], Changes], paths: Callable[[], Iterable[Path]] | None, *, sighup: bool
    ) -> None:
        self._reload_registry = reload
        self._requests: SimpleQueue[str | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._reported: frozenset[str] = frozenset()
        self._sighup = sighup
        self._threads = [threading.Thread(target=self._reload_when_asked, name="opero-reload", daemon=True)]
        if paths is not None:
            watching = threading.Thread(target=self._watch_files, args=(paths,), name="opero-watch", daemon=True)
            self._threads.append(watching)
        if sighup:
            hear_sighup(self._on_sighup)
        self._generation = forking.generation
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching. A reload under way is finished first."""
        if self._stopping.is_set() or self._generation != forking.generation:  # the threads are those of a parent
            return
        self._stopping.set()
        self._requests.put(None)
        if self._sighup:
            stop_hearing_sighup(self._on_sighup)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # Requests

    def _watch_files(self, paths: Callable[[], Iterable[Path]]) -> None:
        known: dict[str, Stamp] | None = None  # the first look reloads: a file may have changed since it was read
        while not self._stopping.is_set():
            now = _snapshot(paths())
            if now != known:
                known = self._wait_until_settled(paths, now)
                self._requests.put("a file has changed")
            self._stopping.wait(INTERVAL)

    def _wait_until_settled(self, paths: Callable[[], Iterable[Path]], now: dict[str, Stamp]) -> dict[str, Stamp]:
        until = time.monotonic() + SETTLED_AT_LATEST
        while not self._stopping.wait(SETTLED):
            before, now = now, _snapshot(paths())
            if now == before or time.monotonic() > until:
                break
        return now

    def _on_sighup(self) -> None:
        self._requests.put("SIGHUP")

    # Reloads

    def _reload_when_asked(self) -> None:
        while (reason := self._requests.get()) is not None:
            while not self._requests.empty():  # several requests need one reload
                more = self._requests.get()
                if more is None:
                    return
            try:
                self._reload(reason)
            except BaseException as error:  # noqa: BLE001  # an event handler or an imported module may raise anything
                log("reload_failed", "reloading the configuration failed", error=error, traceback=True)

    def _reload(self, reason: str) -> None:
        try:
            found = self._reload_registry()
        except ConfigError as error:
            problems = _without_places(error)
            if problems != self._reported:
                self._reported = problems
                text = "configuration: not reloaded (%s); the previous configuration stays in force: %s"
                said = "; ".join(f"{each.place}: {each.text}" for each in error.problems) or str(error)
                log("configuration_rejected", text, reason, said, reason=reason, error=error)
                emit(ConfigurationRejected, error=error)
            return
        if self._reported and not found:
            log("configuration_valid", "configuration: valid again, and equal to the one in force")
            emit(ConfigurationReloaded, changes=())
        self._reported = frozenset()
        if found:
            names = ", ".join([*found.profiles, *found.functions, *found.alerts])
            text, lists = "configuration: reloaded (%s): %s", (found.profiles, found.functions)
            log("configuration_reloaded", text, reason, names, reason=reason, profiles=lists[0], functions=lists[1])


def _without_places(error: ConfigError) -> frozenset[str]:
    """The problems without their lines: an unchanged mistake that only moves is not reported again."""
    texts = (f"{each.file or each.place}: {each.text}" for each in error.problems)
    return frozenset(re.sub(PLACES, "", text) for text in texts)


def _snapshot(paths: Iterable[Path]) -> dict[str, Stamp]:
    """Stamp each path, and each entry of those that are directories."""
    stamps: dict[str, Stamp] = {}
    for path in paths:
        name = os.fspath(path)
        stamps[name] = _stamp(name)
        try:
            with os.scandir(name) as entries:
                names = [entry.path for entry in entries]
        except OSError:  # not a directory, or not there
            continue
        stamps.update((each, _stamp(each)) for each in names)
    return stamps


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)  # follows links
    except OSError:
        return ()
    if stat.S_ISDIR(found.st_mode):  # of a directory only the identity: its entries have stamps of their own
        return found.st_dev, found.st_ino
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
