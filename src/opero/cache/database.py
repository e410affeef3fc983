"""The SQLite file under the `disk` backend: its connections, over threads, forks and damage."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import weakref
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from opero.observe.logs import logger
from opero.runtime.byte_locks import ARE_THERE, Locks, Mutex

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Database"]

FILE, LOCKS = "opero.sqlite3", "opero.locks"
TABLE = """
CREATE TABLE IF NOT EXISTS entries
    (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value BLOB NOT NULL, expires REAL);
CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires) WHERE expires IS NOT NULL;
"""
PATIENCE = 5.0
"""Seconds for making a fresh file, which many processes may try at once."""


class Database:
    """One file, and its connections: each is used by one thread at a time, by the process that opened it alone.

    Backends for the same file share it. A fork waits for operations under way, and closes all connections: SQLite keeps
    its locks by process, so a child that inherits a connection takes the parent's locks for its own, and loses what it
    writes when the parent closes the file.
    """

    open: ClassVar[weakref.WeakValueDictionary[tuple[str, float], Database]] = weakref.WeakValueDictionary()
    lock = threading.RLock()  # as whoever forks may use a cache in a hook of its own
    """Held while a database is opened, and while the process forks."""
    forker: ClassVar[int | None] = None
    """The thread that forks."""

    @classmethod
    def at(cls, directory: Path, timeout: float) -> Database:
        with cls.lock:
            key = (os.path.abspath(directory), timeout)
            found = cls.open.get(key)
            if found is None:
                found = cls.open[key] = cls(directory, timeout)
            return found

    def __init__(self, directory: Path, timeout: float) -> None:
        _make_directory(directory)
        self.path = directory / FILE
        self.timeout = timeout
        self.locks = Locks.at(directory / LOCKS)
        self._idle: list[sqlite3.Connection] = []
        self._used: list[None] = []  # an item for each operation under way; append and pop are atomic
        self._generation = 0
        self._close = weakref.finalize(self, _close_all, self._idle)
        patience = max(timeout, PATIENCE)
        try:
            self._idle.append(self._connect(patience))
        except sqlite3.DatabaseError as error:
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "No permission to write there", str(directory)) from error
            if not _is_damage(error):
                raise
            self._set_aside(error)
            self._idle.append(self._connect(patience))

    def run(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        """The result of an operation on a connection; tried again, on a new file, where this one is damaged."""
        self._used.append(None)
        try:
            # The fork looks at the line above only after it is known here.
            while (forker := Database.forker) is not None and forker != threading.get_ident():
                self._used.pop()
                with Database.lock:
                    self._used.append(None)
            try:
                return self._run(operation)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._renew()
                self._set_aside(error)
            return self._run(operation)
        finally:
            self._used.pop()

    def write(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        """The same in a transaction."""

        def transaction(connection: sqlite3.Connection) -> Any:
            connection.execute("BEGIN IMMEDIATE")  # a failure closes the connection, and so takes all of it back
            result = operation(connection)
            connection.execute("COMMIT")
            return result.rowcount if isinstance(result, sqlite3.Cursor) else result

        return self.run(transaction)

    def close(self) -> None:
        _close_all(self._idle)

    def before_fork(self, until: float) -> None:
        while self._used and time.monotonic() < until:
            time.sleep(0.0005)
        self.close()

    def after_fork(self) -> None:
        """SQLite forbids to use, and even to close, a connection in another process than its own."""
        _inherited.extend(self._idle)
        self._idle.clear()
        self._used.clear()

    def _renew(self) -> None:
        """Use no connection any more that is open by now: the file may be another."""
        self._generation += 1
        self.close()

    def _run(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        generation = self._generation
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect(self.timeout)
        try:
            result = operation(connection)
        except BaseException:  # an interruption, too: who knows what state it is in
            connection.close()
            raise
        if generation == self._generation:
            self._idle.append(connection)
        else:
            connection.close()
        return result

    def _connect(self, patience: float) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=patience, isolation_level=None, check_same_thread=False)
        until = time.monotonic() + patience
        while True:
            try:
                # Whoever is not the first finds the file in this mode and the table there, and need not lock it.
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'by_expiry'").fetchone()[0] == 0:
                    connection.executescript(TABLE)
                connection.execute(f"PRAGMA busy_timeout={round(self.timeout * 1000)}")
                return connection
            except sqlite3.OperationalError as error:  # changing the mode does not wait for others
                if "locked" not in str(error) or time.monotonic() > until:
                    connection.close()
                    raise
                time.sleep(0.01)
            except BaseException:
                connection.close()
                raise

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Make way for a new file, unless another process or thread has done so; a cache can be filled anew."""
        mutex = Mutex(self.locks, "the file itself") if ARE_THERE else None
        if mutex is not None:
            mutex.acquire()
        try:
            if self._is_whole():
                return
            self._renew()
            for suffix in ("-wal", "-shm", ""):  # the file last: a new one must never meet the old one's log
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{self.path}.damaged{suffix}")
            logger.warning(
                "the cache's file %s was damaged (%s); it is set aside as %s.damaged", self.path, error, FILE
            )
        finally:
            if mutex is not None:
                mutex.release()

    def _is_whole(self) -> bool:
        try:
            with closing(self._connect(self.timeout)) as connection:
                found: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return False
        return found == "ok"


def _make_directory(directory: Path) -> None:
    for each in reversed([directory, *directory.parents]):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorname", "").partition("_")[2].partition("_")[0] in ("CORRUPT", "NOTADB")


def _close_all(connections: list[sqlite3.Connection]) -> None:
    while connections:
        with suppress(IndexError):
            connections.pop().close()


_inherited: list[sqlite3.Connection] = []
"""Connections of the process that this one was forked from. They are never closed here."""


def _before_fork() -> None:
    Database.lock.acquire()
    Database.forker = threading.get_ident()
    until = time.monotonic() + PATIENCE  # an operation that this very thread was interrupted in would never end
    for database in list(Database.open.values()):
        database.before_fork(until)


def _after_fork_in_parent() -> None:
    Database.forker = None
    Database.lock.release()


def _after_fork_in_child() -> None:
    Database.lock = threading.RLock()
    Database.forker = None
    for database in list(Database.open.values()):
        database.after_fork()
    for locks in list(Locks.open.values()):
        locks.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
