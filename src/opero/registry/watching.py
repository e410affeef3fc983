"""Reloading by itself: when a file changes, or when the process gets SIGHUP."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from opero.errors import ConfigError, MissingExtraError
from opero.events import emit, emit_quietly
from opero.logs import logger
from opero.registry.signals import hear_sighup, no_longer_hear_sighup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opero.registry.registry import Registry

__all__ = ["Watch"]

STEP, DEBOUNCE, LOOK = 50, 200, 500
"""Milliseconds: how often changes are looked for, how long those of one moment are gathered, and how often whether to
stop."""


class Watch:
    """Reloads a registry until `stop()`, or the end of its `with` block. Its threads end with the program.

    Args:
        registry: what to reload.
        files: whether to look at files and directories.
        sighup: whether SIGHUP reloads.

    Raises:
        ConfigError: there is nothing to watch, or it cannot be watched from here.
        MissingExtraError: `files` needs the extra `watch`.
    """

    def __init__(self, registry: Registry, *, files: bool, sighup: bool) -> None:
        self._registry = registry
        self._requests: SimpleQueue[str | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._told = ""
        self._sighup = sighup
        if not files and not sighup:
            raise ConfigError("watch(files=False) watches nothing; write sighup=True, or leave files on")
        self._threads = [threading.Thread(target=self._reload_when_asked, name="opero-reload", daemon=True)]
        if files:
            watching = _watch_files(_paths(registry), self._stopping)
            self._threads.append(
                threading.Thread(target=self._ask_for, args=(watching,), name="opero-watch", daemon=True)
            )
        if sighup:
            hear_sighup(self._on_sighup)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it. A reload under way is finished first."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._requests.put(None)
        if self._sighup:
            no_longer_hear_sighup(self._on_sighup)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # Who asks

    def _ask_for(self, changes: Iterator[Any]) -> None:
        has_begun = False
        for changed in changes:
            if changed or not has_begun:  # what has changed before the watching began is found now
                self._requests.put("a file has changed")
            has_begun = True

    def _on_sighup(self) -> None:
        self._requests.put("SIGHUP")

    # Who reloads

    def _reload_when_asked(self) -> None:
        while (reason := self._requests.get()) is not None:
            while not self._requests.empty():  # several at once are one
                more = self._requests.get()
                if more is None:
                    return
            try:
                self._reload(reason)
            except Exception:  # noqa: BLE001  # watching goes on, whatever a handler or a module that was imported has raised
                logger.exception("reloading the configuration failed")

    def _reload(self, reason: str) -> None:
        try:
            changes = self._registry.reload()
        except ConfigError as error:
            told = str(error)
            if told != self._told:
                self._told = told
                emit(
                    "configuration_rejected",
                    "configuration",
                    f"not reloaded ({reason}), and what held goes on: {told}",
                    level=logging.ERROR,
                    error=error,
                )
            return
        if self._told and not changes:
            logger.info("configuration: is right again, and says what has held all along")
        self._told = ""
        if changes:
            names = ", ".join([*changes.profiles, *changes.functions])
            logger.info("configuration: reloaded (%s): %s", reason, names)
            emit_quietly("configuration_reloaded", "configuration", f"reloaded: {names}", changes=changes)


def _paths(registry: Registry) -> list[Path]:
    """The files and directories that the configuration was read from.

    Raises:
        ConfigError: there are none.
    """
    paths = registry.watched_paths()
    if not paths:
        raise ConfigError("this registry was not read from any file, so there is nothing to watch")
    return paths


def _watch_files(paths: list[Path], stopping: threading.Event) -> Iterator[Any]:
    """What gives something whenever one of these changes.

    A file is watched by its directory: editors and orchestrators put another file at its name.
    """
    try:
        from watchfiles import watch
    except ImportError as error:
        raise MissingExtraError("watching files needs the extra of that name: pip install 'opero[watch]'") from error
    directories = {path for path in paths if path.is_dir()}
    files = {path for path in paths if path not in directories}
    outer = {path.parent for path in files} - directories

    def matters(change: object, path: str) -> bool:
        changed = Path(path)
        return changed in files or changed.parent in directories or changed.name == "..data"

    return watch(
        *sorted(directories | outer),
        watch_filter=matters,
        stop_event=stopping,
        debounce=DEBOUNCE,
        step=STEP,
        rust_timeout=LOOK,
        yield_on_timeout=True,
        recursive=False,
        raise_interrupt=False,
    )
