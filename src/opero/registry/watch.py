"""Reloading by itself: when a file changes, or when the process gets SIGHUP."""

from __future__ import annotations

import logging
import re
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from opero.errors import ConfigError
from opero.observe.events import emit, emit_quietly
from opero.observe.logs import logger
from opero.registry.changes import changes, require_watchfiles
from opero.registry.sighup import hear_sighup, no_longer_hear_sighup

if TYPE_CHECKING:
    from pathlib import Path

    from opero.registry.registry import Registry

__all__ = ["Watch"]


LINES = r"\bline \d+|(?<=\.yaml|.\.yml):\d+:\d+"
"""Other places that a problem's text tells of."""


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
        self._told: frozenset[str] = frozenset()
        self._sighup = sighup
        if not files and not sighup:
            raise ConfigError("watch(files=False) watches nothing; write sighup=True, or leave files on")
        self._threads = [threading.Thread(target=self._reload_when_asked, name="opero-reload", daemon=True)]
        if not files and registry._read is None:
            raise ConfigError("this registry was made of policies in code, so there is nothing to read again")
        if files:
            if not registry.watched_paths():
                raise ConfigError("this registry was not read from any file, so there is nothing to watch")
            require_watchfiles()
            self._threads.append(threading.Thread(target=self._watch_files, name="opero-watch", daemon=True))
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

    def _watch_files(self) -> None:
        for _ in changes(self._paths, self._stopping):
            self._requests.put("a file has changed")

    def _paths(self) -> list[Path]:
        # The files too: one may be a link into a directory that nobody watches.
        return list(dict.fromkeys([*self._registry.watched_paths(), *self._registry.configuration.files]))

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
            except BaseException:  # noqa: BLE001  # watching goes on, whatever a handler or a module that was imported raises
                logger.exception("reloading the configuration failed")

    def _reload(self, reason: str) -> None:
        try:
            found = self._registry.reload()
        except ConfigError as error:
            told = _apart_from_lines(error)
            if told != self._told:
                self._told = told
                emit(
                    "configuration_rejected",
                    "configuration",
                    f"not reloaded ({reason}), and what held goes on: {error}",
                    level=logging.ERROR,
                    error=error,
                )
            return
        if self._told and not found:
            logger.info("configuration: is right again, and says what has held all along")
        self._told = frozenset()
        if found:
            names = ", ".join([*found.profiles, *found.functions])
            logger.info("configuration: reloaded (%s): %s", reason, names)
            emit_quietly("configuration_reloaded", "configuration", f"reloaded: {names}", changes=found)


def _apart_from_lines(error: ConfigError) -> frozenset[str]:
    """What is wrong, wherever in its file: an unchanged mistake is no news when a line is put in before it."""
    texts = (f"{each.file or each.place}: {each.text}" for each in error.problems)
    return frozenset(re.sub(LINES, "", text) for text in texts)
