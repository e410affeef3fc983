"""Metrics of programs with several processes, as under gunicorn: each writes its own to a file, and any can show all.

`prometheus_client` shares no collector between processes, only what its own counters write into files at each call. So
each process writes a snapshot into the same directory: every second if something has changed, more rarely where that
takes long, and at its end. Whoever is scraped adds up the files. What a process has counted outlives it; its gauges do
not. A process that lives has the lock of its file, which the kernel releases when it dies, in whichever way.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol

from opero.errors import describe
from opero.integrations.metrics import BY_NAME
from opero.integrations.reading import Distribution, Values, merge
from opero.observe.subscriptions import is_worker
from opero.runtime.byte_locks import Locks, Mutex
from opero.runtime.forking import RenewedLock, at_fork
from opero.runtime.log import log

if TYPE_CHECKING:

    class Read(Protocol):
        def __call__(self, *, only_counts: bool = False) -> Values: ...


VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX, SUFFIX = "opero-", ".json"
GONE = "opero-gone.json"
"""What processes have counted that do not exist any more."""
LOCKS = "opero.lock"
SHORTEST_PAUSE = 1.0
"""Seconds between two snapshots, at least."""
MOST_SHARE = 0.02
"""The share of its time that a process spends on snapshots, at most."""


def directory() -> Path | None:
    """Return the directory that the processes of the program share; None if it has one process."""
    path = os.environ.get(VARIABLE) or os.environ.get(VARIABLE.lower())
    return Path(path).absolute() if path else None


class ProcessFiles:
    """The files of the processes of a program, of which this process writes one.

    Args:
        folder: the directory, which exists.
        read: returns the values of this process.

    Raises:
        ValueError: there is no such directory.
    """

    def __init__(self, folder: Path, read: Read) -> None:
        if not folder.is_dir():
            raise ValueError(f"{VARIABLE}: there is no directory {str(folder)!r}: create it before the program starts")
        self._folder = folder
        self._read = read
        self._locks = Locks.at(folder / LOCKS)
        self._lock = RenewedLock()
        self._is_closed = False
        self._before: Values = {}
        """What the process from which this one was forked had counted by then."""
        with suppress(OSError):  # it is another user's, as of a server that gives up its privileges
            (folder / LOCKS).touch(0o666)
            (folder / LOCKS).chmod(0o666)
        self._begin()
        atexit.register(self.write)
        _open.append(self)

    def _begin(self) -> None:
        self._name = f"{PREFIX}{os.getpid()}-{token_hex(4)}{SUFFIX}"
        self._own = Mutex(self._locks, self._name)
        self._own.acquire()
        self._written = ""
        self._wake = threading.Event()
        threading.Thread(target=self._work, args=(self._wake,), name="opero-metrics", daemon=True).start()

    def begin_again(self) -> None:
        """In a forked child: have a file of its own, from which the counts of the parent are left out."""
        with suppress(Exception):  # such as a default registry that cannot be loaded
            counted = self._read(only_counts=True)
            self._before = {name: series for name, series in counted.items() if BY_NAME[name].kind != "gauge"}
        self._begin()
        util = sys.modules.get("multiprocessing.util")
        if util is not None:  # a process of its ends without running what atexit has, and begins by forgetting its own
            util.register_after_fork(self, lambda files: util.Finalize(None, files.write, exitpriority=0))

    def close(self) -> None:
        """Write a last time, and no more."""
        self.write()
        self._is_closed = True
        _open.remove(self)
        atexit.unregister(self.write)
        self._wake.set()
        self._own.release()

    def write(self) -> None:
        """Write what this process has counted, if it has changed."""
        with self._lock:
            if self._is_closed or is_worker():
                return
            text = json.dumps({name: list(series.items()) for name, series in self._values().items()})
            if text != self._written:
                _replace(self._folder / self._name, text)
                self._written = text

    def gather(self) -> Values:
        """Return the values of all processes, those that have ended included."""
        found = self._values()
        gone = Mutex(self._locks, GONE)
        gone.acquire()
        try:
            kept, names = self._keep_gone()
            merge(found, kept)
            for path in self._others():
                if path.name not in names:
                    merge(found, _load(path))
        finally:
            gone.release()
        return found

    def _values(self) -> Values:
        values = self._read()
        for name, series in self._before.items():
            for labels, before in series.items():
                if labels in values.get(name, ()):
                    left = values[name][labels] - before
                    values[name][labels] = left if isinstance(left, Distribution) else max(0, left)
        return values

    def _others(self) -> list[Path]:
        return [each for each in self._folder.glob(f"{PREFIX}*{SUFFIX}") if each.name not in (self._name, GONE)]

    def _keep_gone(self) -> tuple[Values, list[str]]:
        """Move the counts of processes that have ended to one file; return its values, and the files moved last."""
        path = self._folder / GONE
        known = json.loads(path.read_text("utf-8")) if path.exists() else {"files": [], "values": {}}
        gone, names = _values_of(known["values"]), known["files"]
        ended = [each for each in self._others() if self._has_ended(each.name)]
        if ended:
            for each in ended:
                if each.name not in names:  # else only its removal is left to do
                    merge(gone, _load(each), gauges=False)
            names = [each.name for each in ended]
            values = {name: list(series.items()) for name, series in gone.items()}
            _replace(path, json.dumps({"files": names, "values": values}))
            for each in ended:
                with suppress(OSError):  # in a directory where users may remove their own files only
                    each.unlink()
        return gone, names

    def _has_ended(self, name: str) -> bool:
        lock = Mutex(self._locks, name)
        if not lock.acquire(wait=False):
            return False
        lock.release()
        return True

    def _work(self, wake: threading.Event) -> None:
        pause = SHORTEST_PAUSE
        while not wake.wait(pause):
            began = time.perf_counter()
            try:
                self.write()
            except Exception as error:  # noqa: BLE001  # such as a full disk: later snapshots have it all
                text = "the metrics of this process cannot be written: %s"
                log("metrics_not_written", text, describe(error), error=error)
                pause = 60.0
                continue
            pause = max(SHORTEST_PAUSE, (time.perf_counter() - began) / MOST_SHARE)


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole: a reader finds the old one or the new one."""
    draft = path.with_suffix(".new")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def _load(path: Path) -> Values:
    try:
        return _values_of(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:  # its process has closed it meanwhile
        return {}


def _values_of(data: dict[str, Any]) -> Values:
    return {
        name: {
            tuple(labels): Distribution(tuple(value[0]), value[1]) if BY_NAME[name].kind == "histogram" else value
            for labels, value in series
        }
        for name, series in data.items()
        if name in BY_NAME  # another version of opero may have written it
    }


_open: list[ProcessFiles] = []


def _forked() -> None:
    for each in _open:
        each.begin_again()


at_fork(in_child=_forked)  # after the locks of files have been renewed
