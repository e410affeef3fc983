"""The SQLite file of the `disk` backend: connections for threads and forked processes, and recovery from damage."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from opero.runtime.byte_locks import Locks, Mutex
from opero.runtime.file_locks import HAS_LOCKS
from opero.runtime.forking import RenewedLock, at_fork
from opero.runtime.log import log

if TYPE_CHECKING:
    from pathlib import Path

FILE, LOCKS = "opero.sqlite3", "opero.locks"
TABLE = """
CREATE TABLE IF NOT EXISTS entries
    (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value BLOB NOT NULL, expires REAL);
CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires) WHERE expires IS NOT NULL;
"""
MOST_LOG = 16 << 20
"""Bytes of the write-ahead log from which on a writer empties it. SQLite itself does so only without readers."""
LOG_KEPT = 4 << 20
SETUP_TIMEOUT = 5.0
"""Seconds for creating a new file, which many processes may try at once, and for operations to end before a fork."""
CANNOT_WRITE = ("READONLY", "CANTOPEN", "FULL", "IOERR", "PERM")
"""Kinds of SQLite's errors after which a file may still be read: for its log it needs to write, even to read."""


class Database:
    """An SQLite file and its connections, which the backends for the same file share.

    Each connection is used by one thread at a time, and only by the process that opened it. A fork waits for running
    operations and closes all connections: SQLite's locks belong to processes, so a child that used an inherited
    connection would take the parent's locks for its own, and lose its writes when the parent closes the file.

    The directory and the file are made by the first operation that succeeds. Where nothing can be written, as in a
    read-only image or on a full disk, a file that is there is read as it is, as long as it does not change.

    Attributes:
        checks: called before a file is opened; they raise an exception where it must not be.
    """

    open: ClassVar[weakref.WeakValueDictionary[tuple[str, float], Database]] = weakref.WeakValueDictionary()
    lock = RenewedLock()  # reentrant, as the forking thread may use a cache in another fork hook
    """Held while a database is opened, and while the process forks."""
    forking_thread: ClassVar[int | None] = None
    """The identifier of the thread that forks, or None."""

    @classmethod
    def at(cls, directory: Path, timeout: float) -> Database:
        """Return the open database of a directory, or open it."""
        with cls.lock:
            key = (os.path.abspath(directory), timeout)
            found = cls.open.get(key)
            if found is None:
                found = cls.open[key] = cls(directory, timeout)
            return found

    def __init__(self, directory: Path, timeout: float) -> None:
        self.path = directory / FILE
        self.timeout = timeout
        self.locks = Locks.at(directory / LOCKS)
        self._idle: list[sqlite3.Connection] = []
        self._used: list[None] = []  # one item per running operation; append and pop are atomic
        self._generation = 0
        self._close = weakref.finalize(self, _close_all, self._idle)
        self.checks: list[Callable[[], object]] = []
        self._frozen: tuple[Any, ...] | None = None
        """The stamp of the file when it was opened as immutable; None if it was opened as usual."""

    def run(self, operation: Callable[[sqlite3.Connection], Any], *, writes: bool = False) -> Any:
        """Return the result of an operation on a connection, and retry it on a new file if this one is damaged."""
        self._used.append(None)
        try:
            # A fork sets `forking_thread` before it waits for `_used` to become empty, so it cannot miss this one.
            while (forking := Database.forking_thread) is not None and forking != threading.get_ident():
                self._used.pop()
                with Database.lock:
                    self._used.append(None)
            if self._frozen is not None and (writes or self._frozen != self._as_it_is()):
                self._discard_connections()  # it may be writable by now
            try:
                return self._run(operation, writes)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    if writes and _kind(error) == "READONLY":
                        self._discard_connections()
                    raise
                if self._frozen is not None:
                    raise
                self._discard_connections()
                try:
                    self._replace_damaged(error)
                except OSError:  # in a directory that is read-only
                    raise error from None
            return self._run(operation, writes)
        finally:
            self._used.pop()

    def write(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run an operation in a transaction, and return its result; for a cursor, the number of changed rows."""

        def transaction(connection: sqlite3.Connection) -> Any:
            connection.execute("BEGIN IMMEDIATE")  # a failure closes the connection, which rolls back
            result = operation(connection)
            connection.execute("COMMIT")
            return result.rowcount if isinstance(result, sqlite3.Cursor) else result

        return self.run(transaction, writes=True)

    def bound_log(self) -> None:
        """Empty the write-ahead log if it is large; otherwise constant readers let it grow without end."""
        with suppress(OSError, sqlite3.OperationalError):  # another writer is at it, and a later one tries again
            if os.stat(f"{self.path}-wal").st_size > MOST_LOG:
                self.run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())

    def close(self) -> None:
        """Close the connections that are not in use."""
        _close_all(self._idle)

    def before_fork(self, until: float) -> None:
        """Wait until no operation runs, at most until the given `time.monotonic`, and close all connections."""
        while self._used and time.monotonic() < until:
            time.sleep(0.0005)
        self.close()

    def after_fork(self) -> None:
        """Drop inherited connections without closing them: SQLite forbids even that in another process."""
        _inherited.extend(self._idle)
        self._idle.clear()
        self._used.clear()

    def _discard_connections(self) -> None:
        """Stop using the connections that are open now, as the file may have been replaced."""
        self._generation += 1
        self._frozen = None
        self.close()

    def _run(self, operation: Callable[[sqlite3.Connection], Any], writes: bool) -> Any:
        generation = self._generation
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect() if writes else self._connect_somehow()
        try:
            result = operation(connection)
        except BaseException:  # also an interruption, after which the connection's state is unknown
            connection.close()
            raise
        if generation == self._generation:
            self._idle.append(connection)
        else:
            connection.close()
        return result

    def _connect_somehow(self) -> sqlite3.Connection:
        """Open the file to read and write, or else only to read."""
        try:
            return self._connect()
        except (sqlite3.OperationalError, OSError) as error:
            if isinstance(error, sqlite3.OperationalError) and _kind(error) not in CANNOT_WRITE:
                raise
            frozen = self._as_it_is()
            if not frozen or frozen[-1]:  # no file; or somebody writes to it
                raise
            try:
                connection = self._connect_to_frozen()
            except sqlite3.Error:
                raise error from None
            self._frozen = frozen
            return connection

    def _connect_to_frozen(self) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _as_it_is(self) -> tuple[Any, ...]:
        """Return what identifies the state of the file, and whether its log has something in it; () without a file."""
        try:
            status = self.path.stat()
        except OSError:
            return ()
        try:
            logged = os.stat(f"{self.path}-wal").st_size > 0
        except OSError:
            logged = False
        return (status.st_ino, status.st_size, status.st_mtime_ns, logged) if status.st_size else ()

    def _connect(self) -> sqlite3.Connection:
        timeout = self.timeout
        if not self.path.exists():
            timeout = max(timeout, SETUP_TIMEOUT)
            make_directory(self.path.parent)
        for check in self.checks:
            check()
        with suppress(FileExistsError):  # SQLite would make it readable by others; its other files get the same mode
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        until = time.monotonic() + timeout
        while True:
            try:
                # Only the first connection sets the mode and creates the table; the others need no lock for it.
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(f"PRAGMA journal_size_limit={LOG_KEPT}").fetchone()
                if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'by_expiry'").fetchone()[0] == 0:
                    connection.executescript(TABLE)
                connection.execute(f"PRAGMA busy_timeout={round(self.timeout * 1000)}")
                self.checks.clear()
                return connection
            except sqlite3.OperationalError as error:  # changing the mode does not wait for a lock
                if "locked" not in str(error) or time.monotonic() > until:
                    connection.close()
                    raise
                time.sleep(0.01)
            except BaseException:
                connection.close()
                raise

    def _replace_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Rename the damaged file, unless another process or thread has done so; a new file is created at its path."""
        mutex = Mutex(self.locks, "the file itself") if HAS_LOCKS else None
        if mutex is not None:
            mutex.acquire()
        try:
            if self._is_whole():
                return
            self._discard_connections()
            for suffix in ("-wal", "-shm", ""):  # the main file last: a new one must not find the old log
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{self.path}.damaged{suffix}")
            text = "cache file %s is damaged (%s); it was renamed to %s.damaged"
            log("cache_file_damaged", text, self.path, error, FILE, path=self.path, error=error)
        finally:
            if mutex is not None:
                mutex.release()

    def _is_whole(self) -> bool:
        try:
            with closing(self._connect()) as connection:
                found: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return False
        return found == "ok"


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, where they are missing, for this user alone; none if it cannot exist."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(directory)
    for each in reversed([directory, *directory.parents]):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return _kind(error) in ("CORRUPT", "NOTADB")


def _kind(error: sqlite3.Error) -> str:
    """Return the primary code of an error, such as "READONLY" for SQLITE_READONLY_CANTINIT."""
    return str(getattr(error, "sqlite_errorname", "")).partition("_")[2].partition("_")[0]


def _close_all(connections: list[sqlite3.Connection]) -> None:
    while connections:
        with suppress(IndexError):
            connections.pop().close()


_inherited: list[sqlite3.Connection] = []
"""Connections that the parent process opened. They are kept here so that they are never closed."""


def _before_fork() -> None:
    Database.lock.acquire()
    Database.forking_thread = threading.get_ident()
    until = time.monotonic() + SETUP_TIMEOUT  # bounded: the forking thread may itself be inside an operation
    for database in list(Database.open.values()):
        database.before_fork(until)


def _after_fork_in_parent() -> None:
    Database.forking_thread = None
    Database.lock.release()


def _after_fork_in_child() -> None:
    Database.forking_thread = None
    Database.lock.release()
    for database in list(Database.open.values()):
        database.after_fork()


at_fork(before=_before_fork, in_parent=_after_fork_in_parent, in_child=_after_fork_in_child)
